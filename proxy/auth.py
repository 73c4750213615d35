"""Who asks: the `Authorization` header, or Anthropic's `x-api-key`, -> a key's id, checked in memory."""

from __future__ import annotations

from collections.abc import Awaitable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from backends.errors import NotAuthenticated

from .keys import KeyStore, digest
from .record import record_of

_BEARER = b"bearer "
_LOOPBACK = (b"localhost", b"127.0.0.1", b"::1")
GUARDED = ("/v1/", "/rerank", "/tokenize")


class KeyRing:
    """The valid keys, as the database had them at the last `refresh`.

    loopback_only   the gateway can only be reached from this machine; then, until a first key is made, none is needed
    """

    def __init__(self, store: KeyStore, *, loopback_only: bool) -> None:
        self._store = store
        self._loopback_only = loopback_only
        self._seen: dict[bytes, str] = {}
        self._valid: dict[str, str] = {}
        self.open = False

    def refresh(self) -> None:
        """Read the keys again: a key that the command line made or revoked counts from now on."""
        valid = self._store.valid()
        self.open = self._loopback_only and not valid and not self._store.ever()
        if valid != self._valid:
            self._valid = valid
            self._seen = {}

    def key_id(self, authorization: bytes | None) -> str:
        """The id of the key in an `Authorization` header, "" where none is needed. Raises `NotAuthenticated`."""
        if self.open:
            return ""
        if authorization is None:
            raise NotAuthenticated("You didn't provide an API key: send it as 'Authorization: Bearer YOUR_KEY'.")
        if (known := self._seen.get(authorization)) is not None:
            return known
        key = authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else b""
        key_id = self._valid.get(digest(key.decode("latin-1")))
        if key_id is None:
            raise NotAuthenticated("Incorrect API key provided.")
        if len(self._seen) > 4 * len(self._valid):  # one key can be written in many ways: blanks, the scheme's case
            self._seen = {}
        self._seen[authorization] = key_id
        return key_id


class Authentication:
    """Guards what asks models. Health and metrics are open; agents have tokens of their own."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["path"].startswith(GUARDED):
            authorization = None
            for name, value in scope["headers"]:
                if name == b"authorization":
                    authorization = value
                    break
                if name == b"x-api-key":  # Anthropic's SDK; where both are sent, `Authorization` counts
                    authorization = authorization or b"Bearer " + value
            if self._ring.open:
                check_local(scope)
            record_of(scope).key_id = self._ring.key_id(authorization)
        return self._app(scope, receive, send)


def check_local(scope: Scope) -> None:
    """Without keys, loopback is the only guard, and a page in a browser on this machine passes it: by a name of its own
    that leads here, or by posting across sites. Both show in the headers. Raises `NotAuthenticated`."""
    for name, value in scope["headers"]:
        if name in (b"host", b"origin"):
            host = urlsplit(b"//" + value if name == b"host" else value).hostname or b""
            if host not in _LOOPBACK:
                raise NotAuthenticated("Until there is a key, only programs on this machine are answered.")
