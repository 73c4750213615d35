"""What may be wrong between a configuration and a Slurm cluster, and what to do about it.

look(cluster, scripts) -> Seen      asks Slurm, once for each thing
examine(spec, seen)    -> Findings  verdicts on one model, pure
node_script, read_node_report, node_findings
                                    the same from inside a job: the text of it, and what came back, pure
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from .cluster import CouldNotAsk, Refused
from .commands import directives
from .engines import ENGINES
from .facilities import Node, Partition, Record, Reservation, asked_for, next_maintenance
from .runtimes import RUNTIMES
from .slurm import SlurmCluster
from .spec import ModelSpec, Resources
from .versions import NEWEST, OLDEST, Version, parse_version


class Verdict(Enum):
    OK = "ok"
    WARNING = "warning"
    """It may work; whoever knows the site should look at it."""
    WRONG = "wrong"
    """It will not work like this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was looked at, one `sentence` of what was found, and `advice`: what to do, "" where nothing is."""

    what: str
    verdict: Verdict
    sentence: str
    advice: str = ""


def ok(what: str, sentence: str) -> Finding:
    return Finding(what, Verdict.OK, sentence)


def warning(what: str, sentence: str, advice: str) -> Finding:
    return Finding(what, Verdict.WARNING, sentence, advice)


def wrong(what: str, sentence: str, advice: str) -> Finding:
    return Finding(what, Verdict.WRONG, sentence, advice)


# -- asking Slurm -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What a cluster has answered. `tests`: by model, what Slurm says of its script: `None` for a question unanswered."""

    now: float
    controllers: Mapping[str, bool]
    version: Version | None = None
    configuration: Record = field(default_factory=dict)
    partitions: Sequence[Partition] = ()
    nodes: Sequence[Node] = ()
    reservations: Sequence[Reservation] = ()
    tests: Mapping[str, str | Refused | CouldNotAsk] = field(default_factory=dict)


async def look(cluster: SlurmCluster, scripts: Mapping[str, str], now: float | None = None) -> Seen:
    """Ask a cluster for all of it. `scripts`: each model's, as it would be submitted; nothing is submitted.

    Raises `CouldNotAsk` where no controller answers.
    """
    controllers = await cluster.ping()
    if not any(controllers.values()):
        raise CouldNotAsk(f"no slurmctld answers: {', '.join(controllers)}")
    tests: dict[str, str | Refused | CouldNotAsk] = {}
    for model, script in scripts.items():
        try:
            tests[model] = await cluster.test(script)
        except (Refused, CouldNotAsk) as error:
            tests[model] = error
    return Seen(
        now=time.time() if now is None else now,
        controllers=controllers,
        version=await cluster.version(),
        configuration=await cluster.configuration(),
        partitions=await cluster.partitions(),
        nodes=await cluster.nodes(),
        reservations=await cluster.reservations(),
        tests=tests,
    )


# -- the cluster ------------------------------------------------------------------------------------------------------


def cluster_findings(name: str, seen: Seen) -> Iterator[Finding]:
    """Of one cluster, whatever runs there."""
    what = f"Slurm {name}".strip()
    up = [host for host, answers in seen.controllers.items() if answers]
    down = [host for host, answers in seen.controllers.items() if not answers]
    if down:
        yield warning(f"{what}: controller", f"{', '.join(up)} answers, {', '.join(down)} does not.",
                      "Tell the administrators: if the other one goes too, no replica can be started or replaced.")  # fmt: skip
    else:
        yield ok(f"{what}: controller", f"slurmctld at {', '.join(up)} answers.")
    yield version_finding(what, seen.version, seen.configuration)
    if accounting(seen.configuration):
        yield ok(f"{what}: accounting", "slurmdbd keeps accounts: how jobs ended is known for good.")
    else:
        yield warning(
            f"{what}: accounting",
            "there is no slurmdbd: how a job ended is forgotten some minutes after it has left the queue.",
            "Nothing has to be done; the reason of a failure is then taken from the job's log alone.",
        )


def version_finding(what: str, commands: Version | None, configuration: Record) -> Finding:
    what = f"{what}: version"
    if commands is None:
        return warning(
            what, "sbatch does not tell its version.", "See what `sbatch --version` says: is it Slurm's own?"
        )
    controller = parse_version(f"slurm {configuration.get('SLURM_VERSION', '')}")
    if controller is not None and controller.release != commands.release:
        return warning(
            what,
            f"the commands here are of {commands}, the controller is {controller}.",
            "Slurm allows commands up to three releases older than the controller, and none newer: install the same.",
        )
    if not OLDEST <= commands.release <= NEWEST:
        tested = f"{OLDEST[0]}.{OLDEST[1]:02} to {NEWEST[0]}.{NEWEST[1]:02}"
        return warning(what, f"Slurm {commands} is not among those that were tried ({tested}).",
                       "It may work all the same: try one model first, and tell us.")  # fmt: skip
    return ok(what, f"Slurm {commands}.")


def accounting(configuration: Record) -> bool:
    return "slurmdbd" in configuration.get("AccountingStorageType", "")


