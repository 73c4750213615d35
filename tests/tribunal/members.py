"""Engines that take part in deliberations, over real sockets.

Member    finds in each request which phase it is of, and says what its script has for it
Text, Tools, Status, Hangs, Dies, DiesMidway, Garbage   what a script may say

Everything that a member has said it used is in `used`, everything that it was cut off from in `cut_off`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.chat_engine import STREAM_HEAD, Engine, Request, Write, chunk, delta, event, whole

Json = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A reply; `reasoning` are tokens of it that nobody sees."""

    text: str
    finish_reason: str = "stop"
    reasoning: int = 0


@dataclass(frozen=True)
class Tools:
    name: str
    arguments: str


@dataclass(frozen=True)
class Status:
    status: int
    code: str = "engine_error"


@dataclass(frozen=True)
class Hangs:
    """Says nothing, ever."""


@dataclass(frozen=True)
class Dies:
    """Closes without a word."""


@dataclass(frozen=True)
class DiesMidway:
    """Closes inside its answer, streamed or not."""

    text: str = "Half of an"


@dataclass(frozen=True)
class Garbage:
    """200, and what is no chat completion."""

    body: bytes = b'{"choices": "none"}'


Said = str | Text | Tools | Status | Hangs | Dies | DiesMidway | Garbage
Script = Mapping[str, Said | Callable[[Request], Said]]

PHASES = (
    ("repair", "That could not be read"),
    ("critique", "You review candidate answers"),
    ("judge", "Decide which of two candidate"),
    ("refine", "Below are an earlier answer"),
    ("verdict", "Write the final answer to the question above"),
)


def last_text(body: Json) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def phase_of(body: Json) -> str:
    said = last_text(body)
    return next((phase for phase, words in PHASES if words in said), "draft")


def candidates_in(body: Json) -> dict[str, str]:
    """Label -> text, as a model is shown them."""
    found = re.findall(r"\[([0-9a-f]{16}) (C\d+)\]\n(.*)\n\[\1 end of \2\]", last_text(body))
    return {label: json.loads(text) for _, label, text in found}


def scoring(
    score: Callable[[str], float], errors: Callable[[str], list[str]] = lambda text: []
) -> Callable[[Request], str]:
    """A critic that scores each candidate by its text."""

    def critique(request: Request) -> str:
        entries = [
            {"label": label, "fatal_errors": errors(text), "evidence": "read", "score": score(text)}
            for label, text in candidates_in(request.body).items()
        ]
        return json.dumps({"candidates": entries})

    return critique


def preferring(text: str) -> Callable[[Request], str]:
    """A judge."""

    def judge(request: Request) -> str:
        shown = candidates_in(request.body)
        return next((label for label, said in shown.items() if said == text), next(iter(shown), "C1"))

    return judge


@dataclass
class Used:
    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    calls: int = 0


class Member(Engine):
    """`script`: phase -> what it says; a phase that is missing is answered as a draft. `gate`, where there is one, is
    waited for before each streamed word but the first."""

    def __init__(self, script: Script | Said, *, delay_s: float = 0.0, gate: asyncio.Semaphore | None = None) -> None:
        super().__init__()
        self.script: Script = script if isinstance(script, Mapping) else {"draft": script}
        self.delay_s = delay_s
        self.gate = gate
        self.used = Used()
        self.open = 0

    def gate_open(self) -> None:
        """Let one more word through."""
        if self.gate is not None:
            self.gate.release()

    def of_phase(self, phase: str) -> list[Request]:
        return [request for request in self.requests if phase_of(request.body) == phase]

    async def answer(self, request: Request, write: Write) -> bool:
        self.open += 1
        try:
            return await self._answer(request, write)
        finally:
            self.open -= 1

    async def _answer(self, request: Request, write: Write) -> bool:
        said = self.script.get(phase_of(request.body), self.script.get("draft", "ok"))
        if callable(said):
            said = said(request)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        streams = bool(request.body.get("stream"))
        match said:
            case Hangs():
                return True  # back to reading, where the gateway's closing is seen
            case Dies():
                return False
            case Status(status, code):
                error = {"message": f"status {status}", "type": "server_error", "param": None, "code": code}
                await write(whole(status, json.dumps({"error": error}).encode()))
                return True
            case Garbage(body):
                await write(whole(200, body))
                return True
            case DiesMidway(text):
                if streams:
                    await write(STREAM_HEAD + chunk(event(delta("m", text))))
                else:
                    await write(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
                return False
            case str():
                said = Text(said)
        if streams:
            await self._stream(request, said, write)
        else:
            await write(whole(200, json.dumps(self._whole(request, said)).encode()))
        return True

    def _usage(self, request: Request, said: Text | Tools) -> Json:
        text = said.text if isinstance(said, Text) else said.arguments
        reasoning = said.reasoning if isinstance(said, Text) else 0
        prompt, completion = len(request.raw) // 4, len(text) // 4 + 1 + reasoning
        self.used.calls += 1
        self.used.prompt += prompt
        self.used.completion += completion
        self.used.reasoning += reasoning
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def _whole(self, request: Request, said: Text | Tools) -> Json:
        message: Json = {"role": "assistant", "content": said.text if isinstance(said, Text) else None}
        if isinstance(said, Tools):
            message["tool_calls"] = [tool_call(said)]
        reason = said.finish_reason if isinstance(said, Text) else "tool_calls"
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": request.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": self._usage(request, said),
        }

    async def _stream(self, request: Request, said: Text | Tools, write: Write) -> None:
        await write(STREAM_HEAD)
        if isinstance(said, Text):
            for number, word in enumerate(re.findall(r"\s*\S+", said.text)):
                if number and self.gate is not None:
                    await self.gate.acquire()
                await write(chunk(event(delta("m", word))))
        else:
            call = tool_call(said)
            head, tail = said.arguments[:3], said.arguments[3:]
            first = {"index": 0, **call, "function": {"name": said.name, "arguments": head}}
            for part in (first, {"index": 0, "function": {"arguments": tail}}):
                await write(chunk(event(with_delta({"tool_calls": [part]}))))
        reason = said.finish_reason if isinstance(said, Text) else "tool_calls"
        await write(chunk(event(delta("m", None, reason))))
        if (request.body.get("stream_options") or {}).get("include_usage"):
            await write(chunk(event({**delta("m", None), "choices": [], "usage": self._usage(request, said)})))
        await write(chunk(event(b"[DONE]")) + b"0\r\n\r\n")


def tool_call(said: Tools) -> Json:
    return {"id": "call_1", "type": "function", "function": {"name": said.name, "arguments": said.arguments}}


def with_delta(said: Json) -> Json:
    made = delta("m", None)
    made["choices"][0]["delta"] = said
    return made


@dataclass
class Site:
    """Text of a configuration."""

    members: Mapping[str, Engine]
    tribunal: str
    more: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        models = "".join(
            f'[models.{name}]\nengine = "vllm"\nurls = ["{engine.url}"]\n{self.options.get(name, "")}\n'
            for name, engine in self.members.items()
        )
        return f"{self.more}\n{models}\n[tribunal]\n{self.tribunal}\n"
