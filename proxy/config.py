"""Configuration: TOML -> frozen values. Every mistake is reported, all at once, with its path and what was expected.

The sections are pydantic models, so that their fields are the documentation; `Config.specs` is what the launcher
needs of them.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from slurm_launcher.autoscale import Scaling, Warm
from slurm_launcher.engines import ENGINES
from slurm_launcher.plugins import PluginError, install_engines
from slurm_launcher.runtimes import RUNTIMES
from slurm_launcher.spec import ModelSpec, Resources


class ConfigError(Exception):
    """The configuration cannot be used. `mistakes` has a line for each, with the key's path."""

    def __init__(self, source: str, mistakes: list[str]) -> None:
        self.source = source
        self.mistakes = mistakes
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {mistake}" for mistake in mistakes)]))


# -- values with a notation of their own -----------------------------------------------------------------------------


def parse_time_limit(text: Any) -> Any:
    """Slurm's `[days-]hours:minutes:seconds` -> seconds. Anything else is returned for pydantic to refuse."""
    if isinstance(text, str):
        match = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d\d):(\d\d)", text)
        if match is None:
            raise ValueError('expected Slurm\'s notation for a time, "HH:MM:SS" or "D-HH:MM:SS"')
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    raise ValueError('expected a text such as "24:00:00"')


