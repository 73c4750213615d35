"""Whether requests become OpenTelemetry spans. Off, nothing of OpenTelemetry is imported; `spans.py` is what is on."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from .config import ConfigError, Observability

if TYPE_CHECKING:
    from .spans import Tracing


def check_tracing(section: Observability) -> None:
    """Raises `ConfigError` where spans are wanted and the packages for them are missing: for who starts others that
    will make them."""
    if section.tracing:
        _spans()


def tracing_of(section: Observability) -> Tracing | None:
    """What makes spans, None where that is off. Raises `ConfigError` as above."""
    if not section.tracing:
        return None
    spans = _spans()
    tracing: Tracing = spans.Tracing(spans.provider_of_environment(), content=not section.privacy)
    return tracing


def _spans() -> ModuleType:
    try:
        return importlib.import_module(".spans", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("opentelemetry"):
            raise
        raise ConfigError(
            "configuration",
            ["observability.tracing: expected the extra `otel`, which is not installed: pip install 'slurmgate[otel]'"],
        ) from None
