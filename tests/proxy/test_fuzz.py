"""Whatever is sent, the answer is an answer or an OpenAI error, it comes, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.core.result import Ok

from proxy import openapi, shapes
from tests.fakes.chat_engine import Answers, Request, Write, read_head
from tests.in_process import Served, serving
from tests.waiting import until_sync

LIMIT_MB = 2
PATHS = {o.path: o for o in openapi.OPERATIONS if isinstance(o.body, shapes.Shape)}


class TakesAnything(Answers):
    """An engine that is never the one to complain."""

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)

        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (head := await read_head(reader)) is not None:
                raw = await reader.readexactly(int(head[1].get("content-length", "0")))
                try:
                    body = orjson.loads(raw)
                except orjson.JSONDecodeError:  # a form
                    body = {}
                request = Request(*head, body, raw)
                await self.answer(request, write)

    async def answer(self, request: Request, write: Write) -> bool:
        if request.path == "/v1/chat/completions":
            return await super().answer(request, write)
        body = json.dumps(self.whole_answer(request)).encode()
        await write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        return True

    def whole_answer(self, request: Request) -> Any:
        listed: dict[str, Any] = {"model": "m", "created": 1, "id": "x"}
        match request.path:
            case "/v1/embeddings":
                asked = request.body.get("input")
                one = isinstance(asked, str) or (isinstance(asked, list) and asked and isinstance(asked[0], int))
                count = 1 if one else len(asked or [])
                vectors = [{"object": "embedding", "index": index, "embedding": [0.5, 0.25]} for index in range(count)]
                return {**listed, "object": "list", "data": vectors, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
            case "/v1/completions":
                choice = {"index": 0, "text": "up", "logprobs": None, "finish_reason": "stop"}
                return {**listed, "object": "text_completion", "choices": [choice]}
            case "/v1/rerank" | "/rerank":
                ranked = range(len(request.body.get("documents", [])))
                return {"id": "x", "results": [{"index": index, "relevance_score": 0.5} for index in ranked]}
            case "/tokenize":
                return {"count": 1, "max_model_len": 10, "tokens": [1]}
            case "/v1/audio/transcriptions":
                return {"text": "up"}
            case _:
                return {**listed, "object": "response", "created_at": 1, "status": "completed", "output": []}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway in a thread with an event loop of its own, so that tests may block."""
    directory = tmp_path_factory.mktemp("fuzzed")
    started: list[Served] = []
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with TakesAnything() as engine:
            config = (
                f"[server]\nmax_body_mb = {LIMIT_MB}\nbody_timeout_s = 2\n"
                '[files]\nmax_file_bytes = "1G"\n'
                f'[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]'
            )
            async with serving(config, directory) as gateway:
                started.append(gateway)
                await over.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        until_sync(lambda: started or failed)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def post(served: Served, path: str, body: bytes, content_type: str = openapi.JSON) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        connection.request("POST", path, body, {**served.headers, "content-type": content_type})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def assert_answer_or_error(path: str, status: int, body: bytes) -> None:
    """Nothing at fault here: the engine takes anything."""
    assert status == 200 or 400 <= status < 500, (status, body[:500])
    if status >= 400:
        error = json.loads(body)["error"]
        assert isinstance(error["message"], str)
        if PATHS[path].error == "Error":
            assert error.keys() == {"message", "type", "param", "code"}
            assert len(error["message"]) < 2000
        return
    for event in re.findall(b"^data: ({.*})$", body, re.MULTILINE):
        assert "error" not in json.loads(event) or json.loads(event)["error"] is None, event[:500]


# -- bodies ----------------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(),
    st.integers(2**62, 2**66),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1e308, 5e-324, 10**30, -(2**63), 2**64]),
)
texts = st.one_of(
    st.text(max_size=30), st.sampled_from(["", "m", "\x00", "\u202e", "\uffff", "\U0001f9ea" * 9, "a" * 5000])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)

RIGHT = {
    shapes.STRING.words: texts,
    shapes.BOOLEAN.words: st.booleans(),
    shapes.INTEGER.words: st.integers(-5, 2**63 - 1),
    shapes.NUMBER.words: numbers,
    shapes.OBJECT.words: st.dictionaries(texts, values, max_size=4),
    shapes.ARRAY.words: st.lists(values, max_size=4),
    shapes.STRING_OR_ARRAY.words: st.one_of(
        texts, st.lists(texts, max_size=4), st.lists(st.integers(0, 9), max_size=4)
    ),
}


