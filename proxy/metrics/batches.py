"""What is known of batches, as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from . import families as f
from .state import State


@dataclass(frozen=True, slots=True)
class BatchLines:
    """Of one model in one process, since its start: lines that have their result, and those that are asked now."""

    model: str
    completed: int
    failed: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class BatchNumbers:
    """states   batches by state, as the database had them last: the same in every process"""

    lines: Iterable[BatchLines] = ()
    states: Mapping[str, int] = field(default_factory=dict)


def state_of_batches(numbers: BatchNumbers) -> State:
    lines = tuple(numbers.lines)
    return {
        f.BATCHES.name: [([state], count) for state, count in numbers.states.items()],
        f.BATCH_LINES.name: [
            *(([one.model, "completed"], one.completed) for one in lines),
            *(([one.model, "failed"], one.failed) for one in lines),
        ],
        f.BATCH_IN_FLIGHT.name: [([one.model], one.in_flight) for one in lines],
    }
