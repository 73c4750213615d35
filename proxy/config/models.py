"""`[models.NAME]`: who answers for a model, and what the launcher is to make of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from slurm_launcher.autoscale import Scaling, Warm
from slurm_launcher.engines import ENGINES
from slurm_launcher.runtimes import RUNTIMES
from slurm_launcher.spec import ModelSpec, Placement, Resources

from .notation import (
    ApiBase,
    Days,
    EngineUrl,
    Hosted,
    Memory,
    Seconds,
    Section,
    TimeLimit,
    TimeOfDay,
    one_of,
    parse_engine_at,
    parse_fallback,
)


class Timeouts(Section):
    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 600.0
    idle_s: Seconds = 120.0
    """Between two pieces of an answer."""
    total_s: Seconds | None = None
    """From taking a request to the end of its answer; none by default."""
    replica_wait_s: Seconds = 300.0
    """How long a request waits for a replica to become ready."""


class Queue(Section):
    """Requests that wait for a place at a replica."""

    size: int = Field(256, ge=0)
    """Beyond this a request gets a 429 at once."""
    wait_s: Seconds = 60.0
    """After this it gets a 503."""


class SlurmSection(Section):
    gpus: int = Field(0, ge=0)
    gpu_type: str | None = None
    cpus: int = Field(0, ge=0)
    memory: Memory = 0
    time: TimeLimit = 0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = False
    extra: tuple[Annotated[str, Field(pattern=r"^--?[^\n]+$")], ...] = Field((), strict=False)
    nodes: int = Field(1, ge=1)
    """More than one: one engine over several nodes; `gpus`, `cpus` and `memory` are those of each node."""
    gpu_memory: Memory = 0
    """Of one GPU, where it cannot be told from `gpu_type`."""
    cluster: str = Field("", pattern=r"^[A-Za-z0-9_.-]*$")
    """For sites with several clusters (`-M`)."""


class PlacementSection(Section):
    """Another kind of replica: elsewhere in Slurm, or on other GPUs."""

    name: str = Field(min_length=1, max_length=32, pattern=r"^[a-z0-9-]+$")
    slurm: SlurmSection = SlurmSection()
    """Laid over the model's own section, key by key; "" takes an option away."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How much one takes, compared with the model's own."""
    max: int | None = Field(None, ge=1, le=1000)
    """At most so many of this kind."""
    batch_only: bool = False
    """Takes only what batches ask for beyond everybody else's demand."""
    max_in_flight: int | None = Field(None, ge=1)
    """Requests that one takes at once; by default the model's `max_in_flight`."""


class WarmHours(Section):
    """Hours in which there shall be at least so many replicas, in the local time of the gateway's machine."""

    days: Days = frozenset(range(7))
    start: TimeOfDay
    end: TimeOfDay
    """Not later than `start`: on the next day."""
    replicas: int = Field(1, ge=1)


