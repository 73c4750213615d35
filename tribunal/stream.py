"""What the client of a deliberation gets: one answer, whole or as a stream, as one model would have given it.

A stream begins before anything is known: with the role, so that the client sees that it was heard. Then there is
progress, in `reasoning_content` where it is wanted, and chunks that say nothing where not, as often as it takes; then
the answer, token by token where it is written now, at once where a candidate is the answer; then the usage, where it is
asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from backends.base import EventStream, Headers
from backends.base import Usage as Counted
from backends.sse import DONE

from .moves import Answer, Usage

Json = dict[str, Any]

QUIET_S = 25.0
"""After so long without a chunk there is one that says nothing: LangChain gives up after 120 s without one, and others
after 60. (Comments, which do not count, are sent by the gateway more often.)"""


@dataclass(frozen=True, slots=True)
class Face:
    """What every chunk, and the whole answer, has beside what it says."""

    id: str
    created: int
    model: str
    fingerprint: str

    def dressed(self, kind: str, **more: Any) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            **more,
        }


def usage_object(total: Usage, visible: int) -> Json:
    """OpenAI's. What was written and is not seen counts as reasoning; `visible` tokens are seen."""
    return {
        "prompt_tokens": total.prompt,
        "completion_tokens": total.completion,
        "total_tokens": total.prompt + total.completion,
        "prompt_tokens_details": {"cached_tokens": total.cached},
        "completion_tokens_details": {"reasoning_tokens": max(0, total.completion - visible)},
    }


class Client(Protocol):
    """Who hears what comes of a deliberation. None of these may fail, or wait."""

    def tell(self, text: str) -> None:
        """What is being done now."""

    def said(self, index: int, delta: Json) -> None:
        """A part of choice `index`."""

    def answered(self, answer: Answer) -> None:
        """A choice is complete."""

    def ended(self, total: Usage, visible: int, error: BaseException | None) -> None:
        """Nothing runs any more."""


class WholeAnswer:
    """For who did not ask for a stream."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._choices: list[Json] = []
        self.body = b""

    def tell(self, text: str) -> None:
        """There is no place for it."""

    def said(self, index: int, delta: Json) -> None:
        """It is in the answer, too."""

    def answered(self, answer: Answer) -> None:
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.message is not None:
            message |= {"content": answer.text or None, **shown(answer.message)}
        self._choices.append(
            {"index": answer.index, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        )

    def ended(self, total: Usage, visible: int, error: BaseException | None) -> None:
        if error is None:
            choices = sorted(self._choices, key=lambda choice: int(choice["index"]))
            whole = self._face.dressed("chat.completion", choices=choices, usage=usage_object(total, visible))
            self.body = orjson.dumps(whole)


def shown(message: Any) -> Json:
    """Of a message that asks for tools: what a client shall see of it."""
    return {name: message[name] for name in ("tool_calls", "function_call", "refusal") if message.get(name)}


class AnswerStream(EventStream):
    """For who asked for a stream.

    progress        tell it in `reasoning_content`
    include_usage   the last chunk has the usage, and all others say that they have none
    leave           called once, when nobody reads any more
    """

    __slots__ = (
        "_error", "_face", "_include_usage", "_last", "_leave", "_loop", "_out", "_over", "_progress", "_timer",
        "_waiter",
    )  # fmt: skip

    def __init__(
        self,
        face: Face,
        headers: Headers,
        *,
        choices: int,
        progress: bool,
        include_usage: bool,
        leave: Callable[[], None],
    ) -> None:
        super().__init__("")
        self.headers = headers
        self._face = face
        self._progress = progress
        self._include_usage = include_usage
        self._leave: Callable[[], None] | None = leave
        self._out: list[bytes] = []
        self._over = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._timer = self._loop.call_later(QUIET_S, self._stay_alive)
        for index in range(choices):
            self._push({"role": "assistant", "content": ""}, index)

    # -- the deliberation writes --------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        if self._progress:
            self._push({"reasoning_content": text + "\n"})

    def said(self, index: int, delta: Json) -> None:
        self._push(delta, index)

    def answered(self, answer: Answer) -> None:
        if not answer.streamed:
            delta: Json = {"content": answer.text} if answer.text else {}
            if answer.message is not None:
                delta |= numbered(shown(answer.message))
            if delta:
                self._push(delta, answer.index)
        self._push({}, answer.index, answer.finish_reason)

    def ended(self, total: Usage, visible: int, error: BaseException | None) -> None:
        self._error = error
        if error is None:
            if self._include_usage:
                usage = self._face.dressed("chat.completion.chunk", choices=[], usage=usage_object(total, visible))
                self._out.append(b"data: %s\n\n" % orjson.dumps(usage))
            self._out.append(DONE)
        self._over = True
        self._timer.cancel()
        self._wake()

    def _push(self, delta: Json, index: int = 0, finish_reason: str | None = None) -> None:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._face.dressed("chat.completion.chunk", choices=[choice])
        if self._include_usage:
            chunk["usage"] = None
        self._out.append(b"data: %s\n\n" % orjson.dumps(chunk))
        self._last = self._loop.time()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _stay_alive(self) -> None:
        silent_s = self._loop.time() - self._last
        if silent_s >= QUIET_S:
            self._push({})
            silent_s = 0.0
        self._timer = self._loop.call_later(QUIET_S - silent_s, self._stay_alive)

    # -- the gateway reads --------------------------------------------------------------------------------------------

    async def __anext__(self) -> bytes:
        while not self._out:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            waiter = self._waiter = self._loop.create_future()
            await waiter
        data = b"".join(self._out)
        self._out.clear()
        return data

    def close(self) -> None:
        self.usage = Counted()  # what was used is the children's, and accounted for
        self._timer.cancel()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


def numbered(message: Json) -> Json:
    """A whole message as a delta: each of its tool calls with its index."""
    calls: Sequence[Json] | None = message.get("tool_calls")
    if calls:
        return {**message, "tool_calls": [{"index": index, **call} for index, call in enumerate(calls)]}
    return message
