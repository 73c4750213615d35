"""What arrives on the socket, byte by byte: ambiguous, broken, slow, endless or merely unusual HTTP.

Whatever it is, the client gets an answer to exactly what it may ask, or an OpenAI error with an id that is in the log.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.protocol import HEAD_LIMIT, PIPELINE_LIMIT
from tests.fakes.chat_engine import Answers, Engine, NeverBegins, Request, Write
from tests.in_process import Served, serving
from tests.waiting import until

CHAT = "/v1/chat/completions"
QUESTION = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\ntransfer-encoding: chunked\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n"


def config(engine: Engine | None = None, more: str = "") -> str:
    url = engine.url if engine is not None else "http://127.0.0.1:1"
    return f'{more}\n[models.m]\nengine = "vllm"\nurls = ["{url}"]'


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A connection that sends what it is told. `KEY` stands for the key."""

    def __init__(self, served: Served, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._key = f"Bearer {served.key}".encode()
        self._reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data.replace(b"KEY", self._key))

    async def send(self, data: bytes) -> None:
        self.write(data)
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), dict(pairs)

    async def answer(self, method: str = "GET") -> Answer:
        status, headers = await self.head()
        if method == "HEAD" or status == 100:
            return Answer(status, headers, b"")
        if "content-length" in headers:
            return Answer(status, headers, await self._reader.readexactly(int(headers["content-length"])))
        return Answer(status, headers, await self._reader.read())

    async def rest(self) -> bytes:
        """All that comes until the gateway closes."""
        return await self._reader.read()


@asynccontextmanager
async def connected(served: Served) -> AsyncIterator[Client]:
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        try:
            yield Client(served, reader, writer)
        finally:
            writer.close()


