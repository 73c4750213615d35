"""One chat request, streamed or whole, timed as its client sees it. Our own thin client for http, httpx for https.

Whatever goes wrong is a `Sample` with its kind, never an exception: errors are what a saturated server gives, and are
counted. Nobody's text is kept: neither prompts nor what servers say of them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from backends.errors import ConnectFailed, Disconnected, EngineTimeout, TransportError
from backends.transport import Limits, Pool, Timeouts

from .figures import Sample
from .targets import Place

CHAT = "/v1/chat/completions"

_KIND_CHARACTERS = 60


class Answer(Protocol):
    """An answer whose head has come."""

    status: int

    async def next(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises `TransportError`."""

    async def read(self) -> bytes:
        """The whole body. Raises `TransportError`."""

    def close(self) -> None:
        """Let go of it, whatever has come of it."""


class Client(Protocol):
    """A way to one origin."""

    async def send(self, method: str, path: str, body: bytes) -> Answer:
        """Raises `TransportError`."""

    async def aclose(self) -> None: ...


class PlainClient:
    """http:// by the gateway's own client, which costs least beside what it measures."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        self._pool = Pool(
            place.host,
            place.port,
            timeouts=Timeouts(min(10.0, timeout_s), timeout_s, timeout_s),
            limits=Limits(idle_connections=4096),
        )
        self._prefix = place.prefix
        self._headers = b"content-type: application/json\r\n"
        if place.key:
            self._headers += b"authorization: Bearer %s\r\n" % place.key.encode()

    async def send(self, method: str, path: str, body: bytes) -> Answer:
        return await self._pool.request(method.encode(), (self._prefix + path).encode(), self._headers, body)

    async def aclose(self) -> None:
        await self._pool.aclose()


def client_for(place: Place, timeout_s: float) -> Client:
    if not place.tls:
        return PlainClient(place, timeout_s)
    from .https import TlsClient  # noqa: PLC0415  # httpx takes a third of a second to import

    return TlsClient(place, timeout_s)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a server said instead of an answer: its status, and its message for a person at the terminal."""

    status: int
    kind: str
    message: str


def refusal(status: int, body: bytes) -> Refusal:
    """From an error's body in OpenAI's shape, or whatever it is."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    if not isinstance(error, dict):
        error = {"message": error} if isinstance(error, str) else {}
    told = error.get("code") or error.get("type") or error.get("error_type") or ""
    kind = f"{status} {told}" if told and str(told) != str(status) else str(status)
    return Refusal(status, kind[:_KIND_CHARACTERS], str(error.get("message") or "").strip())


@dataclass(slots=True)
class _Stream:
    """Reads server-sent events: when text came, how often, what the server counted."""

    begun: float
    first: float | None = None
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)
    events: int = 0
    usage: dict[str, Any] | None = None
    done: bool = False
    failure: str | None = None
    _pending: bytes = b""

    def feed(self, data: bytes, now: float) -> None:
        if self._pending:
            data = self._pending + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *whole, self._pending = data.split(b"\n\n")
        for event in whole:
            self._event(event, now)

    def _event(self, event: bytes, now: float) -> None:
        payload = b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()
        if not payload:
            if event.startswith(b"error:"):  # llama.cpp's field
                self.failure = "error in the stream"
            return
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            self.failure = "stream that is not OpenAI's"
        elif chunk.get("error") or chunk.get("object") == "error":
            self.failure = f"in the stream: {refusal(200, payload).kind.removeprefix('200').strip() or 'error'}"
        else:
            if isinstance(chunk.get("usage"), dict):
                self.usage = chunk["usage"]
            if _has_text(chunk):
                self._text(now)

    def _text(self, now: float) -> None:
        self.events += 1
        if self.first is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now

    def sample(self, ended: float) -> Sample:
        error = self.failure
        if error is None and not self.done:
            error = "stream ended early"
        if error is None and not self.events:
            error = "answer without tokens"
        return Sample(
            e2e_s=ended - self.begun,
            ttft_s=None if self.first is None else self.first - self.begun,
            gaps_s=self.gaps,
            events=self.events,
            prompt_tokens=_count(self.usage, "prompt_tokens"),
            output_tokens=_count(self.usage, "completion_tokens"),
            error=error,
        )


def _has_text(chunk: dict[str, Any]) -> bool:
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")):
            return True
    return False


def _count(usage: dict[str, Any] | None, name: str) -> int | None:
    value = usage.get(name) if usage is not None else None
    return value if isinstance(value, int) else None


async def ask(client: Client, body: bytes, *, stream: bool, timeout_s: float) -> Sample:
    """One request and its answer."""
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            return await _asked(client, body, begun, stream=stream)
    except TimeoutError:
        kind = "timeout"
    except TransportError as error:
        kind = kind_of(error)
    return Sample(e2e_s=time.perf_counter() - begun, error=kind)


def kind_of(error: TransportError) -> str:
    match error:
        case EngineTimeout():
            return "timeout"
        case ConnectFailed():
            return "no connection"
        case Disconnected():
            return "connection closed"
    return "answer that is not HTTP"


async def _asked(client: Client, body: bytes, begun: float, *, stream: bool) -> Sample:
    answer = await client.send("POST", CHAT, body)
    try:
        if answer.status != 200:
            told = refusal(answer.status, await answer.read())
            return Sample(e2e_s=time.perf_counter() - begun, error=told.kind)
        if not stream:
            return _whole(await answer.read(), time.perf_counter() - begun)
        events = _Stream(begun)
        while data := await answer.next():
            events.feed(data, time.perf_counter())
        return events.sample(time.perf_counter())
    finally:
        answer.close()


def _whole(body: bytes, e2e_s: float) -> Sample:
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        reply = None
    if not isinstance(reply, dict) or not reply.get("choices"):
        return Sample(e2e_s=e2e_s, error="answer that is not OpenAI's")
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else None
    prompt_tokens, output_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if output_tokens == 0:
        return Sample(e2e_s=e2e_s, error="answer without tokens")
    return Sample(e2e_s=e2e_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
