"""One line of a batch: its bytes -> a call to the same dispatch as everybody's -> what stands in the output.

    data --Asking.ask--> Answered   the line's result: for the output file, or for the error file
                         Again      it shall be asked once more: when, and whether that counts against its attempts

| what happened                                               | asked again | counts | who waits               |
|-------------------------------------------------------------|-------------|--------|-------------------------|
| over a limit of the key or its project, or over its budget  | yes         | no     | the batch               |
| no room, no replica, the engine's own 429 or 503            | yes         | no     | the model               |
| no engine could be reached                                  | yes         | no     | the model               |
| the engine ended under the line                             | yes         | no     | the line, longer and longer |
| silence for too long, 408, 409, 5xx                         | yes         | yes    | the line, longer and longer |
| anything else                                               | never       |        |                         |

An engine that ends is not the line's fault; but a line under which `DEATHS` engines in a row have ended very probably
is what they die of, and fails.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

import orjson

from backends.base import Call, Reply
from backends.errors import (
    ConnectFailed,
    Disconnected,
    GatewayError,
    InvalidRequest,
    MalformedResponse,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)
from backends.places import Priority
from proxy.bodies import kind_of
from proxy.dispatch import Dispatcher
from proxy.principals import Principal
from proxy.record import Record
from proxy.routes import chat, completions, embeddings
from proxy.routes.translated import Exchange, whole
from proxy.translate import responses

from .values import request_id_of

Json = dict[str, Any]
Exchanges = Callable[[Json, bytes, Record], Awaitable[Exchange]]
"""(body, its bytes, the record) of a /v1/responses request -> how it is asked."""

ENDPOINT: Final = "batch"
"""Of the lines' records: so metrics tell them from requests that somebody waits for."""

DEATHS = 8
"""With the waits between them two minutes. A line that kills its engines costs a site so many, or twice that with the
dispatcher's own second try."""
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
COLD_WAIT_S = 5.0
LEAST_WAIT_S = 0.2
CROWDED_S = 0.02
"""A line that waited so long for its seat has met a full house."""

_CHECKS: Final[dict[str, Callable[[Json], None]]] = {
    chat.PATH: chat.check,
    completions.PATH: completions.check,
    embeddings.PATH: embeddings.check,
    responses.PATH: responses.check,
}


class Waits(Enum):
    """Who waits before something is asked again."""

    LINE = "line"
    MODEL = "model"
    BATCH = "batch"


class Answered(NamedTuple):
    """ok       its result belongs into the output file, otherwise into the error file
    data        the whole line, without its end
    waited      it had to wait for a seat
    """

    ok: bool
    data: bytes
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    waited: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """wait_s   at least; for `Waits.LINE` the first such wait
    counts      against the line's attempts
    died        an engine ended under it
    """

    error: GatewayError
    waits: Waits
    wait_s: float
    counts: bool = False
    died: bool = False


@dataclass(frozen=True, slots=True)
class Asker:
    """What the lines of a batch have in common.

    principal   of the key that made the batch, as it is now
    """

    batch_id: str
    endpoint: str
    principal: Principal


class Asking:
    """done    is told of each line that has been asked, with its seconds: metrics and log"""

    def __init__(
        self, dispatcher: Dispatcher, exchanges: Exchanges, done: Callable[[Record, float], None] = lambda *_: None
    ) -> None:
        self._dispatcher = dispatcher
        self._exchanges = exchanges
        self._done = done

    async def ask(self, asker: Asker, number: int, data: bytes) -> Answered | Again:
        """Line `number` of a batch. Cancelling it frees everything under it."""
        record = Record("POST", asker.endpoint)
        record.endpoint = ENDPOINT
        record.principal = asker.principal
        record.key_id = asker.principal.key_id
        custom_id: str | None = None
        try:
            line = _object(data)
            custom_id = line.get("custom_id")
            body = line.get("body")
            answer, usage = await self._answer(asker.endpoint, body, record)
        except GatewayError as error:
            record.fail(error)
            record.status = error.status
            self._done(record, time.perf_counter() - record.started)
            return judged(error) or failed(asker.batch_id, number, custom_id, error, record.id)
        record.status = 200
        self._done(record, time.perf_counter() - record.started)
        waited = record.trail is not None and any(wait.seconds > CROWDED_S for wait in record.trail.waits)
        data = _result(request_id_of(asker.batch_id, number), custom_id, 200, record.id, answer)
        prompt_tokens, completion_tokens = record.used
        return Answered(
            True, data, prompt_tokens, _in(usage, "prompt_tokens_details", "cached_tokens"),
            completion_tokens, _in(usage, "completion_tokens_details", "reasoning_tokens"), waited,
        )  # fmt: skip

    async def _answer(self, endpoint: str, body: object, record: Record) -> tuple[bytes, Any]:
        """The answer's bytes, on one line, and its usage object. Raises `GatewayError`."""
        if not isinstance(body, dict):
            raise InvalidRequest(f"Invalid type for 'body': expected an object, but got {kind_of(body)} instead.")
        _CHECKS[endpoint](body)
        if body.get("stream"):
            raise InvalidRequest("Requests of a batch cannot be streamed.", param="stream")
        raw = orjson.dumps(body)
        if endpoint == responses.PATH:
            exchange = await self._exchanges(body, raw, record)
            exchange.call.priority = Priority.BATCH
            async with self._dispatcher.answer(exchange.call, record) as reply:
                return _checked(await whole(exchange, reply))
        call = Call(record.id, endpoint, body["model"], body, raw, key_id=record.key_id, priority=Priority.BATCH)
        async with self._dispatcher.answer(call, record) as reply:
            if not isinstance(reply, Reply):
                raise MalformedResponse("The engine streamed what was not to be streamed.")
            return _checked(reply)


