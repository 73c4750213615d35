"""Engines that say what a test has written down, over a real socket, whole or streamed as they are asked.

Says              a chat answer given as deltas
DiesWhenTold      says nothing, then closes
PausesAfterOne    says one of its deltas, and the rest when told
SaysThenDies      the first of its deltas, then closes
SpeaksResponses   has /v1/responses itself, and tells nothing else
SpeaksMessages    has /v1/messages itself (and /v1/messages/count_tokens)
Counts            has /tokenize, in vLLM's shape
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.fakes.chat_engine import STREAM_HEAD, USAGE, Engine, Request, Write, chunk, event, whole

Json = dict[str, Any]
END = b"0\r\n\r\n"


class Says(Engine):
    """`deltas` are those of a stream's first choice; a whole answer is what they add up to."""

    def __init__(self, *deltas: Json, finish: str = "stop", usage: Json | None = None, **choice: Any) -> None:
        super().__init__()
        self.deltas = deltas
        self.finish = finish
        self.told_usage = usage or USAGE
        self.choice = choice

    async def answer(self, request: Request, write: Write) -> bool:
        if not request.body.get("stream"):
            await write(whole(200, json.dumps(self.completion(request.body["model"])).encode()))
            return True
        await write(STREAM_HEAD)
        for part in self.chunks(request.body["model"]):
            await write(chunk(event(part)))
        await write(chunk(event(b"[DONE]")) + END)
        return True

    def chunks(self, model: str) -> list[Json]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        choices: list[Json] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in self.deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": self.finish, **self.choice})
        return [{**head, "choices": [one]} for one in choices] + [{**head, "choices": [], "usage": self.told_usage}]

    def completion(self, model: str) -> Json:
        message: Json = {"role": "assistant", "content": None}
        for delta in self.deltas:
            for name in ("content", "reasoning_content", "refusal"):
                if delta.get(name):
                    message[name] = (message.get(name) or "") + delta[name]
            for call in delta.get("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if len(calls) <= call["index"]:
                    calls.append({"id": call["id"], "type": "function", "function": {"name": "", "arguments": ""}})
                for name, text in call["function"].items():
                    calls[call["index"]]["function"][name] += text
        choice = {"index": 0, "message": message, "finish_reason": self.finish, **self.choice}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
        return {**head, "choices": [choice], "usage": self.told_usage}


def tool_call(index: int, name: str, *arguments: str) -> list[Json]:
    """The deltas of a tool call whose arguments come in pieces."""
    first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return [{"tool_calls": [call]} for call in (first, *rest)]


class SaysThenDies(Says):
    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD)
        for part in self.chunks(request.body["model"])[: len(self.deltas)]:
            await write(chunk(event(part)))
        return False


class PausesAfterOne(Says):
    def __init__(self, *deltas: Json) -> None:
        super().__init__(*deltas)
        self.told = asyncio.Event()

    async def answer(self, request: Request, write: Write) -> bool:
        if not request.body.get("stream"):
            return await super().answer(request, write)
        first, *rest = self.chunks(request.body["model"])
        await write(STREAM_HEAD + chunk(event(first)))
        await self.told.wait()
        await write(b"".join(chunk(event(part)) for part in (*rest, b"[DONE]")) + END)
        return True


class DiesWhenTold(Engine):
    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    async def answer(self, request: Request, write: Write) -> bool:
        await self.told.wait()
        return False


class _Native(Engine):
    """`events` end the stream as the API does: without `[DONE]`."""

    path = ""

    def __init__(self, reply: Json, events: list[Json]) -> None:
        super().__init__()
        self.reply = reply
        self.events = events

    async def answer(self, request: Request, write: Write) -> bool:
        if request.path != self.path:
            await write(whole(404, b'{"error":{"message":"no such path","type":"not_found","code":404}}'))
        elif request.body.get("stream"):
            await write(STREAM_HEAD)
            for part in self.events:
                await write(chunk(b"event: %s\n" % part["type"].encode() + event(part)))
            await write(END)
        else:
            await write(whole(200, json.dumps(self.reply).encode()))
        return True


class SpeaksResponses(_Native):
    path = "/v1/responses"


class SpeaksMessages(_Native):
    path = "/v1/messages"

    async def answer(self, request: Request, write: Write) -> bool:
        if request.path == "/v1/messages/count_tokens":
            await write(whole(200, b'{"input_tokens": 11}'))
            return True
        return await super().answer(request, write)


class Counts(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        await write(whole(200, b'{"count": 5, "max_model_len": 100, "tokens": [1, 2, 3, 4, 5]}'))
        return True
