"""Several listening sockets on one port, one for each worker: the kernel spreads connections over them."""

from __future__ import annotations

import socket

from backends import liveness

BACKLOG = 4096


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """Listening sockets that share `port`; 0 lets the kernel choose one. Raises `OSError`.

    SO_REUSEPORT would also let us share the port with another gateway of the same user that does it, and take half of
    its connections. So a socket without it tries first: that fails while anybody listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
    listeners: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            liveness.probe(listener, liveness.CLIENT)
            listener.bind((host, port))
            port = listener.getsockname()[1]
            listener.listen(BACKLOG)
            listener.setblocking(False)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners
