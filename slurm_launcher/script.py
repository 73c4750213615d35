"""A replica -> the batch script that becomes it. Pure: the same values, the same text.

The script is all that a node gets, so nothing has to be installed there:

    #!/bin/bash, #SBATCH lines          given by whoever submits; none without Slurm
    umask, prologue                     `module load` and the like
    exec python3 - <<'...'              bash becomes Python: signals for the job's shell reach the agent itself
        MANIFEST                        what to run, as JSON; holds the replica's two secrets
        on_node.py, agent.py
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from .engines import ENGINES
from .runtimes import RUNTIMES
from .spec import Launch, ModelSpec, Site
from .steps import on_all_nodes, on_this_node
from .weights import outside

DELIMITER = "END_OF_SLURMGATE_AGENT"
REDACTED = "<redacted>"

SLURM_TERM_GRACE_S = 20.0
"""How long an agent may drain after TERM: with 5 s for the engine's end and some for the last report, it is done before
Slurm's KillWait (30 s by default) is over and KILL comes."""

LOCAL_TERM_GRACE_S = 4.0
"""The same without Slurm, where LocalCluster waits 10 s."""

PROBE_TIMEOUT_S = 120.0
"""For the first token, once the engine says that it is healthy."""


def _carried(name: str) -> str:
    """A module that is carried behind on_node.py: what it imports from there is there already."""
    text = Path(__file__).with_name(name).read_text(encoding="ascii")
    return re.sub(
        r"^from slurm_launcher\.(?:on_node|local_copy) import \(.*?^\)\n", "", text, flags=re.MULTILINE | re.DOTALL
    )


ON_NODE = _carried("on_node.py").rstrip() + "\n"
"""What each node of several runs; a part of the agent."""

LOCAL_COPY = Path(__file__).with_name("local_copy.py").read_text(encoding="ascii").rstrip() + "\n"
"""Carried before the agent for models whose weights are copied to the node."""

AGENT = f"{ON_NODE}\n\n{_carried('agent.py')}"


def manifest(
    spec: ModelSpec,
    launch: Launch,
    site: Site,
    *,
    host: str | None = None,
    cluster_name: str = "",
    redact: bool = False,
) -> dict[str, Any]:
    """All that the agent knows.

    host    the address to serve at, for jobs on the gateway's own machine; None: the agent finds the node's
    """
    config = spec.config_hash
    if redact:  # before anything is built, so that nothing built holds a secret
        launch = replace(launch, token=REDACTED, engine_key=REDACTED)
        spec = replace(spec, environment=tuple((name, REDACTED) for name, _ in spec.environment))
    if spec.resources.nodes > 1 and host is not None:
        raise ValueError("slurm.nodes: only Slurm has several nodes; expected 1")
    copied = None
    if spec.local_copy is not None:
        copied = {"source": outside(spec.source, spec.binds), "directory": spec.local_copy}
        # the agent knows the folder that {weights} is
        spec = replace(spec, source=f"{{weights}}/{PurePosixPath(spec.source).name}")
    engine = ENGINES[spec.engine]
    return {
        "replica": launch.replica_id,
        "model": spec.name,
        "config": config,
        "placement": spec.placement,
        "cluster": cluster_name,
        "gateway_url": site.gateway_url,
        "rendezvous": site.rendezvous,
        "token": launch.token,
        "heartbeat_s": site.heartbeat_s,
        "orphan_timeout_s": site.orphan_timeout_s,
        "start_timeout_s": spec.start_timeout_s,
        "probe_timeout_s": min(PROBE_TIMEOUT_S, spec.start_timeout_s),
        "drain_grace_s": spec.drain_timeout_s,
        "term_grace_s": SLURM_TERM_GRACE_S if host is None else LOCAL_TERM_GRACE_S,
        "host": host,
        "gpus": spec.resources.gpus,
        "engine": {
            **_started(spec, launch, site),
            "local_copy": copied,
            "key": launch.engine_key,
            "health": engine.health,
            "probe": asdict(engine.probe(spec)),
            "guards_key": engine.guards_key,
        },
    }


def _started(spec: ModelSpec, launch: Launch, site: Site) -> dict[str, Any]:
    """How the engine is started: in its container, as a step where that is needed.

    argv, environment, files   as in `runtimes.Wrapped`
    container                  the commands for what a container leaves behind, or None
    follower                   argv on all nodes but the first
    step                       None: argv is the agent's child. Else `argv`, srun's, and `program`, for each node
    """
    engine = ENGINES[spec.engine]
    runtime = RUNTIMES[spec.runtime]
    environment = engine.env(spec, launch.engine_key)
    wrapped = runtime.wrap(engine.argv(spec), environment, spec)
    plan: dict[str, Any] = {
        "argv": wrapped.argv,
        "environment": wrapped.environment,
        "files": wrapped.files,
        "container": wrapped.container,
        "follower": [],
        "step": None,
    }
    if spec.resources.nodes > 1:
        plan["follower"] = runtime.wrap(engine.argv(spec, follower=True), environment, spec).argv
        python = site.python if wrapped.step is None else "python3"  # with pyxis it is the image's
        argv = on_all_nodes(spec.resources.nodes, python, wrapped.step or ())
        plan["step"] = {"argv": argv, "program": f"{LOCAL_COPY}\n\n{ON_NODE}" if spec.local_copy else ON_NODE}
    elif wrapped.step is not None:
        plan["argv"] = on_this_node(wrapped.argv, wrapped.step)
    return plan


def render(
    spec: ModelSpec,
    launch: Launch,
    site: Site,
    *,
    directives: Sequence[str] = (),
    host: str | None = None,
    cluster_name: str = "",
    redact: bool = False,
) -> str:
    """The whole script. `directives`: `#SBATCH` lines. `redact`: for people to read; it would not run."""
    told = manifest(spec, launch, site, host=host, cluster_name=cluster_name, redact=redact)
    return assemble(told, directives=directives, prologue=spec.prologue, python=site.python)


def assemble(
    told: dict[str, Any], *, directives: Sequence[str] = (), prologue: Sequence[str] = (), python: str = "python3"
) -> str:
    """A manifest -> the script.

    With a prologue the shell is a login shell, since `module` is defined in the files that such a shell reads. Python
    runs isolated (`-I -S`): a `json.py` in the home directory or a PYTHONPATH meant for the engine cannot break it.
    """
    shell = "#!/bin/bash -l" if prologue else "#!/bin/bash"
    head = [
        shell,
        *directives,
        "#",
        f"# slurmgate: replica {one_line(told['replica'])} of model {one_line(told['model'])}, in three parts:",
        "#   1. the model's prologue, if it has one;",
        "#   2. MANIFEST, what to run, as JSON; it holds two secrets that are good for this replica only;",
        "#   3. the agent, the same in every script, which starts the engine and reports to the gateway.",
        "# The job ends when the agent does. USR1 and TERM make it drain first.",
        "",
        "umask 077",
        *prologue,
        "",
        f"exec {shlex.quote(python)} -I -S - <<'{DELIMITER}'",
    ]
    text = json.dumps(told, indent=1, ensure_ascii=True)
    body = [
        f'MANIFEST = r"""\n{text}\n"""',
        "",
        *([LOCAL_COPY, ""] if told.get("engine", {}).get("local_copy") else []),
        AGENT.rstrip(),
        "",
        "",
        "sys.exit(main(json.loads(MANIFEST)))",
    ]
    return "\n".join([*head, *body, DELIMITER, ""])


def one_line(text: str) -> str:
    """For a comment: whatever a name holds, it stays behind its `#`."""
    return json.dumps(text)[1:-1]
