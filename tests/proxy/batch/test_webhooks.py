"""Webhooks: signatures as others check them, deliveries from rows, again and again, whoever is killed in between."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import Engine, insert, select

from backends.errors import InvalidRequest
from proxy import database as db
from proxy.batch import webhooks
from proxy.batch.values import Batch, Status
from proxy.batch.webhook_rows import CLAIM_S, KEPT_S, Due, EventStore
from proxy.batch.webhooks import Destinations, Notifier
from proxy.logging import configure
from tests.fakes.faulty_servers import Answers, NeverAnswers, Server, plain
from tests.waiting import until

KEY = bytes(range(32))
SECRET = webhooks.secret_text(KEY)
NOW = 1_800_000_000
OK, BUSY, ERROR = (
    plain(b""),
    b"HTTP/1.1 429 Busy\r\nretry-after: 1000\r\ncontent-length: 0\r\n\r\n",
    plain(b"", b"500 X"),
)


def a_batch(**more: Any) -> Batch:
    given: dict[str, Any] = {
        "id": "batch_1", "owner": "proj_1", "key_id": "key_1", "status": Status.COMPLETED,
        "endpoint": "/v1/chat/completions", "input_file_id": "file-1", "completion_window": "24h",
        "created_at": NOW - 60, "expires_at": NOW + 60,
    }  # fmt: skip
    return Batch(**{**given, **more})


# -- signatures ------------------------------------------------------------------------------------------------------


def test_a_signature_is_the_published_one_of_the_standard() -> None:
    key = webhooks.secret_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = webhooks.sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_while_a_secret_takes_anothers_place_both_can_check() -> None:
    old, new = b"o" * 32, b"n" * 32
    first, second = webhooks.sign([new, old], "evt_1", NOW, b"{}").split(" ")
    assert [first] == [webhooks.sign([new], "evt_1", NOW, b"{}")]
    assert [second] == [webhooks.sign([old], "evt_1", NOW, b"{}")]


@pytest.mark.parametrize("text", ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_!!!!", "whsec_c2hvcnQ="])
def test_a_secret_that_is_none_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="expected whsec_") as caught:
        webhooks.secret_of(text)
    assert not text or text.removeprefix("whsec_") not in str(caught.value) or text == "whsec_"


def test_what_one_project_may_check_with_makes_no_messages_for_another() -> None:
    assert len({KEY, webhooks.owners_secret(KEY, "one"), webhooks.owners_secret(KEY, "other")}) == 3
    assert webhooks.secret_of(webhooks.secret_text(webhooks.owners_secret(KEY, ""))) == webhooks.owners_secret(KEY, "")


# -- what is told, where, and when again -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED])
def test_an_event_is_the_one_that_openai_sends(status: Status) -> None:
    [row] = webhooks.events_of(a_batch(status=status), ["https://a.b/"], NOW + 0.7)
    assert json.loads(row["body"]) == {
        "id": row["id"], "object": "event", "type": f"batch.{status.value}", "created_at": NOW,
        "data": {"id": "batch_1"},
    }  # fmt: skip
    assert row["id"].startswith("evt_")
    assert len(row["id"]) <= 64


def test_everybody_who_asked_for_it_is_told_once() -> None:
    rows = webhooks.events_of(a_batch(webhook="https://c.d/"), ["https://a.b/", "https://c.d/"], NOW)
    assert [row["url"] for row in rows] == ["https://a.b/", "https://c.d/"]
    assert len({row["id"] for row in rows}) == 2
    assert webhooks.events_of(a_batch(), [], NOW) == []


ALLOWED = Destinations(
    ("http://10.0.0.1/all",), frozenset(map(webhooks.origin_of, ["hooks.example.org", "http://10.0.0.5:8080"]))
)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.org/x?y", "https://HOOKS.example.org:443/", "http://10.0.0.5:8080/z"]
)
def test_a_batchs_own_webhook_may_lead_to_an_allowed_origin(url: str) -> None:
    assert ALLOWED.check(url) == url
    assert ALLOWED.allows(url)
    assert not ALLOWED.private_at(url)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://hooks.example.org/", "webhook_host_not_allowed"),
        ("https://hooks.example.org:8443/", "webhook_host_not_allowed"),
        ("https://hooks.example.org.evil.net/", "webhook_host_not_allowed"),
        ("https://evil.net/hooks.example.org", "webhook_host_not_allowed"),
        ("https://10.0.0.5:8080/", "webhook_host_not_allowed"),
        ("http://10.0.0.1/all", "webhook_host_not_allowed"),
        ("https://hooks.example.org@evil.net/", "invalid_value"),
        ("https://evil.net\\@hooks.example.org/", "invalid_value"),
        ("hooks.example.org", "invalid_value"),
    ],
)
def test_and_nowhere_else(url: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ALLOWED.check(url)
    assert (caught.value.code, caught.value.param) == (code, "webhook")


def test_where_nothing_is_allowed_a_batch_has_no_webhook() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Destinations(("https://a.b/",)).check("https://a.b/")
    assert caught.value.code == "webhooks_not_allowed"


@pytest.mark.parametrize("text", ["", "https://a.b/path", "a.b/path", "https://u@a.b", "a b", "*"])
def test_hosts_that_are_none(text: str) -> None:
    if text == "*":  # a host called so, which is nobody's: there are no patterns
        assert webhooks.origin_of(text) == "https://*:443"
        return
    with pytest.raises(ValueError, match="expected"):
        webhooks.origin_of(text)


def test_waits_grow_to_a_day_and_then_it_is_given_up() -> None:
    waits = [webhooks.next_try_s(attempts, None, 0) for attempts in range(1, 11)]
    assert waits == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, None]
    assert webhooks.next_try_s(1, None, 1) == 5.5
    assert webhooks.next_try_s(1, 70, 0) == 70
    assert webhooks.next_try_s(2, 70, 0) == 300
    assert webhooks.next_try_s(1, 1e9, 0) == 86400


# -- delivering ------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


class Stand:
    """A database with a batch that has ended, and notifiers on it."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.clock = Clock()
        self.store = EventStore(engine, self.clock)
        self.log_path = directory / "log"
        self._file = self.log_path.open("ab")
        self.log, self.lines = configure(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def logged(self) -> str:
        self.lines.flush()
        return self.log_path.read_text()

    def tell(self, *urls: str, own: str | None = None, owner: str = "proj_1") -> None:
        """A batch has ended."""
        batch = a_batch(webhook=own, owner=owner)
        row = {name: getattr(batch, name) for name in batch.__slots__ if name in db.batches.c} | {
            "status": batch.status.value, "errors": None, "mixed_models": 0, "not_before": 0, "cleared": 0,
        }  # fmt: skip
        with db.writing(self.engine) as connection:
            connection.execute(insert(db.batches).values(**row))
        self.store.add(webhooks.events_of(batch, urls, self.clock()))

    def notifier(self, *urls: str, origins: frozenset[str] = frozenset(), private: bool = False) -> Notifier:
        return Notifier(
            self.store, Destinations(urls, origins, private), [KEY], self.log, now=self.clock, jitter=lambda: 0.0,
            look_every_s=0.01,
        )  # fmt: skip

    def rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(db.webhook_events).order_by(db.webhook_events.c.id)))


