"""A TOML file -> the configuration, or all of its mistakes."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from slurm_launcher.plugins import PluginError, install_engines
from slurm_launcher.spec import ModelSpec
from tribunal.profile import Profile

from .batches import BatchesSection
from .mistakes import ConfigError, mistakes_of, path_of
from .models import Model, spec_of
from .notation import Section
from .sections import DatabaseSection, FilesSection, LauncherSection, Limits, Observability, Server
from .tribunals import TribunalSection, wrong_tribunals


class Config(Section):
    state_dir: Path | None = Field(None, strict=False)
    server: Server = Server()
    database: DatabaseSection = DatabaseSection()
    files: FilesSection = FilesSection()
    batches: BatchesSection = BatchesSection()
    limits: Limits = Limits()
    observability: Observability = Observability()
    launcher: LauncherSection = LauncherSection()
    tribunal: TribunalSection = TribunalSection()
    models: dict[Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s|]+$")], Model] = Field(min_length=1)

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """The models to launch."""
        return {name: spec_of(name, model) for name, model in self.models.items() if model.source is not None}

    @property
    def tribunals(self) -> dict[str, Profile]:
        """The models that deliberate: `tribunal`, `tribunal/NAME`."""
        return self.tribunal.profiles_by_model(self.models)


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
        raise ConfigError(source, list(dict.fromkeys(mistakes_of(error, Config, defaulted, models)))) from None
    wrong = [*_wrong_fallbacks(config.models), *_wrong_aliases(config.models), *_wrong_placements(config.models)]
    if wrong := wrong or list(wrong_tribunals(config.tribunal, config.models)):
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


def _wrong_placements(models: Mapping[str, Model]) -> Iterator[str]:
    """Names that another placement of the same model has."""
    for name, model in models.items():
        names = [placement.name for placement in model.placements]
        for number, placement in enumerate(names):
            if placement in names[:number]:
                path = path_of("models", name, "placements", str(number), "name")
                yield f"{path}: found {placement!r}, which is another placement of {name} already"


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


def default_state_dir() -> Path:
    """`$SLURMGATE_STATE_DIR`, else the XDG state directory."""
    if given := os.environ.get("SLURMGATE_STATE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "slurmgate"
