"""What a cluster has: partitions, nodes, reservations, as `scontrol show` and `sinfo` tell of them. Pure.

`scontrol show X --oneliner` prints a record a line, `Key=value` by `Key=value`; each release adds keys and drops some
(`Watts=` until 23.11, `AllowedPartitions=` from 25.11), so what is wanted is looked up by name and the rest left aside.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .commands import NODES_FORMAT, parse_duration

Record = dict[str, str]

_NODES_COLUMNS = NODES_FORMAT.count("|") + 1
_NONE = frozenset({"", "(null)", "N/A", "n/a", "NONE", "None"})


def parse_records(text: str, first: str) -> list[Record]:
    """`scontrol show`'s records, one a line or spread over several. `first` is the key that begins each.

    A value may hold blanks (a comment, a list with `, `): it goes on until the next `Key=`.
    """
    records: list[Record] = []
    for block in re.split(rf"(?m)^\s*(?={re.escape(first)}=)", text):
        if block.startswith(f"{first}="):
            parts = re.split(r"(?:^|\s+)([A-Za-z][A-Za-z:]*)=", block.strip())
            pairs = list(zip(parts[1::2], (value.strip() for value in parts[2::2]), strict=True))
            records.append(dict(reversed(pairs)))  # the first wins: a comment, which comes last, may look like a key
    return records


# -- lists of hosts ---------------------------------------------------------------------------------------------------

HOSTS_LIMIT = 200_000
"""More hosts than any cluster has: a list that claims more is not one."""


def expand_hosts(text: str) -> list[str]:
    """`n[1-3,07],gpu[1-2]-ib[0-1],login` -> every name, in its order.

    Numbers keep their zeros (`[08-10]` is 08, 09, 10). Raises `ValueError` for what is no such list.
    """
    if text.strip() in _NONE:
        return []
    names: list[str] = []
    for part in _split(text.strip()):
        for name in itertools.islice(_expand(part), HOSTS_LIMIT + 1):
            names.append(name)
            if len(names) > HOSTS_LIMIT:
                raise ValueError(f"a list of more than {HOSTS_LIMIT} hosts")
    return names


def _split(text: str) -> Iterator[str]:
    """At commas outside brackets."""
    depth, start = 0, 0
    for index, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            raise ValueError(f"{text[:80]!r} is no list of hosts")
        if char == "," and depth == 0:
            yield text[start:index]
            start = index + 1
    if depth:
        raise ValueError(f"{text[:80]!r} is no list of hosts: a bracket is not closed")
    yield text[start:]


def _expand(name: str) -> Iterator[str]:
    before, bracket, rest = name.partition("[")
    if not bracket:
        if not re.fullmatch(r"[\w.-]+", before, re.ASCII):
            raise ValueError(f"{name[:80]!r} is no host's name")
        yield before
        return
    inside, _, after = rest.partition("]")
    for piece in inside.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece, re.ASCII)
        if match is None:
            raise ValueError(f"{name[:80]!r} is no list of hosts")
        first, last = match[1], match[2] or match[1]
        for number in range(int(first), int(last) + 1):
            head = f"{before}{number:0{len(first)}}"
            if after:
                yield from (head + tail for tail in _expand_tail(after))
            else:
                yield head


def _expand_tail(text: str) -> Iterator[str]:
    yield from (name.removeprefix("x") for name in _expand(f"x{text}"))


# -- reservations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reservation:
    """Nodes set aside from `starts_at` to `ends_at`, in seconds since the epoch."""

    name: str
    starts_at: float
    ends_at: float
    nodes: frozenset[str]
    flags: frozenset[str]


def parse_reservations(text: str) -> list[Reservation]:
    """`scontrol show reservation`, asked with `TZ=UTC`, since its times are local and have no zone.

    A reservation of no nodes (licenses only), or with times that say nothing, is left out.
    """
    found = []
    for record in parse_records(text, "ReservationName"):
        try:
            starts_at, ends_at = _utc(record["StartTime"]), _utc(record["EndTime"])
            nodes = frozenset(expand_hosts(record.get("Nodes", "")))
        except (KeyError, ValueError):
            continue
        if nodes:
            flags = frozenset(record.get("Flags", "").split(","))
            found.append(Reservation(record["ReservationName"], starts_at, ends_at, nodes, flags))
    return found


def _utc(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()


def next_maintenance(nodes: Iterable[str], reservations: Iterable[Reservation], now: float) -> float | None:
    """When all of the nodes are in maintenance for the first time from now on; `now` if they are; None for never.

    Several reservations may share the nodes among them. One that leaves a node free stops nothing: jobs go there.
    """
    wanted = frozenset(nodes)
    if not wanted:
        return None
    maintenance = [r for r in reservations if "MAINT" in r.flags and r.ends_at > now]
    for moment in sorted({now, *(r.starts_at for r in maintenance if r.starts_at > now)}):
        gone = frozenset().union(*(r.nodes for r in maintenance if r.starts_at <= moment < r.ends_at))
        if wanted <= gone:
            return moment
    return None


# -- partitions and nodes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Partition:
    """max_time_s is None for no limit; the `allowed_` and `denied_` sets are empty where nobody is kept out."""

    name: str
    state: str
    default: bool
    nodes: tuple[str, ...]
    max_time_s: float | None
    max_nodes: int | None
    allowed_accounts: frozenset[str] = frozenset()
    denied_accounts: frozenset[str] = frozenset()
    allowed_qos: frozenset[str] = frozenset()
    denied_qos: frozenset[str] = frozenset()


def parse_partitions(text: str) -> list[Partition]:
    """`scontrol show partition`."""
    found = []
    for record in parse_records(text, "PartitionName"):
        try:
            nodes = tuple(expand_hosts(record.get("Nodes", "")))
        except ValueError:
            nodes = ()
        most = record.get("MaxNodes", "")
        found.append(
            Partition(
                record["PartitionName"],
                state=record.get("State", "UNKNOWN"),
                default=record.get("Default") == "YES",
                nodes=nodes,
                max_time_s=parse_duration(record.get("MaxTime", "")),
                max_nodes=int(most) if most.isdigit() else None,
                allowed_accounts=_names(record.get("AllowAccounts", "")),
                denied_accounts=_names(record.get("DenyAccounts", "")),
                allowed_qos=_names(record.get("AllowQos", "")),
                denied_qos=_names(record.get("DenyQos", "")),
            )
        )
    return found


def _names(text: str) -> frozenset[str]:
    return frozenset() if text == "ALL" or text in _NONE else frozenset(text.split(","))


def asked_for(partitions: Iterable[Partition], name: str) -> list[Partition]:
    """Those that a job may go to: `--partition` takes a list, and "" is the default one."""
    if not name:
        return [p for p in partitions if p.default]
    names = name.split(",")
    return [p for p in partitions if p.name in names]


@dataclass(frozen=True, slots=True)
class Node:
    """gpus: how many of each type, `""` for the type of GPUs that have none."""

    name: str
    partition: str
    address: str
    state: str
    gpus: Mapping[str, int] = field(default_factory=dict)
    cpus: int = 0
    memory_mb: int = 0

    @property
    def usable(self) -> bool:
        """It runs jobs, or will without anybody's help. `idle*` does not answer; `mixed-` and the like do."""
        word = re.match(r"[a-z_]+", self.state.lower())
        return word is not None and word[0] in _USABLE and not self.state.endswith("*")


