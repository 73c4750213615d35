"""Messages between main and a worker, over a socket pair.

    question  [verb, number, ...]     its answer   ["=", number, value]    or   ["!", number, error]
    telling   [verb, ...]             giving up    ["cancel", number]

A message is a JSON array on a line of its own. What comes together in one turn of the event loop leaves in one write,
and all answers to what came in one read leave in one: under load a message costs its JSON and little more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson

from backends.errors import GatewayError, Unavailable

from .messages import error_from, error_to

Handler = Callable[..., None]
Message = list[Any]


class LinkLost(Unavailable):
    """The other process is gone."""

    def __init__(self) -> None:
        super().__init__("The gateway is stopping, or starting again.", code="gateway_stopping", retry_after_s=2.0)


class Framing:
    """Bytes as they come -> messages. JSON as orjson writes it has no line feed inside."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> list[Message]:
        if b"\n" not in data:
            self._rest.append(data)
            return []
        lines = b"".join((*self._rest, data)).split(b"\n")
        rest = lines.pop()
        self._rest = [rest] if rest else []
        return [orjson.loads(line) for line in lines]


def frame(message: Message) -> bytes:
    """Raises `TypeError` for what is no JSON."""
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


class Link(asyncio.Protocol):
    """One end.

    asked   what can be asked here, by verb: called with the question's number, to be given to `answer` or `fail` once,
            now or later, and the rest of the message
    told    what can be told here: called with the rest of the message
    lost    called once, when the other end is gone or this one was closed
    """

    def __init__(self, asked: Mapping[str, Handler], told: Mapping[str, Handler], lost: Callable[[], None]) -> None:
        self.is_open = False
        self._questions = frozenset(asked)
        self._handlers: dict[str, Handler] = {"=": self._answered, "!": self._failed, **told, **asked}
        self._lost = lost
        self._framing = Framing()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._out: list[bytes] = []
        self._reading = False

    # -- out ----------------------------------------------------------------------------------------------------------

    def tell(self, verb: str, *values: Any) -> None:
        """Send a message that has no answer. Where there is nobody any more, nothing happens."""
        self._send([verb, *values])

    def question(self, verb: str, *values: Any) -> tuple[int, asyncio.Future[Any]]:
        """Send a question: its number, and its answer to come. Who stops waiting says so by `give_up`.

        The answer raises `GatewayError`, `LinkLost` where there is nobody to answer.
        """
        number = self._last = self._last + 1
        answer = self._loop.create_future()
        if self.is_open:
            self._send([verb, number, *values])
            self._asked[number] = answer
        else:
            answer.set_exception(LinkLost())
        return number, answer

    async def ask(self, verb: str, *values: Any) -> Any:
        """A question and its answer. Cancelling it gives it up."""
        number, answer = self.question(verb, *values)
        try:
            return await answer
        except asyncio.CancelledError:
            self.give_up(number)
            raise

    def give_up(self, number: int) -> None:
        """Nobody waits for that answer any more; what it would give, or has just given, is not taken."""
        self._asked.pop(number, None)
        self.tell("cancel", number)

    def answer(self, number: int, value: Any) -> None:
        self._send(["=", number, value])

    def fail(self, number: int, error: GatewayError) -> None:
        self._send(["!", number, error_to(error)])

    def _send(self, message: Message) -> None:
        if not self.is_open:
            return
        if not self._out and not self._reading:
            self._loop.call_soon(self._flush)
        self._out.append(frame(message))

    def _flush(self) -> None:
        if self._out and self.is_open:
            data = b"".join(self._out)
            self._out = []
            self._transport.write(data)

    def close(self) -> None:
        """Send what is to be sent, then close."""
        if self.is_open:
            self._flush()
            self._transport.close()

    # -- in -----------------------------------------------------------------------------------------------------------

    async def open(self, end: socket.socket) -> None:
        """Speak over one end of a socket pair, which is the link's from now on. Messages may arrive before this
        returns."""
        end.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._reading = True
        try:
            handlers = self._handlers
            for verb, *values in self._framing.feed(data):
                try:
                    handlers[verb](*values)
                except GatewayError as error:
                    self._refused(verb, values, error)
                except Exception as error:  # a fault of ours, which must not take all that this link holds with it
                    told = {"message": f"a message between processes could not be handled: {verb}", "exception": error}
                    self._loop.call_exception_handler(told)
                    self._refused(verb, values, GatewayError("The gateway failed.", code="internal_error"))
        finally:
            self._reading = False
            self._flush()

    def _refused(self, verb: str, values: list[Any], error: GatewayError) -> None:
        if verb in self._questions:
            self.fail(values[0], error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._out = []
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(LinkLost())
        self._lost()

    def _answered(self, number: int, value: Any) -> None:
        answer = self._asked.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(value)

    def _failed(self, number: int, error: dict[str, Any]) -> None:
        answer = self._asked.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_exception(error_from(error))
