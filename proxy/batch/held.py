"""A window that this process has claimed: which of its lines are next, which run, which wait for another attempt.

    refs --reading--> ready --next--> running --Done--> committed
                        ^                |
                        `---- later <----'   asked again, when its time has come

Only a stretch of the file is in memory for each window. Nothing here blocks and nothing here waits.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections import deque
from collections.abc import Sequence

from .line import Asker
from .values import LineRef, Window

STRETCH_BYTES = 256 * 1024
STRETCH_LINES = 128
READ_BELOW_LINES, READ_BELOW_BYTES = 64, STRETCH_BYTES
"""In memory, of each window: the next stretch is read when there is less of both."""


class Batch:
    """What the lines of one batch that run here have in common.

    rests_until   none is started before (of time.monotonic()): its key is over a limit
    file          of its input, open until nobody needs it
    windows       held here, and stretches that are being read: who needs it
    """

    __slots__ = ("asker", "file", "key_id", "rests_until", "windows")

    def __init__(self, asker: Asker, key_id: str, file: int) -> None:
        self.asker = asker
        self.key_id = key_id
        self.file = file
        self.rests_until = 0.0
        self.windows = 0

    def leave(self) -> bool:
        """One who needs it less; the last one closes its file."""
        self.windows -= 1
        if self.windows:
            return False
        os.close(self.file)
        return True


class Held:
    """One window.

    left      lines whose result is not committed yet
    lanes     tasks that ask lines of it
    reading   a stretch is being read
    pending   results on their way into the database
    leaving_at   none of it is begun any more since then, of time.monotonic(): it is given back when nothing runs
    dropped   it is another's, or soon will be: what still comes of it is thrown away
    """

    def __init__(self, window: Window, batch: Batch) -> None:
        self.window = window
        self.batch = batch
        self.left = len(window.lines)
        self.reading = False
        self.dropped = False
        self.pending = 0
        self.leaving_at: float | None = None
        self.lanes: set[asyncio.Task[None]] = set()
        self._unread = deque(window.lines)
        self._ready: deque[tuple[LineRef, bytes]] = deque()
        self._ready_bytes = 0
        self._later: list[tuple[float, int, LineRef]] = []
        self._attempts = {line.line_no: line.attempts for line in window.lines if line.attempts}
        self._deaths: dict[int, int] = {}

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def hungry(self) -> bool:
        """The next stretch is to be read soon."""
        return len(self._ready) < READ_BELOW_LINES and self._ready_bytes < READ_BELOW_BYTES

    @property
    def ahead(self) -> int:
        """Lines that are neither running nor done."""
        return len(self._ready) + len(self._unread)

    def rests(self, now: float) -> bool:
        """None of it is to be begun now."""
        return self.leaving_at is not None or self.batch.rests_until > now

    @property
    def idle(self) -> bool:
        """Nothing of it runs, or is on its way."""
        return not self.lanes and not self.pending and not self.reading

    @property
    def attempts(self) -> dict[int, int]:
        """Of lines that have failed, by number."""
        return self._attempts

    def next(self) -> tuple[LineRef, bytes] | None:
        if not self._ready:
            return None
        found = self._ready.popleft()
        self._ready_bytes -= len(found[1])
        return found

    def put_back(self, line: LineRef, data: bytes) -> None:
        """It was not asked, or nothing of it is to be remembered; it is the next one."""
        self._ready.appendleft((line, data))
        self._ready_bytes += len(data)

    def again(self, line: LineRef, due: float) -> None:
        heapq.heappush(self._later, (due, line.line_no, line))

    def wake(self, now: float) -> None:
        """Those whose time has come are to be read anew, before the others."""
        while self._later and self._later[0][0] <= now:
            self._unread.appendleft(heapq.heappop(self._later)[2])

    def failed(self, line: LineRef) -> int:
        """Counts an attempt; how many it has had."""
        self._attempts[line.line_no] = count = self._attempts.get(line.line_no, 0) + 1
        return count

    def lost_engine(self, line: LineRef) -> int:
        """Counts an engine that ended under it; how many have, in a row."""
        self._deaths[line.line_no] = count = self._deaths.get(line.line_no, 0) + 1
        return count

    # -- reading ------------------------------------------------------------------------------------------------------

    def to_read(self) -> list[LineRef]:
        """The next stretch, at least a line of it where there is any left; it counts as being read."""
        lines: list[LineRef] = []
        size = 0
        while self._unread and len(lines) < STRETCH_LINES:
            line = self._unread[0]
            if lines and size + line.size > STRETCH_BYTES:
                break
            size += line.size
            lines.append(self._unread.popleft())
        self.reading = bool(lines)
        return lines

    def have_read(self, lines: Sequence[LineRef], data: Sequence[bytes]) -> None:
        self.reading = False
        self._ready.extend(zip(lines, data, strict=True))
        self._ready_bytes += sum(map(len, data))

    def not_read(self, lines: Sequence[LineRef]) -> None:
        """The disk failed: later again."""
        self.reading = False
        self._unread.extendleft(reversed(lines))


def read(file: int, lines: Sequence[LineRef]) -> list[bytes]:
    """The bytes of lines, by one read for each run of neighbours. Blocks; raises `OSError`."""
    found: list[bytes] = []
    start = 0
    while start < len(lines):
        end = start + 1
        while end < len(lines) and 0 <= lines[end].offset - (lines[end - 1].offset + lines[end - 1].size) <= 2:
            end += 1
        first = lines[start].offset
        data = whole_read(file, first, lines[end - 1].offset + lines[end - 1].size - first)
        found += [data[line.offset - first : line.offset - first + line.size] for line in lines[start:end]]
        start = end
    return found


def whole_read(file: int, offset: int, size: int) -> bytes:
    """Raises `OSError`, also where the file has less than that."""
    pieces = []
    while size:
        piece = os.pread(file, size, offset)
        if not piece:
            raise OSError("the input file is shorter than it was")
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]