# -- a model on it ----------------------------------------------------------------------------------------------------


def model_findings(spec: ModelSpec, seen: Seen) -> Iterator[Finding]:
    """Whether Slurm would run it."""
    partitions = asked_for(seen.partitions, spec.resources.partition or "")
    nodes = [n for n in seen.nodes if n.partition in {p.name for p in partitions}]
    yield partition_finding(spec, partitions, seen.partitions, nodes)
    if partitions:
        yield time_finding(spec, partitions, seen.configuration)
        if spec.resources.gpus:
            yield gpu_finding(spec, nodes)
    yield from account_findings(spec, partitions, seen.configuration)
    yield from maintenance_findings(spec, partitions, seen)
    yield from test_findings(spec, seen)


def partition_finding(
    spec: ModelSpec, partitions: Sequence[Partition], known: Sequence[Partition], nodes: Sequence[Node]
) -> Finding:
    what, asked = f"{spec.name}: partition", spec.resources.partition
    missing = sorted(set(asked.split(",")) - {p.name for p in partitions}) if asked else []
    names = ", ".join(p.name for p in known) or "none"
    if missing or not partitions:
        said = f"there is no partition {', '.join(missing)}" if missing else "no partition is the default one"
        return wrong(
            what, f"{said}; there are: {names}.", f'Set slurm.partition of models."{spec.name}" to one of them.'
        )
    closed = [f"{p.name} is {p.state}" for p in partitions if p.state != "UP"]
    if len(closed) == len(partitions):
        return wrong(
            what, f"{', '.join(closed)}.", "Ask the administrators when it opens again, or choose another one."
        )
    usable = {n.name for n in nodes if n.usable}
    all_nodes = {n.name for n in nodes}
    title = ", ".join(p.name for p in partitions)
    if not usable:
        return wrong(what, f"none of the {len(all_nodes)} nodes of {title} can run jobs now.",
                     "`sinfo -R` says why. Jobs will wait until one comes back.")  # fmt: skip
    return ok(what, f"{title} is up, {len(usable)} of {len(all_nodes)} nodes can run jobs.")


def time_finding(spec: ModelSpec, partitions: Sequence[Partition], configuration: Record) -> Finding:
    """Without EnforcePartLimits Slurm takes a job that asks for too long, and lets it wait for ever."""
    what, asked = f"{spec.name}: time limit", float(spec.resources.time_limit_s)
    limits = {p.name: p.max_time_s for p in partitions}
    allowed = " or ".join(f"{'no limit' if s is None else hours(s)} in {name}" for name, s in limits.items())
    if not asked:
        return warning(
            what,
            f"slurm.time is not set, so it is the partition's own default (at most {allowed}).",
            "Set slurm.time: the longer it is, the fewer replicas have to be replaced.",
        )
    if all(s is not None and asked > s for s in limits.values()):
        return wrong(what, f"{hours(asked)} is asked for, and allowed is {allowed}.",
                     f'Set slurm.time of models."{spec.name}" to at most that: such a job would wait for ever.')  # fmt: skip
    takes = spec.start_timeout_s + spec.lead_s
    if asked < takes:
        return warning(
            what,
            f"{hours(asked)} is little beside start_timeout_s and lead_s ({hours(takes)}).",
            "Ask for more time: a replica that is replaced as soon as it has started serves nobody.",
        )
    return ok(what, f"{hours(asked)}; allowed is {allowed}.")


def hours(seconds: float) -> str:
    if seconds >= 172800:
        return f"{seconds / 86400:.3g} days"
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


def gpu_finding(spec: ModelSpec, nodes: Sequence[Node]) -> Finding:
    what, r = f"{spec.name}: GPUs", spec.resources
    asked = f"{r.gpus} {r.gpu_type or 'GPU' if r.gpus == 1 or r.gpu_type else 'GPUs'}"
    most: dict[str, int] = {}
    for node in nodes:
        for kind, count in node.gpus.items():
            most[kind] = max(most.get(kind, 0), count)
    has = ", ".join(f"{count} {kind or 'GPUs without a type'}" for kind, count in sorted(most.items())) or "no GPU"
    fitting = {
        n.name
        for n in nodes
        if (n.gpus.get(r.gpu_type, 0) if r.gpu_type else max(n.gpus.values(), default=0)) >= r.gpus
    }
    if len(fitting) < r.nodes:
        return wrong(what, f"{asked} on a node is asked for; the largest nodes there have {has}.",
                     f'Correct slurm.gpus and slurm.gpu_type of models."{spec.name}"; `sinfo -o "%N %G"` lists them.')  # fmt: skip
    return ok(what, f"{asked}: {len(fitting)} {'node has' if len(fitting) == 1 else 'nodes have'} them.")


