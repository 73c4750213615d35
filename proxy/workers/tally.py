"""The metrics of all processes as one state, which never counts backwards. Pure.

A worker that dies takes its counters with it; a total that becomes smaller looks to Prometheus like a fresh start, and
everything that was counted is counted again. So what a dead worker was last known to have counted stays.
"""

from __future__ import annotations

from proxy.metrics import State, counted, merged


class Tally:
    """By worker, whatever tells them apart."""

    def __init__(self) -> None:
        self._last: dict[int, State] = {}
        self._gone: State = {}

    def heard(self, worker: int, state: State) -> None:
        """A worker's numbers since it began."""
        self._last[worker] = state

    def died(self, worker: int) -> None:
        self._gone = merged([self._gone, counted(self._last.pop(worker, {}))])

    def total(self, own: State) -> State:
        """With the asking process' own."""
        return merged([own, *self._last.values(), self._gone])
