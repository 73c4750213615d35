"""Whether requests become OpenTelemetry spans. Off, nothing of OpenTelemetry is imported; `spans.py` is what is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import ConfigError, Observability

if TYPE_CHECKING:
    from .spans import Tracing


def tracing_of(section: Observability) -> Tracing | None:
    """What makes spans, None where that is off. Raises `ConfigError` where the packages for it are missing."""
    if not section.tracing:
        return None
    try:
        from .spans import Tracing, provider_of_environment  # noqa: PLC0415  # an optional extra
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("opentelemetry"):
            raise
        raise ConfigError(
            "configuration",
            ["observability.tracing: expected the extra `otel`, which is not installed: pip install 'slurmgate[otel]'"],
        ) from None
    return Tracing(provider_of_environment(), content=not section.privacy)
