"""The request log and the privacy switch: what a line tells, and what never gets anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Message, Receive, Scope, Send

from backends.errors import Unavailable
from proxy.content import LIMIT_BYTES
from proxy.logging import RequestsLog, configure
from proxy.metrics import Metrics
from proxy.middleware import Edge
from proxy.record import Record
from proxy.tracebacks import frames_of, without_exceptions
from proxy.trail import client_id_of
from tests.fakes.chat_engine import (
    STREAM_HEAD,
    WORDS,
    Answers,
    AnswersWith,
    BreaksInItsStream,
    DiesMidStream,
    DiesOnRequests,
    Engine,
    NeverBegins,
    Request,
    Write,
    chunk,
    delta,
    event,
    whole,
)
from tests.fakes.otlp_collector import Collector
from tests.in_process import Served, serving

CHAT = "/v1/chat/completions"
MARKER = "Xyzzy the marker Plugh"
QUESTION: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": MARKER}]}


def config(*engines: Engine, more: str = "") -> str:
    urls = json.dumps([engine.url for engine in engines])
    return f'{more}\n[models."org/m"]\nengine = "vllm"\nurls = {urls}\n'


async def post(served: Served, path: str = CHAT, **options: Any) -> httpx.Response:
    headers = {**served.headers, **options.pop("more", {})}
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(served.url + path, headers=headers, **options)


def lines(served: Served, event: str = "request") -> list[dict[str, Any]]:
    return [line for line in map(json.loads, served.log_text().splitlines()) if line["event"] == event]


# -- one line a request ----------------------------------------------------------------------------------------------


async def test_a_request_is_one_line_whose_id_the_engine_and_the_client_have_too(tmp_path: Path) -> None:
    async with Answers() as engine:
        async with serving(config(engine), tmp_path) as served:
            answer = await post(served, json=QUESTION)
        (line,) = lines(served)
        assert line["id"] == answer.headers["x-request-id"] == engine.requests[0].headers["x-request-id"]
        assert line["replica"] == f"127.0.0.1:{engine.port}"
        unusual = {"client_request_id", "queue_ms", "attempts", "failed_attempts", "fallback", "refusal", "request"}
        assert not unusual & line.keys()


@pytest.mark.parametrize("header", ["x-client-request-id", "x-request-id"])
async def test_the_client_s_own_id_is_in_the_line(tmp_path: Path, header: str) -> None:
    async with Answers() as engine:
        async with serving(config(engine), tmp_path) as served:
            await post(served, json=QUESTION, more={header: "order-17:b"})
        (line,) = lines(served)
        assert line["client_request_id"] == "order-17:b"
        assert engine.requests[0].headers["x-request-id"] == line["id"]


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ({b"x-client-request-id": b"abc", b"x-request-id": b"def"}, "abc"),
        ({b"x-request-id": b"def"}, "def"),
        ({b"x-request-id": b"a" * 128}, "a" * 128),
        ({b"x-request-id": b"a" * 129}, ""),
        ({b"x-request-id": b"two words"}, ""),
        ({b"x-request-id": b'"}{'}, ""),
        ({b"x-request-id": b"\xff\xfe"}, ""),
        ({b"x-client-request-id": b""}, ""),
        ({}, ""),
    ],
)
def test_only_what_looks_like_an_id_is_kept_of_one(headers: dict[bytes, bytes], kept: str) -> None:
    assert client_id_of(headers) == kept


async def test_a_fallback_is_told_with_the_model_that_was_asked(tmp_path: Path) -> None:
    async with AnswersWith(500, b"{}") as fails, Answers() as engine:
        text = (
            f'[models.first]\nengine = "vllm"\nurls = ["{fails.url}"]\nfallbacks = ["second"]\n'
            f'[models.second]\nengine = "vllm"\nurls = ["{engine.url}"]\n'
        )
        async with serving(text, tmp_path) as served:
            assert (await post(served, json={**QUESTION, "model": "first"})).status_code == 200
            async with httpx.AsyncClient() as http:
                metrics = (await http.get(served.url + "/metrics")).text
        (line,) = lines(served)
    assert (line["asked_model"], line["model"], line["fallback"]) == ("first", "second", "unavailable")
    assert 'slurmgate_fallbacks_total{model="first",reason="unavailable"} 1.0' in metrics


def test_a_record_tells_its_waits_and_refusals_and_nothing_that_is_not_there() -> None:
    record = Record("POST", CHAT)
    assert record.trail is None
    record.waited(1.5)
    record.waited(0.25)
    record.fail(Unavailable("waited too long", code="queue_timeout"))
    assert record.unusual() == {"queue_ms": 1750.0, "refusal": "queue_timeout"}
    assert record.detail == "waited too long"


async def test_a_request_that_waits_in_vain_is_seen_while_it_waits_and_told_afterwards(tmp_path: Path) -> None:
    async with NeverBegins() as engine:
        text = config(engine) + "max_in_flight = 1\nqueue = { size = 1, wait_s = 0.5 }\n"
        async with serving(text, tmp_path) as served, httpx.AsyncClient(timeout=30) as http:
            asked = [
                asyncio.create_task(
                    http.post(served.url + CHAT, json=QUESTION, headers=served.headers), name=f"ask {n}"
                )
                for n in range(3)
            ]
            await asyncio.wait(
                asked, return_when=asyncio.FIRST_COMPLETED
            )  # the one for which there is no place to wait
            during = (await http.get(served.url + "/metrics")).text
            while sum(task.done() for task in asked) < 2:
                await asyncio.wait([task for task in asked if not task.done()], return_when=asyncio.FIRST_COMPLETED)
            afterwards = (await http.get(served.url + "/metrics")).text
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
    replica = f'model="org/m",replica="127.0.0.1:{engine.port}"'
    assert 'slurmgate_queue_length{class="interactive",model="org/m"} 1.0' in during
    assert f"slurmgate_replica_requests_in_flight{{{replica}}} 1.0" in during
    assert f"slurmgate_replica_limit{{{replica}}} 1.0" in during
    assert f'slurmgate_circuit_breaker{{{replica},state="closed"}} 1.0' in during
    assert 'slurmgate_queue_length{class="interactive",model="org/m"} 0.0' in afterwards
    assert 'slurmgate_queue_wait_seconds_count{class="interactive",model="org/m"} 1.0' in afterwards
    assert 'slurmgate_rejected_requests_total{model="org/m",reason="queue_full"} 1.0' in afterwards
    refused = {line["refusal"]: line for line in lines(served) if "refusal" in line}
    assert refused.keys() == {"queue_full", "queue_timeout"}
    assert refused["queue_timeout"]["queue_ms"] >= 500


def test_attempts_are_told_where_there_was_more_than_one() -> None:
    record = Record("POST", CHAT)
    assert record.unusual() == {}
    record.attempt_failed("a", "engine_unreachable")
    assert record.unusual() == {}
    record.served_by = "b"
    told = record.unusual()
    assert told == {"attempts": 2, "failed_attempts": [{"replica": "a", "error": "engine_unreachable"}]}


# -- privacy: nothing gets anywhere ----------------------------------------------------------------------------------


class RepeatsThePrompt(Engine):
    """Says the prompt again in its answer, piece by piece or whole."""

    async def answer(self, request: Request, write: Write) -> bool:
        said = request.body["messages"][0]["content"]
        if not request.body.get("stream"):
            message = {"role": "assistant", "content": said}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            await write(whole(200, json.dumps({"id": said, "model": said, "choices": choices}).encode()))
            return True
        await write(STREAM_HEAD + chunk(event(delta("m", said))) + chunk(event(b"[DONE]")) + b"0\r\n\r\n")
        return True


class BreaksAndQuotes(BreaksInItsStream):
    def __init__(self) -> None:
        super().__init__({"error": {"message": MARKER, "code": 500, "type": MARKER}})


def quoting(status: int) -> AnswersWith:
    error = {"error": {"message": f"cannot take: {MARKER}", "type": "BadRequestError", "code": status}}
    return AnswersWith(status, json.dumps(error).encode())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Everything that any library of the gateway says, at its most talkative."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    ear = Ear(logging.DEBUG)
    loggers = [logging.getLogger(name) for name in ("asyncio", "uvicorn", "sqlalchemy", "LiteLLM", "opentelemetry")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(ear)
    yield said
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(ear)
        logger.setLevel(level)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    yield collector
    collector.close()


async def leaves(served: Served, engine: Engine, body: dict[str, Any]) -> None:
    """A client that goes while the engine works."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    raw = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    writer.write(head.encode() + raw)
    request = await engine.request()
    writer.close()
    await request.over.wait()


