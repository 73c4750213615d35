"""One line: what stands in the output, and what is asked again."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest

from backends.base import Usage
from backends.errors import (
    ConnectFailed,
    Disconnected,
    EngineRefused,
    EngineTimeout,
    GatewayError,
    InvalidRequest,
    MalformedResponse,
    NotFound,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)
from backends.places import Priority
from proxy.batch.line import ENDPOINT, Again, Answered, Asker, Asking, Waits, backoff_s, given_up, judged
from proxy.dispatch import Dispatcher
from proxy.principals import Principal
from proxy.record import Record
from proxy.registry import Entry, Registry
from tests.fakes.backends import AnswersAtOnce, Refuses

CHAT = "/v1/chat/completions"
ASKER = Asker("batch_0001", CHAT, Principal("key_1", "project_1"))


class Counted:
    def __init__(self) -> None:
        self.added: list[tuple[str, str, str, Usage | None, bool]] = []

    def add(self, key_id: str, project_id: str, model: str, usage: Usage | None, *, failed: bool = False) -> None:
        self.added.append((key_id, project_id, model, usage, failed))


async def no_exchange(body: Any, raw: bytes, record: Record) -> Any:
    raise AssertionError


def asking(backend: Any, records: list[Record] | None = None) -> tuple[Asking, Counted]:
    counted = Counted()
    dispatcher = Dispatcher(Registry([Entry("m", backend, 1)]), counted)
    heard = [] if records is None else records
    return Asking(dispatcher, no_exchange, lambda record, elapsed: heard.append(record)), counted


def line(custom_id: Any = "one", **body: Any) -> bytes:
    messages = [{"role": "user", "content": "Hello"}]
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": messages, **body},
    }
    return orjson.dumps(request)


async def answered(backend: Any, data: bytes, asker: Asker = ASKER) -> Answered:
    outcome = await asking(backend)[0].ask(asker, 7, data)
    assert isinstance(outcome, Answered)
    return outcome


async def test_an_answer_is_a_line_of_output_as_openai_writes_it() -> None:
    usage = {
        "prompt_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens": 5,
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    body = orjson.dumps({"id": "chatcmpl-1", "usage": usage})
    backend = AnswersAtOnce(Usage(9, 5), body)
    records: list[Record] = []
    ask, counted = asking(backend, records)
    outcome = await ask.ask(ASKER, 7, line())
    assert isinstance(outcome, Answered)
    assert orjson.loads(outcome.data) == {
        "id": "batch_req_0001000007",
        "custom_id": "one",
        "response": {"status_code": 200, "request_id": records[0].id, "body": orjson.loads(body)},
        "error": None,
    }
    assert outcome.ok
    tokens = (outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens, outcome.reasoning_tokens)
    assert tokens == (9, 4, 5, 2)
    assert counted.added == [("key_1", "project_1", "m", Usage(9, 5), False)]
    [call] = backend.calls
    assert (call.priority, call.key_id, call.path, call.stream) == (Priority.BATCH, "key_1", CHAT, False)
    assert records[0].endpoint == ENDPOINT


async def test_lines_are_not_counted_among_those_that_somebody_waits_for() -> None:
    counted = Counted()
    dispatcher = Dispatcher(Registry([Entry("m", AnswersAtOnce(), 1)]), counted)
    await Asking(dispatcher, no_exchange).ask(ASKER, 1, line())
    assert (dispatcher.interactive, dispatcher.interactive_now) == (0, 0)


@pytest.mark.parametrize("custom_id", ["\u00e9\U0001f600", 'a"b\\c', "x\u2028y", "a\nb"])
async def test_an_id_comes_out_as_it_went_in_on_one_line(custom_id: str) -> None:
    outcome = await answered(AnswersAtOnce(body=b'{"a": 1}'), line(custom_id))
    assert orjson.loads(outcome.data)["custom_id"] == custom_id
    assert b"\n" not in outcome.data


async def test_an_answer_over_several_lines_is_one_line_in_the_output() -> None:
    outcome = await answered(AnswersAtOnce(body=b'{\n  "a": [1,\r\n 2]\n}\n'), line())
    assert b"\n" not in outcome.data
    assert orjson.loads(outcome.data)["response"]["body"] == {"a": [1, 2]}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"oops", b'{"a":1}{}'])
async def test_an_answer_that_would_break_the_output_file_is_the_engines_failure(body: bytes) -> None:
    outcome = await asking(AnswersAtOnce(body=body))[0].ask(ASKER, 7, line())
    assert isinstance(outcome, Again)
    assert outcome.counts
    assert isinstance(outcome.error, MalformedResponse)


async def test_a_body_of_the_wrong_shape_is_the_lines_own_400() -> None:
    outcome = await answered(AnswersAtOnce(), line(messages="Hello"))
    told = orjson.loads(outcome.data)
    assert not outcome.ok
    assert told["error"] is None
    assert told["response"]["status_code"] == 400
    assert told["response"]["body"]["error"]["param"] == "messages"
    assert told["response"]["body"]["error"].keys() == {"message", "type", "param", "code"}


async def test_a_line_that_streams_or_that_is_no_json_any_more_is_a_failed_line() -> None:
    assert not (await answered(AnswersAtOnce(), line(stream=True))).ok
    outcome = await answered(AnswersAtOnce(), b"\xff{")
    assert orjson.loads(outcome.data)["custom_id"] is None
    assert not (await answered(AnswersAtOnce(), b'{"custom_id":"x","body":[]}')).ok


async def test_a_model_that_is_gone_or_not_the_keys_is_a_404() -> None:
    outcome = await answered(AnswersAtOnce(), line(model="another"))
    assert orjson.loads(outcome.data)["response"]["body"]["error"]["code"] == "model_not_found"


async def test_what_an_engine_finds_wrong_is_final_and_told() -> None:
    error = EngineRefused("too long", status=400, type="invalid_request_error", code="context_length_exceeded")
    outcome = await answered(Refuses(error), line())
    assert orjson.loads(outcome.data)["response"]["body"]["error"]["code"] == "context_length_exceeded"


async def test_after_its_attempts_a_line_has_its_last_error() -> None:
    error = EngineRefused("broken", status=500, type="server_error", code="engine_error")
    outcome = given_up("batch_0001", 7, line(), error)
    told = orjson.loads(outcome.data)
    assert (told["custom_id"], told["response"]["status_code"]) == ("one", 500)
    assert not outcome.ok


def refused(status: int) -> EngineRefused:
    return EngineRefused("x", status=status, type="server_error")


@pytest.mark.parametrize(
    ("error", "waits", "counts"),
    [
        (QuotaExceeded("x", retry_after_s=5000.0), Waits.BATCH, False),
        (RateLimited("x", kind="tokens", retry_after_s=3.0), Waits.BATCH, False),
        (QueueFull("x", retry_after_s=3.0), Waits.MODEL, False),
        (Unavailable("x"), Waits.MODEL, False),
        (Unavailable("x", code="queue_timeout", retry_after_s=2.0), Waits.MODEL, False),
        (refused(429), Waits.MODEL, False),
        (refused(503), Waits.MODEL, False),
        (ConnectFailed("x"), Waits.MODEL, False),
        (Disconnected("x", received=True), Waits.LINE, False),
        (Disconnected("x", received=False), Waits.LINE, False),
        (EngineTimeout("x", phase="first byte"), Waits.LINE, True),
        (refused(408), Waits.LINE, True),
        (refused(409), Waits.LINE, True),
        (refused(500), Waits.LINE, True),
        (refused(504), Waits.LINE, True),
        (GatewayError("x"), Waits.LINE, True),
    ],
)
def test_what_may_pass_is_asked_again_and_only_the_engines_faults_count(
    error: GatewayError, waits: Waits, counts: bool
) -> None:
    again = judged(error)
    assert again is not None
    assert (again.waits, again.counts) == (waits, counts)
    if error.retry_after_s is not None:
        assert again.wait_s >= error.retry_after_s


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("x"),
        NotFound("x"),
        refused(422),
        refused(413),
        RateLimited("larger than the limit", kind="tokens"),
    ],
)
def test_what_will_not_pass_is_final(error: GatewayError) -> None:
    assert judged(error) is None


def test_waits_double_up_to_a_minute_and_never_all_at_once() -> None:
    waits = [backoff_s(1.0, times) for times in range(1, 40)]
    assert 0.5 <= waits[0] <= 1.0
    assert 30.0 <= waits[-1] <= 60.0
    assert len(set(waits)) > 30
    assert not any(math.isinf(wait) for wait in waits)
