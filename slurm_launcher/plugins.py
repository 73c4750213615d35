"""Engines of third parties: entry points of the group `slurmgate.engines`, each an `Engine` value.

    [project.entry-points."slurmgate.engines"]
    myengine = "my_package:ENGINE"

They are added to `engines.ENGINES`, once, before the configuration is read: from then on they are engines like any.
What such an engine says differently from OpenAI is not the launcher's business: see backends/plugins.py.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from .engines import ENGINES, Engine

GROUP = "slurmgate.engines"


class PluginError(Exception):
    """A plugin cannot be used. The message names its distribution and says what to do about it."""


def install_engines() -> list[str]:
    """Add the engines of all installed plugins to `ENGINES`; their names. A second call changes nothing.

    Raises `PluginError` for one that cannot be loaded, is no `Engine`, or has a name that is taken.
    """
    found: dict[str, tuple[Engine, str]] = {}
    for entry in sorted(set(entry_points(group=GROUP)), key=lambda entry: (entry.name, entry.value)):
        engine = _load(entry)
        if entry.name in found:
            raise PluginError(f"{origin(entry)}: {found[entry.name][1]} has an engine of that name, too; remove one")
        if ENGINES.get(entry.name, engine) is not engine:
            raise PluginError(f"{origin(entry)}: slurmgate has an engine of that name itself")
        found[entry.name] = (engine, origin(entry))
    ENGINES.update({name: engine for name, (engine, _) in found.items()})
    return list(found)


def _load(entry: EntryPoint) -> Engine:
    try:
        engine = entry.load()
    except Exception as error:  # it is somebody else's code: anything may come
        raise PluginError(f"{origin(entry)}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(engine, Engine):
        raise PluginError(f"{origin(entry)}: expected a slurm_launcher.engines.Engine, found {type(engine).__name__}")
    if engine.name != entry.name:
        raise PluginError(f"{origin(entry)}: the engine calls itself {engine.name!r}; expected the entry point's name")
    return engine


def origin(entry: EntryPoint) -> str:
    """Whose it is: the distribution, the entry point, and where that points."""
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown distribution"
    return f"plugin {entry.name!r} of {distribution} ({entry.group}, {entry.value})"
