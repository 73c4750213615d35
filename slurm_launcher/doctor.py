"""What may be wrong between a configuration and a Slurm cluster, and what to do about it.

look(cluster, scripts) -> Seen      asks Slurm, once for each thing
examine(spec, seen)    -> Findings  verdicts on one model, pure
node_script, read_node_report, node_findings
                                    the same from inside a job: the text of it, and what came back, pure
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from .cluster import CouldNotAsk, Refused
from .commands import format_duration
from .facilities import Node, Partition, Record, Reservation, asked_for, next_maintenance
from .slurm import SlurmCluster
from .spec import ModelSpec
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
    """What a cluster has answered. `tests`: by model, what Slurm says of its script."""

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
        yield warning(
            f"{what}: controller",
            f"{', '.join(up)} answers, {', '.join(down)} does not.",
            "Tell the administrators: if the other one goes too, no replica can be started or replaced.",
        )
    else:
        yield ok(f"{what}: controller", f"slurmctld at {', '.join(up)} answers.")
    yield version_finding(what, seen.version, seen.configuration)
    if accounting(seen.configuration):
        yield ok(f"{what}: accounting", "slurmdbd keeps accounts: how jobs ended is known for good.")
    else:
        yield ok(f"{what}: accounting", "there is none (slurmdbd): how a job ended is known for some minutes only.")


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
        return warning(
            what,
            f"Slurm {commands} is not among those that were tried ({tested}).",
            "It may work all the same: try one model first, and tell us.",
        )
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
    what, asked = f"{spec.label}: partition", spec.resources.partition
    missing = sorted(set(asked.split(",")) - {p.name for p in partitions}) if asked else []
    names = ", ".join(p.name for p in known) or "none"
    if missing or not partitions:
        said = f"there is no partition {', '.join(missing)}" if missing else "no partition is the default one"
        return wrong(what, f"{said}; there are: {names}.", f"Set slurm.partition of {spec.path} to one of them.")
    closed = [f"{p.name} is {p.state}" for p in partitions if p.state != "UP"]
    if len(closed) == len(partitions):
        return wrong(
            what, f"{', '.join(closed)}.", "Ask the administrators when it opens again, or choose another one."
        )
    usable = {n.name for n in nodes if n.usable}
    all_nodes = {n.name for n in nodes}
    title = ", ".join(p.name for p in partitions)
    if not usable:
        return wrong(
            what,
            f"none of the {len(all_nodes)} nodes of {title} can run jobs now.",
            "`sinfo -R` says why. Jobs will wait until one comes back.",
        )
    return ok(what, f"{title} is up, {len(usable)} of {len(all_nodes)} nodes can run jobs.")


def time_finding(spec: ModelSpec, partitions: Sequence[Partition], configuration: Record) -> Finding:
    """Without EnforcePartLimits Slurm takes a job that asks for too long, and lets it wait for ever."""
    what, asked = f"{spec.label}: time limit", float(spec.resources.time_limit_s)
    limits = {p.name: p.max_time_s for p in partitions}
    allowed = " or ".join(f"{'no limit' if s is None else shown(s)} in {name}" for name, s in limits.items())
    if not asked:
        return warning(
            what,
            f"slurm.time is not set, so it is the partition's own default (at most {allowed}).",
            "Set slurm.time: the longer it is, the fewer replicas have to be replaced.",
        )
    if all(s is not None and asked > s for s in limits.values()):
        return wrong(
            what,
            f"{shown(asked)} is asked for, and allowed is {allowed}.",
            f"Set slurm.time of {spec.path} to at most that: such a job would wait for ever.",
        )
    takes = spec.start_timeout_s + spec.lead_s
    if asked < takes:
        return warning(
            what,
            f"{shown(asked)} is little beside start_timeout_s and lead_s ({shown(takes)}).",
            "Ask for more time: a replica that is replaced as soon as it has started serves nobody.",
        )
    return ok(what, f"{shown(asked)}; allowed is {allowed}.")


def shown(seconds: float) -> str:
    """As one writes it: `02:00:00`, `7-00:00:00`."""
    return format_duration(seconds).removeprefix("0-")


def gpu_finding(spec: ModelSpec, nodes: Sequence[Node]) -> Finding:
    what, r = f"{spec.label}: GPUs", spec.resources
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
        return wrong(
            what,
            f"{asked} on a node is asked for; the largest nodes there have {has}.",
            f'Correct slurm.gpus and slurm.gpu_type of {spec.path}; see `sinfo -o "%N %G"`.',
        )
    return ok(what, f"{asked}: {len(fitting)} {'node has' if len(fitting) == 1 else 'nodes have'} them.")


def gpus_of(node: Node, kind: str | None) -> int:
    """How many of a type one job can have there; of any type, all together."""
    return node.gpus.get(kind, 0) if kind else sum(node.gpus.values())


def account_findings(spec: ModelSpec, partitions: Sequence[Partition], configuration: Record) -> Iterator[Finding]:
    """What `sbatch --test-only` cannot tell: without slurmdbd any account and QOS is taken."""
    r = spec.resources
    for kind, name in (("account", r.account), ("QOS", r.qos)):
        if name and not accounting(configuration):
            yield warning(
                f"{spec.label}: {kind}",
                f"{kind} {name} is asked for, but this Slurm has no slurmdbd and takes any.",
                f"Leave slurm.{kind.lower()} out, unless a plugin of the site reads it.",
            )
    for p in partitions:
        if kept_out(r.account, p.allowed_accounts, p.denied_accounts):
            takes = ", ".join(sorted(p.allowed_accounts)) or f"all but {', '.join(sorted(p.denied_accounts))}"
            sentence = f"account {r.account} may not use partition {p.name}."
            yield wrong(f"{spec.label}: account", sentence, f"It takes {takes}.")
        if kept_out(r.qos, p.allowed_qos, p.denied_qos):
            takes = ", ".join(sorted(p.allowed_qos)) or f"all but {', '.join(sorted(p.denied_qos))}"
            yield wrong(f"{spec.label}: QOS", f"QOS {r.qos} may not use partition {p.name}.", f"It takes {takes}.")


def kept_out(name: str | None, allowed: frozenset[str], denied: frozenset[str]) -> bool:
    """Of a name that is not asked for nothing is known: it is the user's default."""
    return name is not None and (name in denied or (bool(allowed) and name not in allowed))


def maintenance_findings(spec: ModelSpec, partitions: Sequence[Partition], seen: Seen) -> Iterator[Finding]:
    at = next_maintenance([n for p in partitions for n in p.nodes], seen.reservations, seen.now)
    if at is None:
        return
    what = f"{spec.label}: maintenance"
    if at <= seen.now:
        yield warning(what, "all nodes of its partition are in maintenance.", "Nothing: it starts when that is over.")
    elif spec.resources.time_limit_s and at - seen.now < spec.resources.time_limit_s:
        begins = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
        yield warning(
            what,
            f"all nodes of its partition go into maintenance at {begins}.",
            "Nothing: replicas get shorter time limits until then.",
        )


def test_findings(spec: ModelSpec, seen: Seen) -> Iterator[Finding]:
    answer = seen.tests.get(spec.label)
    what = f"{spec.label}: submission"
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
