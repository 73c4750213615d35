"""TGI's replies and streams as OpenAI's. Pure. What is odd about them was read in v3.3.7 (see tgi.py).

A stream of a tool call is the oddest: every delta repeats the id and the type, and it ends without a finish reason,
since the token that carries it makes no event (`chat.rs`, `StreamState`). The text of a stop sequence is part of the
answer in TGI and never in OpenAI's, so the end of a stream is held back while it may be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from backends.base import Call

from .seam import Json

_FINISH = {"eos_token": "stop", "stop_sequence": "stop", "": None}


def identity(call: Call) -> str:
    """TGI says "". Made of the request's id, so that it is the same in each chunk and can be found in the log."""
    return ("chatcmpl-" if "chat" in call.path else "cmpl-") + call.id.removeprefix("req_")


def tool_id(call: Call, index: int) -> str:
    return f"call_{call.id.removeprefix('req_')}_{index}"


# -- whole replies ---------------------------------------------------------------------------------------------------


def repair_reply(call: Call, reply: Json) -> Json:
    reply["id"] = identity(call)
    reply["model"] = call.model
    for choice in reply.get("choices") or ():
        reason = choice.get("finish_reason")
        stops = _stops(call) if reason == "stop_sequence" else []
        choice["finish_reason"] = _FINISH.get(reason, reason)
        _with_bytes(choice.get("logprobs"))
        if isinstance(choice.get("text"), str):
            choice["text"] = _without_stop(choice["text"], stops)
        if isinstance(message := choice.get("message"), dict):
            content = message.setdefault("content", None)
            message["content"] = _without_stop(content, stops) if isinstance(content, str) else None
            message["refusal"] = None
            if calls := message.get("tool_calls"):
                for index, tool in enumerate(calls):
                    tool["id"] = tool_id(call, index)
                    tool["function"] = {
                        "name": tool["function"]["name"],
                        "arguments": _as_text(tool["function"].get("arguments")),
                    }
                choice["finish_reason"] = _finish_of_tools(reason)
    _with_details(reply.get("usage"))
    return reply


def _finish_of_tools(reason: str | None) -> str:
    return "length" if reason == "length" else "tool_calls"


def _as_text(arguments: Any) -> str:
    """Releases before 3.1 give the arguments as an object."""
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()


def _with_bytes(logprobs: Any) -> None:
    if isinstance(logprobs, dict):
        logprobs.setdefault("refusal", None)
        for token in logprobs.get("content") or ():
            for entry in (token, *(token.get("top_logprobs") or ())):
                entry["bytes"] = list(entry["token"].encode())


def _with_details(usage: Any) -> None:
    if isinstance(usage, dict):
        usage.setdefault("prompt_tokens_details", {"cached_tokens": 0})
        usage.setdefault("completion_tokens_details", {"reasoning_tokens": 0})


def _stops(call: Call) -> list[str]:
    stop = call.body.get("stop") or []
    return [stop] if isinstance(stop, str) else [text for text in stop if isinstance(text, str)]


def _without_stop(text: str, stops: Sequence[str]) -> str:
    """TGI stops as soon as the text ends with a stop, so there is no other place to look for it."""
    for stop in sorted(stops, key=len, reverse=True):
        if stop and text.endswith(stop):
            return text[: -len(stop)]
    return text


# -- streams ---------------------------------------------------------------------------------------------------------


class _Text:
    """The text of one choice, as far as it is certain that it is no stop."""

    __slots__ = ("_held", "_stops")

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._held + text
        longest = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def end(self, text: str, reason: str) -> str:
        text, self._held = self._held + text, ""
        return _without_stop(text, self._stops) if reason == "stop_sequence" else text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the text's end may be the beginning of the stop."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)


class ChatChunks:
    """The repair of one chat stream (TGI has one choice, and one tool call in it)."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._id = identity(call)
        self._text = _Text(_stops(call))
        self._arguments = ""
        self._begun = self._calling = self._over = False

    def __call__(self, chunk: Json) -> Sequence[Json]:
        chunk["id"] = self._id
        chunk["model"] = self._call.model
        _with_details(chunk.get("usage"))
        if not chunk.get("choices"):
            return (chunk,) if self._over or not self._calling else (self._end(chunk), chunk)
        choice = chunk["choices"][0]
        if self._over:
            return ()
        _with_bytes(choice.get("logprobs"))
        reason = choice.get("finish_reason")
        delta = choice["delta"]
        if tools := delta.get("tool_calls"):
            choice["delta"] = self._tool(tools[0])
        else:
            choice["delta"] = self._content(delta, reason)
        if not self._begun:
            self._begun = True
            choice["delta"] = {"role": "assistant", **choice["delta"]}
        if reason:
            self._over = True
            choice["finish_reason"] = _finish_of_tools(reason) if self._calling else _FINISH.get(reason, reason)
        elif self._calling and _is_whole(self._arguments):
            return (chunk, self._end(chunk))
        elif not choice["delta"] and not choice.get("logprobs"):
            return ()
        return (chunk,)

    def _content(self, delta: Json, reason: str | None) -> Json:
        text = delta.get("content") or ""
        text = self._text.end(text, reason) if reason else self._text.feed(text)
        return {"content": text} if text else {}

    def _tool(self, tool: Json) -> Json:
        function = tool["function"]
        arguments = _as_text(function.get("arguments") or "")
        self._arguments += arguments
        if self._calling:
            return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}
        self._calling = True
        function = {"name": function.get("name"), "arguments": arguments}
        call = {"index": 0, "id": tool_id(self._call, 0), "type": "function", "function": function}
        return {"content": None, "tool_calls": [call]}

    def _end(self, chunk: Json) -> Json:
        self._over = True
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
        return {**chunk, "choices": [choice], "usage": None}


def _is_whole(arguments: str) -> bool:
    if not arguments.rstrip().endswith("}"):
        return False
    try:
        orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return False
    return True


class CompletionChunks:
    """The repair of one completion stream, of one prompt: fanout.py sees to that."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._id = identity(call)
        self._text = _Text(_stops(call))

    def __call__(self, chunk: Json) -> Sequence[Json]:
        chunk["id"] = self._id
        chunk["model"] = self._call.model
        _with_details(chunk.get("usage"))
        for choice in chunk.get("choices") or ():
            reason = choice.get("finish_reason")
            text = choice.get("text") or ""
            choice["text"] = self._text.end(text, reason) if reason else self._text.feed(text)
            choice["finish_reason"] = _FINISH.get(reason, reason)
            if not choice["text"] and not reason:
                return ()
        return (chunk,)
