"""The log of several processes in one file or pipe: whole lines, whoever writes them.

Each process collects its lines and writes them together (proxy/logging.py). A write to a file is one piece; one to a
pipe only up to PIPE_BUF bytes (pipe(7)). So lines go out in pieces not longer than that, and one process at a time
writes: a line that is longer, such as a trace, would else get others into its middle.
"""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

from proxy.logging import LineWriter, configure


def pieces(lines: Sequence[bytes], most: int = select.PIPE_BUF) -> Iterator[bytes]:
    """Whole lines, as many together as `most` bytes take. A longer one comes alone."""
    together: list[bytes] = []
    size = 0
    for line in lines:
        if together and size + len(line) + 1 > most:
            yield b"\n".join((*together, b""))
            together, size = [], 0
        together.append(line)
        size += len(line) + 1
    if together:
        yield b"\n".join((*together, b""))


class SharedLines(LineWriter):
    """`lock` is a file that all processes of this log open, each for itself."""

    def __init__(self, descriptor: int, lock: Path) -> None:
        super().__init__(descriptor)
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        self._size = 0
        if not lines:
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            for piece in pieces(lines):
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._descriptor, view) :]
        except OSError:
            pass  # a log that nobody reads any more (a closed pipe, a full disk) must not stop the service
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def configure_shared(state_dir: Path, descriptor: int = 2) -> tuple[FilteringBoundLogger, LineWriter]:
    """As `proxy.logging.configure`, for a log that other processes of this gateway write too."""
    configure(descriptor)
    lines = SharedLines(descriptor, state_dir / "log.lock")
    structlog.configure(logger_factory=lambda *_: lines)  # the rest stays as it was configured
    log: FilteringBoundLogger = structlog.get_logger()
    return log, lines
