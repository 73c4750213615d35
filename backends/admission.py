"""How many requests a replica gets at once: below what its engine takes, and less where that was too much. Pure.

An engine beyond its limit either refuses (TGI, TEI: 429) or lets the request wait where nobody sees it, out of order
and out of fairness. So requests wait here instead, and an engine gets what it can work on.
"""

from __future__ import annotations

import math

DECREASE = 0.75
"""After a refusal the limit is this much of what was in flight."""

UNSAID = {"tgi": 128, "vllm": 256, "sglang": 256, "llamacpp": 4, "tei": 512}
"""What an engine takes at once where nobody has said: its documented default.

tgi        max_concurrent_requests of router/src/main.rs; a semaphore, beyond it 429
vllm       max_num_seqs of the scheduler; beyond it requests wait in the engine
sglang     max_running_requests follows from memory and has no default; this is what fits most
llamacpp   slots of `--parallel -1`; beyond them requests wait in the engine
tei        max_concurrent_requests of router/src/main.rs; a semaphore, beyond it 429
"""

_REFUSES = {"tgi", "tei"}
_EXCESS = {"vllm": 1.25, "sglang": 1.25}
"""Engines that queue in good order take some more than they work on, so that a seat is never cold between two."""

_OTHERS = 256


def admitted(engine: str, takes: int | None = None) -> int:
    """Requests that a replica of an engine gets at once. `takes`: what it has said that it takes, if it has."""
    if takes is None:
        takes = UNSAID.get(engine, _OTHERS)
    if engine in _REFUSES:
        return max(1, takes - math.ceil(takes / 16))  # others may ask it, too, its own health check among them
    return max(1, int(takes * _EXCESS.get(engine, 1.0)))


class Limit:
    """Of one replica: `now` falls by a share when its engine refuses and rises by one for each round of requests that
    were served at it, as TCP's window does, up to `ceiling`."""

    __slots__ = ("_lowered_at", "_room", "ceiling", "now")

    def __init__(self, ceiling: int) -> None:
        self.ceiling = self.now = ceiling
        self._room = float(ceiling)
        self._lowered_at = -math.inf

    def set_ceiling(self, ceiling: int) -> None:
        """It is known better now."""
        if self.now == self.ceiling or ceiling < self.now:
            self.now = ceiling
            self._room = float(ceiling)
        self.ceiling = ceiling

    def refused(self, in_flight: int, begun: float, now: float) -> None:
        """The engine had no room for a request that was sent at `begun`, beside `in_flight` others."""
        if begun < self._lowered_at:
            return  # of the same burst, which has been answered for
        self._lowered_at = now
        self._room = max(1.0, math.floor(min(self._room, in_flight + 1) * DECREASE))
        self.now = int(self._room)

    def served(self, in_flight: int) -> None:
        """A request was served while so many others were in flight. Nothing to do where `now` is the ceiling."""
        if in_flight + 1 < self.now:
            return  # the limit was not what held requests back
        self._room = min(float(self.ceiling), self._room + 1 / self._room)
        self.now = int(self._room)
