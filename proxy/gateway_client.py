"""Commands that are a client of a gateway: its address and key, JSON, uploads, and answers that come line by line.

By the standard library: commands start fast, and httpx is no part of what is installed.
"""

from __future__ import annotations

import http.client
import secrets
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from .benchmark.targets import DEFAULT_KEY_ENV, Place, key_of, place_of
from .operator_socket import SocketConnection
from .terminal import Mistake

if TYPE_CHECKING:
    from .state import StateDir

TIMEOUT_S = 60.0
CHUNK_BYTES = 1024 * 1024

Json = dict[str, Any]


class NoAnswer(Exception):
    """Nobody answered, or not to the end: asking again may help. The message is one sentence."""


class Refused(Mistake):
    """The gateway's answer was an error; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GatewayClient:
    """Asks one gateway, each time over a connection of its own.

    at    its address, or the operators' socket in its state directory
    key   "" for none
    name  of the gateway, as messages have it
    """

    def __init__(self, at: Place | Path, key: str, key_env: str) -> None:
        self._at = at
        self._key = key
        self._key_env = key_env
        self.name = f"the gateway at {at.url}" if isinstance(at, Place) else f"the gateway on {at.parent}"

    # -- asking -------------------------------------------------------------------------------------------------------

    def get(self, path: str, query: Mapping[str, str | int | None] | None = None) -> Any:
        """Raises `Refused`, `NoAnswer`."""
        return self._json("GET", path + _query(query or {}))

    def post(self, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Raises `Refused`, `NoAnswer`."""
        data = orjson.dumps(body) if body is not None else b""
        return self._json("POST", path, data, {"content-type": "application/json", **(headers or {})})

    def lines(self, path: str, query: Mapping[str, str | int | None] | None = None) -> tuple[bytes, Mapping[str, str]]:
        """A whole answer that is not JSON, and its headers. Raises `Refused`, `NoAnswer`."""
        with _Answer(self, "GET", path + _query(query or {}), b"", {}) as answer:
            return answer.read(), {name.lower(): value for name, value in answer.response.getheaders()}

    def pieces(self, path: str) -> Iterator[bytes]:
        """A large answer. Raises `Refused`, `NoAnswer`."""
        with _Answer(self, "GET", path, b"", {}) as answer:
            while data := answer.read(CHUNK_BYTES):
                yield data

    def upload(self, file: Path, filename: str, purpose: str, sent: Any = None) -> Json:
        """A file, from disk to the gateway a piece at a time; `sent` is called with the bytes of each.

        Raises `Refused`, `NoAnswer`, `OSError`.
        """
        boundary = secrets.token_hex(16)
        size = file.stat().st_size
        name = filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")  # as browsers do
        head = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
            "content-type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        def form() -> Iterator[bytes]:
            yield head
            left = size
            with file.open("rb") as content:
                while left and (data := content.read(min(CHUNK_BYTES, left))):
                    left -= len(data)
                    yield data
                    if sent is not None:
                        sent(len(data))
            if left:
                raise Mistake(f"{file} became shorter while it was read")
            yield tail

        kind = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
        }
        with _Answer(self, "POST", "/files", form(), kind) as answer:
            made: Json = answer.json()
            return made

    def _json(self, method: str, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> Any:
        with _Answer(self, method, path, data, headers or {}) as answer:
            return answer.json()

    # -- for _Answer --------------------------------------------------------------------------------------------------

    def connect(self) -> http.client.HTTPConnection:
        at = self._at
        if isinstance(at, Path):
            return SocketConnection(at)
        if at.tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(at.host, at.port, timeout=TIMEOUT_S, context=context)
        return http.client.HTTPConnection(at.host, at.port, timeout=TIMEOUT_S)

    def target(self, path: str) -> str:
        return f"{self._at.prefix if isinstance(self._at, Place) else ''}/v1{path}"

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    def refused(self, status: int, data: bytes) -> Refused:
        try:
            message = str(orjson.loads(data)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{self.name} answered with status {status}"
        if status == 401 and not self._key:
            message = f"{self.name} needs a key: put yours into the environment variable {self._key_env}"
        return Refused(status, message)


class _Answer:
    """One request and what is answered to it, as a context that closes the connection."""

    def __init__(self, client: GatewayClient, method: str, path: str, data: Any, headers: Mapping[str, str]) -> None:
        self._client = client
        self._request = (method, client.target(path), data, {**client.headers(), **headers})

    def __enter__(self) -> _Answer:
        self._connection = self._client.connect()
        try:
            # who closes while it is sent to may have said why before: that is what is wanted
            with suppress(BrokenPipeError, ConnectionResetError):
                self._connection.request(*self._request)
            self.response = self._connection.getresponse()
            if self.response.status >= 300:
                raise self._client.refused(self.response.status, self.response.read())
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._no_answer(error) from None
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read(self, size: int | None = None) -> bytes:
        try:
            return self.response.read(size) if size is not None else self.response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer(error) from None

    def json(self) -> Any:
        try:
            return orjson.loads(self.read())
        except ValueError:
            raise Mistake(f"what answers is no gateway: {self._client.name} gave no JSON") from None

    def _no_answer(self, error: Exception) -> NoAnswer:
        if isinstance(error, TimeoutError):
            return NoAnswer(f"{self._client.name} does not answer")
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return NoAnswer(f"{self._client.name} does not run, or cannot be reached")
        if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead | ConnectionError):
            return NoAnswer(f"{self._client.name} closed the connection")
        return NoAnswer(f"{self._client.name} cannot be reached: {getattr(error, 'strerror', None) or error}")


def client_of(state: StateDir | None, url: str | None, key_env: str | None) -> GatewayClient:
    """By an address, else by the operators' socket of a state directory. Raises `Mistake`."""
    variable = key_env or DEFAULT_KEY_ENV
    key = key_of(variable, asked_for=key_env is not None)
    if url is not None:
        return GatewayClient(place_of(url), key, variable)
    if state is None:
        raise Mistake("expected an address or a state directory")
    return GatewayClient(state.operator_socket, key, variable)


def _query(given: Mapping[str, str | int | None]) -> str:
    parts = [f"{name}={quote(str(value), safe='')}" for name, value in given.items() if value is not None]
    return "?" + "&".join(parts) if parts else ""
