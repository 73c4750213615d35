"""Models that no engine of ours answers for: hosted ones and plugins', and who stands in for whom.

The configuration knows names only; here they become backends, and what is wrong with them stops the start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from backends.base import Backend
from backends.fallback import Link
from backends.hosted import HostedBackend
from backends.plugins import BackendFactory, PluginError, install_dialects, load_backends, make_backend
from backends.transport import Timeouts

from .config import ConfigError, Model, path_of


def foreign_backends(models: Mapping[str, Model]) -> dict[str, Backend]:
    """The backends of all models with `hosted` or `backend`. Also adds the plugins' dialects to the table of them.

    Raises `ConfigError` for broken plugins, unknown ones, options they refuse, and keys that are not there.
    """
    try:
        install_dialects()
        factories = load_backends()
    except PluginError as error:
        raise ConfigError("configuration", [str(error)]) from error
    made: dict[str, Backend] = {}
    mistakes = []
    for name, model in models.items():
        try:
            if model.hosted is not None:
                made[name] = hosted_backend(name, model)
            elif model.backend is not None:
                made[name] = plugin_backend(name, model, factories)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("configuration", mistakes)
    return made


def hosted_backend(name: str, model: Model) -> HostedBackend:
    """Raises `ValueError` with the key's path if there is no such environment variable."""
    key = ""
    if model.api_key_env is not None:
        key = os.environ.get(model.api_key_env, "")
        if not key:
            path = path_of("models", name, "api_key_env")
            raise ValueError(f"{path}: expected the provider's key in the environment variable {model.api_key_env}")
    times = model.timeouts
    return HostedBackend(
        name,
        model.hosted or "",
        api_key=key,
        api_base=model.api_base,
        drop_unsupported=model.drop_unsupported,
        timeouts=Timeouts(times.connect_s, times.first_byte_s, times.idle_s),
    )


def plugin_backend(name: str, model: Model, factories: Mapping[str, BackendFactory]) -> Backend:
    """Raises `ValueError` with the key's path."""
    factory = factories.get(model.backend or "")
    if factory is None:
        known = ", ".join(sorted(factories)) or "none is installed"
        path = path_of("models", name, "backend")
        raise ValueError(f"{path}: found {model.backend!r}, expected the name of a plugin ({known})")
    try:
        return make_backend(factory, name, model.options)
    except ValueError as error:
        raise ValueError(f"{path_of('models', name, 'options')}: {error}") from error


def links_of(models: Mapping[str, Model]) -> dict[str, list[Link]]:
    """The fallbacks of each model that has some."""
    return {
        name: [Link(fallback.model, frozenset(fallback.on)) for fallback in model.fallbacks]
        for name, model in models.items()
        if model.fallbacks
    }
