"""Spans: what a request becomes by the GenAI conventions, and that it gets where OTEL_* says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from backends.errors import Unavailable
from proxy.config import ConfigError, Observability
from proxy.record import Record
from proxy.spans import Tracing, provider_of_environment
from proxy.tracing import check_tracing, tracing_of
from tests.fakes.chat_engine import USAGE, Answers, DiesMidStream, DiesOnRequests
from tests.fakes.otlp_collector import Collector
from tests.in_process import serving

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "what is up"}]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = [(b"host", b"gateway"), (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]


class Traced:
    """A `Tracing` whose spans stay here."""

    def __init__(self, *, content: bool = False) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider, content=content)

    def spans(self) -> list[ReadableSpan]:
        """In the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def request(self) -> ReadableSpan:
        """The span of the one request."""
        (span,) = (span for span in self.spans() if span.kind is SpanKind.SERVER)
        return span


@pytest.fixture
def traced() -> Traced:
    return Traced()


def begun(traced: Traced, headers: list[tuple[bytes, bytes]] | None = None, **values: Any) -> Record:
    record = Record("POST", CHAT)
    traced.tracing.begin(record, headers or [])
    for name, value in {"endpoint": CHAT, "model": "llama", "status": 200, "served_by": "llama-1", **values}.items():
        setattr(record, name, value)
    return record


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# -- one request -----------------------------------------------------------------------------------------------------


def test_a_request_is_one_span_with_the_conventions_attributes(traced: Traced) -> None:
    record = begun(traced, prompt_tokens=7, completion_tokens=3, stream=True, first_byte_s=0.25)
    record.note().body = {"model": "llama", "max_tokens": 5, "temperature": 0.5, "stop": "x", "top_p": "high"}
    traced.tracing.finish(record, 1.5)
    span = traced.request()
    assert span.name == "chat llama"
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "slurmgate",
        "gen_ai.request.model": "llama",
        "gen_ai.response.model": "llama",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": CHAT,
        "slurmgate.request_id": record.id,
        "slurmgate.replica": "llama-1",
    }


def test_the_client_s_trace_goes_on_and_the_engine_gets_our_span_for_parent(traced: Traced) -> None:
    record = begun(traced, TRACEPARENT)
    sent = record.note().headers
    traced.tracing.finish(record, 0.1)
    span = traced.request()
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert sent == f"traceparent: 00-{TRACE}-{span.context.span_id:016x}-01\r\n".encode()


def test_a_client_that_does_not_want_its_trace_kept_is_heard_and_the_engine_told(traced: Traced) -> None:
    record = begun(traced, [(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode()), (b"tracestate", b"vendor=1")])
    assert record.note().headers.endswith(b"-00\r\ntracestate: vendor=1\r\n")
    traced.tracing.finish(record, 0.1)
    assert traced.spans() == []


