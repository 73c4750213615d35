"""The outermost layer: a request id, a record, one log line, and an OpenAI error for whatever went wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from backends.errors import GatewayError, InvalidRequest, MethodNotAllowed, NotFound

from .bodies import NotJson, why_not_json
from .disconnects import ClientDisconnected
from .logging import RequestsLog
from .metrics import Metrics
from .protocol import REFUSED
from .record import Record, attach
from .replies import send_error
from .tracebacks import frames_of

if TYPE_CHECKING:
    from .spans import Tracing

VERSION = (b"openai-version", b"2020-10-01")
CLIENT_CLOSED = 499
"""nginx's status for a client that left before its answer was whole: for log and metrics, nobody receives it."""


async def answer_refused(scope: Scope, _receive: Receive, _send: Send) -> None:
    """The app for what the connection would not take as a request (protocol.py). Raises what is wrong with it."""
    raise scope[REFUSED]


class Edge:
    """Everything that comes in passes here once, and everything that goes wrong ends here."""

    def __init__(
        self,
        app: ASGIApp,
        log: FilteringBoundLogger,
        requests: RequestsLog,
        metrics: Metrics,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._log = log
        self._requests = requests
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["type"] == "http" else answer_refused
        record = Record(scope["method"], scope["path"])
        attach(scope, record)
        if self._tracing is not None:
            self._tracing.begin(record, scope["headers"])

        def send_with_id(message: Message) -> Awaitable[None]:
            # a plain function that hands the awaitable on: it runs once for each piece of each stream
            if message["type"] == "http.response.start":
                record.status = message["status"]
                elapsed_ms = b"%d" % ((time.perf_counter() - record.started) * 1000)
                message["headers"] = [
                    *message["headers"],
                    *record.headers,
                    (b"x-request-id", record.id.encode()),
                    (b"openai-processing-ms", elapsed_ms),
                    VERSION,
                ]
            return send(message)

        self._metrics.in_flight += 1
        try:
            await app(scope, receive, send_with_id)
        except ClientDisconnected:
            if (refused := scope.get(REFUSED)) is not None:  # the connection has told the client itself
                record.status = refused.status
                record.fail(refused)
            else:
                record.status, record.error = CLIENT_CLOSED, "client_disconnected"
        except asyncio.CancelledError:
            record.status, record.error = CLIENT_CLOSED, record.error or "cancelled"
            raise
        except Exception as problem:
            if not await self._tell(problem, record, scope, send_with_id):
                raise
        finally:
            self._metrics.in_flight -= 1
            self._finish(record)

    async def _tell(self, problem: Exception, record: Record, scope: Scope, send: Send) -> bool:
        """Answer with what went wrong. False if that is too late: a body that ends too early is all that is left.

        Not done where it is caught: that frame is in the traceback, and would be kept until the collector comes.
        """
        error = self._as_ours(problem, record, scope)
        record.fail(error)
        if record.status:
            return False
        await send_error(send, error)
        return True

    def _as_ours(self, problem: Exception, record: Record, scope: Scope) -> GatewayError:
        """Foreign exceptions become ours here. What we did not foresee is logged whole and shown as nothing."""
        match problem:
            case NotJson():
                return why_not_json(problem, scope["headers"])
            case GatewayError():
                return problem
            case HTTPException(status_code=404):
                return NotFound(f"Unknown request URL: {record.method} {record.path[:200]}.", code="unknown_url")
            case HTTPException(status_code=405):
                allow = (problem.headers or {}).get("Allow", "")
                return MethodNotAllowed(f"Not allowed: {record.method} {record.path[:200]}.", allow=allow)
            case HTTPException():
                return InvalidRequest(str(problem.detail))
            case _:
                where = frames_of(problem)  # without its message, which may quote the prompt
                self._log.error("unexpected_error", id=record.id, endpoint=record.endpoint, exception=where)
                return GatewayError("The gateway made a mistake; its log has the details.", code="internal_error")

    def _finish(self, record: Record) -> None:
        elapsed = time.perf_counter() - record.started
        self._metrics.observe(record, elapsed)
        if self._tracing is not None:
            self._tracing.finish(record, elapsed)
        if record.quiet and not record.error:
            return
        self._requests.write(line_of(record, elapsed))


def line_of(record: Record, elapsed_s: float) -> dict[str, object]:
    """What the log says of a request that is over."""
    fields: dict[str, object] = {
        "event": "request",
        "id": record.id,
        "method": record.method,
        "endpoint": record.endpoint,
        "status": record.status,
        "ms": int(elapsed_s * 1e5) / 100,  # `round` takes four times as long
        "key": record.key_id,
        "model": record.model,
        "replica": record.served_by,
        "stream": record.stream,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
    }
    if record.first_byte_s is not None:
        fields["first_byte_ms"] = round(record.first_byte_s * 1000, 2)
    if record.estimated:
        fields["estimated"] = True
    if record.error:
        fields["error"] = record.error
    if record.detail:
        fields["detail"] = record.detail
    if record.trail is not None:
        fields |= record.unusual()
    return fields
