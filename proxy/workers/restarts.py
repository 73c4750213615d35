"""When a dead worker's place is taken again, and when that is in vain. Pure."""

from __future__ import annotations

LIVED_S = 10.0
"""A worker that lived for so long has not died of its start."""

AT_MOST = 5
"""Quick deaths one after the other, then it is given up."""

_FIRST_S = 0.1
_LONGEST_S = 5.0


class Restarts:
    """Of one worker's place."""

    def __init__(self) -> None:
        self._quick = 0

    def died(self, lived_s: float) -> float | None:
        """Seconds until the next one is started, 0.0 after a long life; None: one more would die as quickly."""
        if lived_s >= LIVED_S:
            self._quick = 0
            return 0.0
        self._quick += 1
        if self._quick >= AT_MOST:
            return None
        return float(min(_LONGEST_S, _FIRST_S * 3 ** (self._quick - 1)))