@pytest.mark.parametrize("value", [b"", b"nonsense", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", b"\xff" * 55])
def test_a_traceparent_that_is_none_begins_a_new_trace(traced: Traced, value: bytes) -> None:
    traced.tracing.finish(begun(traced, [(b"traceparent", value)]), 0.1)
    assert traced.request().parent is None


def test_waits_and_attempts_are_spans_one_after_the_other(traced: Traced) -> None:
    record = begun(traced)
    trail = record.note()
    trail.waited_until(2.0, 1.5)
    trail.failed_at(3.0, "llama-0", "engine_unreachable")
    traced.tracing.finish(record, 5.0)
    request = traced.request()
    assert request.start_time is not None
    started_ns = request.start_time
    parts = [span for span in traced.spans() if span is not request]
    told = [
        (
            span.name,
            span.kind,
            round(((span.start_time or 0) - started_ns) / 1e9, 1),
            round(((span.end_time or 0) - started_ns) / 1e9, 1),
            attributes(span).get("slurmgate.replica"),
            attributes(span).get("error.type"),
        )
        for span in parts
    ]
    assert told == [
        ("queue", SpanKind.INTERNAL, 0.5, 2.0, None, None),
        ("chat llama", SpanKind.CLIENT, 2.0, 3.0, "llama-0", "engine_unreachable"),
        ("chat llama", SpanKind.CLIENT, 3.0, 5.0, "llama-1", None),
    ]
    assert all(span.parent is not None and span.parent.span_id == request.context.span_id for span in parts)
    assert request.end_time is not None
    assert request.end_time - started_ns == pytest.approx(5e9, rel=1e-3)


def test_a_stream_that_broke_is_an_error_though_its_status_was_200(traced: Traced) -> None:
    traced.tracing.finish(begun(traced, error="engine_disconnected", stream=True), 0.1)
    span = traced.request()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "engine_disconnected"


@pytest.mark.parametrize(("status", "error"), [(400, "invalid_json"), (499, "client_disconnected"), (429, "quota")])
def test_what_the_client_did_is_no_error_of_the_server(traced: Traced, status: int, error: str) -> None:
    traced.tracing.finish(begun(traced, status=status, error=error), 0.1)
    span = traced.request()
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["error.type"] == error


def test_a_refused_request_says_why(traced: Traced) -> None:
    record = begun(traced, status=503, served_by="")
    record.fail(Unavailable("nothing runs"))
    traced.tracing.finish(record, 0.1)
    (span,) = traced.spans()
    assert attributes(span)["slurmgate.refusal"] == "unavailable"
    assert "gen_ai.response.model" not in attributes(span)


def test_a_fallback_tells_both_models(traced: Traced) -> None:
    record = begun(traced, model="mistral")
    record.fell_back("llama", "overloaded")
    traced.tracing.finish(record, 0.1)
    said = attributes(traced.request())
    assert (said["gen_ai.request.model"], said["gen_ai.response.model"]) == ("llama", "mistral")
    assert said["slurmgate.fallback"] == "overloaded"


@pytest.mark.parametrize(
    ("endpoint", "model", "name"),
    [
        ("/v1/completions", "llama", "text_completion llama"),
        ("/v1/embeddings", "bge", "embeddings bge"),
        ("/v1/responses", "llama", "chat llama"),
        (CHAT, "", f"POST {CHAT}"),
        ("", "", "POST"),
    ],
)
def test_spans_are_named_by_what_was_done(traced: Traced, endpoint: str, model: str, name: str) -> None:
    traced.tracing.finish(begun(traced, endpoint=endpoint, model=model), 0.1)
    assert traced.request().name == name


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/internal/report")])
def test_what_asks_no_model_has_no_span(traced: Traced, method: str, path: str) -> None:
    record = Record(method, path)
    traced.tracing.begin(record, TRACEPARENT)
    traced.tracing.finish(record, 0.1)
    assert record.trail is None
    assert traced.spans() == []


# -- content ---------------------------------------------------------------------------------------------------------

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is up?"}, {"type": "image_url", "image_url": {}}]},
]
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Slurm"}, "finish_reason": "length"}]}


def test_prompts_and_answers_are_told_only_where_privacy_is_off() -> None:
    for content in (False, True):
        traced = Traced(content=content)
        record = begun(traced)
        record.note().body = {"messages": SAID}
        record.note().response = json.dumps(ANSWER)
        traced.tracing.finish(record, 0.1)
        said = attributes(traced.request())
        assert ("gen_ai.input.messages" in said, "gen_ai.output.messages" in said) == (content, content)
    assert json.loads(said["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "What is up?"}, {"type": "image_url"}]},
    ]
    assert json.loads(said["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Slurm"}], "finish_reason": "length"}
    ]