class ScalingSection(Section):
    """How many replicas, by demand."""

    min: int = Field(0, ge=0, le=1000)
    max: int = Field(1, ge=1, le=1000)
    load: float | None = Field(None, gt=0)
    """Requests, in flight and queued, for each replica; by default 70 % of what one takes at once."""
    ttft_goal_s: Seconds | None = None
    """A median time to first token above this asks for one more replica."""
    idle_s: Seconds = 900.0
    """Without a request for this long: down to `min`."""
    step_up: int = Field(2, ge=1)
    step_down: int = Field(1, ge=1)
    hold_up_s: float = Field(60.0, ge=0)
    hold_down_s: float = Field(300.0, ge=0)
    warm: tuple[WarmHours, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ScalingSection:
        if self.min > self.max:
            raise ValueError(f"expected min ({self.min}) to be at most max ({self.max})")
        return self


class Fallback(Section):
    model: str
    """Another model of this configuration."""
    on: tuple[Literal["unavailable", "overloaded", "context"], ...] = Field(
        ("unavailable", "overloaded", "context"), strict=False, min_length=1
    )


_OF_ENGINES = frozenset(
    {"engine", "task", "runtime", "image", "command", "arguments", "environment", "binds", "prologue", "replicas",
     "scaling", "lead_s", "local_copy", "fit", "start_timeout_s", "drain_timeout_s", "slurm", "own_max", "placements"}
)  # fmt: skip


class EngineAt(Section):
    """An engine that runs already."""

    url: EngineUrl
    weight: float = Field(1.0, gt=0, le=1000)
    """How much it can take, compared with the model's other engines."""
    max_in_flight: int | None = Field(None, ge=1)
    """Requests it takes at once; by default the model's `max_in_flight`."""


class Model(Section):
    """One model, answered for by one of: engines to launch (`source`), engines that run already (`urls`), a provider
    (`hosted`), a plugin (`backend`)."""

    engine: Annotated[str, one_of(ENGINES)] = ""
    hosted: Hosted | None = None
    api_base: ApiBase | None = None
    """With `hosted`: another address than the provider's own."""
    backend: str | None = Field(None, min_length=1)
    """The name of a plugin's backend, an entry point of the group `slurmgate.backends`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """With `backend`: whatever the plugin takes."""
    fallbacks: tuple[Annotated[Fallback, BeforeValidator(parse_fallback)], ...] = Field((), strict=False)
    drop_unsupported: bool = False
    """Leave out what the engine or provider cannot do instead of refusing the request."""
    native: tuple[Literal["/v1/responses", "/v1/messages"], ...] = Field((), strict=False)
    """Endpoints that this engine serves by itself, as newer vLLM releases do; otherwise they are translated to chat."""
    matryoshka: bool = False
    """Embeddings may be cut to the `dimensions` of a request."""
    own_vocabulary: bool = False
    """Token ids to embed are of the engine's own vocabulary, not of OpenAI's cl100k_base."""
    max_inputs: int | None = Field(None, ge=1)
    """Texts that the engine takes at once to embed or rank, where it is not the engine's default."""
    source: str | None = None
    urls: tuple[Annotated[EngineAt, BeforeValidator(parse_engine_at)], ...] = Field((), strict=False)
    api_key_env: str | None = None
    """With `urls` or `hosted`: the environment variable that holds the engines' or the provider's key."""
    task: Literal["generate", "embed"] = "generate"
    runtime: Annotated[str, one_of(RUNTIMES)] = "none"
    image: str | None = None
    command: tuple[str, ...] = Field((), strict=False)
    arguments: tuple[str, ...] = Field((), strict=False)
    environment: dict[str, str] = Field(default_factory=dict)
    binds: tuple[str, ...] = Field((), strict=False)
    prologue: tuple[str, ...] = Field((), strict=False)
    context_length: int | None = Field(None, ge=1)
    aliases: tuple[Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s|]+$")], ...] = Field(
        (), strict=False
    )
    """Other names that clients may ask by."""
    max_in_flight: int | None = Field(None, ge=1)
    """Requests that one replica gets at once; by default a little less than its engine takes."""
    affinity: bool = True
    """Requests that share a long prefix go to the same replica while it has room: its prefix cache has it."""
    queue: Queue = Queue()
    replicas: int = Field(1, ge=0, le=1000)
    """A fixed number; `scaling` is for one that follows the demand."""
    scaling: ScalingSection | None = None
    lead_s: float = Field(300.0, ge=0)
    """At least so long before its wall time a replica's successor is submitted."""
    local_copy: Annotated[str, Field(pattern=r"^/")] | None = None
    """A directory of the nodes, such as "/scratch": weights are copied there first, and read from there."""
    fit: Literal["refuse", "warn", "off"] = "warn"
    """What happens at the start when a model cannot fit into the GPUs it asks for, where that can be told."""
    start_timeout_s: Seconds = 1800.0
    drain_timeout_s: Seconds = 120.0
    timeouts: Timeouts = Timeouts()
    slurm: SlurmSection = SlurmSection()
    own_max: int | None = Field(None, ge=0, le=1000)
    """With `placements`: at most so many replicas by the `slurm` section alone, the others by placements."""
    placements: tuple[PlacementSection, ...] = Field((), strict=False)
    """Other kinds of replica, in the order in which they are filled."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Model:
        ways = [name for name in ("source", "urls", "hosted", "backend") if getattr(self, name)]
        if len(ways) != 1:
            raise ValueError(
                "expected either `source` (an engine to launch), `urls` (engines that run already), `hosted` (a "
                f"provider's model) or `backend` (a plugin's); found {' and '.join(ways) or 'none of them'}"
            )
        if ways[0] in ("hosted", "backend"):
            if foreign := sorted(_OF_ENGINES & self.model_fields_set):
                raise ValueError(f"expected no `{foreign[0]}` with `{ways[0]}`: there is no engine of ours")
        elif not self.engine:
            raise ValueError(f"expected `engine`, one of: {', '.join(sorted(ENGINES))}")
        for key, way in (("api_base", "hosted"), ("options", "backend")):
            if getattr(self, key) and ways[0] != way:
                raise ValueError(f"expected `{key}` only with `{way}`")
        if self.local_copy and not (self.source or "").startswith("/"):
            raise ValueError("expected `source` to be a path with `local_copy`")
        if self.scaling is not None and "replicas" in self.model_fields_set:
            raise ValueError("expected either `replicas`, a fixed number, or `scaling`")
        if self.source and self.runtime != "none" and not self.image:
            raise ValueError(f"expected `image`, the container image, since runtime is {self.runtime!r}")
        if self.source and self.task == "generate" and not ENGINES[self.engine].generates:
            raise ValueError(f"expected task = 'embed': {self.engine} does not generate")
        if self.engine and self.task == "embed" and not ENGINES[self.engine].embeds:
            raise ValueError(f"expected task = 'generate': {self.engine} does not serve embeddings")
        if self.api_key_env and not (self.urls or self.hosted):
            raise ValueError("expected `api_key_env` only with `urls` or `hosted`: other engines get keys of ours")
        return self

    @model_validator(mode="after")
    def _places_its_replicas(self) -> Model:
        if self.own_max is not None and not self.placements:
            raise ValueError("expected `own_max` only with `placements`: `replicas`, `scaling.max` limit all replicas")
        if self.scaling is None and any(placement.batch_only for placement in self.placements):
            raise ValueError("expected `scaling` with a batch_only placement: batches do not change a fixed number")
        return self


def over(slurm: SlurmSection, above: SlurmSection) -> SlurmSection:
    """A placement's section over its model's, key by key. An empty text leaves the option out of the script."""
    return slurm.model_copy(update={key: getattr(above, key) for key in above.model_fields_set})


def spec_of(name: str, model: Model) -> ModelSpec:
    assert model.source is not None  # noqa: S101  # the caller's filter, told to the type checker
    return ModelSpec(
        name=name,
        engine=model.engine,
        source=model.source,
        task=model.task,
        runtime=model.runtime,
        image=model.image,
        command=model.command,
        arguments=model.arguments,
        environment=tuple(sorted(model.environment.items())),
        binds=model.binds,
        prologue=model.prologue,
        context_length=model.context_length,
        scaling=_scaling(model),
        start_timeout_s=model.start_timeout_s,
        drain_timeout_s=model.drain_timeout_s,
        lead_s=model.lead_s,
        local_copy=model.local_copy,
        resources=_resources(model.slurm),
        own_most=model.own_max,
        placements=tuple(
            Placement(
                name=placement.name,
                resources=_resources(over(model.slurm, placement.slurm)),
                weight=placement.weight,
                most=placement.max,
                batch_only=placement.batch_only,
                limit=placement.max_in_flight,
            )
            for placement in model.placements
        ),
    )


def _resources(slurm: SlurmSection) -> Resources:
    return Resources(
        gpus=slurm.gpus,
        gpu_type=slurm.gpu_type,
        cpus=slurm.cpus,
        memory_mb=slurm.memory,
        time_limit_s=slurm.time,
        partition=slurm.partition,
        account=slurm.account,
        qos=slurm.qos,
        constraint=slurm.constraint,
        reservation=slurm.reservation,
        exclusive=slurm.exclusive,
        extra=slurm.extra,
        nodes=slurm.nodes,
        gpu_memory_mb=slurm.gpu_memory,
        cluster=slurm.cluster,
    )


def _scaling(model: Model) -> Scaling:
    asked = model.scaling
    if asked is None:
        return Scaling(least=model.replicas, most=model.replicas)
    return Scaling(
        least=asked.min,
        most=asked.max,
        load=asked.load,
        ttft_goal_s=asked.ttft_goal_s,
        idle_s=asked.idle_s,
        step_up=asked.step_up,
        step_down=asked.step_down,
        hold_up_s=asked.hold_up_s,
        hold_down_s=asked.hold_down_s,
        warm=tuple(Warm(hours.days, hours.start, hours.end, hours.replicas) for hours in asked.warm),
    )
