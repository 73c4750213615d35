"""One delivery over a real socket: what is sent, what counts as taken, and where nothing is ever sent."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.batch.webhook_post import NotDelivered, destination_of, is_public, post
from tests.fakes.faulty_servers import Answers, AnswersAndCloses, NeverAnswers, Server, plain


async def sent(server: Server, path: str = "/hook?token=1", *, private: bool = True, timeout_s: float = 10) -> int:
    url = f"http://{server.host}:{server.port}{path}"
    return await post(url, {"webhook-id": "evt_1"}, b'{"a":1}', private=private, timeout_s=timeout_s)


async def test_a_delivery_is_one_post_with_its_body_and_headers() -> None:
    async with Answers(plain(b"", b"204 No Content")) as server:
        assert await sent(server) == 204
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        first, *fields = head.split(b"\r\n")
        assert first == b"POST /hook?token=1 HTTP/1.1"
        assert body == b'{"a":1}'
        assert sorted(fields) == [
            b"connection: close",
            b"content-length: 7",
            f"host: 127.0.0.1:{server.port}".encode(),
            b"webhook-id: evt_1",
        ]
        await server.wait_all_closed()


@pytest.mark.parametrize("status", [b"301 Moved", b"400 Bad Request", b"410 Gone", b"500 Oops", b"101 Switching"])
async def test_whatever_is_no_success_is_not_delivered_and_no_redirect_is_followed(status: bytes) -> None:
    answer = b"HTTP/1.1 %s\r\nlocation: /elsewhere\r\nretry-after: 70\r\n\r\n" % status
    async with AnswersAndCloses(answer) as server:
        with pytest.raises(NotDelivered) as caught:
            await sent(server)
        if status.startswith(b"101"):  # a word before the answer, which then did not come
            assert caught.value.status is None
        else:
            assert caught.value.status == int(status[:3])
            assert caught.value.retry_after_s == 70
        assert len(server.requests) == 1


async def test_a_word_before_the_answer_is_not_the_answer() -> None:
    async with Answers(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as server:
        assert await sent(server) == 200


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n", b"x" * 40_000])
async def test_what_does_not_speak_http_has_not_taken_it(answer: bytes) -> None:
    async with AnswersAndCloses(answer) as server:
        with pytest.raises(NotDelivered, match="not HTTP"):
            await sent(server)


async def test_a_receiver_that_says_nothing_is_not_waited_for_for_ever() -> None:
    async with NeverAnswers() as server:
        with pytest.raises(NotDelivered, match=r"no answer within 0\.2 s"):
            await sent(server, timeout_s=0.2)
        await server.wait_closed_by_peer()


async def test_a_receiver_that_is_not_there() -> None:
    async with Server() as server:
        port = server.port
    with pytest.raises(NotDelivered):
        await post(f"http://127.0.0.1:{port}/", {}, b"", private=True)
    with pytest.raises(NotDelivered):
        await post("http://no-such-host.invalid/", {}, b"", private=True)


# -- where nothing goes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0", "2130706433"])
async def test_nothing_is_sent_to_this_machine_unless_that_is_allowed(host: str) -> None:
    async with Answers() as server:
        with pytest.raises(NotDelivered):
            await post(f"http://{host}:{server.port}/", {}, b"", private=False)
        assert server.connections_opened == 0
        assert await sent(server, private=True) == 200


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::5db8:d70e", True),
        ("2002:a00:1::1", False),
        ("ff02::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example.org", "ftp://example.org/", "https://", "https:///path", "https://user:pw@example.org/",
        "https://@example.org/", "https://example.org:0/", "https://example.org:99999/", "https://example.org/#part",
        "https://exa mple.org/", "https://example.org/\r\nhost: x", "https://example.org/\t", "https://exämple.org/",
        "https://[fe80::1%25eth0]/", "https://example.org\\@10.0.0.1/", "https://example.org/" + "x" * 2000,
        "file:///etc/passwd", "unix:/run/x", "https://example.org%2f@x/",
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected an address"):
        destination_of(url)


@pytest.mark.parametrize(
    ("url", "origin", "host_header", "target"),
    [
        ("https://Hooks.Example.org", "https://hooks.example.org:443", "hooks.example.org", "/"),
        ("http://a.b:8080/x?y=1", "http://a.b:8080", "a.b:8080", "/x?y=1"),
        ("http://[::1]:8080/x", "http://[::1]:8080", "[::1]:8080", "/x"),
        ("https://a.b:443/x", "https://a.b:443", "a.b", "/x"),
    ],
)
def test_addresses(url: str, origin: str, host_header: str, target: str) -> None:
    found = destination_of(url)
    assert (found.origin, found.host_header, found.target) == (origin, host_header, target)


# -- TLS -------------------------------------------------------------------------------------------------------------


def certificate_in(directory: Path) -> tuple[Path, Path]:
    """Of localhost, and its key."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@asynccontextmanager
async def with_tls(directory: Path) -> AsyncIterator[tuple[Answers, ssl.SSLContext]]:
    """A receiver with a certificate of its own, and who trusts it."""
    certificate, key = certificate_in(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Secure(Answers):
        tls = context

    async with Secure() as server:
        yield server, ssl.create_default_context(cafile=str(certificate))


async def test_over_tls_the_receiver_must_be_who_its_url_says(tmp_path: Path) -> None:
    async with with_tls(tmp_path) as (server, trusting):
        url = f"https://localhost:{server.port}/"
        assert await post(url, {}, b"{}", private=True, tls=trusting) == 200
        for wrong, context in ((url, None), (f"https://127.0.0.1:{server.port}/", trusting)):
            with pytest.raises(NotDelivered, match="TLS"):
                await post(wrong, {}, b"{}", private=True, tls=context)
        assert len(server.requests) == 1