@pytest.fixture
def stand(engine: Engine, tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(engine, tmp_path)
    yield stand
    stand.close()


@asynccontextmanager
async def running(notifier: Notifier) -> AsyncIterator[None]:
    await notifier.start()
    try:
        yield
    finally:
        await notifier.stop()


def url_of(server: Server) -> str:
    return f"http://{server.host}:{server.port}/hook"


def received(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}, body


async def test_a_delivery_is_one_that_the_official_client_takes(stand: Stand) -> None:
    stand.clock.now = time.time()  # the client looks at its own clock
    async with Answers(OK) as server, running(stand.notifier(url_of(server))):
        stand.tell(url_of(server))
        await server.wait_for_requests()
        await until(lambda: stand.rows()[0].delivered_at is not None)
        headers, body = received(server.requests[0])
    with OpenAI(api_key="x") as client:
        event = client.webhooks.unwrap(body, headers, secret=SECRET)
    assert event.type == "batch.completed"
    assert (event.data.id, event.id) == ("batch_1", headers["webhook-id"])
    # and by hand, as the standard has it
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body.decode()}"
    expected = base64.b64encode(hmac.new(KEY, signed.encode(), hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["content-type"] == "application/json"
    [row] = stand.rows()
    assert (row.attempts, row.next_at, row.given_up_at) == (1, None, None)
    assert "webhook_delivered" in stand.logged()


async def test_a_batchs_own_webhook_is_signed_with_the_secret_of_its_project(stand: Stand) -> None:
    async with Answers(OK) as server:
        origins = frozenset({f"http://{server.host}:{server.port}"})
        stand.tell(own=url_of(server), owner="proj_9")
        assert await stand.notifier(origins=origins, private=True).send_due() == 1
        headers, body = received(server.requests[0])
    key = webhooks.owners_secret(KEY, "proj_9")
    assert headers["webhook-signature"] == webhooks.sign([key], headers["webhook-id"], NOW, body)


async def test_a_receiver_that_fails_gets_it_again_with_the_same_id_and_a_new_signature(stand: Stand) -> None:
    async with Answers(ERROR, BUSY, OK) as server:
        notifier = stand.notifier(url_of(server))
        stand.tell(url_of(server))
        assert await notifier.send_due() == 1
        for wait_s in (5, 1000):
            stand.clock.now += wait_s - 1
            assert await notifier.send_due() == 0
            stand.clock.now += 1
            assert await notifier.send_due() == 1
        assert stand.rows()[0].attempts == 3
        heard = [received(request) for request in server.requests]
        assert len({headers["webhook-id"] for headers, _ in heard}) == 1
        assert len({headers["webhook-timestamp"] for headers, _ in heard}) == 3
        assert len({body for _, body in heard}) == 1
        stand.clock.now += 10**6
        assert await notifier.send_due() == 0
        [row] = stand.rows()
        assert row.delivered_at is not None


async def test_a_receiver_that_never_takes_it_is_given_up_after_three_days(stand: Stand) -> None:
    async with Answers(ERROR) as server:
        notifier = stand.notifier(url_of(server))
        stand.tell(url_of(server))
        while await notifier.send_due():
            stand.clock.now = max(stand.clock.now, stand.rows()[0].next_at or 0)
        assert len(server.requests) == 10
        [row] = stand.rows()
        assert (row.delivered_at, row.next_at) == (None, None)
        assert 3 * 86400 < row.given_up_at - NOW < 4 * 86400
        assert "webhook_given_up" in stand.logged()
        stand.clock.now += KEPT_S
        assert stand.store.forget() == 1


async def test_a_receiver_that_is_gone_is_not_asked_again(stand: Stand) -> None:
    async with Answers(plain(b"", b"410 Gone")) as server:
        stand.tell(url_of(server))
        assert await stand.notifier(url_of(server)).send_due() == 1
    assert stand.rows()[0].given_up_at is not None


async def test_a_gateway_that_is_killed_while_it_sends_leaves_it_to_the_next(stand: Stand) -> None:
    async with NeverAnswers() as silent:
        url = url_of(silent)
        killed = stand.notifier(url)
        await killed.start()
        stand.tell(url)
        await silent.wait_for_requests()
        await killed.stop()  # it is cut off: nothing of it is written
        await silent.wait_closed_by_peer()
    [row] = stand.rows()
    assert (row.attempts, row.delivered_at, row.given_up_at) == (1, None, None)
    async with Answers(OK) as server:
        with db.writing(stand.engine) as connection:  # the receiver is well again, elsewhere
            connection.execute(db.webhook_events.update().values(url=url_of(server)))
        following = stand.notifier(url_of(server))
        assert await following.send_due() == 0  # it may still be under way
        stand.clock.now += CLAIM_S
        assert await following.send_due() == 1
        headers, _ = received(server.requests[0])
    assert headers["webhook-id"] == row.id
    assert stand.rows()[0].delivered_at is not None


async def test_of_several_gateways_one_sends(stand: Stand) -> None:
    async with Answers(OK) as server:
        many = [stand.notifier(url_of(server)) for _ in range(4)]
        for number in range(8):
            stand.store.add(webhooks.events_of(a_batch(id=f"batch_{number}"), [url_of(server)], NOW))
        while sum(await asyncio.gather(*(notifier.send_due() for notifier in many))):
            pass
        heard = [received(request)[0]["webhook-id"] for request in server.requests]
    assert sorted(heard) == sorted(row.id for row in stand.rows())
    assert stand.store.waiting() == 0


async def test_a_slow_receiver_keeps_no_other_waiting(stand: Stand) -> None:
    async with NeverAnswers() as silent, Answers(OK) as server:
        async with running(stand.notifier(url_of(silent), url_of(server))):
            stand.tell(url_of(silent), url_of(server))
            await server.wait_for_requests()
            await until(lambda: any(row.delivered_at for row in stand.rows()))


async def test_what_is_not_allowed_any_more_is_not_sent(stand: Stand) -> None:
    async with Answers(OK) as server:
        stand.tell(own=url_of(server))
        assert await stand.notifier().send_due() == 1
        assert server.connections_opened == 0
    assert stand.rows()[0].given_up_at is not None


async def test_an_allowed_host_at_a_private_address_is_not_sent_to_unless_that_is_allowed(stand: Stand) -> None:
    async with Answers(OK) as server:
        origins = frozenset({f"http://{server.host}:{server.port}"})
        stand.tell(own=url_of(server))
        assert await stand.notifier(origins=origins).send_due() == 1
        assert server.connections_opened == 0
        stand.clock.now += 5
        assert await stand.notifier(origins=origins, private=True).send_due() == 1
        assert len(server.requests) == 1


async def test_neither_secrets_nor_paths_reach_the_log(stand: Stand) -> None:
    async with Answers(ERROR, OK) as server:
        url = f"http://{server.host}:{server.port}/secret-path?token=secret-token"
        notifier = stand.notifier(url)
        stand.tell(url)
        await notifier.send_due()
        stand.clock.now += 5
        await notifier.send_due()
    logged = stand.logged()
    assert "webhook_failed" in logged
    assert "answered with status 500" in logged
    for secret in ("secret-path", "secret-token", SECRET, SECRET.removeprefix("whsec_")):
        assert secret not in logged


async def test_a_database_that_is_away_is_waited_for(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    whole, calls = stand.store.claim, 0

    def claim(limit: int) -> list[Due]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OperationalError("SELECT", {}, Exception("away"))
        return whole(limit)

    monkeypatch.setattr(stand.store, "claim", claim)
    async with Answers(OK) as server, running(stand.notifier(url_of(server))):
        stand.tell(url_of(server))
        await until(lambda: stand.rows()[0].delivered_at is not None)
    assert "webhooks_not_read" in stand.logged()


async def test_once_stopped_it_uses_the_database_no_more(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, under_way, go_on, ended = stand.store.claim, threading.Event(), threading.Event(), threading.Event()

    def claim(limit: int) -> list[Due]:
        under_way.set()
        assert go_on.wait(30)
        try:
            return whole(limit)
        finally:
            ended.set()

    monkeypatch.setattr(stand.store, "claim", claim)
    notifier = stand.notifier()
    await notifier.start()
    await until(under_way.is_set)
    stopping = asyncio.create_task(notifier.stop())
    await asyncio.wait({stopping}, timeout=0.05)
    assert not stopping.done()
    go_on.set()
    await stopping
    assert ended.is_set()