@st.composite
def nearly_right(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """The example of an operation with some of its fields, or of those within them, replaced, added or left out."""
    operation = PATHS[path]
    assert isinstance(operation.body, shapes.Shape)
    body: dict[str, Any] = json.loads(json.dumps(operation.example))
    body["model"] = "m"
    extra = {"stream": shapes.BOOLEAN, "encoding_format": shapes.STRING, "x": shapes.OBJECT, "logprobs": shapes.BOOLEAN}
    kinds = {**extra, **operation.body.optional, **operation.body.required}
    for name in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=4, unique=True)):
        inner = body.get(name)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict) and draw(st.booleans()):
            inner[0][draw(st.sampled_from(["role", "content", "type", "text", "tool_calls"]))] = draw(values)
        elif (right := RIGHT.get(kinds[name].words)) is not None and draw(st.booleans()):
            body[name] = draw(right)
        elif draw(st.integers(0, 4)):
            body[name] = draw(st.one_of(st.just(True), values))
        else:
            body.pop(name, None)
    return body


quick = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@pytest.mark.parametrize("path", PATHS)
def test_a_nearly_right_body_gets_an_answer_or_an_error(served: Served, path: str) -> None:
    @quick
    @given(nearly_right(path))
    def ask(body: dict[str, Any]) -> None:
        assert_answer_or_error(path, *post(served, path, json.dumps(body).encode()))

    ask()


@pytest.mark.parametrize("path", PATHS)
def test_any_json_and_any_bytes_get_an_answer_or_an_error(served: Served, path: str) -> None:
    @quick
    @given(st.one_of(values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=200)))
    def ask(body: bytes) -> None:
        assert_answer_or_error(path, *post(served, path, body))

    ask()


CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]'
MANY = b",".join(b'"k%d":0' % n for n in range(100_000))
ODD = {
    "endless nesting": (b"[" * 500_000, 400),
    "nested objects": (CHAT + b',"x":' + b'{"a":' * 900 + b"1" + b"}" * 901, 200),
    "nested too deep": (CHAT + b',"x":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 400),
    "not a number": (CHAT + b',"temperature":NaN}', 400),
    "infinity": (CHAT + b',"temperature":Infinity}', 400),
    "past all floats": (CHAT + b',"temperature":1e999}', None),
    "a long number": (CHAT + b',"seed":' + b"9" * 100_000 + b"}", 400),
    "a long fraction": (CHAT + b',"temperature":0.' + b"1" * 100_000 + b"}", 200),
    "a lone surrogate": (CHAT + b',"user":"\\ud800"}', 400),
    "a lone surrogate in UTF-8": (CHAT + b',"user":"\xed\xa0\x80"}', 400),
    "overlong UTF-8": (CHAT + b',"user":"\xc0\x80"}', 400),
    "a zero character": (CHAT + b',"user":"\\u0000"}', 200),
    "a bare zero byte": (CHAT + b',"user":"\x00"}', 400),
    "a key twice": (b'{"model":"no such",' + CHAT[1:] + b"}", 200),
    "a stream that is none": (CHAT + b',"stream":true,"stream":false}', 200),
    "none that is a stream": (CHAT + b',"stream":false,"stream":true}', 200),
    "options twice": (CHAT + b',"stream":true,"stream_options":{},"stream_options":{"include_usage":true}}', 200),
    "a hundred thousand keys": (CHAT + b"," + MANY + b"}", 200),
    "a hundred thousand messages": (b'{"model":"m","messages":[' + b"1," * 100_000 + b"1]}", 400),
    "a long model": (b'{"model":"' + b"m" * 1_000_000 + b'","messages":[{"role":"user"}]}', 404),
    "something behind": (CHAT + b"} {}", 400),
    "white space": (b" \r\n\t" + CHAT + b"}\n" + b" " * 100_000, 200),
    "too much": (b" " * (LIMIT_MB * 1024 * 1024 + 1), 413),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_body_gets_an_answer_or_an_error(served: Served, name: str) -> None:
    body, expected = ODD[name]
    status, answer = post(served, "/v1/chat/completions", body)
    assert_answer_or_error("/v1/chat/completions", status, answer)
    assert expected in (None, status)


# -- the description -------------------------------------------------------------------------------------------------


def test_what_the_description_allows_is_answered_as_it_says(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/openapi.json")
    schema = schemathesis.openapi.from_dict(json.loads(connection.getresponse().read()))
    connection.close()
    asked = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @settings(quick, max_examples=20)
        @given(operation.as_strategy())
        def ask(case: schemathesis.Case[Any]) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "m"
            asked.append(case.path)
            answer = case.call(base_url=served.url, headers=served.headers, timeout=30)
            asks = [checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
            if "text/event-stream" not in answer.headers["content-type"][0]:
                # OpenAPI 3.1 can describe a stream as a whole only, and the tool takes that for each event's shape
                asks.append(checks.response_schema_conformance)
            case.validate_response(answer, checks=asks)

        ask()
    assert len(set(asked)) == len(schema.raw_schema["paths"])


# -- nothing stays ---------------------------------------------------------------------------------------------------

REQUESTS = [
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n",
    b"GET /v1/models/NEW HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n",
    b"GET /NEW HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/NEW HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\ncontent-length: 0\r\n\r\n",
    b"NEW /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer NEW\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nhost: NEW\r\n\r\n",
    b"NEW\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\ncontent-length: 9\r\n\r\n{NEW",
    *(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\ncontent-length: %d\r\n\r\n%s"
        % (len(body), body)
        for body in (
            CHAT + b"}",
            CHAT + b',"stream":true}',
            CHAT + b',"stream":1}',
            CHAT.replace(b'"m"', b'"NEW"') + b"}",
            CHAT.replace(b"hi", b"NEW") + b',"temperature":"NEW"}',
        )
    ),
]


def send_all(served: Served, rounds: int) -> None:
    """Each request, by turns read to its answer's head, left without reading, and left with a reset."""
    for number in range(rounds):
        for index, request in enumerate(REQUESTS):
            data = request.replace(b"KEY", f"Bearer {served.key}".encode()).replace(b"NEW", b"n%05d" % number)[:5000]
            length = re.search(rb"content-length: (\d+)", data)
            if length is not None and b"{n" not in data:
                body = data.split(b"\r\n\r\n", 1)[1]
                data = data.replace(length[0], b"content-length: %d" % len(body), 1)
            with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
                connection.sendall(data)
                if (number + index) % 3 == 0 and b"{n" not in data:
                    assert connection.recv(4096).startswith(b"HTTP/1.1 ")
                elif (number + index) % 3 == 1:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


OURS = ("proxy.", "backends.", "uvicorn.", "asyncio.")
NOT_KEPT_BY_US = "asyncio.events.TimerHandle"
"""asyncio leaves up to a hundred cancelled ones where they are until their time has come."""


def living() -> Counter[str]:
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if isinstance(kind.__module__, str)]
    return Counter(name for name in names if name.startswith(OURS) and name != NOT_KEPT_BY_US)


def label_sets(served: Served) -> set[str]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")}


def test_after_thousands_of_requests_nothing_of_them_is_left(served: Served) -> None:
    """Those of them that were left, too: the gateway lingers a little over what it has refused, and then forgets."""
    of_requests = ("protocol.Connection", "Cycle", ".Record", ".Call", ".Reply", ".EventReply")

    def more_than(before: Counter[str]) -> dict[str, int]:
        return {kind: count - before[kind] for kind, count in living().items() if count > before[kind] + 10}

    def of_others() -> Counter[str]:
        return Counter({kind: count for kind, count in living().items() if kind.endswith(of_requests)})

    others = of_others()  # what tests before this one in the same process have left, in tracebacks say
    send_all(served, 6)
    label_sets(served)  # asking for them is a request, too
    until_sync(lambda: not of_others() - others, every_s=0.2)
    before, labels_before = living(), label_sets(served)
    send_all(served, 200)
    with contextlib.suppress(TimeoutError):  # to tell what is left, rather than that something is
        until_sync(lambda: not more_than(before), every_s=0.2, timeout_s=20)
    assert more_than(before) == {}
    assert label_sets(served) == labels_before
    lines = [json.loads(line) for line in served.log_text().splitlines()]
    assert len({name for line in lines for name in line}) < 30
    assert "unexpected_error" not in {line["event"] for line in lines}
