"""What the database says is left -> what is scheduled, and what the launcher is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxy.control import BatchWork

from .rates import Rates
from .schedule import Work, replicas_for
from .values import Progress


def asked_for(
    works: Mapping[str, Sequence[Work]],
    in_flight: Mapping[str, int],
    rates: Rates,
    endpoints: Mapping[str, int],
    now: float,
) -> dict[str, BatchWork]:
    """Of each model that has anything.

    works       what is left, by model; nothing where the hours let nothing run
    in_flight   lines that this process asks now
    endpoints   replicas that there are: what was measured is what they do together
    """
    told: dict[str, BatchWork] = {}
    for model, lines in in_flight.items():
        rate, replicas = rates.tokens_per_s(model), endpoints.get(model, 0)
        wanted = replicas_for(works.get(model, ()), rate / replicas if rate and replicas else None, now)
        if wanted or lines:
            told[model] = BatchWork(wanted, lines)
    return told


def work_of(progress: Progress) -> Work:
    batch = progress.batch
    return Work(
        batch.id,
        progress.model,
        batch.owner,
        batch.created_at,
        batch.expires_at,
        progress.lines,
        progress.tokens,
        progress.tokens // max(1, progress.windows),
    )