def account_findings(spec: ModelSpec, partitions: Sequence[Partition], configuration: Record) -> Iterator[Finding]:
    """What `sbatch --test-only` cannot tell: without slurmdbd any account and QOS is taken."""
    r = spec.resources
    for kind, name in (("account", r.account), ("QOS", r.qos)):
        if name and not accounting(configuration):
            yield warning(
                f"{spec.name}: {kind}",
                f"{kind} {name} is asked for, but this Slurm has no slurmdbd and takes any.",
                f"Leave slurm.{kind.lower()} out, unless a plugin of the site reads it.",
            )
    for p in partitions:
        out = (r.account in p.denied_accounts) or (
            p.allowed_accounts and r.account and r.account not in p.allowed_accounts
        )
        if out:
            yield wrong(
                f"{spec.name}: account",
                f"account {r.account} may not use partition {p.name}.",
                f"It takes {', '.join(sorted(p.allowed_accounts)) or 'all but ' + ', '.join(sorted(p.denied_accounts))}.",
            )
        if (r.qos and p.allowed_qos and r.qos not in p.allowed_qos) or r.qos in p.denied_qos:
            yield wrong(f"{spec.name}: QOS", f"QOS {r.qos} may not use partition {p.name}.",
                        f"It takes {', '.join(sorted(p.allowed_qos)) or 'others'}.")  # fmt: skip


def maintenance_findings(spec: ModelSpec, partitions: Sequence[Partition], seen: Seen) -> Iterator[Finding]:
    at = next_maintenance([n for p in partitions for n in p.nodes], seen.reservations, seen.now)
    if at is None:
        return
    what = f"{spec.name}: maintenance"
    if at <= seen.now:
        yield warning(
            what, "all nodes of its partition are in maintenance now.", "Nothing: it starts when that is over."
        )
    elif spec.resources.time_limit_s and at - seen.now < spec.resources.time_limit_s:
        shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
        yield warning(what, f"all nodes of its partition go into maintenance at {shown}.",
                      "Nothing: replicas get shorter time limits until then.")  # fmt: skip


def test_findings(spec: ModelSpec, seen: Seen) -> Iterator[Finding]:
    answer = seen.tests.get(spec.name)
    what = f"{spec.name}: submission"
    match answer:
        case None:
            return
        case Refused():
            yield wrong(what, f"{answer}.".replace("..", "."), REFUSED)
        case CouldNotAsk():
            yield warning(what, f"it could not be tried: {answer}.", "Run this again when Slurm answers.")
        case _:
            start = answer.split(" to start at ")[-1] if " to start at " in answer else ""
            yield ok(what, f"Slurm would take it{', and start it at ' + start if start else ''}.")


REFUSED = (
    "Correct the [slurm] keys that the message is about; `slurmgate render MODEL | sbatch --test-only` asks again. "
    "`sacctmgr show assoc user=$USER format=account,partition,qos` lists what you may use."
)

# -- from inside a job ------------------------------------------------------------------------------------------------

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


def needs(specs: Sequence[ModelSpec], shared: Path) -> dict[str, Any]:
    """What the models need on a node: fields of `Asked`."""
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
    lists = {"readable": readable, "writable": writable, "programs": programs, "options": options}
    return {name: tuple(dict.fromkeys(values)) for name, values in lists.items()}


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
        "Let server.host be an address of the nodes' network (or 0.0.0.0), set server.advertise_url to it, and have the "
        "firewall let the nodes through to that port.",
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
        yield wrong("node: python", f"{node} has Python {version}; the agent needs 3.6.",
                    "Set launcher.python to a newer one, with its path, or load it in the model's prologue.")  # fmt: skip
    else:
        yield ok("node: python", f"{node} has Python {version}.")
    for path, there in report["readable"].items():
        if there:
            yield ok("node: files", f"{node} can read {path}.")
        else:
            yield wrong("node: files", f"{node} cannot read {path}.",
                        "Put it on a file system that the nodes share, and let your user read it there.")  # fmt: skip
    for path, there in report["writable"].items():
        if not there:
            yield wrong("node: files", f"{node} cannot write in {path}.",
                        "Choose a directory that exists there and is yours (launcher.shared_dir, local_copy).")  # fmt: skip
    for program, path in report["programs"].items():
        if path:
            yield ok("node: programs", f"{node} has {path}.")
        else:
            yield wrong("node: programs", f"{node} has no {program}.",
                        "Load it in the model's prologue (`module load ...`), or give its path.")  # fmt: skip
    for program, option, there in report["options"]:
        if not there:
            yield wrong("node: programs", f"{program} on {node} does not know {option}.",
                        "This Slurm has not the plugin for it (pyxis): choose another runtime.")  # fmt: skip


def clock_finding(node: str, at: float, sent_at: float, seen_at: float) -> Finding:
    """The node's clock was read between two readings of ours, so only what is outside is certain."""
    apart = at - seen_at if at > seen_at else at - sent_at if at < sent_at else 0.0
    if abs(apart) > CLOCKS_APART_S:
        side = "ahead of" if apart > 0 else "behind"
        return warning("node: clock", f"the clock of {node} is at least {abs(apart):.0f} s {side} this machine's.",
                       "Have the time service (chrony, ntpd) of both looked at: time limits are read from it.")  # fmt: skip
    return ok("node: clock", f"the clocks of {node} and of this machine agree.")
