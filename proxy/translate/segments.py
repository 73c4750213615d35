"""Chat chunks -> segments, one after the other: reasoning, text, a refusal, a tool call. Pure.

Chunks as in OpenAI's chat completion chunk object; beside it `reasoning_content` (DeepSeek, SGLang, llama.cpp, vLLM)
and `reasoning` (newer vLLM, OpenRouter). A segment ends where another begins: both APIs that consist of them want that,
and engines send nothing else. One that goes back to an earlier tool call is an error, and not misunderstood.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import orjson

from backends.errors import GatewayError, MalformedResponse

from .chunks import Json, reported

Kind = Literal["reasoning", "text", "refusal", "call"]


class Step(Enum):
    BEGIN = "begin"
    PIECE = "piece"
    END = "end"


@dataclass(slots=True, eq=False)
class Segment:
    """What is being said. `call_id` and `name` are those of a tool call; `logprobs` those of a text, chat's shape."""

    kind: Kind
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Said:
    """One step of one segment. `text` and `logprobs` are what a PIECE adds."""

    step: Step
    segment: Segment
    text: str = ""
    logprobs: tuple[Json, ...] = ()


class Segments:
    """One answer.

    finish_reason  the engine's, None until it has told
    stop           the stop string that ended the answer, where the engine tells (vLLM's `stop_reason`)
    usage          the engine's usage object, None until it has told
    failure        the error inside the stream, None for none
    calls          tool calls begun
    begun          anything was said
    """

    __slots__ = ("_call_index", "_current", "begun", "calls", "failure", "finish_reason", "stop", "usage")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.stop: str | None = None
        self.usage: Json | None = None
        self.failure: GatewayError | None = None
        self.calls = 0
        self.begun = False
        self._current: Segment | None = None
        self._call_index: int | None = None

    def chunk(self, chunk: Json) -> Iterator[Said]:
        """What a chunk adds. Only the first choice counts: neither API has more."""
        if chunk.get("error"):
            self.failure = reported(chunk["error"])
            return
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and not choice.get("index"):
                delta = choice.get("delta")
                if isinstance(delta, dict):
                    yield from self._delta(delta, choice)
                if isinstance(reason := choice.get("finish_reason"), str):
                    self.finish_reason = reason
                    self.stop = found if isinstance(found := choice.get("stop_reason"), str) else None

    def end(self) -> Iterator[Said]:
        """The engine has said all."""
        if self._current is not None:
            current, self._current = self._current, None
            self._call_index = None
            yield Said(Step.END, current)

    def _delta(self, delta: Json, choice: Json) -> Iterator[Said]:
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str):
            yield from self._say("reasoning", reasoning)
        if isinstance(content := delta.get("content"), str):
            logprobs = choice.get("logprobs")
            tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
            yield from self._say("text", content, tuple(tokens) if isinstance(tokens, list) else ())
        if isinstance(refusal := delta.get("refusal"), str):
            yield from self._say("refusal", refusal)
        calls = delta.get("tool_calls")
        for position, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                yield from self._tool_call(call, position)

    def _say(self, kind: Kind, text: str, logprobs: tuple[Json, ...] = ()) -> Iterator[Said]:
        if not text:  # many engines send an empty content with everything else
            return
        if self._current is None or self._current.kind != kind:
            yield from self._begin(Segment(kind))
        yield self._piece(text, logprobs)

    def _tool_call(self, call: Json, position: int) -> Iterator[Said]:
        """A delta of a call. A whole reply's calls have no index: there, each is its own."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        name = _string(function.get("name"))
        call_id = _string(call.get("id"))
        given = call.get("index")
        index = given if isinstance(given, int) else position
        another = bool(name and call_id and self._current is not None and self._current.call_id != call_id)
        if index != self._call_index or another:
            if not name:
                raise MalformedResponse("The engine mixed up its tool calls.")
            yield from self._begin(Segment("call", call_id or f"call_{secrets.token_hex(12)}", name))
            self._call_index = index
            self.calls += 1
        if arguments := _arguments(function.get("arguments")):
            yield self._piece(arguments)

    def _begin(self, segment: Segment) -> Iterator[Said]:
        yield from self.end()
        self.begun = True
        self._current = segment
        yield Said(Step.BEGIN, segment)

    def _piece(self, text: str, logprobs: tuple[Json, ...] = ()) -> Said:
        if self._current is None:  # not reachable: `_begin` comes first
            raise MalformedResponse("The engine's answer could not be followed.")
        self._current.pieces.append(text)
        self._current.logprobs.extend(logprobs)
        return Said(Step.PIECE, self._current, text, logprobs)


def as_chunk(completion: Any) -> Json:
    """A whole chat completion as the one chunk that says the same. Raises `MalformedResponse` for what is none."""
    choices = completion.get("choices") if isinstance(completion, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise MalformedResponse("The engine's answer is no chat completion.")
    return {**completion, "choices": [{**choice, "index": 0, "delta": message}]}


def count(usage: Json | None, *names: str) -> int:
    """A number somewhere in a usage object, 0 where it is not."""
    value: Any = usage
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    """Some engines give the arguments as an object."""
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    return _string(value)