_USABLE = frozenset({"idle", "mixed", "mix", "allocated", "alloc", "completing", "comp", "reserved", "resv", "planned",
                     "powered_down", "powering_up", "powering_down", "maint", "blocked"})  # fmt: skip


def parse_nodes(text: str) -> list[Node]:
    """sinfo's answer in `NODES_FORMAT`; a node is there once for each of its partitions."""
    nodes = []
    for line in text.splitlines():
        fields = [part.strip() for part in line.split("|")]
        if len(fields) != _NODES_COLUMNS or not fields[1] or fields[0] == "PARTITION":
            continue
        partition, name, address, state, gres, cpus, memory = fields
        nodes.append(
            Node(name, partition.rstrip("*"), address, state, parse_gpus(gres), _number(cpus), _number(memory))
        )
    return nodes


def _number(text: str) -> int:
    """`64000+` is a minimum."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def parse_gpus(gres: str) -> dict[str, int]:
    """`gpu:h100:4(S:0-1),mps:100`, `gpu:4`, `gres/gpu:a100:2` (23.11 on) -> {"h100": 4}."""
    gpus: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        match = re.fullmatch(r"(?:gres[/:])?gpu(?::([A-Za-z][\w.-]*))?(?:[:=](\d+))?", part.strip())
        if match:
            gpus[match[1] or ""] = gpus.get(match[1] or "", 0) + int(match[2] or 1)
    return gpus


# -- the controller ---------------------------------------------------------------------------------------------------


def parse_ping(text: str) -> dict[str, bool]:
    """`scontrol ping`: host -> whether its slurmctld answers. `Slurmctld(primary) at c1 is UP`, and `Slurmctld(primary/
    backup) at c1/c2 are UP/DOWN` before 20.11."""
    found: dict[str, bool] = {}
    for line in text.splitlines():
        match = re.match(r"Slurmctld\(\S+\) at (\S+) (?:is|are) (\S+)", line)
        if match:
            for host, state in zip(match[1].split("/"), match[2].split("/"), strict=False):
                found[host] = state == "UP"
    return found


def parse_config(text: str) -> Record:
    """`scontrol show config`: key -> value."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