def _object(data: bytes) -> Json:
    """Raises `InvalidRequest`: validation has read the same bytes, so the file is another now."""
    try:
        line = orjson.loads(data)
    except orjson.JSONDecodeError:
        line = None
    if not isinstance(line, dict):
        raise InvalidRequest("This line is not parseable as valid JSON.", code="invalid_json_line")
    return line


def _checked(reply: Reply) -> tuple[bytes, Any]:
    """Raises `MalformedResponse` for what would break the output file."""
    try:
        answer = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        raise MalformedResponse("The engine's answer is no JSON.") from None
    if not isinstance(answer, dict):
        raise MalformedResponse("The engine's answer is no JSON object.")
    body = reply.body if b"\n" not in reply.body and b"\r" not in reply.body else orjson.dumps(answer)
    return body, answer.get("usage")


def _in(usage: Any, details: str, name: str) -> int:
    """A number inside a usage object, in either of OpenAI's two notations; 0 where it is not told."""
    if not isinstance(usage, dict):
        return 0
    found = usage.get(details) or usage.get(details.replace("prompt", "input").replace("completion", "output"))
    number = found.get(name) if isinstance(found, dict) else None
    return number if isinstance(number, int) and number > 0 else 0


# -- results ---------------------------------------------------------------------------------------------------------


def _result(line_id: str, custom_id: object, status: int, request_id: str, body: bytes) -> bytes:
    return b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b","body":%b},"error":null}' % (
        line_id.encode(), orjson.dumps(custom_id), status, request_id.encode(), body,
    )  # fmt: skip


def failed(batch_id: str, number: int, custom_id: object, error: GatewayError, request_id: str) -> Answered:
    """The line's result where it is an error."""
    body = orjson.dumps(error.body())
    return Answered(False, _result(request_id_of(batch_id, number), custom_id, error.status, request_id, body))


def given_up(batch_id: str, number: int, data: bytes, error: GatewayError) -> Answered:
    """... after all of its attempts."""
    try:
        custom_id = _object(data).get("custom_id")
    except InvalidRequest:
        custom_id = None
    return failed(batch_id, number, custom_id, error, Record("POST", "").id)


# -- again -----------------------------------------------------------------------------------------------------------


def judged(error: GatewayError) -> Again | None:
    """Whether a failed line shall be asked once more; None: never."""
    after = error.retry_after_s
    again: Again | None = None
    match error:
        case QuotaExceeded():
            again = Again(error, Waits.BATCH, max(COLD_WAIT_S, after or MOST_WAIT_S))
        case RateLimited() if after is not None:
            again = Again(error, Waits.BATCH, max(LEAST_WAIT_S, after))
        case RateLimited():  # it is larger than the limit: waiting does not help
            again = None
        case QueueFull() | Unavailable():
            again = Again(error, Waits.MODEL, max(LEAST_WAIT_S, after if after is not None else COLD_WAIT_S))
        case ConnectFailed():
            again = Again(error, Waits.MODEL, FIRST_WAIT_S)
        case Disconnected():
            again = Again(error, Waits.LINE, FIRST_WAIT_S, died=True)
        case GatewayError(status=429 | 503):
            again = Again(error, Waits.MODEL, max(LEAST_WAIT_S, after or FIRST_WAIT_S))
        case _ if error.status in (408, 409) or error.status >= 500:
            again = Again(error, Waits.LINE, FIRST_WAIT_S, counts=True)
    return again


def backoff_s(first_s: float, times: int) -> float:
    """Before the next attempt, after `times` failed ones: twice as long each time, and never all at once."""
    return min(MOST_WAIT_S, first_s * 2.0 ** min(times - 1, 16)) * (0.5 + random.random() / 2)  # noqa: S311
