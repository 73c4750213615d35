"""`n` > 1, and several prompts at once, for engines that answer with one choice: a call for each, and one answer.

    Call(n=3) --> Fanout --3 calls at once--> Backend
                    |                            |
                  merged <---- choices 0, 1, 2 --+

Choices are numbered as OpenAI numbers them: those of the first prompt, then those of the second. Usage counts each
prompt once, however often the engine has read it, and the completions of all choices: so does OpenAI, and so do the
engines that have `n`. A merged stream has one id, one usage chunk and one end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from .base import Backend, Call, EventStream, Reply, Usage
from .dialects.seam import COMPLETIONS
from .errors import GatewayError, InvalidRequest, MalformedResponse
from .sse import DONE
from .together import served_by, together, whole

Json = dict[str, Any]
News = tuple[int, bytes | BaseException | None]
"""Which choice; its events, its error, or its end."""

MOST = 128
"""Choices of one request: OpenAI's limit of `n`, and what TGI takes at once."""


class Fanout:
    """A Backend around a Backend."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    async def run(self, call: Call) -> Reply | EventStream:
        n = _choices(call.body)
        prompts = _prompts(call)
        if n == 1 and len(prompts) <= 1:
            return await self._inner.run(call)
        if n * max(1, len(prompts)) > MOST:
            message = f"This model gives at most {MOST} choices for one request."
            raise InvalidRequest(message, param="prompt" if len(prompts) > 1 else "n", code="too_many_choices")
        calls = split(call, prompts, n)
        counts = [index % n == 0 for index in range(len(calls))]  # whose prompt is counted
        if not call.stream:
            return merged([whole(answer) for answer in await together(self._inner, calls)], counts)
        stream = MergedStream(self._inner, calls, counts, shows_usage=_shows_usage(call))
        replies = await stream.begin()
        return merged(replies, counts) if replies else stream

    def in_flight(self, replica_id: str) -> int:
        return self._inner.in_flight(replica_id)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _choices(body: Json) -> int:
    n = body.get("n")
    if n is None:
        return 1
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST:
        message = f"Invalid 'n': expected an integer from 1 to {MOST}."
        raise InvalidRequest(message, param="n", code="invalid_value")
    return n


def _prompts(call: Call) -> list[Any]:
    """Of a completion with several: texts, or lists of token ids. A list of numbers is one prompt."""
    prompt = call.body.get("prompt") if call.path == COMPLETIONS else None
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return []


def split(call: Call, prompts: Sequence[Any], n: int) -> list[Call]:
    """One call for each choice. Seeds differ, or the choices would be the same."""
    body = {name: value for name, value in call.body.items() if name != "n"}
    if body.get("best_of") == n:
        del body["best_of"]
    if call.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    calls: list[Call] = []
    for prompt in prompts or [None]:
        for choice in range(n):
            own = body if prompt is None else {**body, "prompt": prompt}
            if choice and isinstance(seed := body.get("seed"), int):
                own = {**own, "seed": seed + choice}
            part = call.with_body(own)
            # ids of tool calls are made of the request's
            calls.append(replace(part, id=f"{call.id}-{len(calls)}") if calls else part)
    return calls


def _shows_usage(call: Call) -> bool:
    options = call.body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


# -- usage -----------------------------------------------------------------------------------------------------------


class _Sum:
    """The usage of all parts as of one."""

    def __init__(self) -> None:
        self.total: Json | None = None

    def add(self, usage: Any, *, with_prompt: bool) -> None:
        if not isinstance(usage, dict):
            return
        if not with_prompt:
            usage = {name: value for name, value in usage.items() if not name.startswith("prompt_")}
        self.total = _added(self.total or {"prompt_tokens": 0, "completion_tokens": 0}, usage)
        self.total["total_tokens"] = self.total["prompt_tokens"] + self.total["completion_tokens"]

    @property
    def counted(self) -> Usage | None:
        total = self.total
        return None if total is None else Usage(total["prompt_tokens"], total["completion_tokens"])


def _added(one: Json, other: Json) -> Json:
    """Numbers by name, and those in details."""
    total = dict(one)
    for name, value in other.items():
        if isinstance(value, dict):
            total[name] = _added(total.get(name) or {}, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            total[name] = (total.get(name) or 0) + value
        else:
            total.setdefault(name, value)
    return total


# -- whole replies ---------------------------------------------------------------------------------------------------


def merged(answers: Sequence[Reply], counts: Sequence[bool]) -> Reply:
    """One reply of many, each of which has one choice. The first one's id, time and all the rest count for all."""
    usage = _Sum()
    choices = []
    first: Json | None = None
    for index, answer in enumerate(answers):
        try:
            body = orjson.loads(answer.body)
            choices.append({**body["choices"][0], "index": index})
            usage.add(body.get("usage"), with_prompt=counts[index])
        except (AttributeError, LookupError, TypeError, ValueError):
            raise MalformedResponse("The engine's answer has no choice.") from None
        first = first or body
    body = {**(first or {}), "choices": choices}
    if usage.total is not None:
        body["usage"] = usage.total
    return Reply(200, answers[0].content_type, orjson.dumps(body), usage.counted, served_by(answers))


