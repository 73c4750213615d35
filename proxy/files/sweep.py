"""Clearing away what is past its time, and what a killed process left behind. At the start, and again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

from .disk import Disk
from .store import FileStore
from .uploads import UploadStore

EVERY_S = 300.0
ORPHANS_EVERY = 12
"""The whole disk is looked through once in so many rounds."""


class Sweeper:
    def __init__(self, files: FileStore, uploads: UploadStore, disk: Disk, log: FilteringBoundLogger) -> None:
        self._files = files
        self._uploads = uploads
        self._disk = disk
        self._log = log

    async def run(self, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        """Until it is cancelled."""
        rounds = 0
        while True:
            try:
                await in_thread(self.expired)
                if rounds % ORPHANS_EVERY == 0:
                    await in_thread(self.orphans)
            except Exception:  # the database or the disk may be away for a while
                self._log.exception("file_sweep_failed")
            rounds += 1
            await asyncio.sleep(EVERY_S)

    def expired(self) -> int:
        """Files and parts past their time: rows first, then bytes. How many that was."""
        gone = [*self._files.forget_expired(), *self._uploads.forget_expired()]
        for content_id in gone:
            self._disk.remove(content_id)
        if gone:
            self._log.info("files_expired", count=len(gone))
        return len(gone)

    def orphans(self) -> int:
        """Bytes without a row. How many files that was."""
        removed = self._disk.sweep(self._files.known)
        if removed:
            self._log.info("files_swept", count=removed)
        return removed