def test_a_stream_s_pieces_are_told_as_one_message_even_if_the_last_one_was_cut() -> None:
    traced = Traced(content=True)
    record = begun(traced)
    pieces = ["Slurm", " is", " up"]
    events = [f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': piece}}]})}" for piece in pieces]
    record.note().response = "\n\n".join([": keep-alive", *events, 'data: {"choi...', "data: [DONE]"])
    traced.tracing.finish(record, 0.1)
    (message,) = json.loads(attributes(traced.request())["gen_ai.output.messages"])
    assert message["parts"] == [{"type": "text", "content": "Slurm is up"}]


@pytest.mark.parametrize(
    "body", [{}, {"messages": "text"}, {"messages": [1, {"content": 5}]}, {"prompt": ["a"]}, {"input": "x"}]
)
@pytest.mark.parametrize("response", ["", "{", "[]", '{"choices": 1}', '{"choices": [{"index": [], "delta": 1}, 2]}'])
def test_strange_bodies_do_no_harm(body: dict[str, Any], response: str) -> None:
    traced = Traced(content=True)
    record = begun(traced)
    record.note().body, record.note().response = body, response
    traced.tracing.finish(record, 0.1)
    assert traced.request().name == "chat llama"


# -- where spans go --------------------------------------------------------------------------------------------------


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    yield collector
    collector.close()


def test_spans_are_sent_by_otlp_and_none_is_lost_at_the_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing = tracing_of(Observability(tracing=True))
    assert tracing is not None
    record = Record("POST", CHAT)
    tracing.begin(record, TRACEPARENT)
    record.endpoint, record.model, record.status = CHAT, "llama", 200
    tracing.finish(record, 0.1)
    tracing.close()
    ((path, sent),) = collector.requests
    assert path == "/v1/traces"
    (span,) = collector.spans()
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("chat llama", TRACE, PARENT)
    resource = {pair.key: pair.value.string_value for pair in sent.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "slurmgate"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "llm.example.org")
    provider = provider_of_environment()
    assert provider.resource.attributes["service.name"] == "llm.example.org"
    provider.shutdown()


def test_tracing_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry" or name == "proxy.spans"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"observability\.tracing: .*slurmgate\[otel\]"):
        tracing_of(Observability(tracing=True))
    with pytest.raises(ConfigError, match=r"slurmgate\[otel\]"):
        check_tracing(Observability(tracing=True))


def test_without_tracing_nothing_of_it_is_imported() -> None:
    code = "import sys, proxy.server, proxy.cli, proxy.tracing; print([m for m in sys.modules if 'opentelem' in m])"
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
    assert tracing_of(Observability()) is None


# -- through the gateway ---------------------------------------------------------------------------------------------


def config(*engines: Any, more: str = "") -> str:
    urls = json.dumps([engine.url for engine in engines])
    return f'[observability]\ntracing = true\n{more}\n[models."org/m"]\nengine = "vllm"\nurls = {urls}\n'


async def test_the_engine_s_spans_hang_under_the_request_s(collector: Collector, tmp_path: Path) -> None:
    async with Answers() as engine:
        async with serving(config(engine), tmp_path) as served, httpx.AsyncClient() as http:
            question = {"model": "org/m", "messages": QUESTION, "max_tokens": 9, "stream": True}
            headers = {**served.headers, "traceparent": f"00-{TRACE}-{PARENT}-01"}
            answer = await http.post(served.url + CHAT, json=question, headers=headers)
            await http.get(served.url + "/v1/models", headers=served.headers)
            sent = engine.requests[0].headers
    request, attempt = sorted(collector.spans(), key=lambda span: span.kind)
    assert (request.name, attempt.name) == ("chat org/m", "chat org/m")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert sent["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    said = {pair.key: pair.value for pair in request.attributes}
    assert said["gen_ai.request.max_tokens"].int_value == 9
    assert said["gen_ai.usage.input_tokens"].int_value == USAGE["prompt_tokens"]
    assert said["gen_ai.response.time_to_first_chunk"].double_value > 0
    assert said["slurmgate.request_id"].string_value == answer.headers["x-request-id"] == sent["x-request-id"]


async def test_a_second_attempt_shows_beside_the_first(collector: Collector, tmp_path: Path) -> None:
    async with DiesOnRequests() as dies, Answers() as engine:
        async with serving(config(dies, engine), tmp_path) as served, httpx.AsyncClient() as http:
            question = {"model": "org/m", "messages": QUESTION}
            for _ in range(2):  # whichever of them is asked first
                assert (await http.post(served.url + CHAT, json=question, headers=served.headers)).status_code == 200
            metrics = (await http.get(served.url + "/metrics")).text
    line = next(line for line in log_lines(served.log) if "attempts" in line)
    attempts = [span for span in collector.spans() if span.kind == 3]
    errors = [pair.value.string_value for span in attempts for pair in span.attributes if pair.key == "error.type"]
    assert set(errors) == {"engine_disconnected"}
    assert line["attempts"] == 2
    assert line["failed_attempts"] == [{"replica": f"127.0.0.1:{dies.port}", "error": "engine_disconnected"}]
    assert 'slurmgate_retries_total{model="org/m",reason="engine_disconnected"}' in metrics


async def test_a_stream_that_breaks_is_a_span_with_its_error(collector: Collector, tmp_path: Path) -> None:
    async with DiesMidStream() as engine:
        async with serving(config(engine), tmp_path) as served, httpx.AsyncClient() as http:
            question = {"model": "org/m", "messages": QUESTION, "stream": True}
            await http.post(served.url + CHAT, json=question, headers=served.headers)
    said = [{pair.key: pair.value.string_value for pair in span.attributes} for span in collector.spans()]
    assert [attributes["error.type"] for attributes in said] == ["engine_disconnected"] * 2


async def test_content_is_in_the_spans_only_where_privacy_is_off(collector: Collector, tmp_path: Path) -> None:
    question = {"model": "org/m", "messages": [{"role": "user", "content": "what is up"}], "stream": True}
    for privacy in ("true", "false"):
        async with Answers() as engine:
            directory = tmp_path / privacy
            directory.mkdir()
            async with serving(config(engine, more=f"privacy = {privacy}"), directory) as served:
                async with httpx.AsyncClient() as http:
                    await http.post(served.url + CHAT, json=question, headers=served.headers)
        sent = str(collector.spans())
        assert ("what is up" in sent, "Slurm is up" in sent) == (privacy == "false", privacy == "false")


def log_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_collector_that_is_not_there_disturbs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with Answers() as engine, serving(config(engine), tmp_path) as served, httpx.AsyncClient() as http:
        question = {"model": "org/m", "messages": QUESTION}
        answers = await asyncio.gather(
            *(http.post(served.url + CHAT, json=question, headers=served.headers) for _ in range(5))
        )
        assert {answer.status_code for answer in answers} == {200}
