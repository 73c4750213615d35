"""Room for what is about to come, promised before its bytes are taken.

What has a row is counted from the database (store.py, which has the last word); what is under way in this process is
counted here, so that many at once do not fill the disk before any of them gets its row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InsufficientStorage, StorageQuotaExceeded


@dataclass(frozen=True, slots=True)
class Quota:
    """Bytes; None for no limit. `keep_free` is of the file system."""

    total: int | None = None
    per_owner: int | None = None
    keep_free: int = 0

    def check(self, total: int, of_owner: int, added: int) -> None:
        """Whether so many bytes may be `added` to what there is. Raises `StorageQuotaExceeded`,
        `InsufficientStorage`."""
        if self.per_owner is not None and of_owner + added > self.per_owner:
            raise StorageQuotaExceeded(
                f"Your project keeps {of_owner} bytes of files and may keep {self.per_owner}: delete some first."
            )
        if self.total is not None and total + added > self.total:
            raise InsufficientStorage("This gateway keeps as many bytes of files as it may.")


class Promise:
    """Room for one file under way.

    used       bytes of everybody's and of the owner's files when it began
    counted    its bytes are in the rows already
    expected   bytes that it will have, as far as is known
    written    bytes that are on disk already
    """

    def __init__(self, room: Room, owner: str, used: tuple[int, int], *, counted: bool) -> None:
        self._room = room
        self.owner = owner
        self.used = used
        self.counted = counted
        self.expected = 0
        self.written = 0

    def grow(self, expected: int, written: int) -> None:
        """Raises `StorageQuotaExceeded`, `InsufficientStorage`."""
        self._room.grow(self, expected, written)

    def release(self) -> None:
        """It is about to get its row, which is counted then; or it came to nothing."""
        self._room.release(self)


class Room:
    """used   bytes of everybody's and of an owner's files, by their rows
    free      bytes left on the file system
    """

    def __init__(self, quota: Quota, used: Callable[[str], tuple[int, int]], free: Callable[[], int]) -> None:
        self._quota = quota
        self._used = used
        self._free = free
        self._promises: set[Promise] = set()
        self._lock = threading.Lock()

    def promise(self, owner: str, expected: int, *, counted: bool = False) -> Promise:
        """Raises `StorageQuotaExceeded`, `InsufficientStorage`."""
        limited = self._quota.total is not None or self._quota.per_owner is not None
        used = self._used(owner) if limited and not counted else (0, 0)
        promise = Promise(self, owner, used, counted=counted)
        promise.grow(expected, 0)
        return promise

    def grow(self, promise: Promise, expected: int, written: int) -> None:
        with self._lock:
            self._promises.discard(promise)  # who is refused stands in nobody's way any more
            others = self._promises
            if not promise.counted:
                uncounted = [other for other in others if not other.counted]
                total, own = promise.used
                total += sum(other.expected for other in uncounted)
                own += sum(other.expected for other in uncounted if other.owner == promise.owner)
                self._quota.check(total, own, expected)
            to_come = sum(max(other.expected - other.written, 0) for other in others) + max(expected - written, 0)
            if self._free() - to_come < self._quota.keep_free:
                raise InsufficientStorage("There is no room left for files on this gateway's disk.")
            promise.expected, promise.written = expected, written
            self._promises.add(promise)

    def release(self, promise: Promise) -> None:
        with self._lock:
            self._promises.discard(promise)