def parse_memory(text: Any) -> Any:
    """`"64G"`, `"64000M"` -> MB."""
    match = re.fullmatch(r"(\d+)([MGT])", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('expected a text such as "64G" or "64000M"')
    return int(match[1]) * {"M": 1, "G": 1024, "T": 1024 * 1024}[match[2]]


def parse_bytes(given: Any) -> Any:
    """`"64G"`, or a whole number of bytes -> bytes."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    match = re.fullmatch(r"(\d{1,9})([KMGT])", given) if isinstance(given, str) else None
    if match is None:
        raise ValueError('expected a number of bytes, or a text such as "64G" or "500M"')
    return int(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)


def check_engine_url(url: str) -> str:
    """`http://HOST:PORT`, since requests keep their own path; a closing `/v1` is taken off."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme == "http" and parts.hostname and parts.port and not parts.query and not parts.username
    except ValueError:  # a port that is none
        usable = False
    if not usable or parts.path.rstrip("/") not in ("", "/v1"):
        raise ValueError("expected http://HOST:PORT")
    return url


def check_api_base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError("expected http://HOST... or https://HOST...")
    return url


def check_hosted(name: str) -> str:
    provider, _, model = name.partition("/")
    if not re.fullmatch(r"[a-z0-9_-]+", provider) or not model or re.search(r"\s", model):
        raise ValueError("expected PROVIDER/MODEL as litellm names them, such as 'openai/gpt-4o-mini'")
    return name


def parse_fallback(given: Any) -> Any:
    """A name alone means: for every reason."""
    return {"model": given} if isinstance(given, str) else given


def parse_engine_at(given: Any) -> Any:
    """An address alone is an engine like the others."""
    return {"url": check_engine_url(given)} if isinstance(given, str) else given


def one_of(names: Mapping[str, object]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"expected one of: {', '.join(sorted(names))}")
        return name

    return AfterValidator(check)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def parse_days(text: Any) -> Any:
    """`"mon-fri"`, `"sat,sun"`, `"daily"` -> numbers of weekdays, 0 for Monday."""
    if not isinstance(text, str):
        raise ValueError('expected a text such as "mon-fri" or "sat,sun"')
    if text == "daily":
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.lower().split(","):
        first, _, last = part.strip().partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError('expected days such as "mon-fri", "sat,sun" or "daily"')
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        days |= {(start + n) % 7 for n in range((end - start) % 7 + 1)}
    return frozenset(days)


def parse_time_of_day(text: Any) -> Any:
    """`"08:30"` -> seconds since midnight."""
    match = re.fullmatch(r"(\d\d):(\d\d)", text) if isinstance(text, str) else None
    if match is None or int(match[1]) * 60 + int(match[2]) > 24 * 60 or int(match[2]) > 59:
        raise ValueError('expected a time of day such as "08:30"')
    return (int(match[1]) * 60 + int(match[2])) * 60


Days = Annotated[frozenset[int], BeforeValidator(parse_days)]
TimeOfDay = Annotated[int, BeforeValidator(parse_time_of_day)]
TimeLimit = Annotated[int, BeforeValidator(parse_time_limit)]
Memory = Annotated[int, BeforeValidator(parse_memory)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
EngineUrl = Annotated[str, AfterValidator(check_engine_url)]
ApiBase = Annotated[str, AfterValidator(check_api_base)]
Hosted = Annotated[str, AfterValidator(check_hosted)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# -- the sections ----------------------------------------------------------------------------------------------------


class Server(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    advertise_url: str | None = None
    """Where the agents in the jobs report, such as `http://login1.cluster:8000`; by default this machine's name."""
    max_body_mb: int = Field(64, ge=1)
    body_timeout_s: Seconds = 60.0
    """How long a client may take to send its request."""
    shutdown_grace_s: float = Field(30.0, ge=0)
    """How long running streams may go on after SIGTERM."""
    workers: int = Field(1, ge=1, le=64)
    """Processes that serve behind the one port."""


class DatabaseSection(Section):
    url_env: str | None = None
    """The environment variable that holds a URL such as `postgresql://user:password@host/name`; by default SQLite in
    the state directory."""


class FilesSection(Section):
    """What clients upload, and what batches make for them. Sizes are bytes, or texts such as "64G"."""

    directory: Path | None = Field(None, strict=False)
    """By default `files` in the state directory. Gateways that share a database share it, too."""
    max_bytes_total: Bytes | None = None
    max_bytes_per_project: Bytes | None = None
    """Of a project's files together, or those of a key of no project."""
    max_file_bytes: Bytes = 8 * 1024**3
    """Of one file, however it comes. By itself `POST /v1/files` takes 512M at most, and 200M for a batch."""
    keep_free_bytes: Bytes = 1024**3
    """What stays free on the file system: nothing more is taken when less is left."""


class Limits(Section):
    """What everybody may do whose key and project say nothing else. Tokens are prompt and completion together."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent_requests: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)
    tokens_per_month: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Limits:
        day, month, minute = self.tokens_per_day, self.tokens_per_month, self.tokens_per_minute
        if day and month and day > month:
            raise ValueError(f"expected tokens_per_day ({day}) to be at most tokens_per_month ({month})")
        if minute and day and minute > day:
            raise ValueError(f"expected tokens_per_minute ({minute}) to be at most tokens_per_day ({day})")
        if minute and month and minute > month:
            raise ValueError(f"expected tokens_per_minute ({minute}) to be at most tokens_per_month ({month})")
        return self


class Observability(Section):
    privacy: bool = True
    """Prompts and answers stay out of logs and traces. Off only by choice."""
    tracing: bool = False
    """OpenTelemetry spans (the extra `otel`); where they go is said by the usual OTEL_* environment variables."""


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


class LauncherSection(Section):
    kind: Literal["slurm", "local"] = "slurm"
    service: str = Field("main", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """Jobs are called `slurmgate-<service>`."""
    python: str = "python3"
    """Runs the agent on the nodes; 3.6 or newer, nothing else needed."""
    heartbeat_s: Seconds = 5.0
    orphan_timeout_s: Seconds = 3600.0
    """A replica that cannot reach any gateway for this long ends itself."""
    shared_dir: Path | None = Field(None, strict=False)
    """Job logs and the gateway's current URL, visible from the nodes; by default the state directory."""
    poll_busy_s: float = Field(15.0, ge=1)
    poll_calm_s: float = Field(60.0, ge=1)
    max_pending_jobs: int | None = Field(None, ge=1)
    """Jobs that may wait in Slurm's queue at once, all models together."""
    max_gpus: int | None = Field(None, ge=1)
    """GPUs that all replicas together may have or wait for."""
    stop_replicas_on_exit: bool = False


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
     "scaling", "lead_s", "local_copy", "fit", "start_timeout_s", "drain_timeout_s", "slurm"}
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


class Config(Section):
    state_dir: Path | None = Field(None, strict=False)
    server: Server = Server()
    database: DatabaseSection = DatabaseSection()
    files: FilesSection = FilesSection()
    limits: Limits = Limits()
    observability: Observability = Observability()
    launcher: LauncherSection = LauncherSection()
    models: dict[Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s|]+$")], Model] = Field(min_length=1)

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """The models to launch."""
        return {name: _spec(name, model) for name, model in self.models.items() if model.source is not None}


def _spec(name: str, model: Model) -> ModelSpec:
    slurm = model.slurm
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
        resources=Resources(
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
        ),
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


# -- reading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Config:
    """The configuration in a file. Raises `ConfigError`."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), ["is not UTF-8 text"]) from None
    return parse(text, str(path))


def parse(text: str, source: str = "configuration") -> Config:
    """The configuration in a TOML text. `[defaults]` fills in what a model leaves out. Raises `ConfigError`."""
    try:
        install_engines()
    except PluginError as error:
        raise ConfigError(source, [str(error)]) from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(source, [f"is not TOML: {error}"]) from None
    defaults = document.pop("defaults", {})
    models = document.get("models")
    if isinstance(models, dict) and isinstance(defaults, dict):
        document["models"] = {
            name: _over(defaults, model) if isinstance(model, dict) and not _RUN_ELSEWHERE & model.keys() else model
            for name, model in models.items()
        }
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        defaulted = defaults if isinstance(defaults, dict) else {}
        raise ConfigError(source, list(dict.fromkeys(_mistakes(error, defaulted, models)))) from None
    if wrong := [*_wrong_fallbacks(config.models), *_wrong_aliases(config.models)]:
        raise ConfigError(source, wrong)
    return config


_RUN_ELSEWHERE = {"urls", "hosted", "backend"}
"""A model with one of these has no engine of ours, which is what `[defaults]` is about."""


def _wrong_fallbacks(models: Mapping[str, Model]) -> Iterator[str]:
    """Names of no model, and ways that lead back to where they started."""
    for name, model in models.items():
        for number, fallback in enumerate(model.fallbacks):
            path = path_of("models", name, "fallbacks", str(number))
            if fallback.model not in models:
                yield f"{path}: found {fallback.model!r}, expected one of the models: {', '.join(models)}"
            elif way := _way(fallback.model, name, models, (name,)):
                yield f"{path}: expected no circle, found {' -> '.join(way)}"


def _wrong_aliases(models: Mapping[str, Model]) -> Iterator[str]:
    """Names that are taken, by a model or by another alias."""
    taken = {name: name for name in models}
    for name, model in models.items():
        for number, alias in enumerate(model.aliases):
            if (other := taken.setdefault(alias, f"an alias of {name}")) != f"an alias of {name}":
                path = path_of("models", name, "aliases", str(number))
                yield f"{path}: found {alias!r}, which is {'a model' if alias in models else other} already"


def _way(start: str, goal: str, models: Mapping[str, Model], walked: tuple[str, ...]) -> tuple[str, ...]:
    """The models from one to another, along fallbacks; () if none leads there."""
    if start == goal:
        return (*walked, goal)
    if start in walked or start not in models:
        return ()
    ways = (_way(fallback.model, goal, models, (*walked, start)) for fallback in models[start].fallbacks)
    return next((way for way in ways if way), ())


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, tables merged."""
    merged = dict(defaults)
    for one, other in (("replicas", "scaling"), ("scaling", "replicas")):
        if one in given and other not in given:  # they exclude each other
            merged.pop(other, None)
    for key, value in given.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


_SAYABLE = (str, int, float, bool, list)
_EXPECTED = {
    "missing": "is missing",
    "string_type": "expected a text",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "tuple_type": "expected a list",
    "too_short": "expected at least one",
}


def _mistakes(error: ValidationError, defaults: Mapping[str, Any], models: Any) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=True):
        location = [str(part) for part in item["loc"]]
        path = _path(location, defaults, models)
        found, kind = item["input"], item["type"]
        if kind == "extra_forbidden":
            yield f"{path}: unknown key{_suggestion(location)}"
            continue
        if kind == "missing":
            yield f"{path}: is missing"
            continue
        expected = _EXPECTED.get(kind) or item["msg"].removeprefix("Value error, ")
        expected = expected.replace("Input should be", "expected").replace("String should", "expected to")
        secret = "environment" in location or "key" in (location[-1] if location else "")
        shown = f"found {found!r}, " if isinstance(found, _SAYABLE) and not secret else ""
        yield f"{path}: {shown}{expected}"


def _path(location: list[str], defaults: Mapping[str, Any], models: Any) -> str:
    """The key as one would write it in TOML; under `defaults` where it was written there."""
    if len(location) > 2 and location[0] == "models":
        given: Any = models.get(location[1]) if isinstance(models, dict) else None
        inherited: Any = defaults
        for part in location[2:]:
            given = given.get(part) if isinstance(given, dict) else None
            inherited = inherited.get(part) if isinstance(inherited, dict) else None
        if given is None and inherited is not None:
            location = ["defaults", *location[2:]]
    return path_of(*location) or "configuration"


def path_of(*keys: str) -> str:
    """A key as one would write it in TOML."""
    return ".".join(key if re.fullmatch(r"[\w-]+", key) else f'"{key}"' for key in keys)


_SECTIONS: dict[str, type[Section]] = {"server": Server, "launcher": LauncherSection, "files": FilesSection}
_PARTS: dict[str, type[Section]] = {"slurm": SlurmSection, "timeouts": Timeouts, "fallbacks": Fallback}


def _suggestion(location: list[str]) -> str:
    section: type[Section] = Config
    if len(location) > 1 and location[0] in _SECTIONS:
        section = _SECTIONS[location[0]]
    elif len(location) > 2:
        section = _PARTS.get(location[2], Model)
    names = [*section.model_fields, *(["defaults"] if section is Config else [])]
    close = difflib.get_close_matches(location[-1], names, n=1)
    return f", did you mean {close[0]!r}?" if close else f"; known are: {', '.join(names)}"


def default_state_dir() -> Path:
    """`$SLURMGATE_STATE_DIR`, else the XDG state directory."""
    if given := os.environ.get("SLURMGATE_STATE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "slurmgate"
