"""What to run and who it is: frozen values, parsed once from the configuration."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from .autoscale import Scaling


@dataclass(frozen=True, slots=True)
class Resources:
    """What one replica asks Slurm for. None or 0 leaves the option out, so the partition's default holds."""

    gpus: int = 0
    gpu_type: str | None = None
    cpus: int = 0
    memory_mb: int = 0
    time_limit_s: int = 0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = False
    extra: tuple[str, ...] = ()
    """More sbatch options, one a line, such as `--nodelist=n1`."""
    nodes: int = 1
    """More than one: one engine over several nodes. `gpus`, `cpus` and `memory_mb` are those of each node."""
    gpu_memory_mb: int = 0
    """Of one GPU, where it cannot be told from `gpu_type`: for the question whether a model fits."""
    cluster: str = ""
    """For sites with several (`-M`); "" for the default one."""

    @property
    def all_gpus(self) -> int:
        """Of one replica, on all its nodes."""
        return self.gpus * self.nodes

    @property
    def place(self) -> tuple[str, str]:
        """Cluster and partition, "" for the default ones: what goes into maintenance together."""
        return self.cluster, self.partition or ""


@dataclass(frozen=True, slots=True)
class Placement:
    """One kind of replica of a model: where it runs, and how much it takes there.

    name         "" is the model's own kind, with `ModelSpec.resources`
    weight       how much one takes, compared with the model's own (1.0)
    most         at most so many of this kind; None: as many as the model has
    batch_only   submitted only for what batches ask for beyond what everybody else does
    limit        requests that one takes at once; None: as the model's others
    """

    name: str
    resources: Resources
    weight: float = 1.0
    most: int | None = None
    batch_only: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as the configuration gives it.

    name          the public name; may hold `/`
    engine        a name of `engines.ENGINES`
    source        what the engine loads: a hub id or a path
    task          "generate" or "embed"; says which request proves a replica
    runtime       a name of `runtimes.RUNTIMES`
    image         the container image, for runtimes that need one
    command       replaces the engine's program (argv[0] and what precedes the arguments); empty: the engine's own
    arguments     appended to the engine's argv
    environment   for the engine, beside its own; may hold secrets, so it never reaches a command line
    binds         host paths that the container sees, `SRC` or `SRC:DST` or `SRC:DST:ro`
    prologue      shell lines that run before the agent (module load ...)
    scaling       how many there shall be
    lead_s        at least so long before its wall time a replica's successor is submitted; what queueing and starting
                  were measured to take counts where it is longer
    local_copy    a directory of the node, such as `/scratch`: the weights are copied there and read from there
    placements    other kinds of replica than the model's own, in the order in which they are filled
    own_most      at most so many of the model's own kind; None: no limit
    placement     of a spec made by `at`: which kind it is
    """

    name: str
    engine: str
    source: str
    task: str = "generate"
    runtime: str = "none"
    image: str | None = None
    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    binds: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    context_length: int | None = None
    resources: Resources = field(default_factory=Resources)
    scaling: Scaling = field(default_factory=Scaling)
    start_timeout_s: float = 1800.0
    drain_timeout_s: float = 120.0
    lead_s: float = 300.0
    local_copy: str | None = None
    placements: tuple[Placement, ...] = ()
    own_most: int | None = None
    placement: str = ""

    @property
    def kinds(self) -> tuple[Placement, ...]:
        """All kinds of replica, the model's own first."""
        return (Placement("", self.resources, most=self.own_most), *self.placements)

    def kind(self, placement: str) -> Placement | None:
        """None for a placement that the configuration does not have (any more)."""
        return next((kind for kind in self.kinds if kind.name == placement), None)

    def at(self, placement: str) -> ModelSpec | None:
        """The spec of replicas of one kind: what it is without other kinds, with that one's resources."""
        return _at(self, placement)

    @property
    def variants(self) -> tuple[ModelSpec, ...]:
        """One spec for each kind, in their order."""
        return tuple(spec for kind in self.kinds if (spec := self.at(kind.name)) is not None)

    @property
    def label(self) -> str:
        """For people: the model, and its placement where it is another than the model's own."""
        return f"{self.name} ({self.placement})" if self.placement else self.name

    @property
    def path(self) -> str:
        """Of its section, as one would write it."""
        return f'models."{self.name}"' + (f'.placements."{self.placement}"' if self.placement else "")

    @property
    def config_hash(self) -> str:
        """Changes when a running replica is no longer what the configuration asks for (so not with `scaling`).

        Of the model's own kind; those of others are `at(placement)`'s. So each kind is replaced for itself alone.
        """
        return _config_hash(self)


@lru_cache(maxsize=4096)
def _at(spec: ModelSpec, placement: str) -> ModelSpec | None:
    """Asked for each replica at each step, so it is remembered."""
    kind = spec.kind(placement)
    if kind is None:
        return None
    return replace(spec, resources=kind.resources, placements=(), own_most=None, placement=placement)


@lru_cache(maxsize=4096)
def _config_hash(spec: ModelSpec) -> str:
    """Asked for each replica at each step, so it is remembered."""
    fields: dict[str, Any] = asdict(spec)
    for later in ("scaling", "lead_s", "placements", "own_most", "placement"):
        del fields[later]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Site:
    """What all replicas of one gateway share.

    service         the gateway's name; jobs are called `slurmgate-<service>`, so two gateways of one user stay apart
    gateway_url     where agents report, such as `http://login1:8000`
    rendezvous      a file that holds the current gateway URL, for agents that share a file system with the gateway
                    and find the old URL dead
    log_directory   job logs, one a replica; must be visible from the nodes
    python          the interpreter that runs the agent on the nodes
    """

    service: str
    gateway_url: str
    rendezvous: str
    log_directory: Path
    python: str = "python3"
    heartbeat_s: float = 5.0
    orphan_timeout_s: float = 3600.0

    @property
    def job_name(self) -> str:
        return f"slurmgate-{self.service}"


@dataclass(frozen=True, slots=True)
class Launch:
    """One replica about to be started: its identity and its secrets."""

    replica_id: str
    token: str = field(repr=False)
    engine_key: str = field(repr=False)


class Secrets:
    """Per-replica secrets, derived, so that nothing has to be stored and a restarted gateway knows them again."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _derive(self, purpose: str, replica_id: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{replica_id}".encode(), hashlib.sha256).hexdigest()

    def launch(self, replica_id: str) -> Launch:
        return Launch(replica_id, token=self.agent_token(replica_id), engine_key=self.engine_key(replica_id))

    def agent_token(self, replica_id: str) -> str:
        """What the agent shows the gateway."""
        return self._derive("agent", replica_id)

    def engine_key(self, replica_id: str) -> str:
        """What the gateway shows the engine."""
        return self._derive("engine", replica_id)

    def is_agent(self, replica_id: str, token: str) -> bool:
        return hmac.compare_digest(self.agent_token(replica_id).encode(), token.encode())
