"""Engines that fail the lines of a batch in their own ways, told apart by what a line says.

AnswersSlowly     after a while
FailsAtFirst      each prompt so many times, with any status
DiesUnderLines    closes without a word, each prompt so many times
HangsAtFirst      says nothing to each prompt so many times
Full              429 with a retry-after to all but a few at once
WaitsToBeTold     until it may go on
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from .chat_engine import Answers, Request, Write, whole


def prompt_of(request: Request) -> str:
    messages = request.body.get("messages")
    return str(messages[-1]["content"]) if messages else str(request.body.get("input") or request.body.get("prompt"))


class Remembers(Answers):
    """How often it was asked what; `answered` only counts whole answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.now = self.most = 0

    async def answer(self, request: Request, write: Write) -> bool:
        prompt = prompt_of(request)
        self.asked[prompt] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            goes_on = await self.respond(prompt, request, write)
        finally:
            self.now -= 1
        return goes_on

    async def respond(self, prompt: str, request: Request, write: Write) -> bool:
        if request.path == "/v1/embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
            body = {"object": "list", "data": [vector], "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}}
            await write(whole(200, json.dumps(body).encode()))
        else:
            await super().answer(request, write)
        self.answered[prompt] += 1
        return True


class AnswersSlowly(Remembers):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def respond(self, prompt: str, request: Request, write: Write) -> bool:
        await asyncio.sleep(self.seconds)
        return await super().respond(prompt, request, write)


class FailsAtFirst(Remembers):
    def __init__(self, times: int, status: int, headers: str = "") -> None:
        super().__init__()
        self.times = times
        self.failure = whole(status, b'{"error":{"message":"broken","type":"server_error"}}', headers)

    async def respond(self, prompt: str, request: Request, write: Write) -> bool:
        if self.asked[prompt] <= self.times:
            await write(self.failure)
            return True
        return await super().respond(prompt, request, write)


class DiesUnderLines(Remembers):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def respond(self, prompt: str, request: Request, write: Write) -> bool:
        if self.asked[prompt] <= self.times:
            return False
        return await super().respond(prompt, request, write)


class HangsAtFirst(Remembers):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def respond(self, prompt: str, request: Request, write: Write) -> bool:
        if self.asked[prompt] <= self.times:
            return True  # back to reading, where the gateway's closing is seen
        return await super().respond(prompt, request, write)


class Full(AnswersSlowly):
    """`room` at once."""

    def __init__(self, room: int, seconds: float = 0.01) -> None:
        super().__init__(seconds)
        self.room = room
        self.refused = 0

    async def respond(self, prompt: str, request: Request, write: Write) -> bool:
        if self.now > self.room:
            self.refused += 1
            await write(whole(429, b'{"error":"Model is overloaded","error_type":"overloaded"}', "retry-after: 1\r\n"))
            return True
        return await super().respond(prompt, request, write)


class WaitsToBeTold(Remembers):
    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def respond(self, prompt: str, request: Request, write: Write) -> bool:
        await self.go_on.wait()
        return await super().respond(prompt, request, write)
