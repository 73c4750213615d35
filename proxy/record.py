"""What is known of a request while it runs: one mutable value; each layer writes, the log and the metrics read."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Final

from starlette.types import Scope

from backends.errors import GatewayError, TransportError, Unavailable

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
    quiet            not worth a log line when all is well (health checks, heartbeats)
    """

    __slots__ = (
        "completion_tokens", "detail", "endpoint", "error", "first_byte_s", "id", "key_id", "method", "model", "path",
        "prompt_tokens", "quiet", "served_by", "started", "status", "stream",
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

    def fail(self, error: GatewayError) -> None:
        """Note what went wrong. Messages stay out: an engine's may quote the prompt."""
        self.error = error.code or error.type
        if isinstance(error, TransportError | Unavailable):
            self.detail = error.detail if isinstance(error, TransportError) else error.message


def elapsed_s(record: Record) -> float:
    return time.perf_counter() - record.started


def attach(scope: Scope, record: Record) -> None:
    scope[_KEY] = record


def record_of(scope: Scope) -> Record:
    record: Record = scope[_KEY]
    return record
