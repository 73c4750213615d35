"""Whose a key is: looked up in memory, right within the second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from starlette.types import Receive, Scope, Send

from backends.errors import NotAuthenticated, NotFound
from proxy.auth import Authentication, KeyRing, seconds_of
from proxy.keys import digest
from proxy.principals import ANYBODY, Principal
from proxy.record import Record, attach, record_of
from proxy.registry import Entry, Registry
from tests.fakes.backends import AnswersAtOnce
from tests.in_process import serving


class Keys:
    """A store whose content a test changes."""

    def __init__(self, **principals: Principal) -> None:
        self.keys = principals

    def valid(self) -> dict[str, Principal]:
        return {digest(key): principal for key, principal in self.keys.items()}

    def ever(self) -> bool:
        return bool(self.keys)


def ring_of(store: Keys, now: float = 0.0) -> KeyRing:
    ring = KeyRing(store, loopback_only=True, clock=lambda: now)
    ring.refresh()
    return ring


def test_a_key_gives_its_principal() -> None:
    ada = Principal("key_1", "proj_1", frozenset({"m"}))
    ring = ring_of(Keys(ada=ada))
    for _ in range(2):
        assert ring.principal(b"Bearer ada") is ada


def test_without_any_key_it_is_anybody() -> None:
    assert ring_of(Keys()).principal(None) is ANYBODY


def test_a_key_that_the_store_no_longer_gives_stops_working_at_the_next_look() -> None:
    """Revoked, disabled, its project archived: the store knows."""
    store = Keys(ada=Principal("key_1"), bob=Principal("key_2"))
    ring = ring_of(store)
    ring.principal(b"Bearer ada")
    del store.keys["ada"]
    ring.refresh()
    with pytest.raises(NotAuthenticated):
        ring.principal(b"Bearer ada")
    assert ring.principal(b"Bearer bob").key_id == "key_2"


def test_a_key_expires_in_its_very_second_without_another_look() -> None:
    store, now = Keys(ada=Principal("key_1", expires_at=100)), 99.9
    ring = KeyRing(store, loopback_only=False, clock=lambda: now)
    ring.refresh()
    for _ in range(2):
        assert ring.principal(b"Bearer ada").key_id == "key_1"
    now = 100.0
    with pytest.raises(NotAuthenticated, match="expired"):
        ring.principal(b"Bearer ada")


def test_a_key_that_was_changed_is_another_principal() -> None:
    store = Keys(ada=Principal("key_1"))
    ring = ring_of(store)
    assert ring.principal(b"Bearer ada").models is None
    store.keys["ada"] = Principal("key_1", models=frozenset({"m"}))
    ring.refresh()
    assert ring.principal(b"Bearer ada").models == frozenset({"m"})


def test_a_look_that_changes_nothing_keeps_what_is_known() -> None:
    store = Keys(ada=Principal("key_1"))
    ring = ring_of(store)
    known = ring.principal(b"Bearer ada")
    store.keys["ada"] = Principal("key_1")
    ring.refresh()
    assert ring.principal(b"Bearer ada") is known


def test_a_key_revoked_while_it_is_looked_up_is_not_remembered() -> None:
    """The refresh runs in a thread: here it runs between reading the valid keys and noting what was found."""
    store = Keys(ada=Principal("key_1"))
    ring = ring_of(store)

    class RevokedMeanwhile(dict[str, Principal]):
        def get(self, key: str, default: object = None) -> Principal:
            found = self[key]
            store.keys.clear()
            ring.refresh()
            return found

    ring._valid = RevokedMeanwhile(ring._valid)
    ring.principal(b"Bearer ada")  # it came before
    ring.open = False
    with pytest.raises(NotAuthenticated):
        ring.principal(b"Bearer ada")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"600", 600.0),
        (b"2.5", 2.5),
        (b"", None),
        (b"None", None),
        (b"nan", None),
        (b"inf", None),
        (b"0", None),
        (b"-3", None),
        (b"\xff", None),
        (b"1e400", None),
    ],
)
def test_a_read_time_out_is_a_number_of_seconds_or_nothing(text: bytes, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


async def test_the_official_client_says_how_long_it_waits() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"id": "m"})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        OpenAI(base_url="http://gateway/v1", api_key="ada", timeout=20, http_client=http).models.retrieve("m")

    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    headers = [(name.lower(), value) for name, value in asked[0].headers.raw]
    scope: Scope = {"type": "http", "path": "/v1/models/m", "headers": headers, "server": ("127.0.0.1", 8000)}
    attach(scope, Record("GET", "/v1/models/m"))
    await Authentication(app, ring_of(Keys(ada=Principal("key_1"))))(scope, _nothing, _nothing)
    assert record_of(scope).read_timeout_s == 20.0


# -- operators -------------------------------------------------------------------------------------------------------


async def test_only_the_operators_socket_is_an_administrator_without_a_key() -> None:
    """A Unix socket has a path where others have a host and a port."""
    seen: list[Principal] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(record_of(scope).principal)

    async def ask(path: str, server: tuple[str, int | None] | None, key: bytes = b"") -> None:
        headers = [(b"authorization", b"Bearer " + key)] if key else []
        scope: Scope = {"path": path, "server": server, "headers": headers}
        attach(scope, Record("GET", path))
        await guarded(scope, _nothing, _nothing)

    ada = Principal("key_1")
    guarded = Authentication(app, ring_of(Keys(ada=ada)))
    await ask("/admin/keys", ("/state/operators.sock", None))
    assert [principal.admin for principal in seen] == [True]
    for server in (("127.0.0.1", 8000), None):
        with pytest.raises(NotAuthenticated):
            await ask("/admin/keys", server)
        await ask("/admin/keys", server, b"ada")
        assert seen[-1] is ada
    with pytest.raises(NotAuthenticated):
        await ask("/v1/models", ("/state/operators.sock", None))


async def _nothing(*_: object) -> Any:
    raise AssertionError


async def test_reloading_takes_a_key_on_the_port(tmp_path: Path) -> None:
    config = '[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]'
    async with serving(config, tmp_path) as served, httpx.AsyncClient() as http:
        response = await http.post(served.url + "/admin/reload")
        assert response.status_code == 401


# -- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Registry:
    backend = AnswersAtOnce()
    return Registry([Entry("org/large", backend, 1, aliases=("large", "best")), Entry("small", backend, 1)])


def test_an_alias_is_the_same_model(registry: Registry) -> None:
    assert registry.find("best") is registry.find("org/large")
    assert [card["id"] for card in registry.cards()] == ["org/large", "large", "best", "small"]
    assert [card.get("root") for card in registry.cards()] == [None, "org/large", "org/large", None]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ({"org/large"}, ["org/large", "large", "best"]),
        ({"best"}, ["best"]),
        ({"best", "small"}, ["best", "small"]),
        ({"gone"}, []),
        (set(), []),
    ],
)
def test_a_key_sees_and_may_ask_for_what_it_may_use(registry: Registry, models: set[str], names: list[str]) -> None:
    principal = Principal("key_1", models=frozenset(models))
    assert [card["id"] for card in registry.cards(principal)] == names
    for name in ("org/large", "large", "best", "small"):
        if name in names:
            assert registry.find(name, principal)
            continue
        with pytest.raises(NotFound) as caught:
            registry.find(name, principal)
        assert caught.value.message == f"The model '{name}' does not exist or you do not have access to it."
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
