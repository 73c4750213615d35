"""Between a request and its backend: what is asked first, and what is counted afterwards, whatever happened."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import orjson
import pytest

from backends.base import Backend, Call, EventStream, Usage
from backends.errors import GatewayError, MalformedResponse, NotFound, RateLimited, Unavailable
from backends.places import Priority
from backends.sse import error_event
from proxy import forms
from proxy.dispatch import Dispatcher
from proxy.limits.estimates import EVENT_BYTES
from proxy.limits.local import Limits
from proxy.principals import Allowance, Principal
from proxy.record import Record
from proxy.registry import Entry, Registry
from tests.fakes.backends import AnswersAtOnce, NeverAnswers, Refuses, Streams

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
EVENT = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'


class Book:
    """An account that notes what it is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, Usage | None, bool]] = []

    def add(self, key_id: str, project_id: str, model: str, usage: Usage | None, *, failed: bool = False) -> None:
        self.rows.append((key_id, project_id, model, usage, failed))


class Desk:
    """A dispatcher before one model, asked by one key of a project."""

    def __init__(self, backend: Backend, limits: Limits | None = None) -> None:
        self.book = Book()
        self.limits = limits or Limits()
        registry = Registry([Entry("m", backend, 1, aliases=("alias",))])
        self.dispatcher = Dispatcher(registry, self.book, self.limits)
        self.principal = Principal(
            "key_1", "proj_1", key_limits=Allowance(requests_per_minute=100, tokens_per_minute=10_000)
        )
        self.record = Record("POST", CHAT)

    async def ask(self, call: Call | None = None, *, taking: int = 0) -> Record:
        """Ask, and pass on so many events of a stream."""
        self.record = record = Record("POST", CHAT)
        record.endpoint = CHAT
        record.principal, record.key_id = self.principal, self.principal.key_id
        async with self.dispatcher.answer(call or call_of(BODY), record) as answer:
            if isinstance(answer, EventStream):
                for _ in range(taking):
                    record.streamed += len(await anext(answer))
        return record

    def left(self) -> dict[str, int]:
        """What the key's limits have left, without asking anything of a backend."""
        granted = self.limits.enter(self.principal, "m", 0)
        assert granted is not None
        granted.leave(0)
        headers = {name.decode(): value.decode() for name, value in granted.headers}
        kinds = ("requests", "tokens")
        return {kind: int(headers[f"x-ratelimit-remaining-{kind}"]) for kind in kinds}


def call_of(body: dict[str, Any], path: str = CHAT) -> Call:
    return Call("req_1", path, body["model"], body, orjson.dumps(body), body.get("stream") is True)


STREAM = call_of({**BODY, "stream": True})


def limits() -> Limits:
    return Limits(clock=lambda: 0.0)


async def test_tokens_are_charged_as_the_engine_counted_them() -> None:
    desk = Desk(AnswersAtOnce(Usage(7, 3)), limits())
    record = await desk.ask()
    assert desk.left() == {"requests": 98, "tokens": 9990}
    assert desk.book.rows == [("key_1", "proj_1", "m", Usage(7, 3), False)]
    assert not record.estimated
    assert dict(record.headers)[b"x-ratelimit-remaining-requests"] == b"99"
    assert int(dict(record.headers)[b"x-ratelimit-remaining-tokens"]) < 9900  # while it ran


async def test_a_failed_request_counts_as_a_request_and_takes_no_tokens() -> None:
    desk = Desk(Refuses(Unavailable("No.")), limits())
    with pytest.raises(Unavailable):
        await desk.ask()
    assert desk.left() == {"requests": 98, "tokens": 10_000}
    assert desk.limits.in_flight == 0
    assert desk.book.rows == [("key_1", "proj_1", "m", None, True)]