def assert_refused(answer: Answer, status: int, code: str, says: str = "") -> str:
    """An OpenAI error. Its request id."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert says in error["message"]
    assert re.fullmatch("req_[0-9a-f]{22}", answer.headers["x-request-id"])
    return answer.headers["x-request-id"]


async def log_lines(served: Served, ids: list[str]) -> list[dict[str, Any]]:
    """The one line of each request."""

    def found() -> dict[str, list[dict[str, Any]]]:
        lines = [json.loads(line) for line in served.log_text().splitlines()]
        by_id = {request_id: [line for line in lines if line.get("id") == request_id] for request_id in ids}
        return by_id if all(by_id.values()) else {}

    by_id = await until(found)
    assert {len(lines) for lines in by_id.values()} == {1}
    return [lines[0] for lines in by_id.values()]


# -- what is no HTTP, or could be read in two ways -------------------------------------------------------------------

BROKEN = {
    "no http at all": b"hello\r\n\r\n",
    "a TLS handshake": bytes.fromhex("16030100c8010000c40303"),
    "a method in small letters": b"get /health HTTP/1.1\r\nhost: x\r\n\r\n",
    "two lengths": GET + b"content-length: 0\r\ncontent-length: 0\r\n\r\n",
    "a list of lengths": GET + b"content-length: 0, 0\r\n\r\n",
    "a signed length": GET + b"content-length: +1\r\n\r\n",
    "a hexadecimal length": GET + b"content-length: 0x1\r\n\r\n",
    "an endless length": GET + b"content-length: 99999999999999999999999\r\n\r\n",
    "a length and chunks": CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\n",
    "chunks and a length before them": GET + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": CHUNKED + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are something else last": GET + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "compressed chunks": GET + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "nearly chunked": GET + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked after a vertical tab": GET + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": GET + b"x-a: b\r\n c\r\n\r\n",
    "a header that begins with a space": b"GET /health HTTP/1.1\r\n host: x\r\n\r\n",
    "bare line feeds": b"GET /health HTTP/1.1\nhost: x\n\n",
    "one bare line feed": GET + b"x-a: b\nx-c: d\r\n\r\n",
    "a bare carriage return": GET + b"x-a: b\rx-c: d\r\n\r\n",
    "a zero byte in a header": GET + b"x-a: b\x00c\r\n\r\n",
    "a space before a colon": GET + b"x-a : b\r\n\r\n",
    "a header without a name": GET + b": b\r\n\r\n",
    "a header without a colon": GET + b"x-a\r\n\r\n",
    "two hosts": GET + b"host: y\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two keys": GET + b"authorization: Bearer other\r\n\r\n",
    "two keys of the other kind": GET + b"x-api-key: a\r\nx-api-key: b\r\n\r\n",
    "two content-types": GET + b"content-type: a/b\r\ncontent-type: c/d\r\n\r\n",
    "an authority as the target": b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "the first line of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a target with a space": b"GET /v1/models x HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target in UTF-8": "GET /é HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
    "a target without its slash": b"GET health HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target with a bad port": b"GET http://h:1x/health HTTP/1.1\r\nhost: x\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /v1/embeddings HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk's size that is none": CHUNKED + b"\r\nxyz\r\nhi\r\n0\r\n\r\n",
    "a chunk's size below zero": CHUNKED + b"\r\n-2\r\nhi\r\n0\r\n\r\n",
    "a chunk's size with a prefix": CHUNKED + b"\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "a chunk's size past all numbers": CHUNKED + b"\r\nfffffffffffffffff\r\nhi",
    "a chunk's size with a bare line feed": CHUNKED + b"\r\n2\nhi\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"\r\n2\r\nhello\r\n0\r\n\r\n",
    "an extension with a bare line feed": CHUNKED + b"\r\n2;a\nhi\r\n0\r\n\r\n",
    "a length after the body": CHUNKED + b"\r\n2\r\nhi\r\n0\r\ncontent-length: 3\r\n\r\n",
}


async def test_each_is_refused_with_an_id_that_is_in_the_log(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        ids = []
        for name, data in BROKEN.items():
            async with connected(served) as client:
                await client.send(data + GET + b"\r\n")  # what follows must not be answered
                answer = await client.answer()
                ids.append(assert_refused(answer, 400, "invalid_http"))
                assert answer.headers["connection"] == "close"
                assert answer.headers["openai-version"] == "2020-10-01"
                assert await client.rest() == b"", name
        assert engine.requests == []
        for line in await log_lines(served, ids):
            assert (line["status"], line["error"]) == (400, "invalid_http")
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(served.url + "/metrics")).text
        assert f'slurmgate_errors_total{{code="invalid_http"}} {len(BROKEN)}.0' in metrics


async def test_a_body_that_breaks_while_it_is_read_ends_its_request(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as served:
        async with connected(served) as client:
            await client.send(CHUNKED + b"expect: 100-continue\r\n\r\n")
            assert (await client.answer()).status == 100  # somebody reads the body now
            await client.send(b"2\r\nhi\r\nxyz\r\n")
            answer = await client.answer()
            request_id = assert_refused(answer, 400, "invalid_http", "chunk size")
            assert await client.rest() == b""
        [line] = await log_lines(served, [request_id])
        assert (line["status"], line["error"], line["endpoint"]) == (400, "invalid_http", CHAT)


@pytest.mark.parametrize("version", [b" HTTP/2.0", b" HTTP/0.9", b""])
async def test_other_versions_of_http_are_not_spoken(tmp_path: Path, version: bytes) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        await client.send(b"GET /health%s\r\nhost: x\r\n\r\n" % version)
        assert_refused(await client.answer(), 505, "http_version_not_supported")


async def test_a_websocket_is_refused_and_an_offer_of_http_2_is_not_taken_up(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as served:
        async with connected(served) as client:
            await client.send(GET + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n")
            assert_refused(await client.answer(), 400, "unsupported_upgrade")
            assert await client.rest() == b""
        async with connected(served) as client:
            await client.send(GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n" + GET + b"\r\n")
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 200, "what came behind the offer in one read"
        async with connected(served) as client:
            smuggled = GET + b"\r\n"
            await client.send(post(smuggled, b"authorization: KEY\r\nconnection: upgrade\r\nupgrade: h2c\r\n"))
            assert_refused(await client.answer(), 400, "unsupported_upgrade")
            assert await client.rest() == b"", "its body is no request"


def post(body: bytes, headers: bytes = b"authorization: KEY\r\n", path: str = CHAT) -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n%s" % (path.encode(), headers, len(body), body)


async def test_fields_after_a_body_are_not_taken_for_headers(tmp_path: Path) -> None:
    """Else who may not send a header past a proxy in front could send it behind the body."""
    async with serving(config(), tmp_path) as served, connected(served) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            b"2\r\n{}\r\n0\r\nauthorization: KEY\r\n\r\n"
        )
        assert_refused(await client.answer(), 401, "invalid_api_key")


class AnswersWhenTold(Answers):
    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    async def answer(self, request: Request, write: Write) -> bool:
        await self.told.wait()
        return await super().answer(request, write)


# -- too large, too slow, too many -----------------------------------------------------------------------------------


def head_of(size: int) -> bytes:
    """A request for the models whose target and headers, as they are counted, have this size."""
    path = b"/v1/models"
    known = len(path) + sum(len(line) for line in GET.splitlines()[1:]) + 2 * 2
    filler = b"x-a: "
    return GET + filler + b"b" * (size - known - len(filler) - 2) + b"\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_head_may_have_its_size_and_no_byte_more(tmp_path: Path, pieces: int) -> None:
    async with serving(config(), tmp_path) as served:
        key = len(f"Bearer {served.key}") - len("KEY")
        for size, status in ((HEAD_LIMIT, 200), (HEAD_LIMIT + 1, 431)):
            async with connected(served) as client:
                data = head_of(size - key)
                step = len(data) // pieces + 1
                for start in range(0, len(data), step):
                    await client.send(data[start : start + step])
                answer = await client.answer()
                assert answer.status == status
        assert_refused(answer, 431, "headers_too_large")


@pytest.mark.parametrize(
    "endless",
    [GET + b"x-a: ", GET + b"".join(b"x-%d: a\r\n" % n for n in range(20_000)), b"GET /"],
    ids=["a value", "fields", "a target"],
)
async def test_a_head_without_an_end_is_refused_before_it_ends(tmp_path: Path, endless: bytes) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        await client.send(endless + b"a" * 1_000_000)
        assert_refused(await client.answer(), 431, "headers_too_large")


@pytest.mark.parametrize("tail", [b"2;", b"2\r\n{}\r\n0\r\nx-a: "], ids=["a chunk extension", "a trailer"])
async def test_what_is_neither_head_nor_body_has_an_end_too(tmp_path: Path, tail: bytes) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        await client.send(CHUNKED + b"\r\n" + tail)
        await client.send(b"a" * 1_000_000)
        assert_refused(await client.answer(), 400, "invalid_http")


async def test_a_client_that_sends_much_gets_to_read_why_it_was_refused(tmp_path: Path) -> None:
    """Closing at once over unread bytes would reset its connection."""
    async with serving(config(), tmp_path) as served, connected(served) as client:
        await client.send(b"hello\r\n\r\n")
        for _ in range(100):
            await client.send(b"a" * 20_000)
        assert_refused(await client.answer(), 400, "invalid_http")


SLOW = {
    "half a head": b"POST /v1/chat/completions HTTP/1.1\r\nho",
    "half a body": post(QUESTION)[:-1],
    "half a chunk": CHUNKED + b"\r\n5\r\nab",
    "a body that is waited for": CHUNKED + b"expect: 100-continue\r\n\r\n",
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_request_that_does_not_arrive_is_given_up(tmp_path: Path, name: str) -> None:
    more = "[server]\nbody_timeout_s = 0.2"
    async with serving(config(more=more), tmp_path) as served, connected(served) as client:
        await client.send(SLOW[name])
        answer = await client.answer()
        if answer.status == 100:
            answer = await client.answer()
        [line] = await log_lines(served, [assert_refused(answer, 408, "request_timeout")])
        assert (line["status"], line["error"]) == (408, "request_timeout")
        assert await client.rest() == b""


async def test_a_connection_that_sends_nothing_or_only_line_ends_is_closed_without_a_word(tmp_path: Path) -> None:
    more = "[server]\nbody_timeout_s = 0.2"
    async with serving(config(more=more), tmp_path) as served, connected(served) as one, connected(served) as two:
        await two.send(b"\r\n\r\n")
        assert await one.rest() == b""
        assert await two.rest() == b""


async def test_many_connections_that_send_nothing_are_in_nobodys_way(tmp_path: Path) -> None:
    more = "[server]\nbody_timeout_s = 1"
    async with serving(config(more=more), tmp_path) as served:
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(300)]
        async with connected(served) as client:
            await client.send(GET + b"\r\n")
            assert (await client.answer()).status == 200
        async with asyncio.timeout(30):
            assert [await reader.read() for reader, _ in idle] == [b""] * len(idle)
        for _, writer in idle:
            writer.close()


async def test_who_waits_for_an_earlier_answer_is_not_taken_for_slow(tmp_path: Path) -> None:
    """Nothing more is read of a second request while the first is being answered, so it cannot arrive."""

    more = "[server]\nbody_timeout_s = 0.5"
    async with AnswersWhenTold() as engine, serving(config(engine, more), tmp_path) as served:
        async with connected(served) as client:
            await client.send(post(QUESTION))
            await engine.request()
            client.write(post(QUESTION) + post(QUESTION + b" " * 1_000_000))
            async with connected(served) as other:  # the time-out has struck for somebody else meanwhile
                await other.send(b"GET")
                assert (await other.answer()).status == 408
            engine.told.set()
            for _ in range(3):
                assert (await client.answer()).status == 200


async def test_idle_is_who_has_been_answered_and_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not who began to ask again before the answer was out, and waits for an engine now."""
    monkeypatch.setattr("proxy.server.KEEP_ALIVE_S", 0.2)
    async with AnswersWhenTold() as engine, serving(config(engine), tmp_path) as served:
        async with connected(served) as client, connected(served) as idle:
            data = post(QUESTION)
            await client.send(GET + b"\r\n" + data[:30])
            assert (await client.answer()).status == 200
            await client.send(data[30:])
            await engine.request()
            await idle.send(GET + b"\r\n")
            assert (await idle.answer()).status == 200
            await idle.send(b"\r\n")  # a stray line end is no request
            assert await idle.rest() == b""
            engine.told.set()
            assert (await client.answer()).status == 200


