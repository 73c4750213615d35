"""Which workers are dead: those whose beats stand still. Pure.

Nobody's clock is compared with another's: each worker watches the others' counters by its own. A look that comes late,
because the watcher itself slept or the database was away, says little of the others, so it counts as a short one.
"""

from __future__ import annotations

from collections.abc import Mapping

LEASE_S = 15.0
LOOK_S = LEASE_S / 3
"""The most that one look adds to a silence."""


class Watch:
    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._beats: dict[str, int] = {}
        self._silent_s: dict[str, float] = {}

    def look(self, beats: Mapping[str, int], now: float) -> list[str]:
        """beats   of every other worker, by its id
        now        monotonic, in seconds

        Returns the ids of those that are silent for `LEASE_S`.
        """
        passed = min(now - self._looked_at, LOOK_S) if self._looked_at is not None else 0.0
        self._looked_at = now
        self._silent_s = {
            worker: self._silent_s.get(worker, 0.0) + passed if self._beats.get(worker) == count else 0.0
            for worker, count in beats.items()
        }
        self._beats = dict(beats)
        return [worker for worker, silent_s in self._silent_s.items() if silent_s >= LEASE_S]