async def every_way(served: Served) -> None:
    """What a client can do with a prompt, whatever the engine is like."""
    stream = {**QUESTION, "stream": True}
    for body in (QUESTION, stream, {**QUESTION, "max_tokens": MARKER}, {**QUESTION, "stop": [MARKER], "user": MARKER}):
        await post(served, json=body)
    await post(served, content=json.dumps(QUESTION)[:-1])
    await post(served, json={**QUESTION, "model": MARKER})
    await post(served, json={"model": "org/m", "messages": MARKER})
    await post(served, f"/v1/{MARKER}", json=QUESTION)
    await post(served, json=QUESTION, params={"q": MARKER})
    await post(served, json=QUESTION, more={"x-request-id": MARKER, "traceparent": MARKER, "tracestate": MARKER})
    await post(served, json=QUESTION, more={"authorization": f"Bearer {MARKER}"})
    await post(served, "/v1/completions", json={"model": "org/m", "prompt": MARKER})
    await post(served, "/v1/embeddings", json={"model": "org/m", "input": MARKER})
    await post(served, "/v1/responses", json={"model": "org/m", "input": MARKER, "store": False, "stream": True})
    await post(served, "/v1/messages", json={**QUESTION, "max_tokens": 5})
    await post(served, "/v1/audio/transcriptions", data={"model": "org/m", "prompt": MARKER}, files={"file": b"x"})


