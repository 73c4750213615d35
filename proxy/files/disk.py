"""The bytes of files and of parts, on one file system. Everything here blocks: it runs in threads.

    content/<2 hex>/<id>     whole, synced, never changed
    incoming/<process>/      what a process is writing now; `lock` in it is held as long as that process lives

`begin` -> `Incoming.write` ... -> `Incoming.place` (sync, rename, sync of the directory). A process that is killed
leaves its directory with nobody holding the lock: the next sweep takes it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import disk_errors

OLD_S = 3600.0
"""While other processes live: what has no row for this long is not just being given one."""


class Incoming:
    """A file that is being written."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Raises `InsufficientStorage`, `StorageFailed`."""
        assert self._file is not None  # noqa: S101  # nobody writes after the end
        view = memoryview(data)
        with disk_errors():
            while view:
                written = os.write(self._file, view)
                self.size += written
                view = view[written:]

    def place(self, content_id: str) -> None:
        """Make it the content of an id, for good, also when the machine loses its power now."""
        assert self._file is not None  # noqa: S101  # as above
        with disk_errors():
            os.fsync(self._file)
            self._close()
            self._disk.take_in(self._path, content_id)

    def discard(self) -> None:
        """Remove it, unless it has been placed."""
        self._close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class Disk:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._content = directory / "content"
        self._incoming = directory / "incoming"
        self._numbers = itertools.count()
        self._own: Path | None = None
        self._lock: int | None = None
        self._placing: set[str] = set()

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the directories, and one for this process. Raises `OSError`."""
        self._content.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        while self._lock is None:
            own = self._incoming / secrets.token_hex(8)
            own.mkdir(mode=0o700)
            lock = os.open(own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # a sweep elsewhere may have seen it before it was locked, and have taken it away
            if _locked(lock) and _still_there(lock, own / "lock"):
                self._own, self._lock = own, lock
            else:
                os.close(lock)

    def close(self) -> None:
        if self._lock is not None and self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            os.close(self._lock)
            self._own = self._lock = None

    # -- bytes --------------------------------------------------------------------------------------------------------

    def begin(self) -> Incoming:
        """Raises `InsufficientStorage`, `StorageFailed`."""
        assert self._own is not None  # noqa: S101  # it is open
        with disk_errors():
            return Incoming(self, self._own / str(next(self._numbers)))

    def take_in(self, path: Path, content_id: str) -> None:
        """Raises `OSError`. Until `settled`, it is not taken for something that was left behind."""
        self._placing.add(content_id)
        goal = self.path(content_id)
        try:
            os.rename(path, goal)
        except FileNotFoundError:  # the first of its shard
            goal.parent.mkdir(mode=0o700, exist_ok=True)
            _sync(goal.parent.parent)
            os.rename(path, goal)
        _sync(goal.parent)

    def settled(self, content_id: str) -> None:
        """It has its row now, or will not get one."""
        self._placing.discard(content_id)

    def path(self, content_id: str) -> Path:
        """`content_id` is one of ours: it comes from a row."""
        return self._content / content_id[-2:] / content_id

    def open_to_read(self, content_id: str) -> int:
        """A file descriptor. Raises `FileNotFoundError`, `StorageFailed`."""
        try:
            return os.open(self.path(content_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError:
            with disk_errors():
                raise

    def remove(self, content_id: str) -> None:
        """Whoever reads it now reads it to its end. What cannot be removed is swept later."""
        with contextlib.suppress(OSError):
            self.path(content_id).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        with disk_errors():
            found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    # -- sweeping -----------------------------------------------------------------------------------------------------

    def sweep(self, known: Callable[[list[str]], set[str]]) -> int:
        """Remove what killed processes were writing, and what has no row. How many files that was.

        known   which of these ids have rows
        """
        removed = self._sweep_incoming()
        for shard in sorted(self._content.glob("??")):
            there = [(entry.name, changed) for entry in _entries(shard) if (changed := _changed(entry)) is not None]
            # in this order: see `take_in` and `settled`; who has put a file there before it was listed still lives now,
            # or has given it its row, or never will
            oldest = time.time() - OLD_S if self._others_live() else float("inf")
            mine = set(self._placing)
            candidates = [name for name, changed in there if changed < oldest and name not in mine]
            for name in set(candidates) - (known(candidates) if candidates else set()):
                self.remove(name)
                removed += 1
        return removed

    def _sweep_incoming(self) -> int:
        removed = 0
        for directory in self._others():
            lock = _lock_of(directory)
            if lock is not None:
                removed += len([entry for entry in _entries(directory) if entry.name != "lock"])
                shutil.rmtree(directory, ignore_errors=True)
                os.close(lock)
            elif _without_lock(directory):
                shutil.rmtree(directory, ignore_errors=True)
        return removed

    def _others_live(self) -> bool:
        for directory in self._others():
            lock = _lock_of(directory)
            if lock is None:
                return True
            os.close(lock)
        return False

    def _others(self) -> list[Path]:
        return [Path(entry.path) for entry in _entries(self._incoming) if Path(entry.path) != self._own]


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """What is in it, which may be gone when it is looked at; nothing if it is not there."""
    try:
        with os.scandir(directory) as found:
            yield from list(found)
    except FileNotFoundError:
        return


def _changed(entry: os.DirEntry[str]) -> float | None:
    try:
        return entry.stat().st_ctime
    except FileNotFoundError:
        return None


def _without_lock(directory: Path) -> bool:
    """Whether its process was killed before it had made the lock: that takes no time."""
    try:
        return time.time() - directory.stat().st_mtime > OLD_S and not (directory / "lock").exists()
    except FileNotFoundError:
        return False


def _lock_of(directory: Path) -> int | None:
    """The lock of a process' directory, taken; None if that process lives, or is just beginning."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if _locked(lock):
        return lock
    os.close(lock)
    return None


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_there(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _sync(directory: Path) -> None:
    """So that a rename in it outlives a loss of power."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
