"""The error tree. Every error knows how an OpenAI client shall see it.

    GatewayError                  status, type, code, param, message, retry_after_s
    |-- InvalidRequest            400  the caller's mistake, `param` names the field
    |   |-- NotAuthenticated      401  no key, or a wrong one
    |   |-- NotFound              404  unknown model, unknown route
    |   |-- MethodNotAllowed      405
    |   `-- RequestTooLarge       413
    |-- RateLimited               429  over a limit of the key or its project
    |   `-- QuotaExceeded         429  ... over a budget: waiting a minute does not help
    |-- QueueFull                 429  too many wait for the model already
    |-- Unavailable               503  no replica can take the request now; the message says why
    |-- EngineRefused             the engine's own error, its status and message kept
    `-- TransportError            502  something between us and the engine
        |-- ConnectFailed         502  nothing was sent: another replica may be tried
        |-- NotTheEngine          502  somebody else has answered at its address: so may it here
        |-- Disconnected          502  the engine closed before its answer was whole
        |-- EngineTimeout         504  `phase` says which: first byte, idle
        `-- MalformedResponse     502  not HTTP, or over our limits

A class exists where someone catches it differently. Messages hold no prompt, no key and no
address of an engine: `detail`, which goes to the log, may hold the address.
Types and codes follow OpenAI's published error table (facts in docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class GatewayError(Exception):
    """An error with its OpenAI face.

    status         HTTP status of the reply
    type           OpenAI's `error.type`
    code           OpenAI's `error.code`, or None
    param          the request field at fault, or None
    headers        sent with the reply
    retry_after_s  seconds until another try makes sense; sent as `retry-after`, never above 120
                   (the official SDK gives up on longer ones)
    quotes         the message is an engine's own and may quote the prompt: for the client, and for nobody else
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    headers: Mapping[bytes, bytes] = MappingProxyType({})
    quotes: bool = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON body, always with all four keys: the SDK reads `type` and `code` from it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(GatewayError):
    """The caller can mend it."""

    status = 400
    type = "invalid_request_error"


class NotAuthenticated(InvalidRequest):
    status = 401
    code = "invalid_api_key"
    headers = MappingProxyType({b"www-authenticate": b"Bearer"})


class NotFound(InvalidRequest):
    status = 404


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.headers = MappingProxyType({b"allow": allow.encode()})


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class RateLimited(GatewayError):
    """Over a limit of the key or its project. `kind` is OpenAI's type: "requests" or "tokens"."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, kind: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.type = kind


class QuotaExceeded(RateLimited):
    """Over a budget of tokens."""

    code = "insufficient_quota"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, kind="insufficient_quota", retry_after_s=retry_after_s)


class QueueFull(GatewayError):
    """As many wait for the model as may wait."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class Unavailable(GatewayError):
    """No replica can take the request now. The message is one sentence that a user can act on."""

    status = 503
    code = "model_unavailable"


class EngineRefused(GatewayError):
    """The engine answered with an error of its own; `status` is the engine's where it means something to a client."""

    def __init__(
        self, message: str, *, status: int, type: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.type = type


class TransportError(GatewayError):
    """Between us and the engine. `detail` is for the log: it may name hosts and ports."""

    status = 502
    code = "engine_error"

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class ConnectFailed(TransportError):
    code = "engine_unreachable"


class NotTheEngine(TransportError):
    """What answers at a replica's address refuses the key that its engine has been given, or is no engine: the port may
    be another's by now. It has done no work."""

    code = "not_the_engine"

    def __init__(self, message: str, *, detail: str = "", code: str | None = None) -> None:
        super().__init__(message, detail=detail)
        if code is not None:
            self.code = code


class Disconnected(TransportError):
    """`received` tells whether any byte of the response had come: if not, another replica may be tried."""

    code = "engine_disconnected"

    def __init__(self, message: str, *, detail: str = "", received: bool) -> None:
        super().__init__(message, detail=detail)
        self.received = received


class EngineTimeout(TransportError):
    status = 504
    code = "engine_timeout"

    def __init__(self, message: str, *, detail: str = "", phase: str) -> None:
        super().__init__(message, detail=detail)
        self.phase = phase


class MalformedResponse(TransportError):
    code = "engine_malformed_response"
