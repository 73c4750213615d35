"""The engines of one model as places to connect to: a pool each, and the question whether anybody is there.

A hung engine is worse than a dead one: its kernel goes on taking connections, and every request sent there waits for
its whole first-byte time-out. So who has been silent for a while with requests unanswered is asked after its health; if
it does not answer that either, its requests fail at once, and can be tried elsewhere. One timer does it for all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .base import Endpoint
from .health import answers
from .transport import Limits, Pool, Timeouts

UNUSED_S = 60.0
"""A pool that nobody has used for this long is forgotten."""

_SUSPECT = 1 / 8
_PATIENCE = 1 / 2
"""Parts of the connect time-out: after this silence an engine is asked, and has this long to answer. Together with a
look's interval they stay below it."""


class Origin:
    """One engine. `headers` are those that each of its requests has."""

    __slots__ = ("_heard_before", "asked_at", "endpoint", "headers", "heard", "pool", "running", "used_at")

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, limits: Limits) -> None:
        self.endpoint = endpoint
        self.pool = Pool(endpoint.host, endpoint.port, timeouts=timeouts, limits=limits)
        self.headers = b"authorization: Bearer %s\r\n" % endpoint.api_key.encode() if endpoint.api_key else b""
        self.running = 0
        """Requests sent or being answered."""
        self.heard = 0
        """Answers that have begun."""
        self.used_at = 0.0
        self.asked_at = 0.0
        self._heard_before = 0

    def is_at(self, endpoint: Endpoint) -> bool:
        mine = self.endpoint
        return (mine.host, mine.port, mine.api_key) == (endpoint.host, endpoint.port, endpoint.api_key)

    def was_silent(self) -> bool:
        """No answer has begun since this was last asked."""
        silent = self.heard == self._heard_before
        self._heard_before = self.heard
        return silent


class Origins:
    """may_fail   how many requests of a hung engine may fail now: as many as may be tried elsewhere"""

    def __init__(self, timeouts: Timeouts, limits: Limits, may_fail: Callable[[], int]) -> None:
        self._timeouts = timeouts
        self._limits = limits
        self._may_fail = may_fail
        self._origins: dict[str, Origin] = {}
        self._leaving: set[Origin] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._awake = False
        """The timer is for the next look at requests that run, and not only for pools that nobody uses."""
        self._questions: set[asyncio.Task[None]] = set()
        self._suspect_s = timeouts.connect_s * _SUSPECT
        self._interval_s = min(1.0, self._suspect_s)

    def at(self, endpoint: Endpoint) -> Origin:
        """Where to connect to for an endpoint."""
        origin = self._origins.get(endpoint.replica_id)
        if origin is None or not (origin.endpoint is endpoint or origin.is_at(endpoint)):
            if origin is not None:  # the same replica elsewhere: Slurm requeued its job
                self._let_go(origin)
            origin = self._origins[endpoint.replica_id] = Origin(endpoint, self._timeouts, self._limits)
        if not self._awake:
            self._awake = True
            self._look_in(self._interval_s)
        return origin

    @property
    def running(self) -> int:
        return sum(origin.running for origin in self._origins.values())

    async def aclose(self) -> None:
        """Close idle connections; those of open answers close with these."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._awake = False
        for question in self._questions:
            question.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)
        for origin in (*self._origins.values(), *self._leaving):
            await origin.pool.aclose()

    def _look(self) -> None:
        """Every so often: who is silent, who is not used any more."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        busy = False
        for replica_id, origin in tuple(self._origins.items()):
            silent = origin.was_silent()
            if origin.running:
                busy = True
                origin.used_at = now
                if silent and len(self._origins) > 1 and self._is_suspect(origin, now):
                    origin.asked_at = now
                    question = loop.create_task(self._question(origin), name=f"health of {replica_id}")
                    self._questions.add(question)
                    question.add_done_callback(self._questions.discard)
            elif not origin.used_at:
                origin.used_at = now
            elif now - origin.used_at > UNUSED_S:
                self._let_go(self._origins.pop(replica_id))
        for origin in tuple(self._leaving):
            if not origin.running:
                self._leaving.discard(origin)
                origin.pool.close_idle()
        self._awake = busy
        self._timer = None
        if busy or self._origins or self._leaving:
            self._look_in(self._interval_s if busy else UNUSED_S)

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _is_suspect(self, origin: Origin, now: float) -> bool:
        rested = now - origin.asked_at > self._timeouts.connect_s
        return rested and origin.pool.unanswered_s() >= self._suspect_s

    async def _question(self, origin: Origin) -> None:
        heard = origin.heard
        if await answers(origin.endpoint, self._timeouts.connect_s * _PATIENCE) or origin.heard != heard:
            return
        origin.pool.give_up(self._may_fail())

    def _let_go(self, origin: Origin) -> None:
        origin.pool.close_idle()
        if origin.running:
            self._leaving.add(origin)