async def test_a_request_over_a_limit_reaches_no_backend_and_no_account() -> None:
    backend = AnswersAtOnce(Usage(1, 1))
    desk = Desk(backend, limits())
    with pytest.raises(RateLimited):
        await desk.ask(call_of({**BODY, "max_tokens": 20_000}))
    assert not backend.calls
    assert not desk.book.rows
    assert desk.limits.in_flight == 0


async def test_who_leaves_before_the_answer_gets_everything_back() -> None:
    backend = NeverAnswers()
    desk = Desk(backend, limits())
    task = asyncio.create_task(desk.ask(), name="asking")
    await backend.asked.wait()
    assert desk.limits.in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.limits.in_flight == 0
    assert desk.left()["tokens"] == 10_000


async def test_who_leaves_while_a_budget_is_looked_up_has_taken_nothing() -> None:
    backend = NeverAnswers()
    desk = Desk(backend)
    desk.principal = Principal("key_1", key_limits=Allowance(tokens_per_day=100, concurrent_requests=1))
    task = asyncio.create_task(desk.ask(), name="asking")
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert desk.limits.in_flight == 0
    assert not backend.calls


async def test_a_backend_that_breaks_in_an_unforeseen_way_leaves_nothing_behind() -> None:
    desk = Desk(Refuses(ZeroDivisionError()), limits())
    with pytest.raises(ZeroDivisionError):
        await desk.ask()
    assert desk.limits.in_flight == 0


async def test_a_stream_that_is_left_early_is_charged_for_what_was_passed_on() -> None:
    desk = Desk(Streams([EVENT] * 50, Usage(7, 50)), limits())
    record = await desk.ask(STREAM, taking=20)
    assert record.estimated
    assert record.completion_tokens == round(20 * len(EVENT) / EVENT_BYTES)
    prompt = len(STREAM.raw) // 4 + 1
    assert record.prompt_tokens == prompt
    assert desk.book.rows[0][3] == Usage(prompt, record.completion_tokens)
    assert desk.left()["tokens"] == 10_000 - prompt - record.completion_tokens


async def test_streams_that_ended_teach_how_many_bytes_a_token_takes() -> None:
    desk = Desk(Streams([EVENT] * 50, Usage(7, 50)), limits())
    await desk.ask(STREAM, taking=50)
    record = await desk.ask(STREAM, taking=20)
    assert record.estimated
    assert record.completion_tokens == 20


async def test_a_stream_of_which_nothing_was_passed_on_costs_nothing() -> None:
    desk = Desk(Streams([EVENT] * 50, Usage(7, 50)), limits())
    record = await desk.ask(STREAM)
    assert not record.estimated
    assert desk.left()["tokens"] == 10_000
    assert desk.book.rows[0][3] is None


async def test_an_error_alone_is_no_token() -> None:
    error = GatewayError("The engine broke.")
    desk = Desk(Streams([error_event(error)], failure=error), limits())
    record = await desk.ask(STREAM, taking=1)
    assert not record.estimated
    assert desk.left()["tokens"] == 10_000
    assert desk.book.rows == [("key_1", "proj_1", "m", None, True)]


async def test_an_engine_that_tells_no_usage_is_charged_by_the_length_of_its_answer() -> None:
    desk = Desk(AnswersAtOnce(None, b"x" * 400), limits())
    record = await desk.ask()
    assert record.estimated
    assert record.completion_tokens == 100
    assert desk.left()["tokens"] == 10_000 - 100 - record.prompt_tokens


async def test_counting_tokens_takes_none() -> None:
    desk = Desk(AnswersAtOnce(None, b'{"count": 5}'), limits())
    record = await desk.ask(call_of({"model": "m", "prompt": "hi"}, "/tokenize"))
    assert not record.estimated
    assert desk.left()["tokens"] == 10_000


async def test_an_answer_that_could_not_be_used_takes_no_tokens() -> None:
    desk = Desk(AnswersAtOnce(None, b"x" * 400), limits())
    with pytest.raises(MalformedResponse):
        async with desk.dispatcher.answer(call_of(BODY), desk.record):
            raise MalformedResponse("What is this?")
    assert desk.book.rows[0][3:] == (None, True)