@pytest.mark.parametrize(
    "kind",
    [
        RepeatsThePrompt,
        BreaksAndQuotes,
        DiesMidStream,
        DiesOnRequests,
        *(partial(quoting, s) for s in (400, 429, 500, 503)),
    ],
    ids=["repeats", "breaks", "dies", "dies at once", "400", "429", "500", "503"],
)
async def test_with_privacy_a_prompt_gets_nowhere_but_to_the_engine_and_back(
    kind: Callable[[], Engine], tmp_path: Path, heard: list[str], collector: Collector
) -> None:
    async with kind() as engine:
        impatient = "queue = { wait_s = 0.1 }\n"  # once its breaker is open there is nothing to wait for
        async with serving(config(engine, more="[observability]\ntracing = true") + impatient, tmp_path) as served:
            logging.getLogger().handlers[0].setLevel(logging.DEBUG)  # the bridge from libraries to the log
            await every_way(served)
            async with httpx.AsyncClient() as http:
                metrics = (await http.get(served.url + "/metrics")).text
        assert any(MARKER in str(request.body) for request in engine.requests), "or this shows nothing"
    assert "slurmgate_requests_total{" in metrics
    assert collector.spans()
    assert len(lines(served)) > 10
    assert MARKER not in metrics
    assert MARKER not in "\n".join(heard)
    assert MARKER not in str(collector.spans())
    assert_in_no_file(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
async def test_with_privacy_a_client_that_leaves_leaves_no_prompt_behind(
    stream: bool, tmp_path: Path, heard: list[str], collector: Collector
) -> None:
    async with NeverBegins() as engine:
        async with serving(config(engine, more="[observability]\ntracing = true"), tmp_path) as served:
            await leaves(served, engine, {**QUESTION, "stream": stream})
        (line,) = lines(served)
        assert line["error"] == "client_disconnected"
    assert collector.spans()
    assert MARKER not in str(collector.spans())
    assert MARKER not in "\n".join(heard)
    assert_in_no_file(tmp_path)


def assert_in_no_file(directory: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) >= 3, "the log, the database, the secret"
    for path in files:
        assert MARKER.encode() not in path.read_bytes(), path


async def test_with_privacy_a_response_is_kept_only_where_the_client_says_so(tmp_path: Path) -> None:
    async with RepeatsThePrompt() as engine, serving(config(engine), tmp_path) as served:
        body = {"model": "org/m", "input": MARKER}
        await post(served, "/v1/responses", json={**body, "store": False})
        assert_in_no_file(tmp_path)
        kept = (await post(served, "/v1/responses", json={**body, "store": True})).json()
        async with httpx.AsyncClient(headers=served.headers) as http:
            await http.delete(f"{served.url}/v1/responses/{kept['id']}")
    assert MARKER not in served.log_text()


def fails_on(prompt: str) -> None:
    try:
        int(prompt)
    except ValueError as error:
        raise LookupError(prompt) from error


def test_a_traceback_tells_where_and_not_what() -> None:
    try:
        fails_on(MARKER)
    except LookupError as error:
        told = frames_of(error)
    assert "in fails_on" in told
    assert told.index("builtins.ValueError") < told.index("which led to") < told.index("builtins.LookupError")
    assert MARKER not in told
    assert frames_of(OSError(28, MARKER)) == "builtins.OSError: No space left on device"
    message = f"Task exception was never retrieved\nfuture: <Task name='x' exception=ValueError('{MARKER}')>"
    assert without_exceptions(message) == message.split("(", maxsplit=1)[0]


class BreaksOn:
    """An app with a mistake, which shows before its answer or in the middle of it."""

    def __init__(self, *, begun: bool) -> None:
        self.begun = begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        fails_on(MARKER)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_mistake_of_ours_is_logged_without_what_it_was_about(begun: bool, tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    log, writer = configure(descriptor)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    edge = Edge(BreaksOn(begun=begun), log, RequestsLog(writer), Metrics())
    scope: Scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    try:
        await edge(scope, receive, send)
    except LookupError as error:  # the server's to end the connection, and to log
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    writer.flush()
    os.close(descriptor)
    told = path.read_text()
    assert "in fails_on" in told
    assert MARKER not in told
    assert MARKER not in str(sent)


async def test_the_database_s_errors_do_not_quote_what_was_to_be_written(database: sqlalchemy.Engine) -> None:
    with pytest.raises(SQLAlchemyError) as failure, database.begin() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:prompt)"), {"prompt": MARKER})
    assert MARKER not in str(failure.value)


# -- privacy switched off --------------------------------------------------------------------------------------------

OPEN = "[observability]\nprivacy = false"


async def test_without_privacy_the_line_has_both_texts_and_everybody_can_see_that(tmp_path: Path) -> None:
    async with Answers() as engine:
        async with serving(config(engine, more=OPEN), tmp_path) as served:
            await post(served, json=QUESTION)
            answer = await post(served, json={**QUESTION, "stream": True})
            async with httpx.AsyncClient() as http:
                ready = (await http.get(served.url + "/ready")).json()
        plain, stream = lines(served)
        assert json.loads(plain["request"]) == QUESTION
        assert json.loads(plain["response"])["choices"][0]["message"]["content"] == "".join(WORDS)
        assert stream["response"] == answer.text
        assert ready["privacy"] is False
        assert served.key not in served.log_text()
        assert len(lines(served, "privacy_off")) == 1


async def test_with_privacy_nothing_says_otherwise(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, httpx.AsyncClient() as http:
        assert "privacy" not in (await http.get(served.url + "/ready")).json()
    assert lines(served, "privacy_off") == []


async def test_without_privacy_texts_are_cut_and_what_is_no_text_is_not_shown(tmp_path: Path) -> None:
    long = {"model": "org/m", "messages": [{"role": "user", "content": "é" * LIMIT_BYTES}]}
    async with Answers() as engine:
        async with serving(config(engine, more=OPEN), tmp_path) as served:
            await post(served, content=json.dumps(long, ensure_ascii=False).encode())
            await post(served, content=b"\xff\xfe" * 10)
        cut, binary = lines(served)
        assert LIMIT_BYTES / 2 - 100 < len(cut["request"]) < LIMIT_BYTES
        assert cut["request"].endswith(f"... ({2 * LIMIT_BYTES + len(json.dumps(long)) - 6 * LIMIT_BYTES} bytes)")
        assert binary["request"] == "(20 bytes, no text)"


async def test_without_privacy_keys_made_by_the_admin_are_not_in_the_log(tmp_path: Path) -> None:
    async with Answers() as engine:
        async with serving(config(engine, more=OPEN), tmp_path) as served:
            await post(served, "/internal/reports", json={"token": MARKER})
            await post(served, "/admin/keys", json={"name": MARKER})
        assert MARKER not in served.log_text()
