"""What tribunals did, in plain numbers."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from . import families as f
from .counting import Histogram
from .state import State

if TYPE_CHECKING:
    from tribunal.backend import Deliberated


class Deliberations:
    """Labels are models' names, and words of the plan's own."""

    def __init__(self) -> None:
        self._outcomes: Tally[tuple[str, str, str]] = Tally()
        self._calls: Tally[tuple[str, str, str]] = Tally()
        self._phases: dict[tuple[str, str], Histogram] = {}

    def observe(self, over: Deliberated) -> None:
        """One that is over."""
        name, trace = over.profile.model_name, over.trace
        self._outcomes[name, trace.verdict, trace.degraded or trace.outcome] += 1
        for call in trace.calls:
            self._calls[name, call.phase, call.outcome] += 1
        began_s = 0.0
        for phase, _, ended_s in trace.exits:
            histogram = self._phases.get((name, phase))
            if histogram is None:
                histogram = self._phases[name, phase] = Histogram(f.TRIBUNAL_PHASE.bounds)
            histogram.observe(ended_s - began_s)
            began_s = ended_s

    def state(self) -> State:
        return {
            f.TRIBUNALS.name: [(labels, count) for labels, count in self._outcomes.items()],
            f.TRIBUNAL_CALLS.name: [(labels, count) for labels, count in self._calls.items()],
            f.TRIBUNAL_PHASE.name: [(labels, number.number()) for labels, number in self._phases.items()],
        }
