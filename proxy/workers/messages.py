"""Values <-> what can stand in a message between processes: JSON. Pure.

An error becomes the same class again, with everything that is set on it, so that whoever catches it by its class, and
whoever shows it to a client, cannot tell that it has travelled.
"""

from __future__ import annotations

import pickle
from base64 import b85decode, b85encode
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backends import errors
from backends.base import Endpoint
from backends.errors import GatewayError
from backends.places import Outcome, Priority, Want
from proxy.config import Config, ConfigError
from proxy.control import BatchWork
from proxy.limits.seam import Headers
from proxy.principals import Allowance, Principal
from proxy.reload import Changes

Json = dict[str, Any]

# -- errors ----------------------------------------------------------------------------------------------------------


def _family(cls: type[GatewayError]) -> Iterator[type[GatewayError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _family(child)


_TREE = {cls.__name__: cls for cls in _family(GatewayError) if cls.__module__ == errors.__name__}
_FACE = ("status", "type", "code", "quotes")
"""What a class may say for all of its errors; sent along, since who reads may not have the class."""


def error_to(error: GatewayError) -> Json:
    """A class that is no part of the common tree travels as its nearest ancestor that is."""
    name = next(cls.__name__ for cls in type(error).__mro__ if cls in _TREE.values())
    told = {name: getattr(error, name) for name in _FACE} | vars(error)
    told["headers"] = headers_to(tuple(error.headers.items()))
    return {"class": name, **told}


def error_from(told: Json) -> GatewayError:
    told = dict(told)
    cls = _TREE[told.pop("class")]
    error = cls.__new__(cls, told["message"])
    headers = dict(headers_from(told.pop("headers")))
    for name, value in (*told.items(), ("headers", headers)):
        if getattr(cls, name, _NOTHING) != value:
            setattr(error, name, MappingProxyType(value) if name == "headers" else value)
    return error


_NOTHING = object()


def headers_to(headers: Headers) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]


def headers_from(told: list[list[str]]) -> Headers:
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in told)


# -- places ----------------------------------------------------------------------------------------------------------

_PRIORITIES = tuple(Priority)
_NOBODY: frozenset[str] = frozenset()
OUTCOMES: Mapping[str, Outcome] = MappingProxyType({outcome.value: outcome for outcome in Outcome})


def want_to(want: Want) -> list[Any]:
    return [want.owner, int(want.priority), want.tokens, want.affinity, list(want.avoid), want.deadline]


def want_from(told: list[Any]) -> Want:
    """`deadline` means the same in every process of a machine: Linux counts CLOCK_MONOTONIC since it started."""
    owner, priority, tokens, affinity, avoid, deadline = told
    return Want(owner, _PRIORITIES[priority], tokens, affinity, frozenset(avoid) if avoid else _NOBODY, deadline)


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """A `backends.base.Endpoint` as main has told of it."""

    replica_id: str
    host: str
    port: int
    api_key: str = field(repr=False)
    weight: float
    limit: int | None
    ends_at: float | None


def endpoint_to(endpoint: Endpoint) -> list[Any]:
    e = endpoint
    return [e.replica_id, e.host, e.port, e.api_key, e.weight, e.limit, e.ends_at]


def endpoint_from(told: list[Any]) -> RemoteEndpoint:
    return RemoteEndpoint(*told)


# -- limits ----------------------------------------------------------------------------------------------------------


def principal_to(principal: Principal) -> Json:
    """What limits look at, and no more."""
    return {
        "key_id": principal.key_id,
        "project_id": principal.project_id,
        "key_limits": astuple(principal.key_limits),
        "project_limits": astuple(principal.project_limits),
    }


def principal_from(told: Json) -> Principal:
    return Principal(
        key_id=told["key_id"],
        project_id=told["project_id"],
        key_limits=Allowance(*told["key_limits"]),
        project_limits=Allowance(*told["project_limits"]),
    )


# -- configuration ---------------------------------------------------------------------------------------------------


def config_to(config: Config) -> str:
    """Main's own configuration for its own child: exactly the same value, options of the command line included."""
    return b85encode(pickle.dumps(config)).decode()


def config_from(told: str) -> Config:
    config = pickle.loads(b85decode(told))  # noqa: S301  # from our parent process, over a socket pair only it has
    if not isinstance(config, Config):
        raise TypeError("expected a configuration")
    return config


def reloaded_to(done: Changes | ConfigError) -> Json:
    if isinstance(done, ConfigError):
        return {"source": done.source, "mistakes": done.mistakes}
    return {"changes": asdict(done)}


def reloaded_from(told: Json) -> Changes:
    """Raises `ConfigError` where that was the answer."""
    if "changes" not in told:
        raise ConfigError(told["source"], told["mistakes"])
    done = told["changes"]
    names = {field: tuple(done[field]) for field in ("added", "removed", "changed", "restart")}
    return Changes(**names, limits=done["limits"])


# -- a worker's start ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelNow:
    """One model, as `/v1/models` and `/ready` show it.

    endpoints        replicas that take requests
    state            ready, starting, unavailable
    context_length   in tokens, None where nobody knows
    seats            requests that its replicas take at once; None where nobody knows
    """

    endpoints: int
    state: str
    context_length: int | None
    seats: int | None = None


Models = Mapping[str, ModelNow]


def models_to(models: Models) -> Json:
    return {name: astuple(model) for name, model in models.items()}


def work_to(work: Mapping[str, BatchWork]) -> Json:
    return {name: astuple(told) for name, told in work.items()}


def work_from(told: Json) -> Mapping[str, BatchWork]:
    return {name: BatchWork(*values) for name, values in told.items()}


def models_from(told: Json) -> Models:
    return {name: ModelNow(*values) for name, values in told.items()}


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a worker: all that it has to know.

    loopback_only   nothing but this machine can reach the gateway
    boot            main's own mark, another one at each of its starts
    """

    config: Config
    state_dir: Path
    loopback_only: bool
    models: Models
    boot: str = ""


def start_to(start: Start) -> Json:
    return {
        "config": config_to(start.config),
        "state_dir": str(start.state_dir),
        "loopback_only": start.loopback_only,
        "models": models_to(start.models),
        "boot": start.boot,
    }


def start_from(told: Json) -> Start:
    return Start(
        config_from(told["config"]),
        Path(told["state_dir"]),
        told["loopback_only"],
        models_from(told["models"]),
        told["boot"],
    )