# -- names -----------------------------------------------------------------------------------------------------------


async def test_an_alias_reaches_the_engine_by_the_name_it_knows() -> None:
    backend = AnswersAtOnce(Usage(1, 1))
    desk = Desk(backend)
    record = await desk.ask(call_of({**BODY, "model": "alias", "seed": 12345678901234567}))
    (call,) = backend.calls
    assert call.model == call.body["model"] == "m"
    assert orjson.loads(call.raw) == {**BODY, "model": "m", "seed": 12345678901234567}
    assert record.model == "m"


async def test_an_alias_in_an_upload_is_replaced_in_its_part_and_nowhere_else() -> None:
    kind = b"multipart/form-data; boundary=b0"
    file = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nalias\r\n--b\r\n\x00\xff'
    raw = (
        b'--b0\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n" + file + b"\r\n"
        b'--b0\r\ncontent-disposition: form-data; name="model"\r\n\r\nalias\r\n'
        b'--b0\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nalias\r\n--b0--\r\n'
    )
    backend = AnswersAtOnce(Usage(1, 1))
    fields, _ = forms.read(kind, raw)
    call = Call("req_1", "/v1/audio/transcriptions", fields["model"], dict(fields), raw, content_type=kind)
    await Desk(backend).ask(call)
    (sent,) = backend.calls
    assert forms.read(kind, sent.raw) == ({"model": "m", "prompt": "alias"}, {"file"})
    assert file in sent.raw
    assert len(sent.raw) == len(raw) - len("alias") + len("m")


async def test_a_model_that_the_key_may_not_use_does_not_exist_for_it() -> None:
    backend = AnswersAtOnce(Usage(1, 1))
    desk = Desk(backend)
    desk.principal = Principal("key_1", models=frozenset({"other"}))
    with pytest.raises(NotFound) as caught:
        await desk.ask()
    assert caught.value.code == "model_not_found"
    assert desk.record.model == ""
    assert not backend.calls


# -- priority and deadline -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "tier", "expected"),
    [
        (Priority.INTERACTIVE, None, Priority.INTERACTIVE),
        (Priority.INTERACTIVE, "auto", Priority.INTERACTIVE),
        (Priority.INTERACTIVE, ["flex"], Priority.INTERACTIVE),
        (Priority.INTERACTIVE, "flex", Priority.BATCH),
        (Priority.BATCH, "priority", Priority.BATCH),
        (Priority.BATCH, None, Priority.BATCH),
    ],
)
async def test_a_request_can_lower_its_class_and_not_raise_it(
    priority: Priority, tier: Any, expected: Priority
) -> None:
    backend = AnswersAtOnce(Usage(1, 1))
    desk = Desk(backend)
    desk.principal = Principal("key_1", priority=priority)
    await desk.ask(call_of({**BODY, "service_tier": tier}))
    assert backend.calls[0].priority == expected


@pytest.mark.parametrize(
    ("read_timeout_s", "stream", "expected"),
    [(None, False, None), (20.0, False, 20.0), (20.0, True, None)],
)
async def test_the_clients_read_time_out_is_the_deadline_of_a_whole_answer(
    read_timeout_s: float | None, stream: bool, expected: float | None
) -> None:
    """Not of a stream: signs of life keep its client waiting."""
    backend = AnswersAtOnce(Usage(1, 1))
    record = Record("POST", CHAT)
    record.read_timeout_s = read_timeout_s
    before = time.monotonic()
    async with Desk(backend).dispatcher.answer(call_of({**BODY, "stream": stream}), record):
        pass
    deadline = backend.calls[0].deadline
    if expected is None:
        assert deadline is None
    else:
        assert deadline is not None
        assert before + expected <= deadline <= time.monotonic() + expected
