"""A look at a compute node from inside a job: the job's script, and verdicts on what came back. Pure.

node_check.py runs there; `slurmgate doctor --from-node` submits it and reads the job's output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import Job
from .commands import directives
from .doctor import Finding, ok, warning, wrong
from .engines import ENGINES
from .runtimes import RUNTIMES
from .spec import ModelSpec, Resources

NODE_CHECK = Path(__file__).with_name("node_check.py").read_text(encoding="ascii")
MARK = "SLURMGATE-NODE-CHECK "
DELIMITER = "END_OF_SLURMGATE_NODE_CHECK"
LEAST_PYTHON = (3, 6)
CLOCKS_APART_S = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the job is to look at; see node_check.py."""

    url: str
    path: str
    expect: str
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()


def asks(specs: Sequence[ModelSpec], shared: Path, *, url: str, path: str, expect: str) -> Asked:
    """What the models need on a node, and a gateway that answers at `path` with a text that holds `expect`."""
    readable, writable, programs = [str(shared)], [str(shared)], []
    options: list[tuple[str, str]] = []
    for spec in specs:
        readable += [str(Path(p).expanduser()) for p in (spec.source, spec.image) if p and is_path(p)]
        if spec.local_copy:
            writable.append(spec.local_copy)
        wrapped = RUNTIMES[spec.runtime].wrap(ENGINES[spec.engine].argv(spec), {}, spec)
        if wrapped.step is None:
            programs.append(wrapped.argv[0])
        else:  # the container is srun's own, by a plugin
            programs.append("srun")
            options.append(("srun", "--container-image"))
    once = dict.fromkeys  # keeps the order
    return Asked(
        url,
        path,
        expect,
        readable=tuple(once(readable)),
        writable=tuple(once(writable)),
        programs=tuple(once(programs)),
        options=tuple(once(options)),
    )


def is_path(text: str) -> bool:
    """A file of ours, and no name in a hub or registry."""
    return "://" not in text and text.startswith(("/", "~", "./", "../"))


def node_script(spec: ModelSpec, asked: Asked, *, job_name: str, output: str, python: str, gpu: bool = False) -> str:
    """A job of one minute that looks at its node as this model's replicas would meet it.

    gpu   ask for one GPU: some partitions take no job without
    """
    r = spec.resources
    resources = Resources(
        gpus=1 if gpu else 0,
        gpu_type=r.gpu_type if gpu else None,
        cpus=1,
        time_limit_s=60,
        partition=r.partition,
        account=r.account,
        qos=r.qos,
        constraint=r.constraint,
        reservation=r.reservation,
        extra=r.extra,
    )
    lines = directives(resources, job_name=job_name, comment="slurmgate doctor", output=output, signal_lead_s=0)
    fields = {name: getattr(asked, name) for name in Asked.__dataclass_fields__}
    program = f"import json\nASKED = json.loads({json.dumps(json.dumps(fields))})\n{NODE_CHECK}\nmain(ASKED)\n"
    text = [*lines, "umask 077", *spec.prologue, f"exec {python} - <<'{DELIMITER}'", program.rstrip("\n"), DELIMITER]
    return "\n".join(["#!/bin/bash", *text, ""])


def read_node_report(text: str) -> dict[str, Any] | None:
    """What the job has found; None while its line is not there."""
    for line in text.splitlines():
        if line.startswith(MARK):
            try:
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            except ValueError:  # only half of it is written yet
                return None
            return found
    return None


NETWORK: Mapping[str, tuple[str, str]] = {
    "name": (
        "cannot find the address of {url}: {why}",
        "Set server.advertise_url to an address or a name that compute nodes know.",
    ),
    "connection": (
        "cannot connect to {url}: {why}",
        "Let server.host be an address of the nodes' network (or 0.0.0.0), set server.advertise_url to it, and have the"
        " firewall let the nodes through to that port.",
    ),
    "answer": (
        "connects to {url}, but gets no answer: {why}",
        "See what listens there: is a proxy or a tunnel between?",
    ),
    "identity": (
        "reaches {url}, but something else answers there ({why})",
        "Another program has that address and port: choose another server.port, or correct server.advertise_url.",
    ),
}