# -- several requests on one connection ------------------------------------------------------------------------------


async def test_requests_sent_ahead_are_answered_in_their_order(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, connected(served) as client:
        paths = [CHAT, "/v1/models", "/nowhere", "/health"] * 5
        data = b"".join(
            post(QUESTION) if path == CHAT else GET.replace(b"/v1/models", path.encode()) + b"\r\n" for path in paths
        )
        await client.send(data)
        kinds = {CHAT: "chat.completion", "/v1/models": "list", "/nowhere": None, "/health": None}
        for path in paths:
            answer = await client.answer()
            assert answer.json().get("object") == kinds[path]
            assert (answer.status == 404) == (path == "/nowhere")


async def test_a_broken_request_waits_for_the_answers_before_it(tmp_path: Path) -> None:
    """Written at once it would stand in the middle of another answer, or be taken for it."""
    async with Answers() as engine, serving(config(engine), tmp_path) as served, connected(served) as client:
        await client.send(post(QUESTION) + GET + b"\r\n" + b"hello\r\n\r\n")
        assert (await client.answer()).json()["object"] == "chat.completion"
        assert (await client.answer()).json()["object"] == "list"
        assert_refused(await client.answer(), 400, "invalid_http")
        assert await client.rest() == b""


async def test_nobody_can_send_requests_ahead_without_end(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        await client.send((GET + b"\r\n") * 3000)
        for _ in range(1 + PIPELINE_LIMIT):
            assert (await client.answer()).status == 200
        assert_refused(await client.answer(), 400, "too_many_pipelined")
        assert await client.rest() == b""


async def test_a_client_that_leaves_takes_what_it_sent_ahead_with_it(tmp_path: Path) -> None:
    async with NeverBegins() as engine, serving(config(engine), tmp_path) as served:
        async with connected(served) as client:
            await client.send(post(QUESTION) * 3)
            request = await engine.request()
        await asyncio.wait_for(request.over.wait(), 10)
        assert len(engine.requests) == 1


# -- unusual, and right ----------------------------------------------------------------------------------------------


async def test_http_1_0_gets_an_answer_without_chunks_that_ends_with_the_connection(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        body = json.dumps({**json.loads(QUESTION), "stream": True}).encode()
        async with connected(served) as client:
            await client.send(post(body).replace(b"HTTP/1.1\r\nhost: x", b"HTTP/1.0"))
            answer = await client.answer()
            assert "transfer-encoding" not in answer.headers
            assert answer.body.startswith(b"data: {")
            assert answer.body.endswith(b"data: [DONE]\n\n")
        async with connected(served) as client:
            await client.send(GET.replace(b"HTTP/1.1\r\nhost: x", b"HTTP/1.0\r\nconnection: keep-alive") + b"\r\n")
            assert (await client.answer()).json()["object"] == "list"
            assert await client.rest() == b""


async def test_a_client_that_asks_first_is_told_to_go_on_only_if_its_request_is_wanted(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        head, body = post(QUESTION, b"authorization: KEY\r\nexpect: 100-continue\r\n").split(b"\r\n\r\n")
        async with connected(served) as client:
            await client.send(head + b"\r\n\r\n")
            assert (await client.answer()).status == 100
            await client.send(body)
            assert (await client.answer()).status == 200
        async with connected(served) as client:
            await client.send(head.replace(b"KEY", b"Bearer wrong") + b"\r\n\r\n")
            assert_refused(await client.answer(), 401, "invalid_api_key")


METHODS = [
    ("HEAD", "/v1/models", 200),
    ("HEAD", "/health", 200),
    ("HEAD", CHAT, 405),
    ("OPTIONS", CHAT, 405),
    ("OPTIONS", "*", 404),
    ("TRACE", "/v1/models", 405),
    ("PROPFIND", "/v1/models", 405),
    ("DELETE", "/health", 405),
]


async def test_other_methods(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        for method, path, status in METHODS:
            await client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n".encode())
            answer = await client.answer(method)
            assert answer.status == status, (method, path)
            if method != "HEAD":
                assert_refused(answer, status, {404: "unknown_url", 405: "method_not_allowed"}[status])
            if status == 405:
                assert set(answer.headers["allow"].split(", ")) <= {"GET", "HEAD", "POST"}


TARGETS = [
    ("http://elsewhere.example/v1/models", 200),
    ("/v1/models?a=b&a=%00", 200),
    ("/v1/%6dodels", 200),
    ("/v1/models/m", 200),
    ("/v1/models/%6D", 200),
    ("/v1/models/" + "a" * 60_000, 404),
    ("/" + "a" * 60_000, 404),
    ("/v1/models/%00%0d%0aset-cookie:%20a", 404),
    ("/v1/models/%ff%fe", 404),
    ("/v1/models/%ed%a0%80", 404),
    ("/v1/models/../models", 404),
    ("/v1/./models", 404),
    ("/v1/models/", 404),
    ("//v1/models", 404),
    ("/V1/models", 404),
    ("/health/..%2fv1/models", 404),
    ("/internal/replicas/..%2f..%2fv1%2fmodels", 404),
]


async def test_targets_mean_what_they_say_and_nothing_else(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        for target, status in TARGETS:
            await client.send(GET.replace(b"/v1/models", target.encode()) + b"\r\n")
            answer = await client.answer()
            assert answer.status == status, target
            assert "set-cookie" not in answer.headers
            if status == 404:
                assert len(answer.json()["error"]["message"]) < 1000


async def test_no_spelling_of_a_path_gets_around_the_key(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        for target in ("/v1/models", "/v1%2fmodels", "/%76%31/models", "http://x/v1/models", "/v1/../v1/models"):
            await client.send(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert_refused(await client.answer(), 401, "invalid_api_key")


async def test_a_body_where_none_is_expected_is_read_over(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as served, connected(served) as client:
        for _ in range(2):
            await client.send(GET + b"content-length: 20\r\n\r\nGET / HTTP/1.1\r\n\r\n..")
            assert (await client.answer()).json()["object"] == "list"


# -- bodies that say what they are -----------------------------------------------------------------------------------

Bytes = Callable[[bytes], bytes]


BODIES: list[tuple[bytes, Bytes, int, str]] = [
    (b"content-type: application/json\r\n", bytes, 200, ""),
    (b"content-type: application/json; charset=utf-8\r\n", bytes, 200, ""),
    (b"content-type: application/json; charset=latin-1\r\n", bytes, 200, ""),
    (b"content-type: application/x-www-form-urlencoded\r\n", bytes, 200, ""),
    (b"content-type: x\r\n", bytes, 200, ""),
    (b"content-encoding: identity\r\n", bytes, 200, ""),
    (b"", lambda body: body[:-1], 400, "column"),
    (b"", lambda body: b"\xef\xbb\xbf" + body, 400, "byte order mark"),
    (b"", lambda body: body.decode().encode("utf-16"), 400, "not UTF-8"),
    (b"", lambda body: body.replace(b"hi", b"\xff"), 400, "not UTF-8"),
    (b"content-type: application/json; charset=utf-16\r\n", lambda b: b.decode().encode("utf-16"), 415, "UTF-8"),
    (b"content-encoding: gzip\r\n", gzip.compress, 415, "content-encoding"),
    (b"content-encoding: br\r\n", lambda body: b"\x8b" + body, 415, "content-encoding"),
    (b"content-type: multipart/form-data; boundary=a\r\n", lambda _: b"--a--", 415, "content-type"),
]


async def test_bodies_are_json_in_utf_8(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, connected(served) as client:
        for headers, change, status, says in BODIES:
            await client.send(post(change(QUESTION), b"authorization: KEY\r\n" + headers))
            answer = await client.answer()
            assert answer.status == status, headers
            assert (answer.headers.get("accept-encoding") == "identity") == (status == 415)
            if status != 200:
                assert_refused(answer, status, {400: "invalid_json", 415: "unsupported_media_type"}[status], says)
