"""The database as the runner uses it: every verb in one thread of its own, and again until it succeeds.

A database that is locked or away, and a disk that is full, are so for a while: nothing is lost by waiting. The log says
once that it is waited for, and once that it is over.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from .values import Committed, Done

FIRST_WAIT_S, MOST_WAIT_S = 0.1, 5.0

GROUP_S = 0.05
"""Results that come within it are committed together."""
GROUP_LINES = 512
MOST_BYTES = 8 * 1024 * 1024
"""Of results that are not committed yet: then no line is started until some are."""

P = ParamSpec("P")
T = TypeVar("T")


class Storage:
    """well   the last verb succeeded"""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self.well = True
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._troubled_at = 0.0

    async def __call__(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Until it succeeds. Cancelling it gives up the waiting; a verb that runs ends by itself."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                done = await self.once(verb, *args, **kwargs)
            except (SQLAlchemyError, OSError) as error:
                self._in_trouble(error)
            else:
                self._is_well()
                return done
            await asyncio.sleep(wait_s * (0.5 + random.random() / 2))  # noqa: S311
            wait_s = min(MOST_WAIT_S, wait_s * 2)

    async def once(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(verb, *args, **kwargs))

    def close(self) -> None:
        """Wait for a verb that still runs."""
        self._thread.shutdown(wait=True)

    def _in_trouble(self, error: Exception) -> None:
        if self.well:
            self.well = False
            self._troubled_at = time.monotonic()
            cause = getattr(error, "orig", None) or error  # the driver's own, without statement and values
            self._log.error("batches_wait_for_storage", error=type(cause).__name__, reason=str(cause)[:200])

    def _is_well(self) -> None:
        if not self.well:
            self.well = True
            self._log.info("batches_go_on", waited_s=round(time.monotonic() - self._troubled_at, 1))


class Results:
    """Results on their way into the database, in groups.

    after   is told of each group that has been committed
    """

    def __init__(
        self,
        storage: Storage,
        commit: Callable[[Sequence[Done]], Committed],
        after: Callable[[Sequence[Done], Committed], None],
    ) -> None:
        self.bytes = 0
        self._storage = storage
        self._commit = commit
        self._after = after
        self._waiting: list[Done] = []
        self._some = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def full(self) -> bool:
        return self.bytes >= MOST_BYTES

    def put(self, done: Done) -> None:
        waiting = self._waiting
        waiting.append(done)
        self.bytes += len(done.data)
        if len(waiting) == 1:
            self._some.set()
            self._empty.clear()

    async def empty(self) -> None:
        """Return when everything is committed."""
        await self._empty.wait()

    async def keep_committing(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._some.wait()
            if len(self._waiting) < GROUP_LINES:
                await asyncio.sleep(GROUP_S)
            group = self._waiting[:GROUP_LINES]
            committed = await self._storage(self._commit, group)
            del self._waiting[: len(group)]
            self.bytes -= sum(len(done.data) for done in group)
            if not self._waiting:
                self._some.clear()
                self._empty.set()
            self._after(group, committed)