def node_findings(report: Mapping[str, Any], asked: Asked, sent_at: float, seen_at: float) -> Iterator[Finding]:
    """Verdicts on what the job has found. It ran between `sent_at` and `seen_at` by our clock."""
    node = report["node"]
    net = report["network"]
    if net["failed_at"] is None:
        yield ok("node: network", f"{node} reaches the gateway at {asked.url} ({1000 * net['took_s']:.0f} ms).")
    else:
        sentence, advice = NETWORK[net["failed_at"]]
        yield wrong("node: network", f"{node} {sentence.format(url=asked.url, why=net['why'])}.", advice)
    yield clock_finding(node, report["at"], sent_at, seen_at)
    version = ".".join(map(str, report["python"]))
    if tuple(report["python"]) < LEAST_PYTHON:
        yield wrong(
            "node: python",
            f"{node} has Python {version}; the agent needs 3.6.",
            "Set launcher.python to a newer one, with its path, or load it in the model's prologue.",
        )
    else:
        yield ok("node: python", f"{node} has Python {version}.")
    yield from file_findings(node, report["readable"], report["writable"])
    yield from program_findings(node, report["programs"], report["options"])


def file_findings(node: str, readable: Mapping[str, bool], writable: Mapping[str, bool]) -> Iterator[Finding]:
    what = "node: files"
    for path, there in readable.items():
        advice = "Put it on a file system that the nodes share, and let your user read it there."
        yield ok(what, f"{node} can read {path}.") if there else wrong(what, f"{node} cannot read {path}.", advice)
    for path, there in writable.items():
        if not there:
            advice = "Choose a directory that exists there and is yours (launcher.shared_dir, local_copy)."
            yield wrong(what, f"{node} cannot write in {path}.", advice)


def program_findings(node: str, programs: Mapping[str, str], options: Sequence[Any]) -> Iterator[Finding]:
    what = "node: programs"
    for program, path in programs.items():
        advice = "Load it in the model's prologue (`module load ...`), or give its path."
        yield ok(what, f"{node} has {path}.") if path else wrong(what, f"{node} has no {program}.", advice)
    for program, option, there in options:
        if not there:
            advice = "This Slurm has not the plugin for it (pyxis): choose another runtime."
            yield wrong(what, f"{program} on {node} does not know {option}.", advice)


def clock_finding(node: str, at: float, sent_at: float, seen_at: float) -> Finding:
    """The node's clock was read between two readings of ours, so only what is outside is certain."""
    apart = at - seen_at if at > seen_at else at - sent_at if at < sent_at else 0.0
    if abs(apart) > CLOCKS_APART_S:
        side = "ahead of" if apart > 0 else "behind"
        return warning(
            "node: clock",
            f"the clock of {node} is at least {abs(apart):.0f} s {side} this machine's.",
            "Have the time service (chrony, ntpd) of both looked at: time limits are read from it.",
        )
    return ok("node: clock", f"the clocks of {node} and of this machine agree.")


def silent_findings(job: Job, text: str, output: str) -> Iterator[Finding]:
    """Of a job that is over and has told nothing. `text`: what else is in its output."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines:
        advice = "Correct launcher.python or the model's prologue: the agent would end in the same way."
        yield wrong("node: python", f"on {job.node or 'the node'} the job's shell says: {lines[-1][:300]}.", advice)
        return
    ended = f"{job.state}, {job.reason}" if job.reason else job.state
    advice = (
        "Set launcher.shared_dir to a directory that is there on the nodes as well, under the same path: job logs and "
        "the gateway's new address after a restart go through it."
    )
    yield wrong(
        "node: files",
        f"job {job.id} ran on {job.node or 'a node'} ({ended}), and {output} is not to be seen here.",
        advice,
    )
