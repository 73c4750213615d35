"""What endpoints ask of batches, each verb whole; its database work is done in threads of its own.

A batch belongs to its owner, as files do: a project, or a key of no project. To any other it does not exist. Who runs
batches is told that there is something new by `wake`, and finds out by itself what it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from backends.errors import InvalidRequest, NotFound
from proxy.files.service import Files
from proxy.files.values import File, new_id, owner_of, wrong
from proxy.principals import Principal
from proxy.stored_responses import StorageFailed

from .asked import Asked, asked_of, idempotency_of
from .store import BatchStore
from .values import Batch, Status
from .webhooks import Destinations, owners_secret, secret_text

THREADS = 2
MOST_RESULTS = 1000
RESULTS_AT_ONCE = 64
RESULTS_BYTES = 8 * 1024 * 1024
"""An answer with results ends when it has so many, whatever its limit."""

Json = dict[str, Any]
T = TypeVar("T")
DoneAt = Callable[[str, int, int, float | None], float | None]
"""batch id, lines done, lines in all, when it began -> when it will be done; seconds since the epoch, None: unknown."""


@dataclass(frozen=True, slots=True)
class SoFar:
    """Results in the order in which they were committed.

    data       JSON lines
    next_line  `after_line` of the next look: how many lines have been given out by now
    over       there will be no more
    """

    data: bytes
    next_line: int
    over: bool


class ResultsGone(InvalidRequest):
    """Of a batch that ended long ago only its files are kept."""

    status = 410
    code = "results_gone"


class Batches:
    """keys   the gateway's webhook secrets, the newest first"""

    def __init__(
        self,
        store: BatchStore,
        files: Files,
        destinations: Destinations,
        keys: Sequence[bytes],
        *,
        done_at: DoneAt = lambda batch_id, done, total, began_at: None,
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._files = files
        self._destinations = destinations
        self._keys = keys
        self._done_at = done_at
        self._wake = wake
        self._now = now
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="batches")

    def configure(self, destinations: Destinations, keys: Sequence[bytes]) -> None:
        """Go by other settings from now on."""
        self._destinations = destinations
        self._keys = keys

    async def stop(self) -> None:
        """After the last answer. The database is not used any more then, not even for who did not wait for it."""
        await asyncio.to_thread(self._threads.shutdown)

    async def create(self, principal: Principal, given: Json, idempotency: bytes | None) -> Json:
        """A new batch's card; asked again with the same `Idempotency-Key`, that of the one that was made with it.

        Raises `InvalidRequest`.
        """
        asked = asked_of(given)
        once = idempotency_of(idempotency, given)
        if asked.webhook is not None:
            self._destinations.check(asked.webhook)
        owner = owner_of(principal)

        def run() -> Batch:
            # before its file is looked for: that one may have been deleted since
            if once is not None and (known := self._store.same(owner, *once)) is not None:
                return known
            file = self._input(owner, asked.input_file_id)
            return self._store.create(self._batch(owner, principal, asked, file), once)

        batch = await self._in_thread(run)
        self._wake()
        card = self.card(batch)
        if batch.webhook is not None and self._keys:
            card["webhook_secret"] = secret_text(owners_secret(self._keys[0], owner))
        return card

    def _input(self, owner: str, file_id: str) -> File:
        try:
            file = self._files.store.find(owner, file_id)
        except NotFound:
            message = f"Invalid 'input_file_id': no file has the id '{file_id[:80]}'."
            raise InvalidRequest(message, param="input_file_id", code="file_not_found") from None
        if file.purpose != "batch":
            raise wrong("input_file_id", "a file with purpose 'batch'", "invalid_file_purpose")
        return file

    def _batch(self, owner: str, principal: Principal, asked: Asked, file: File) -> Batch:
        now = int(self._now())
        return Batch(
            id=new_id("batch_"),
            owner=owner,
            key_id=principal.key_id,
            status=Status.VALIDATING,
            endpoint=asked.endpoint,
            input_file_id=file.id,
            completion_window=asked.window,
            created_at=now,
            expires_at=now + asked.window_s,
            metadata=asked.metadata,
            mixed_models=asked.mixed_models,
            output_keep_s=asked.output_keep_s,
            webhook=asked.webhook,
        )

    async def find(self, principal: Principal, batch_id: str) -> Json:
        """Raises `NotFound`."""
        return self.card(await self._in_thread(lambda: self._store.find(owner_of(principal), batch_id)))

    async def page(self, principal: Principal, limit: int, after: str | None) -> list[Json]:
        """Newest first; one more than `limit` where there are more. Raises `InvalidRequest`."""
        found = await self._in_thread(lambda: self._store.page(owner_of(principal), limit, after))
        return [self.card(batch) for batch in found]

    async def cancel(self, principal: Principal, batch_id: str) -> Json:
        """Raises `NotFound`, `InvalidRequest` for one that has ended or is ending."""
        return await self._told(self._store.cancel, principal, batch_id)

    async def pause(self, principal: Principal, batch_id: str) -> Json:
        """No more lines are begun. Raises `NotFound`, `InvalidRequest`."""
        return await self._told(self._store.pause, principal, batch_id)

    async def resume(self, principal: Principal, batch_id: str) -> Json:
        """Raises `NotFound`, `InvalidRequest`."""
        return await self._told(self._store.resume, principal, batch_id)

    async def results(self, principal: Principal, batch_id: str, after_line: int, limit: int) -> SoFar:
        """What has been committed behind the first `after_line` results. Raises `NotFound`, `InvalidRequest`."""

        def run() -> SoFar:
            batch = self._store.find(owner_of(principal), batch_id)  # first: what ended later may have more results
            parts: list[bytes] = []
            at, size = after_line, 0
            more = True
            while more and len(parts) < limit and size < RESULTS_BYTES:
                asked = min(RESULTS_AT_ONCE, limit - len(parts))
                found = self._store.results(batch.id, at, asked)
                more = len(found) == asked
                for result in found:
                    parts.append(result.data.rstrip(b"\n") + b"\n")
                    size += len(parts[-1])
                    at = result.seq
            if not parts and batch.status.over and after_line < batch.completed + batch.failed:
                raise ResultsGone(f"Batch '{batch.id}' ended long ago: its results are in its output and error files.")
            return SoFar(b"".join(parts), at, batch.status.over and not more)

        return await self._in_thread(run)

    async def _told(self, verb: Callable[[str, str], Batch], principal: Principal, batch_id: str) -> Json:
        batch = await self._in_thread(lambda: verb(owner_of(principal), batch_id))
        self._wake()
        return self.card(batch)

    def card(self, batch: Batch) -> Json:
        """With when it will be done, as it goes now."""
        done_at = None
        if batch.status is Status.IN_PROGRESS and batch.paused_at is None and batch.total:
            done_at = self._done_at(batch.id, batch.completed + batch.failed, batch.total, batch.in_progress_at)
        return {**batch.card(), "estimated_completion_at": int(done_at) if done_at is not None else None}

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Raises `StorageFailed` where the database does."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except SQLAlchemyError as error:
            raise StorageFailed("The database cannot be reached now.", retry_after_s=5.0) from error
