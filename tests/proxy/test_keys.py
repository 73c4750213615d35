from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, text

from backends.errors import NotAuthenticated
from proxy.auth import KeyRing
from proxy.keys import KeyStore
from tests.in_process import serving


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_a_key_opens_until_it_is_revoked(database: Engine) -> None:
    store = KeyStore(database)
    key = store.create("ada")
    ring = KeyRing(store, loopback_only=False)
    ring.refresh()
    key_id = ring.key_id(bearer(key))
    assert key_id == store.list()[0].id
    assert ring.key_id(bearer(key)) == key_id

    assert store.revoke("ada") == 1
    ring.refresh()
    with pytest.raises(NotAuthenticated):
        ring.key_id(bearer(key))


def test_keys_are_stored_hashed(database: Engine) -> None:
    key = KeyStore(database).create("ada")
    with database.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM keys")).all())
    assert key not in stored
    assert key[6:30] not in stored


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic abc", b"Bearer \xff\xfe"]
)
def test_anything_else_is_refused(database: Engine, header: bytes | None) -> None:
    store = KeyStore(database)
    store.create("ada")
    ring = KeyRing(store, loopback_only=True)
    ring.refresh()
    with pytest.raises(NotAuthenticated) as caught:
        ring.key_id(header)
    assert caught.value.status == 401


def test_the_scheme_is_case_insensitive(database: Engine) -> None:
    store = KeyStore(database)
    key = store.create("ada")
    ring = KeyRing(store, loopback_only=False)
    ring.refresh()
    assert ring.key_id(b"bearer " + key.encode())


def test_without_any_key_loopback_is_open_and_nothing_else(database: Engine) -> None:
    for loopback_only in (True, False):
        ring = KeyRing(KeyStore(database), loopback_only=loopback_only)
        ring.refresh()
        assert ring.open is loopback_only


def test_the_first_key_closes_it_and_revoking_the_last_one_does_not_open_it_again(database: Engine) -> None:
    store = KeyStore(database)
    ring = KeyRing(store, loopback_only=True)
    store.create("ada")
    ring.refresh()
    assert not ring.open
    store.revoke("ada")
    ring.refresh()
    assert not ring.open


def test_a_revoked_default_key_is_not_made_again(database: Engine) -> None:
    store = KeyStore(database)
    store.ensure("default", "sk-sg-abcdef")
    store.ensure("default", "sk-sg-abcdef")
    store.revoke("default")
    store.ensure("default", "sk-sg-abcdef")
    assert [key.revoked_at is None for key in store.list()] == [False]


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({}, True),
        ({"origin": "http://localhost:3000"}, True),
        ({"host": "evil.example"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
    ],
)
async def test_without_a_key_pages_of_other_sites_are_not_answered(
    tmp_path: Path, headers: dict[str, str], answered: bool
) -> None:
    async with serving('[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]', tmp_path) as served:
        served.gateway.serving._keys.open = True
        async with httpx.AsyncClient() as http:
            response = await http.get(served.url + "/v1/models", headers=headers)
    assert (response.status_code == 200) is answered


def test_one_key_in_many_spellings_does_not_fill_memory(database: Engine) -> None:
    store = KeyStore(database)
    key = store.create("ada")
    ring = KeyRing(store, loopback_only=False)
    ring.refresh()
    for blanks in range(1, 200):
        assert ring.key_id(b"Bearer" + b" " * blanks + key.encode())
    assert len(ring._seen) < 20
