"""What a child has said: its whole reply, or the chunks of its stream, read into one value. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from backends.errors import MalformedResponse

from .moves import Usage

Json = dict[str, Any]
_SEEN = ("content", "tool_calls", "refusal")
_OPEN, _CLOSE = "<think>", "</think>"


class Thoughts:
    """Takes what stands between `<think>` and `</think>` out of a text's beginning, piece by piece: engines without a
    parser for their model's reasoning leave it there.

    possible   the text may still have, or be in, such a beginning
    """

    __slots__ = ("_held", "possible")

    def __init__(self) -> None:
        self._held = ""
        self.possible = True

    def seen(self, piece: str, *, last: bool = False) -> str:
        """What of the text may be shown now. With the `last` piece nothing is held back that is no thought."""
        if not self.possible:
            return piece
        self._held += piece
        begun = self._held.lstrip()
        if begun.startswith(_OPEN):
            said = begun.partition(_CLOSE)[2]
            said = said.lstrip()
            if not said:
                return ""
        elif _OPEN.startswith(begun) and not last:
            return ""
        else:
            said = self._held
        self.possible, self._held = False, ""
        return said


@dataclass(slots=True)
class Heard:
    """Of one child, as far as it has come.

    over      it has said why it ended
    message   of a whole reply, as it came
    calls     tools that it asked for, by their index
    """

    text: str = ""
    finish_reason: str = ""
    message: Json | None = None
    over: bool = False
    visible: bool = False
    calls: dict[int, Json] = field(default_factory=dict)
    usage: Usage | None = None
    thoughts: Thoughts = field(default_factory=Thoughts)

    def whole(self, body: bytes) -> None:
        """A whole reply. Raises `MalformedResponse`."""
        try:
            reply = orjson.loads(body)
            choice = reply["choices"][0]
            message = choice["message"]
            content = message.get("content")
            calls = message.get("tool_calls") or ()
            self.text = Thoughts().seen(text_of(content), last=True)
            self.calls = dict(enumerate(calls))
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise MalformedResponse("The engine's answer is no chat completion.") from None
        self.message = message
        self.finish_reason = str(choice.get("finish_reason") or "stop")
        self.usage = usage_in(reply.get("usage"))
        self.over = True

    def chunk(self, chunk: Json) -> Json | None:
        """One chunk of a stream: the part of its delta that the client may see, None for none of it.

        Raises `MalformedResponse`.
        """
        try:
            if (usage := usage_in(chunk.get("usage"))) is not None:
                self.usage = usage
            choices = chunk.get("choices")
            if not choices:
                return None
            choice = choices[0]
            delta = choice.get("delta") or {}
            if reason := choice.get("finish_reason"):
                self.finish_reason, self.over = str(reason), True
            seen = {name: value for name in _SEEN if (value := delta.get(name))}
            if self.thoughts.possible and ("content" in seen or self.over):
                seen["content"] = self.thoughts.seen(seen.get("content", ""), last=self.over)
                seen = {name: value for name, value in seen.items() if value}
            self.text += seen.get("content", "")
            for call in seen.get("tool_calls", ()):
                self._call(call)
        except (AttributeError, LookupError, TypeError):
            raise MalformedResponse("The engine sent a chunk of an unknown shape.") from None
        self.visible = self.visible or bool(seen)
        return seen or None

    def _call(self, part: Json) -> None:
        """A part of a tool call: its name once, its arguments in pieces."""
        call = self.calls.setdefault(part.get("index", 0), {"function": {"arguments": ""}})
        for name in ("id", "type"):
            if part.get(name):
                call[name] = part[name]
        function = part.get("function") or {}
        if function.get("name"):
            call["function"]["name"] = function["name"]
        call["function"]["arguments"] += function.get("arguments") or ""

    def said(self) -> Json | None:
        """The message of a child that asked for tools, None of one that did not."""
        if not self.calls:
            return None
        if self.message is not None:
            return self.message
        calls = [call for _, call in sorted(self.calls.items())]
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls}


def text_of(content: Any) -> str:
    """Content as engines write it: a text, null, or parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    return "".join(part["text"] for part in content if part.get("type") == "text")


def usage_in(told: Any) -> Usage | None:
    """A usage object, with its details; None where there is none."""
    if not isinstance(told, dict):
        return None
    return Usage(
        _count(told.get("prompt_tokens")),
        _count(told.get("completion_tokens")),
        _detail(told, "completion_tokens_details", "reasoning_tokens"),
        _detail(told, "prompt_tokens_details", "cached_tokens"),
    )


def _detail(told: Json, details: str, name: str) -> int:
    found = told.get(details)
    return _count(found.get(name)) if isinstance(found, dict) else 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def chunks_in(events: bytes) -> Iterator[Json]:
    """The chunks of whole server-sent events, one `data:` line each as `backends.sse` leaves them.

    Raises `MalformedResponse`.
    """
    for event in events.split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        if not data or data == b"[DONE]":
            continue
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            raise MalformedResponse("The engine sent a chunk of an unknown shape.")
        yield chunk
