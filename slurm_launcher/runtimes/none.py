"""No container: the engine comes from modules, a virtual environment, or an absolute path in `command`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_launcher.spec import ModelSpec

from .base import Runtime, Wrapped


def _check(spec: ModelSpec) -> None:
    """Image and binds may come from [defaults]; they mean nothing here."""


def _around(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
    return Wrapped(list(argv), dict(environment))


NONE = Runtime("none", _check, _around)
