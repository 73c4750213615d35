"""Events of an engine that speaks the API by itself, on their way to the client. Pure.

Bytes of events stay as they are. But `backends.sse` leaves the names of events out, so they are put back: a name is
always the event's `type`, at OpenAI and at Anthropic. And chat's `[DONE]` does not end these streams: their own last
event does.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from backends.base import Usage
from backends.errors import Disconnected, GatewayError

from .chunks import Json, named, parsed, payloads, reported
from .message_events import PING, error_body
from .response_events import failed
from .segments import count

_FINAL = ("response.completed", "response.incomplete", "response.failed")


class ResponseRelay:
    """A /v1/responses stream. See `chunks.Events`. `change` makes each `response` in it what the client shall see."""

    def __init__(self, change: Callable[[Json], Json] | None = None) -> None:
        self._change = change
        self._response: Json | None = None
        self._sequence = -1
        self.final: Json | None = None
        self.failure: GatewayError | None = None

    @property
    def over(self) -> bool:
        return self.final is not None or self.failure is not None

    @property
    def usage(self) -> Usage | None:
        return response_usage(self.final)

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for payload in payloads(data):
            event, same = parsed(payload)
            if event.get("error") and "type" not in event:
                return b"".join(out) + self.fail(reported(event["error"]))
            kind = str(event.get("type") or "message")
            if isinstance(number := event.get("sequence_number"), int):
                self._sequence = number
            if isinstance(response := event.get("response"), dict):
                if self._change is not None:
                    response = event["response"] = self._change(response)
                    same = orjson.dumps(event)
                self._response = response
            out.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), same))
            if kind in _FINAL:
                self.final = self._response
                break
        return b"".join(out)

    def quiet(self) -> bytes:
        return b""  # the engine numbers the events

    def finish(self) -> bytes:
        """Without a last event it is no end."""
        return self.fail(Disconnected("The engine closed the stream before its end.", received=True))

    def fail(self, error: GatewayError) -> bytes:
        self.failure = error
        self._sequence += 1
        if self._response is None:
            fields = {"code": error.code, "message": error.message, "param": error.param}
            return named({"type": "error", "sequence_number": self._sequence, **fields})
        response = failed(self._response, error)
        return named({"type": "response.failed", "sequence_number": self._sequence, "response": response})


class MessageRelay:
    """A /v1/messages stream. See `chunks.Events`. It has no final object: nothing of it is kept."""

    final: Json | None = None

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._counted = False
        self._given = 0
        self._made = 0
        self._stopped = False
        self.failure: GatewayError | None = None

    @property
    def over(self) -> bool:
        return self._stopped or self.failure is not None

    @property
    def usage(self) -> Usage | None:
        return Usage(self._given, self._made) if self._counted else None

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for payload in payloads(data):
            event, same = parsed(payload)
            if event.get("error"):
                return b"".join(out) + self.fail(reported(event["error"]))
            kind = str(event.get("type") or "message")
            self._count(event)
            out.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), same))
            if kind == "message_stop":
                self._stopped = True
                break
        return b"".join(out)

    def quiet(self) -> bytes:
        return PING

    def finish(self) -> bytes:
        return self.fail(Disconnected("The engine closed the stream before its end.", received=True))

    def fail(self, error: GatewayError) -> bytes:
        self.failure = error
        return named(error_body(error.status, error.message, self._request_id))

    def _count(self, event: Json) -> None:
        """Counts are cumulative: the last one that is told is right."""
        message = event.get("message")
        usage = message.get("usage") if isinstance(message, dict) else event.get("usage")
        if isinstance(usage, dict):
            self._counted = True
            told = message_usage(usage)
            self._given = told.prompt_tokens or self._given
            self._made = told.completion_tokens or self._made


def response_usage(response: Json | None) -> Usage | None:
    """What a response object counts."""
    usage = response.get("usage") if response is not None else None
    return Usage(count(usage, "input_tokens"), count(usage, "output_tokens")) if isinstance(usage, dict) else None


def message_usage(usage: Json) -> Usage:
    """What a message counts: cached tokens were given, too."""
    given = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return Usage(sum(count(usage, name) for name in given), count(usage, "output_tokens"))
