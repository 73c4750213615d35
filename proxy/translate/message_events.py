"""Chat chunks -> the Messages API's events, and so the message that they build. Errors in Anthropic's shape. Pure.

    message_start, ping
    { content_block_start, content_block_delta ..., content_block_stop }  for each block
    message_delta (stop_reason, usage), message_stop                       or, at any place, error

Shapes: `RawMessageStreamEvent`, `Message` and `ErrorResponse` of Anthropic's SDK (anthropic 2.12), and
https://platform.claude.com/docs/en/build-with-claude/streaming. That SDK skips events that have no name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson

from backends.base import Usage
from backends.errors import GatewayError, MalformedResponse

from .chunks import Json, named, objects
from .items import new_id
from .segments import Said, Segment, Segments, Step, as_chunk, count

PING = named({"type": "ping"})

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class MessageEvents:
    """One message. See `chunks.Events`. `request_id` goes with an error."""

    usage: Usage | None = None  # the chat stream's own count is taken

    def __init__(self, body: Json, *, request_id: str, id_for: Callable[[str], str] = new_id) -> None:
        self._request_id = request_id
        self._message: Json = {
            "id": id_for("msg"),
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(None),
        }
        self._segments = Segments()
        self._refused = False
        self._started = False
        self.final: Json | None = None
        self.failure: GatewayError | None = None

    @property
    def over(self) -> bool:
        return self.final is not None or self.failure is not None

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for chunk in objects(data):
            if isinstance(name := chunk.get("model"), str) and name:
                self._message["model"] = name  # of who answered: it may be another than was asked
            out += self._start()
            out += self._tell(self._segments.chunk(chunk))
            if self._segments.failure is not None:
                return b"".join(out) + self.fail(self._segments.failure)
        return b"".join(out)

    def quiet(self) -> bytes:
        return PING

    def finish(self) -> bytes:
        out = self._start()
        out += self._tell(self._segments.end())
        message = self._message
        message["stop_reason"], message["stop_sequence"] = self._stop()
        message["usage"] = usage_of(self._segments.usage)
        self.final = message
        delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        out.append(named({"type": "message_delta", "delta": delta, "usage": message["usage"]}))
        out.append(named({"type": "message_stop"}))
        return b"".join(out)

    def fail(self, error: GatewayError) -> bytes:
        self.failure = error
        return named(error_body(error.status, error.message, self._request_id))

    def whole(self, completion: Any) -> Json:
        """The message for a chat completion that was not streamed. Raises `GatewayError`."""
        if isinstance(name := completion.get("model") if isinstance(completion, dict) else None, str) and name:
            self._message["model"] = name
        self._tell(self._segments.chunk(as_chunk(completion)))
        self.finish()
        if self.final is None:  # not reachable: `finish` sets it
            raise MalformedResponse("The engine's answer could not be followed.")
        return self.final

    def _start(self) -> list[bytes]:
        if self._started:
            return []
        self._started = True
        return [named({"type": "message_start", "message": self._message}), PING]

    def _tell(self, said: Iterable[Said]) -> list[bytes]:
        out = []
        content = self._message["content"]
        for one in said:
            match one.step:
                case Step.BEGIN:
                    self._refused = self._refused or one.segment.kind == "refusal"
                    content.append(_block(one.segment, {}))
                    event: Json = {"type": "content_block_start", "content_block": content[-1]}
                case Step.PIECE:
                    event = {"type": "content_block_delta", "delta": _delta(one)}
                case Step.END:
                    content[-1] = _block(one.segment, _object(one.segment.text))
                    event = {"type": "content_block_stop"}
            out.append(named({"type": event["type"], "index": len(content) - 1, **event}))
        return out

    def _stop(self) -> tuple[str, str | None]:
        """(stop_reason, stop_sequence)"""
        segments = self._segments
        reason = _STOP_REASONS.get(segments.finish_reason or "stop", "end_turn")
        if reason == "end_turn":
            if segments.calls:  # forced calls end with "stop" at OpenAI
                return "tool_use", None
            if self._refused:
                return "refusal", None
            if segments.stop is not None:
                return "stop_sequence", segments.stop
        return reason, None


def _block(segment: Segment, called_with: Json) -> Json:
    """A block with what has been said so far; a tool's input is whole or empty."""
    match segment.kind:
        case "call":
            return {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": called_with}
        case "reasoning":
            return {"type": "thinking", "thinking": segment.text, "signature": ""}
        case _:
            return {"type": "text", "text": segment.text}


def _delta(one: Said) -> Json:
    match one.segment.kind:
        case "call":
            return {"type": "input_json_delta", "partial_json": one.text}
        case "reasoning":
            return {"type": "thinking_delta", "thinking": one.text}
        case _:
            return {"type": "text_delta", "text": one.text}


def _object(arguments: str) -> Json:
    """A call's arguments, {} where the model did not write (or not end) an object: `input` has to be one."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def usage_of(usage: Json | None) -> Json:
    """Chat's usage in Anthropic's words, where cached tokens are not among `input_tokens`."""
    cached = count(usage, "prompt_tokens_details", "cached_tokens")
    return {
        "input_tokens": max(0, count(usage, "prompt_tokens") - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": count(usage, "completion_tokens"),
    }


def error_body(status: int, message: str, request_id: str) -> Json:
    """An error as Anthropic has it: https://platform.claude.com/docs/en/api/errors."""
    kind = _ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
