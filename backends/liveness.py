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
    """

    after_s: int
    every_s: int
    most: int

    @property
    def patience_s(self) -> int:
        """How long nothing may come of a peer. Also for what was sent and never acknowledged."""
        return self.after_s + self.every_s * self.most


ENGINE = Probes(10, 5, 4)
"""Long enough for a switch that starts again, and far less than slurmctld waits for a node (SlurmdTimeout: 300 s)."""

CLIENT = Probes(30, 10, 3)
"""People's machines: what they do not hear of any more shall not keep an engine for the quarter of an hour that TCP
would go on sending."""


class Socket(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def probe(connection: Socket, probes: Probes) -> None:
    """Have the kernel ask. Connections take it over from the listening socket that accepted them. Where the system has
    no such option, its own defaults hold."""
    options = (
        ("TCP_KEEPIDLE", probes.after_s),
        ("TCP_KEEPINTVL", probes.every_s),
        ("TCP_KEEPCNT", probes.most),
        ("TCP_USER_TIMEOUT", probes.patience_s * 1000),
    )
    with contextlib.suppress(OSError):  # it has been reset already: whoever reads it will see
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options:
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
