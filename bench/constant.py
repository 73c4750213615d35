"""People who never stop asking, whatever happens: streams one after the other, plain requests at a constant rate."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import httptools
import orjson

GIVE_UP_S = 90.0
REUSE_S = 1.0
"""A connection that was idle for longer is not used again: the gateway may close it in that very moment."""

_DONE = b"data: [DONE]"
_ERROR = b'"error"'
_TOKEN = b'"content":"'


@dataclass(slots=True)
class Outcome:
    """What became of the requests of one kind. Seconds; moments are of the epoch.

    asked      when each whole one was asked; `latencies`: how long it then took
    firsts     (when it was asked, until the first token)
    failures   (when it was asked, what went wrong)
    """

    asked: list[float] = field(default_factory=list)
    firsts: list[tuple[float, float]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)

    @property
    def whole(self) -> int:
        return len(self.latencies)


def chat(model: str, key: str, *, tokens: int, stream: bool, number: int = 0) -> bytes:
    """A request for exactly so many tokens: llama.cpp's `ignore_eos` keeps the engine at it."""
    body = orjson.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": f"What happens at the wall time? ({number})"}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": stream,
        }
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Answer:
    """One answer as it comes in: httptools' callbacks."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()
        self.first_at = 0.0
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, data: bytes) -> None:
        self.body += data
        if not self.first_at and _TOKEN in self.body:
            self.first_at = time.perf_counter()

    def on_message_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.complete = True


def fault(status: int, body: bytes, *, stream: bool) -> str | None:
    """What is wrong with an answer; None for one that is whole."""
    if status != 200:
        return f"{status} {body[:200].decode(errors='replace')}"
    if not stream:
        return None if b'"choices"' in body else f"no choices: {body[:200].decode(errors='replace')}"
    if _ERROR in body:
        at = body.index(_ERROR)
        return f"an error in the stream: {body[max(0, at - 20) : at + 200].decode(errors='replace')}"
    return None if _DONE in body[-40:] else f"the stream has no end: {body[-80:].decode(errors='replace')}"


class Constant:
    """streams   open at once, each followed by the next one
    rate        plain requests a second, whether those before are answered or not
    tokens, plain_tokens   how long their answers are
    """

    def __init__(
        self, port: int, model: str, key: str, *, streams: int, rate: float, tokens: int, plain_tokens: int = 8
    ) -> None:
        self.streams = Outcome()
        self.plain = Outcome()
        self._port = port
        self._count = streams
        self._rate = rate
        self._tokens = tokens
        self._plain_tokens = plain_tokens
        self._model = model
        self._key = key
        self._over = asyncio.Event()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    def end(self) -> None:
        """Nothing new; what is under way may finish."""
        self._over.set()

    async def run(self) -> None:
        """Until `end`, and until every answer is there."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._stream_on(number), name=f"stream {number}")
            loop = asyncio.get_running_loop()
            begun, number = loop.time(), 0
            while not self._over.is_set():
                await asyncio.sleep(max(0.0, begun + number / self._rate - loop.time()))
                request = chat(self._model, self._key, tokens=self._plain_tokens, stream=False, number=number % 50)
                group.create_task(self._one(self.plain, request, stream=False), name="plain")
                number += 1
        self._close()

    async def one_stream(self, outcome: Outcome) -> None:
        """One stream alone."""
        await self._one(outcome, chat(self._model, self._key, tokens=self._tokens, stream=True), stream=True)
        self._close()

    async def _stream_on(self, number: int) -> None:
        request = chat(self._model, self._key, tokens=self._tokens, stream=True, number=number)
        while not self._over.is_set():
            failures = len(self.streams.failures)
            await self._one(self.streams, request, stream=True)
            if len(self.streams.failures) > failures:
                await asyncio.sleep(0.5)

    async def _one(self, outcome: Outcome, request: bytes, *, stream: bool) -> None:
        at, begun = time.time(), time.perf_counter()
        answer = Answer()
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(GIVE_UP_S):
                reader, writer = await self._connection()
                writer.write(request)
                while not answer.complete:
                    data = await reader.read(65536)
                    if not data:
                        raise EOFError("the connection was closed")
                    answer.parser.feed_data(data)
        except (OSError, EOFError, httptools.HttpParserError, TimeoutError) as error:
            outcome.failures.append((at, str(error) or f"no end within {GIVE_UP_S:g} s"))
            if writer is not None:
                writer.close()
            return
        self._idle.append((reader, writer, time.monotonic()))
        wrong = fault(answer.status, bytes(answer.body), stream=stream)
        if wrong is not None:
            outcome.failures.append((at, wrong))
            return
        outcome.asked.append(at)
        outcome.latencies.append(time.perf_counter() - begun)
        if answer.first_at:
            outcome.firsts.append((at, answer.first_at - begun))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer, since = self._idle.pop()
            if time.monotonic() - since <= REUSE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def _close(self) -> None:
        for _, writer, _ in self._idle:
            writer.close()
