"""Peers that vanish without a word: a node that loses its power, a laptop that is closed, a cable that is pulled.

Nothing arrives from them any more, not even the end of a connection, so an answer would wait for as long as a slow
engine may be silent. The kernel can tell the two apart: it asks a silent peer's kernel whether that is still there
(tcp(7), keep-alive), and an engine that is slow, or hung, has one that answers.
"""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple, Protocol


class Probes(NamedTuple):
    """after_s     of silence, the first question
    every_s        the next ones
    most           so many unanswered ones end the connection, with ETIMEDOUT
    unsent_s       what is to be sent may stay unacknowledged, or unsent to who does not read, for so long; None: for as
                   long as the system has it
    """

    after_s: int
    every_s: int
    most: int
    unsent_s: int | None = None


ENGINE = Probes(10, 5, 4)
"""Long enough for a switch that starts again, and far less than slurmctld waits for a node (SlurmdTimeout: 300 s).
A busy engine may take its time to read a large request; one that does not answer is asked after its health instead
(origins.py)."""

CLIENT = Probes(30, 10, 3, unsent_s=60)
"""People's machines: what they do not hear of any more shall not keep an engine for the quarter of an hour that TCP
would go on sending. nginx, too, gives up a client that has taken nothing for a minute (`send_timeout`)."""


class Socket(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def probe(connection: Socket, probes: Probes) -> None:
    """Have the kernel ask. Connections take it over from the listening socket that accepted them. Where the system has
    no such option, its own defaults hold."""
    options = [
        ("TCP_KEEPIDLE", probes.after_s),
        ("TCP_KEEPINTVL", probes.every_s),
        ("TCP_KEEPCNT", probes.most),
    ]
    if probes.unsent_s is not None:
        options.append(("TCP_USER_TIMEOUT", probes.unsent_s * 1000))
    with contextlib.suppress(OSError):  # it has been reset already: whoever reads it will see
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options:
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
