"""The operators' way in: a Unix socket in the state directory, for the command line on the gateway's own machine.

The directory is private to the user who runs the gateway, so whoever can connect may do all that an admin key may. The
same application answers there as on the port.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

TIMEOUT_S = 60.0


class NotRunning(Exception):
    """No gateway listens there."""


class OperatorError(Exception):
    """The gateway's answer was an error; the message is its own."""


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Another name of the same file: a socket's may have 107 bytes, and state directories lie deep."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """The listening socket, in the place of one that an earlier process left. The state directory's lock is held."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(path) as name:
        listener.bind(name)
    path.chmod(0o600)
    listener.listen(64)
    listener.setblocking(False)
    return listener


class SocketConnection(http.client.HTTPConnection):
    """To the gateway at a socket; for anybody's requests, with a key where it asks for one."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        with _short(self._path) as name:
            self.sock.connect(name)


def ask(path: Path, method: str, target: str, body: Any = None) -> Any:
    """The JSON answer of the gateway at a socket. Raises `NotRunning`, `OperatorError`."""
    data = b"" if body is None else orjson.dumps(body)
    status, answer = _exchange(path, method, target, data)
    try:
        parsed = orjson.loads(answer)
    except ValueError as error:
        raise OperatorError(f"the gateway on {path.parent} gave no answer: {error}") from None
    if status >= 300:
        raise OperatorError(str(parsed["error"]["message"]))
    return parsed


def text(path: Path, target: str) -> str:
    """What the gateway at a socket answers to a GET. Raises `NotRunning`, `OperatorError`."""
    return _exchange(path, "GET", target, b"")[1].decode()


def _exchange(path: Path, method: str, target: str, data: bytes) -> tuple[int, bytes]:
    connection = SocketConnection(path)
    try:
        connection.request(method, target, data, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunning(f"no gateway runs on {path.parent}") from None
    except (OSError, http.client.HTTPException) as error:
        raise OperatorError(f"the gateway on {path.parent} gave no answer: {error}") from None
    finally:
        connection.close()
