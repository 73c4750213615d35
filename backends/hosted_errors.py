"""Any provider's failure, as litellm raises it -> our error tree. Pure, and the only place that knows litellm's errors.

litellm's classes are told apart by name: to import them takes seconds, and their bases are openai's. Nor is the class
enough. Seen with 1.106: a provider's 403, 413 or 502 comes as `BadRequestError` with that `status_code`, a refused
connection and Anthropic's "overloaded" (529) as `InternalServerError` with 500, a broken stream as
`MidStreamFallbackError` around the error that tells.

What the client sees: of its own mistakes, what the provider says of them, without keys and addresses; of everything
else, a sentence of ours. That the provider refuses the gateway's key or knows no such model is the operator's to mend,
so it is a 502: a 401 or a 404 would send the caller looking for a mistake in their own request.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from .engine_errors import engine_error
from .errors import (
    ConnectFailed,
    Disconnected,
    EngineRefused,
    EngineTimeout,
    GatewayError,
    InvalidRequest,
    TransportError,
    Unavailable,
)

RETRY_AFTER_LIMIT_S = 120.0

_UNREACHED = {"ConnectError", "ConnectTimeout", "ClientConnectorError", "ConnectionRefusedError", "gaierror"}
_BROKEN = {"ReadError", "RemoteProtocolError", "ServerDisconnectedError", "ClientPayloadError", "ConnectionResetError"}
_TIMED_OUT = {"Timeout", "APITimeoutError", "TimeoutException", "TimeoutError"}

_PREFIX = re.compile(r"(?:(?:litellm\.)?\w*(?:Error|Exception|Timeout)(?::| -) )+")
_SUFFIX = re.compile(r"\.? Handle with `litellm\.|\nModel: |\nAPI Base: | ?LiteLLM Retried: |\n?Received Model Group=")
_PARAMETERS = re.compile(r"does not support parameters: [\[{](.*?)[\]}]")
_PRINTED_BYTES = re.compile(r"""b(['"]).*\1""", re.DOTALL)  # litellm prints the bodies of refused streams as they are
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://\S+")
_KEY = re.compile(r"\b(?:(?:sk|pk|rk|gsk|xai|key)[-_]|Bearer )[A-Za-z0-9*_-]{6,}")
_OVERLOADED = re.compile(r"overloaded", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception, looked at once. `causes` are the class names of everything that led to it."""

    error: BaseException
    secrets: Sequence[str]
    detail: str
    kinds: set[str]
    causes: set[str]
    status: int | None
    message: str


def translate(error: BaseException, secrets: Sequence[str] = (), *, provider: str = "") -> GatewayError:
    """The error that the client shall see. `secrets` are blacked out of what the provider says; `provider` is for the
    log."""
    if isinstance(error, GatewayError):
        return error
    original = getattr(error, "original_exception", None)
    if isinstance(original, BaseException) and original is not error:
        return translate(original, secrets, provider=provider)
    status = getattr(error, "status_code", None)
    failure = _Failure(
        error,
        secrets,
        detail=f"{provider}: {type(error).__name__}",
        kinds=_kinds(error),
        causes={name for cause in _chain(error) for name in _kinds(cause)},
        status=status if isinstance(status, int) else None,
        message=_message(error),
    )
    found = _by_class(failure) or _by_cause(failure) or _by_status(failure)
    return found or TransportError("The provider failed to answer.", detail=failure.detail)


def _by_class(failure: _Failure) -> GatewayError | None:
    """Where the class says more than the status."""
    kinds = failure.kinds
    if "UnsupportedParamsError" in kinds:
        return _unsupported(failure.message)
    if "LiteLLMUnknownProvider" in kinds or "LLM Provider NOT provided" in failure.message:
        return _ours("The provider of this model is not known.", "provider_unknown")
    if "ContextWindowExceededError" in kinds:
        return _callers(failure, code="context_length_exceeded")
    if "ContentPolicyViolationError" in kinds:
        return _callers(failure, code="content_policy_violation")
    return None


def _by_cause(failure: _Failure) -> GatewayError | None:
    """Where there was no answer, or not the whole of one."""
    if failure.causes & _UNREACHED:
        return ConnectFailed("The provider of this model cannot be reached.", detail=failure.detail)
    if failure.kinds & _TIMED_OUT or failure.status in (408, 504):
        return EngineTimeout("The provider did not answer in time.", detail=failure.detail, phase="first byte")
    if failure.causes & _BROKEN:
        return Disconnected("The provider closed the connection early.", detail=failure.detail, received=True)
    return None


def _by_status(failure: _Failure) -> GatewayError | None:
    status = failure.status or 0
    if status in (401, 402, 403):
        return _ours("The provider refused the gateway's credentials.", "provider_authentication_failed")
    if status == 404:
        return _ours("The provider does not serve the model that is configured.", "provider_model_not_found")
    if status == 429 or (status >= 500 and _OVERLOADED.search(failure.message)):
        return _too_many(failure)
    if 400 <= status < 500:
        return _callers(failure)
    if status in (503, 529):
        return Unavailable("The provider cannot take requests now.", retry_after_s=_retry_after(failure.error, 5.0))
    return None


def _callers(failure: _Failure, code: str | None = None) -> GatewayError:
    """The caller can mend it: the provider's own words."""
    said = _said(failure)
    status = said.status if said.status in (409, 413) else 400
    return EngineRefused(
        redacted(said.message, failure.secrets),
        status=status,
        type="invalid_request_error",
        param=said.param,
        code=code or said.code,
    )


def _ours(message: str, code: str) -> GatewayError:
    return EngineRefused(message, status=502, type="server_error", code=code)


def _too_many(failure: _Failure) -> GatewayError:
    if _said(failure).code == "insufficient_quota":  # the operator's account is empty: waiting does not help the caller
        return Unavailable("The gateway's quota at the provider is used up.")
    message = "The provider limits the rate of requests, or is overloaded. Try again in a moment."
    busy = EngineRefused(message, status=429, type="requests", code="rate_limit_exceeded")
    busy.retry_after_s = _retry_after(failure.error, 1.0)
    return busy


def _unsupported(message: str) -> InvalidRequest:
    found = _PARAMETERS.search(message)
    names = re.findall(r"'(\w+)'", found[1]) if found else []
    if not names:
        return InvalidRequest("A parameter is not supported with this model.", code="unsupported_parameter")
    listed = ", ".join(f"'{name}'" for name in names)
    return InvalidRequest(
        f"Unsupported parameter: {listed} is not supported with this model.",
        param=names[0],
        code="unsupported_parameter",
    )


# -- looking into an exception ---------------------------------------------------------------------------------------


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _message(error: BaseException) -> str:
    message = getattr(error, "message", None)
    return message if isinstance(message, str) else str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _said(failure: _Failure) -> GatewayError:
    """What the provider said, found in its body or else in litellm's message around it."""
    body = getattr(failure.error, "body", None)
    status = failure.status if failure.status is not None and 400 <= failure.status < 500 else 400
    if isinstance(body, dict) and body.get("message"):
        return engine_error(status, orjson.dumps({"error": body}, default=str))
    text = _PREFIX.sub("", failure.message, count=1) if _PREFIX.match(failure.message) else failure.message
    if printed := _PRINTED_BYTES.match(text):
        with contextlib.suppress(ValueError, SyntaxError):
            text = ast.literal_eval(printed[0]).decode("utf-8", "replace")
    with contextlib.suppress(ValueError):  # the body, with something after it
        value, _ = json.JSONDecoder().raw_decode(text)
        if isinstance(value, dict):
            return engine_error(status, orjson.dumps(value))
    fields = {name: getattr(failure.error, name, None) for name in ("param", "code")}
    fields["message"] = _SUFFIX.split(text, maxsplit=1)[0]
    return engine_error(status, orjson.dumps({"error": fields}, default=str))


def _retry_after(error: BaseException, default: float) -> float:
    response = getattr(error, "response", None)
    for headers in (getattr(error, "litellm_response_headers", None), getattr(response, "headers", None)):
        if isinstance(headers, Mapping):
            for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
                value = headers.get(name)
                if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d+)?", value):
                    return min(float(value) / unit, RETRY_AFTER_LIMIT_S)
    return default


def redacted(text: str, secrets: Sequence[str] = ()) -> str:
    """Without keys and addresses."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _ADDRESS.sub("[address]", _KEY.sub("***", text))