# -- streams ---------------------------------------------------------------------------------------------------------


class MergedStream(EventStream):
    """Many streams as one: chunks as they come, each with its choice's number. To be used after `begin`.

    One task reads each stream, and lets go of it at its end. Until all have begun, what comes is kept: there may be
    more choices than places, and the last of them get theirs when the first are done. After that a stream that is
    ahead waits until its chunk was taken.
    """

    __slots__ = (
        "_all",
        "_answers",
        "_counts",
        "_early",
        "_head",
        "_left",
        "_news",
        "_readers",
        "_shows_usage",
        "_sum",
    )

    def __init__(self, inner: Backend, calls: Sequence[Call], counts: Sequence[bool], *, shows_usage: bool) -> None:
        super().__init__("")
        self._answers: list[Reply | EventStream | None] = [None] * len(calls)
        self._counts = counts
        self._shows_usage = shows_usage
        self._sum = _Sum()
        self._head: Json = {}
        self._left = len(calls)
        self._early: deque[News] = deque()
        self._news: asyncio.Queue[News] = asyncio.Queue(len(calls))
        self._all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers = [
            asyncio.create_task(self._read(index, inner, call), name=f"choice {index}")
            for index, call in enumerate(calls)
        ]

    async def begin(self) -> list[Reply]:
        """Until every part has begun. The first error cancels the other parts.

        [] for streams; the replies, and no stream, if the engine has answered with these.
        """
        try:
            await self._all
            streams = self._streams
            if len(streams) == len(self._answers):
                self.served_by = served_by(streams)
                return []
            return [whole(answer) for answer in self._answers if answer is not None]
        except BaseException:
            self.close()
            await asyncio.gather(*self._readers, return_exceptions=True)
            raise

    @property
    def _streams(self) -> list[EventStream]:
        return [answer for answer in self._answers if isinstance(answer, EventStream)]

    async def _read(self, index: int, inner: Backend, call: Call) -> None:
        try:
            answer = self._answers[index] = await inner.run(call)
            if None not in self._answers and not self._all.done():
                self._all.set_result(None)
            if isinstance(answer, EventStream):
                async for events in answer:
                    await self._tell(index, events)
                answer.close()
        except Exception as error:  # whatever it is, it is told to who reads the whole
            if not self._all.done():
                self._all.set_exception(error)
            else:
                await self._tell(index, error)
        else:
            await self._tell(index, None)

    async def _tell(self, index: int, news: bytes | BaseException | None) -> None:
        if self._all.done():
            await self._news.put((index, news))
        else:
            self._early.append((index, news))

    async def __anext__(self) -> bytes:
        while self._left and self.failure is None:
            index, news = self._early.popleft() if self._early else await self._news.get()
            if isinstance(news, BaseException):
                raise news
            if news is None:
                self._left -= 1
                if not self._left:
                    return self._end()
            elif out := self._events(index, news):
                return out
        raise StopAsyncIteration

    def _events(self, index: int, events: bytes) -> bytes:
        try:
            return b"".join([self._event(index, block) for block in events.split(b"\n\n") if block])
        except (AttributeError, LookupError, TypeError, ValueError):
            raise MalformedResponse("The engine sent a chunk of an unknown shape.") from None

    def _event(self, index: int, block: bytes) -> bytes:
        """One event of one stream; its end and its usage are kept back, its error is the error of all."""
        payload = block.removeprefix(b"data: ").replace(b"\ndata: ", b"\n")
        if self.failure is not None or payload == b"[DONE]":
            return b""
        chunk = orjson.loads(payload)
        if "error" in chunk:
            self.failure = GatewayError("One of the choices failed.")  # until `close`, which knows
            return block + b"\n\n"
        if not self._head:
            self._head = {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        self._sum.add(chunk.pop("usage", None), with_prompt=self._counts[index])
        choices = chunk.get("choices")
        if not choices:
            return b""
        chunk["id"] = self._head.get("id")
        for choice in choices:
            choice["index"] = index
        if self._shows_usage:
            chunk["usage"] = None
        return b"data: %s\n\n" % orjson.dumps(chunk)

    def _end(self) -> bytes:
        if self._shows_usage and self._sum.total is not None:
            chunk = {**self._head, "choices": [], "usage": self._sum.total}
            return b"data: %s\n\n" % orjson.dumps(chunk) + DONE
        return DONE

    def close(self) -> None:
        """Every part ends, whatever happened to the others."""
        for reader in self._readers:
            reader.cancel()
        for stream in self._streams:
            stream.close()
        self.failure = next((stream.failure for stream in self._streams if stream.failure), self.failure)
        self.usage = self._sum.counted
