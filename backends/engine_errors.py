"""Any engine's error body -> our error tree, with OpenAI's four keys. Pure.

    OpenAI, vLLM >= 0.10     {"error": {"message", "type", "param", "code": str | int | null}}
    vLLM < 0.10, SGLang      {"object": "error", "message", "type", "param", "code": int}
    llama.cpp                {"error": {"code": int, "message", "type"}}
    TGI                      {"error": str, "error_type": "validation" | "overloaded" | ...}
    TGI, within a stream     {"error": {"message", "http_status_code"}}
    TEI                      {"message" or "error", "code" or "error_code", "type" or "error_type"}
    FastAPI                  {"detail": str | [{"loc", "msg", "type"}]}
    others                   plain text, HTML, nothing

An engine's message may quote the prompt. It goes to the client who sent it and nowhere else: logs have the code.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from .errors import EngineRefused, GatewayError, NotTheEngine, Unavailable

MESSAGE_CHARS = 1000
RETRY_AFTER_LIMIT_S = 120.0

_STATUS_OF_TYPE = {
    # TGI's and TEI's error types, for errors that come within a stream and so without an HTTP status
    "validation": 422,
    "template_error": 422,
    "tool_error": 422,
    "tokenizer": 422,
    "empty_input": 422,
    "generation": 424,
    "backend": 424,
    "overloaded": 429,
    "incomplete_generation": 500,
    "unhealthy": 503,
    "healthcheck": 503,
    # llama.cpp's and OpenAI's
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "BadRequestError": 400,
    "unavailable_error": 503,
}

_TOO_LONG = re.compile(
    r"maximum context length|context_length_exceeded|exceed_context_size"
    r"|exceed\w*\b.{0,60}\bcontext (size|length|window)|context (size|length|window).{0,40}\bexceeded"
    r"|longer than the (maximum model|model's context) length"
    r"|`inputs` (tokens \+ `max_new_tokens` must be|must have less than)",
    re.IGNORECASE | re.DOTALL,
)
_CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_STACK = re.compile(r"Traceback \(most recent call last\)|\n\s*File \"|\n\s+at \S+\(|\nstack backtrace:")
_TRAILING_NONE = re.compile(r"(^|[:\s]+)(None|null)\s*$")
_NAMED_FIELD = re.compile(r"^(?:Input validation error: )?`([a-z_]{1,40})` (?:must|is|cannot)")

_UNSAID = {
    404: "The engine of this model does not have this endpoint.",
    408: "The engine took too long to receive the request.",
    409: "The engine reports a conflict.",
    413: "The request is too large for the engine.",
    429: "The engine is overloaded. Try again in a moment.",
    501: "The engine of this model cannot do that.",
    503: "The engine cannot take requests now.",
}
_USUAL_CODE = {
    408: "request_timeout",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    501: "not_supported",  # llama.cpp, for embeddings of a model that was not started for them
}
_KEY_REFUSED = (401, 403)
_A_PROXYS_PAGE = (408, 413, 429, 500, 502, 503, 504)
"""What a proxy before an engine (nginx, Apache, HAProxy) says in HTML, or a framework of a failure inside."""

_NO_ROUTE = ("", "Not Found", "Method Not Allowed", "File Not Found")


def engine_error(status: int, body: bytes, retry_after: bytes | None = None) -> GatewayError:
    """What the client shall see of an engine's error.

    `status` is the HTTP status; below 400 (an error inside a stream) it is looked for in the body. `retry_after` is
    that header's value, if there was one.
    """
    fields = _fields(body)
    if status < 400:
        status = _claimed_status(fields)
    message = _message(fields, body)
    code = _code(fields.get("code"))
    if status == 429:
        busy = EngineRefused(message or _UNSAID[429], status=429, type="requests", code=code or _USUAL_CODE[429])
        busy.retry_after_s = _seconds(retry_after, 1.0)
        return busy
    if status == 503:
        closed = Unavailable(message or _UNSAID[503], retry_after_s=_seconds(retry_after, 5.0))
        closed.quotes = bool(message)
        return closed
    if status in _KEY_REFUSED:
        return not_the_engine(status)
    if status in (424, *range(500, 600)) and status != 501:
        return EngineRefused(
            message or "The engine failed to answer.",
            status=status if status in (500, 502, 504) else 502,
            type="server_error",
            code=code or "engine_error",
        )
    return _callers_error(status, message, code, fields)


def is_no_engines(status: int, content_type: bytes) -> bool:
    """Whether no engine answers a request so: with a redirection, or with a page that no proxy before it would make."""
    if 300 <= status < 400:
        return True
    return content_type[:9].lower() == b"text/html" and status not in _A_PROXYS_PAGE


def is_strangers(status: int, content_type: bytes) -> bool:
    """Whether it is not our engine that answers: it refuses our key, or is no engine."""
    return status in _KEY_REFUSED or is_no_engines(status, content_type)


def not_the_engine(status: int) -> NotTheEngine:
    """... as an error. The engine knows no client: it is the gateway's own key that it refuses."""
    detail = f"status {status}"
    if status in _KEY_REFUSED:
        message = "The engine refused the gateway's own key."
        return NotTheEngine(message, detail=detail, code="engine_authentication_failed")
    return no_engine(detail)


