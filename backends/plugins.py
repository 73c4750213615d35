"""Backends and dialects of third parties: entry points of two groups.

    [project.entry-points."slurmgate.backends"]     a factory: (model name, options) -> Backend
    echo = "my_package:make_backend"

    [project.entry-points."slurmgate.dialects"]     a Dialect, of the engine with the entry point's name
    myengine = "my_package:DIALECT"

A model of the configuration with `backend = "echo"` gets what the factory makes of its `options` table. The engine to a
dialect, that is how to start it, is an entry point of `slurmgate.engines` (slurm_launcher/plugins.py): two groups,
since neither package knows the other.

All installed plugins are loaded at the start, also those that no model uses, so that a broken one is found then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .base import Backend
from .dialects import DIALECTS, Dialect

BACKENDS = "slurmgate.backends"
DIALECT_GROUP = "slurmgate.dialects"

BackendFactory = Callable[[str, Mapping[str, Any]], Backend]
"""Raises `ValueError` for options that it cannot use, with a message that names the option."""


class PluginError(Exception):
    """A plugin cannot be used. The message names its distribution and says what to do about it."""


def load_backends() -> dict[str, BackendFactory]:
    """The factories of all installed plugins, by name. Raises `PluginError`."""
    return {name: _factory(entry) for name, entry in _entries(BACKENDS).items()}


def install_dialects() -> list[str]:
    """Add the dialects of all installed plugins to `DIALECTS`; their names. A second call changes nothing.

    Raises `PluginError`.
    """
    found = {name: _dialect(entry) for name, entry in _entries(DIALECT_GROUP).items()}
    DIALECTS.update(found)
    return list(found)


def _entries(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in sorted(set(entry_points(group=group)), key=lambda entry: (entry.name, entry.value)):
        if entry.name in found:
            raise PluginError(f"{origin(entry)}: {origin(found[entry.name])} has the same name; remove one")
        found[entry.name] = entry
    return found


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:  # it is somebody else's code: anything may come
        raise PluginError(f"{origin(entry)}: cannot be loaded: {type(error).__name__}: {error}") from error


def _factory(entry: EntryPoint) -> BackendFactory:
    factory = _load(entry)
    if not callable(factory):
        raise PluginError(f"{origin(entry)}: expected a function (name, options) -> Backend, found {factory!r}")
    made: BackendFactory = factory
    return made


def _dialect(entry: EntryPoint) -> Dialect:
    dialect = _load(entry)
    if not isinstance(dialect, Dialect):
        raise PluginError(f"{origin(entry)}: expected a backends.dialects.Dialect, found {type(dialect).__name__}")
    if dialect.name != entry.name:
        raise PluginError(f"{origin(entry)}: the dialect calls itself {dialect.name!r}; expected the engine's name")
    if DIALECTS.get(entry.name, dialect) is not dialect:
        raise PluginError(f"{origin(entry)}: slurmgate has a dialect of that name itself")
    return dialect


def origin(entry: EntryPoint) -> str:
    """Whose it is: the distribution, the entry point, and where that points."""
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown distribution"
    return f"plugin {entry.name!r} of {distribution} ({entry.group}, {entry.value})"


def make_backend(factory: BackendFactory, name: str, options: Mapping[str, Any]) -> Backend:
    """What a factory makes. Raises `ValueError` with the reason, also where it returns something else."""
    backend = factory(name, options)
    missing = [verb for verb in ("run", "in_flight", "aclose") if not callable(getattr(backend, verb, None))]
    if missing:
        raise ValueError(f"the plugin made something without {', '.join(missing)}()")
    return backend
