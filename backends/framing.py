"""HTTP/1.1's chunks that need not be taken apart: one server-sent event in one chunk, in one read.

Engines write each event as a chunk of its own, and a gateway that keeps up reads each by itself. Such a read can go to
the client as it is: the chunk's size is right for the client as well. To see that, it is compared with the only size
line that can stand before so many bytes; nothing is converted, and nothing that is not exactly this is taken:

    begins with BEGINNINGS[its length], ends with ENDING, and its only line ends after SIZE_LINE are those of ENDING
"""

from __future__ import annotations

LARGEST = 4096
"""Reads from this size on are left to the parser."""

SIZE_LINE = 5
"""The longest size line below that, its end included. The event's own text cannot hold a line end before."""

ENDING = b"}\n\n\r\n"

FRAME_BYTES = 7
"""What a chunk has around its event: size line and line end. One less for short events."""


def _beginnings(total: int) -> tuple[bytes, ...]:
    """How a read of `total` bytes begins that is one chunk with one event. hyper writes the size in capital letters."""
    for digits in (1, 2, 3):
        size = total - digits - 4  # two line ends
        if size > 0 and len(f"{size:x}") == digits:
            return tuple({b"%x\r\ndata: {" % size, b"%X\r\ndata: {" % size})
    return ()


BEGINNINGS = tuple(map(_beginnings, range(LARGEST)))
