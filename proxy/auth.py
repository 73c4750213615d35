"""Who asks: the `Authorization` header, or Anthropic's `x-api-key`, -> a `Principal`, checked in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from backends.errors import NotAuthenticated

from .keys import digest
from .principals import ANYBODY, Principal
from .record import record_of
from .trail import client_id_of

_BEARER = b"bearer "
_LOOPBACK = (b"localhost", b"127.0.0.1", b"::1")
_READ_TIMEOUT = b"x-stainless-read-timeout"
ADMIN = "/admin/"
GUARDED = ("/v1/", "/rerank", "/tokenize", ADMIN)
OPERATOR = Principal(admin=True)


class Store(Protocol):
    """Where the keys are: keys.py."""

    def valid(self) -> Mapping[str, Principal]:
        """Hash -> whose it is, of every key that can be used."""

    def ever(self) -> bool:
        """Whether a key was ever made."""


class KeyRing:
    """The valid keys, as the database had them at the last `refresh`.

    A key that the database no longer gives stops working then; one that expires, in its very second.

    loopback_only   the gateway can only be reached from this machine; then, until a first key is made, none is needed
    clock           seconds since the epoch
    """

    def __init__(self, store: Store, *, loopback_only: bool, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._loopback_only = loopback_only
        self._clock = clock
        self._seen: dict[bytes, Principal] = {}
        self._valid: Mapping[str, Principal] = {}
        self._by_id: Mapping[str, Principal] = {}
        self.open = False

    def refresh(self) -> None:
        """Read the keys again: one that was made, changed or revoked elsewhere counts as it is now. Any thread may."""
        valid = self._store.valid()
        self.open = self._loopback_only and not valid and not self._store.ever()
        if valid != self._valid:
            self._valid = valid  # in this order: see `principal`
            self._seen = {}
            self._by_id = {principal.key_id: principal for principal in valid.values()}

    def principal(self, authorization: bytes | None) -> Principal:
        """Whose the key in an `Authorization` header is. Raises `NotAuthenticated`."""
        if self.open:
            return ANYBODY
        if authorization is None:
            raise NotAuthenticated("You didn't provide an API key: send it as 'Authorization: Bearer YOUR_KEY'.")
        # taken before `_valid`, so that what a refresh in another thread has revoked by then lands in the old one
        seen = self._seen
        principal = seen.get(authorization)
        if principal is None:
            principal = self._look_up(authorization, seen)
        if principal.expires_at is not None and self._clock() >= principal.expires_at:
            raise NotAuthenticated("Your API key has expired.")
        return principal

    def of_key(self, key_id: str) -> Principal | None:
        """Whose a key is, for what was asked with it earlier; "" for what was asked while none was needed. None for one
        that is no longer valid."""
        if not key_id:
            return ANYBODY
        principal = self._by_id.get(key_id)
        if principal is None or (principal.expires_at is not None and self._clock() >= principal.expires_at):
            return None
        return principal

    def _look_up(self, authorization: bytes, seen: dict[bytes, Principal]) -> Principal:
        valid = self._valid
        key = authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else b""
        principal = valid.get(digest(key.decode("latin-1")))
        if principal is None:
            raise NotAuthenticated("Incorrect API key provided.")
        if len(seen) > 4 * len(valid):  # one key can be written in many ways: blanks, the scheme's case
            seen.clear()
        seen[authorization] = principal
        return principal


class Authentication:
    """Guards what asks models, and what administrates. Health and metrics are open; agents have tokens of their own."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path = scope["path"]
        if path.startswith(GUARDED):
            if path.startswith(ADMIN) and on_operators_socket(scope):
                record_of(scope).principal = OPERATOR
            else:
                self._note(scope)
        return self._app(scope, receive, send)

    def _note(self, scope: Scope) -> None:
        """Whose request it is, and how long its client waits. Raises `NotAuthenticated`."""
        headers = dict(scope["headers"])  # quicker than looking for three names; protocol.py refuses doubled keys
        authorization = headers.get(b"authorization")
        if authorization is None and (key := headers.get(b"x-api-key")) is not None:
            authorization = b"Bearer " + key  # Anthropic's SDK; where both are sent, `Authorization` counts
        if self._ring.open:
            check_local(scope)
        record = record_of(scope)
        record.principal = principal = self._ring.principal(authorization)
        record.key_id = principal.key_id
        if b"x-client-request-id" in headers or b"x-request-id" in headers:
            record.note().client_id = client_id_of(headers)
        if (read_timeout := headers.get(_READ_TIMEOUT)) is not None:
            record.read_timeout_s = seconds_of(read_timeout)


def on_operators_socket(scope: Scope) -> bool:
    """A Unix socket, which only the operators can open (operator_socket.py): it has a path and no port."""
    server = scope["server"]
    return server is not None and server[1] is None


def seconds_of(text: bytes) -> float | None:
    """The official SDK's `x-stainless-read-timeout`; None for what is no time to wait."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def check_local(scope: Scope) -> None:
    """Without keys, loopback is the only guard, and a page in a browser on this machine passes it: by a name of its own
    that leads here, or by posting across sites. Both show in the headers. Raises `NotAuthenticated`."""
    for name, value in scope["headers"]:
        if name in (b"host", b"origin"):
            host = urlsplit(b"//" + value if name == b"host" else value).hostname or b""
            if host not in _LOOPBACK:
                raise NotAuthenticated("Until there is a key, only programs on this machine are answered.")