def no_engine(detail: str) -> NotTheEngine:
    return NotTheEngine("What answers at the engine's address is no engine.", detail=detail)


def _callers_error(status: int, message: str, code: str | None, fields: dict[str, Any]) -> EngineRefused:
    """What the client can mend, by another request or another model."""
    kept = status if status in (404, 408, 409, 413) else 400
    code = code or _USUAL_CODE.get(status)
    if _TOO_LONG.search(f"{fields.get('type')} {code} {message}"):
        kept, code = 400, "context_length_exceeded"
    elif status in (404, 405) and message in _NO_ROUTE:
        kept, code, message = 404, "endpoint_not_supported", _UNSAID[404]
    message = message or _UNSAID.get(status, "The engine refused the request.")
    param = _param(fields, message)
    return EngineRefused(message, status=kept, type="invalid_request_error", param=param, code=code)


def _fields(body: bytes) -> dict[str, Any]:
    """The object that holds message, type, param and code, in whatever shape the body came; {} for none."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(parsed, list) and parsed:  # some wrap it: [{"error": ...}]
        parsed = parsed[0]
    if isinstance(parsed, str):
        return {"message": parsed}
    if not isinstance(parsed, dict):
        return {}
    inner = parsed.get("error")
    if isinstance(inner, dict):
        return inner
    return {
        **parsed,
        # Spring and others have a word in `error` and a sentence in `message`
        "message": parsed.get("message") or inner,
        "type": parsed.get("error_type") or parsed.get("type"),
        "code": parsed.get("error_code") or parsed.get("code"),
    }


def _claimed_status(fields: dict[str, Any]) -> int:
    for key in ("http_status_code", "status_code", "status", "code"):
        value = fields.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return _STATUS_OF_TYPE.get(_text(fields.get("type")), 500)


def _message(fields: dict[str, Any], body: bytes) -> str:
    """One sentence for the user, or "" if the engine said none."""
    text = _text(fields.get("message")) or _details(fields.get("detail"))
    if not text and not fields:
        text = body[: 8 * MESSAGE_CHARS].decode("utf-8", "replace").strip()
        if text[:1] in ("<", "{", "["):  # a page, or JSON that is none
            return ""
    text = _STACK.split(text, maxsplit=1)[0]
    text = _TRAILING_NONE.sub("", text).strip()
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 3] + "..."


def _details(detail: object) -> str:
    """FastAPI's validation errors: `messages.0.content: Field required; ...`."""
    if not isinstance(detail, list):
        return _text(detail)
    return "; ".join(f"{_place(item)}: {_text(item.get('msg'))}" for item in detail[:5] if isinstance(item, dict))


def _place(item: dict[str, Any]) -> str:
    loc = item.get("loc")
    return ".".join(str(part) for part in loc if part != "body") if isinstance(loc, list | tuple) else ""


def _param(fields: dict[str, Any], message: str) -> str | None:
    param = _text(fields.get("param"))
    if param:
        return param[:200]
    detail = fields.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        return _place(detail[0])[:200] or None
    named = _NAMED_FIELD.match(message)
    return named[1] if named and named[1] != "inputs" else None  # `inputs` is TGI's name for what no client calls so


def _code(code: object) -> str | None:
    """Codes are words such as `context_length_exceeded`; an HTTP status in their place says nothing new."""
    return code if isinstance(code, str) and len(code) <= 64 and _CODE.fullmatch(code) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) and value not in ("None", "null") else ""


def _seconds(retry_after: bytes | None, default: float) -> float:
    """Seconds; a date, which engines do not send, counts as the default."""
    if retry_after is None or not re.fullmatch(rb"\s*\d{1,9}(\.\d+)?\s*", retry_after):
        return default
    return min(float(retry_after), RETRY_AFTER_LIMIT_S)
