"""Where requests go: the gateway, and the engines behind it; from options, configuration and state directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.terminal import Mistake, database, open_state

if TYPE_CHECKING:
    from proxy.config import Config, Model

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
GATEWAY = "gateway"
DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Place:
    """One origin, with the path that stands before `/v1`."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured. Its users are spread evenly over its places."""

    name: str
    places: tuple[Place, ...]
    key_env: str = ""

    @property
    def urls(self) -> list[str]:
        return [place.url for place in self.places]


def place_of(url: str, key: str = "") -> Place:
    """`http://HOST[:PORT][/PATH]`, with or without `/v1` at its end. Raises `Mistake`."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    else:
        port = port or {"http": 80, "https": 443}.get(parts.scheme)
    if port is None or not parts.hostname or parts.query or parts.fragment or not is_plain(url):
        raise Mistake(f"expected an address such as {DEFAULT_URL}/v1, found {url!r}")
    if parts.username or parts.password:
        raise Mistake("keys do not belong into addresses: put yours into an environment variable (--key-env)")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Place(parts.hostname, port, parts.scheme == "https", prefix, key)


def is_plain(url: str) -> bool:
    """Without what must not reach a request's head; urlsplit silently drops line ends."""
    return url.isascii() and url.isprintable() and " " not in url


def key_of(variable: str, *, asked_for: bool) -> str:
    """The key in an environment variable; "" without one. Raises `Mistake` for one that was named and is not there."""
    key = os.environ.get(variable, "").strip()
    if not key and asked_for:
        raise Mistake(f"there is no key in the environment variable {variable}")
    if not key.isascii() or not key.isprintable():
        raise Mistake(f"what the environment variable {variable} holds is no key")
    return key


def gateway_target(config: Config | None, url: str | None, key_env: str | None) -> Target:
    """By --url, else the configuration's own address, else the default one."""
    variable = key_env or DEFAULT_KEY_ENV
    key = key_of(variable, asked_for=key_env is not None)
    if url is None and config is not None:
        host = config.server.host
        here = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host  # noqa: S104  # compared, not bound
        return Target(GATEWAY, (Place(here, config.server.port, key=key),), variable)
    return Target(GATEWAY, (place_of(url or DEFAULT_URL, key),), variable)


def direct_target(
    config: Config | None,
    config_file: Path | None,
    state_dir: Path | None,
    *,
    model: str,
    urls: Sequence[str],
    key_env: str | None,
    local: bool = False,
) -> Target | None:
    """By --direct, else what is known of the model here: its `urls`, or its replicas that are ready. None: unknown.

    local   the gateway is the one of this machine, so the default state directory is its own
    """
    if urls:
        key = key_of(key_env, asked_for=True) if key_env is not None else ""
        return Target(DIRECT, tuple(place_of(url, key) for url in urls), key_env or "")
    configured = model_of(config, model)
    if configured is not None and configured.urls:
        variable = key_env or configured.api_key_env or ""
        key = key_of(variable, asked_for=True) if variable else ""
        return Target(DIRECT, tuple(place_of(engine.url, key) for engine in configured.urls), variable)
    if (configured is not None and configured.source) or (config is None and (state_dir is not None or local)):
        places = replicas(config, config_file, state_dir, model)
        return Target(DIRECT, places) if places else None
    return None


def model_of(config: Config | None, name: str) -> Model | None:
    """By its name or an alias of it."""
    if config is None:
        return None
    return config.models.get(name) or next((one for one in config.models.values() if name in one.aliases), None)


def replicas(config: Config | None, config_file: Path | None, state_dir: Path | None, model: str) -> tuple[Place, ...]:
    """A launched model's replicas that take requests, each with its own key: the secret is this user's to read."""
    from slurm_launcher.spec import Secrets  # noqa: PLC0415  # only where there are replicas of ours
    from slurm_launcher.states import Status  # noqa: PLC0415
    from slurm_launcher.store import ReplicaStore  # noqa: PLC0415

    state = open_state(config, state_dir)
    if state.holder() is None:
        return ()
    secrets = Secrets(state.secret())
    with database(config_file, state_dir) as engine:
        known = ReplicaStore(engine, state.identity).load()
    return tuple(
        Place(one.host, one.port, key=secrets.engine_key(one.id))
        for one in known
        if one.model == model and one.status is Status.READY
    )
