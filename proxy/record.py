"""What is known of a request while it runs: one mutable value; each layer writes, the log and the metrics read."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Final

from starlette.types import Scope

from backends.base import Headers
from backends.errors import GatewayError, TransportError, Unavailable

from .principals import ANYBODY
from .trail import Trail, limit_of, refusal_of

_KEY: Final = "slurmgate.record"
_process = secrets.token_hex(6)
_numbers = itertools.count(1)


class Record:
    """One request.

    started          seconds, of time.perf_counter()
    endpoint         the route's own name, "" for none: never the raw path, which a client can make endless kinds of
    detail           more on an error, for the log
    error            the OpenAI code of what went wrong, "client_disconnected", or "" for nothing
    first_byte_s     from the request's start to the first byte of its answer's body
    principal        whose request it is; `key_id` is its key's
    headers          more headers for the answer, whatever it will be
    read_timeout_s   how long the client waits for a byte, as it says itself; None if it does not
    streamed         bytes of the stream's events that were passed on
    estimated        the tokens were not counted by an engine: the client left early, or the engine does not tell
    quiet            not worth a log line when all is well (health checks, heartbeats)
    trail            what only some requests have, None until there is some of it; `note` makes it
    """

    __slots__ = (
        "completion_tokens", "detail", "endpoint", "error", "estimated", "first_byte_s", "headers", "id", "key_id",
        "method", "model", "path", "principal", "prompt_tokens", "quiet", "read_timeout_s", "served_by", "started",
        "status", "stream", "streamed", "trail",
    )  # fmt: skip

    def __init__(self, method: str, path: str) -> None:
        # unique without asking the kernel for random bytes each time, which costs more than the rest of this
        self.id = f"req_{_process}{next(_numbers):010x}"
        self.started = time.perf_counter()
        self.method = method
        self.path = path
        self.endpoint = ""
        self.status = 0
        self.error = ""
        self.detail = ""
        self.key_id = ""
        self.model = ""
        self.served_by = ""
        self.stream = False
        self.first_byte_s: float | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.quiet = False
        self.principal = ANYBODY
        self.headers: Headers = ()
        self.read_timeout_s: float | None = None
        self.streamed = 0
        self.estimated = False
        self.trail: Trail | None = None

    @property
    def used(self) -> tuple[int, int]:
        """Prompt and completion tokens, with those of the calls that were made for it."""
        children = self.trail.children if self.trail is not None else None
        if children is not None:
            return children.prompt_tokens, children.completion_tokens
        return self.prompt_tokens, self.completion_tokens

    def note(self) -> Trail:
        """Where to write what only some requests have."""
        if self.trail is None:
            self.trail = Trail()
        return self.trail

    def unusual(self) -> dict[str, object]:
        """What only some requests have, as fields of the log line."""
        return self.trail.fields(served=bool(self.served_by)) if self.trail is not None else {}

    def identity(self) -> bytes:
        """The header lines that this answer has, whatever it is."""
        elapsed_ms = (time.perf_counter() - self.started) * 1000
        more = b"".join([b"%b: %b\r\n" % field for field in self.headers])
        return more + b"x-request-id: %b\r\nopenai-processing-ms: %d\r\nopenai-version: 2020-10-01\r\n" % (
            self.id.encode(),
            elapsed_ms,
        )

    def fail(self, error: GatewayError) -> None:
        """Note what went wrong. Messages stay out: an engine's may quote the prompt."""
        self.error = error.code or error.type
        if reason := refusal_of(error):
            trail = self.note()
            trail.refusal, trail.limit = reason, limit_of(error)
        if isinstance(error, TransportError):
            self.detail = error.detail
        elif isinstance(error, Unavailable) and not error.quotes:
            self.detail = error.message

    # -- what backends tell (`Notes` of backends/base.py) -------------------------------------------------------------

    def attempt_failed(self, replica_id: str, reason: str) -> None:
        """An attempt at a replica has just failed."""
        self.note().failed_at(time.perf_counter() - self.started, replica_id, reason)

    def waited(self, seconds: float) -> None:
        """A wait in a queue has just ended, one way or the other."""
        self.note().waited_until(time.perf_counter() - self.started, seconds)

    def fell_back(self, asked: str, reason: str) -> None:
        """Another model answers than the one that was asked."""
        trail = self.note()
        trail.asked, trail.fallback = asked, reason


def elapsed_s(record: Record) -> float:
    return time.perf_counter() - record.started


def attach(scope: Scope, record: Record) -> None:
    scope[_KEY] = record


def record_of(scope: Scope) -> Record:
    record: Record = scope[_KEY]
    return record
