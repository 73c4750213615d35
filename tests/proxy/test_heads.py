"""A head that is known is taken for itself only: what differs in anything but its length goes through the parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.heads import KnownHead, learn
from tests.fakes.chat_engine import Answers
from tests.in_process import serving
from tests.proxy.test_http_edge import config, connected

HEADERS = [(b"host", b"x"), (b"content-length", b"2"), (b"authorization", b"Bearer k")]
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\nauthorization: Bearer k\r\n\r\n"


def scope(headers: list[tuple[bytes, bytes]] = HEADERS) -> dict[str, Any]:
    told = ("asgi", "server", "client", "scheme", "root_path", "method", "path", "raw_path", "query_string")
    return {**dict.fromkeys(told), "type": "http", "http_version": "1.1", "headers": headers}


@pytest.fixture
def known() -> KnownHead:
    found = learn(HEAD % b"2" + b"{}", scope())
    assert found is not None
    return found


@pytest.mark.parametrize("body", [b"", b"{}", b"{" + b" " * 5000 + b"}"])
def test_the_same_head_with_another_length_is_known(known: KnownHead, body: bytes) -> None:
    assert known.body_of(HEAD % str(len(body)).encode() + body) == body
    assert known.scope_for(len(body))["headers"][1] == (b"content-length", str(len(body)).encode())
    assert HEADERS[1] == (b"content-length", b"2"), "each request has headers of its own"


@pytest.mark.parametrize(
    "data",
    [
        HEAD % b"3" + b"{}",
        HEAD % b"1" + b"{}",
        HEAD % b"2" + b"{",
        HEAD % b"-2" + b"{}",
        HEAD % b"+2" + b"{}",
        HEAD % b" 2" + b"{}",
        HEAD % b"2 " + b"{}",
        HEAD % b"" + b"{}",
        HEAD % b"0x2" + b"{}",
        HEAD % "\u0662".encode() + b"{}",
        HEAD % b"2\r\nx: y" + b"{}",
        HEAD % b"2, 2" + b"{}",
        HEAD % b"2" + b"{}" + HEAD % b"2" + b"{}",
        (HEAD % b"2").replace(b"Bearer k", b"Bearer l") + b"{}",
        (HEAD % b"2").replace(b"/v1/x", b"/v1/y") + b"{}",
        (HEAD % b"2")[:-2] + b"a: b\r\n\r\n{}",
        b"\r\n" + HEAD % b"2" + b"{}",
        b"",
    ],
)
def test_every_other_is_not(known: KnownHead, data: bytes) -> None:
    assert known.body_of(data) is None


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (HEAD, [(b"connection", b"close")]),
        (HEAD, [(b"transfer-encoding", b"chunked")]),
        (HEAD, [(b"expect", b"100-continue")]),
        (HEAD, [(b"upgrade", b"h2c")]),
        (HEAD, [(b"content-length", b"2")]),
        (HEAD.replace(b"POST", b"GET"), []),
        (HEAD.replace(b"\r\n\r\n", b"\r\nx: %b\r\n\r\n" % (b"y" * 5000)), []),
        (HEAD.replace(b"Content-Length: ", b"Content-Length:\t"), []),
    ],
)
def test_a_head_with_more_to_it_is_not_learned(head: bytes, more: list[tuple[bytes, bytes]]) -> None:
    assert learn(head % b"2" + b"{}", scope([*HEADERS, *more])) is None


async def test_requests_on_one_connection_are_told_apart(tmp_path: Path) -> None:
    """Known heads, unknown ones, bodies in pieces and broken requests after each other: each has its own answer."""
    async with Answers() as engine, serving(config(engine), tmp_path) as served, connected(served) as client:

        def post(content: str, *more: str) -> bytes:
            body = f'{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]}}'.encode()
            lines = "".join(f"{line}\r\n" for line in more)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n{lines}"
            return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

        def asked(at: int = -1) -> str:
            content: str = engine.requests[at].body["messages"][0]["content"]
            return content

        for content in ("a", "bb", "ccc"):
            await client.send(post(content))
            assert (await client.answer()).status == 200
            assert asked() == content
        await client.send(post("d", "x-more: 1"))
        assert (await client.answer()).status == 200
        whole = post("in pieces")
        for piece in (whole[:20], whole[20:-5], whole[-5:]):
            await client.send(piece)
        assert (await client.answer()).status == 200
        assert asked() == "in pieces"
        await client.send(post("e") + post("f"))
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        await client.send(post("g").replace(b"Bearer ", b"Bearer x"))
        assert (await client.answer()).status == 401
        await client.send(post("h"))
        assert (await client.answer()).status == 200
        assert [asked(at) for at in (-3, -2, -1)] == ["e", "f", "h"]
