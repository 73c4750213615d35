from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from backends.errors import InvalidRequest, NotFound
from proxy import database as db
from proxy import stored_responses
from proxy.stored_responses import KEEP_S, Conversation, StorageFailed, StoredResponses

Json = dict[str, Any]


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Engine, clock: Clock) -> StoredResponses:
    return StoredResponses(database, now=clock)


def item(name: str) -> Json:
    return {"type": "message", "id": f"msg_{name}", "role": "user", "content": name}


def response(name: str, previous: str | None = None) -> Json:
    return {"id": f"resp_{name}", "previous_response_id": previous, "output": [item(f"{name}_out")]}


async def put_chain(store: StoredResponses, *names: str) -> None:
    before = Conversation()
    previous = None
    for name in names:
        await store.put("k", response(name, previous), [item(f"{name}_in")], before.chain)
        previous = f"resp_{name}"
        before = await store.conversation("k", previous)


def ids(items: Any) -> list[str]:
    return [one["id"].removeprefix("msg_") for one in items]


async def test_a_conversation_is_told_from_its_beginning(store: StoredResponses) -> None:
    await put_chain(store, "a", "b", "c")
    found = await store.conversation("k", "resp_c")
    assert ids(found.items) == ["a_in", "a_out", "b_in", "b_out", "c_in", "c_out"]
    assert found.chain == ["resp_c", "resp_b", "resp_a"]
    assert ids(await store.input_items("k", "resp_b")) == ["a_in", "a_out", "b_in"]


async def test_what_was_deleted_is_gone_from_every_conversation(store: StoredResponses) -> None:
    await put_chain(store, "a", "b", "c")
    await store.delete("k", "resp_b")
    with pytest.raises(InvalidRequest, match="resp_b") as caught:
        await store.conversation("k", "resp_c")
    assert caught.value.code == "previous_response_not_found"
    assert ids(await store.input_items("k", "resp_c")) == ["c_in"]
    assert await store.find_items("k", ["msg_b_in", "msg_b_out"]) == {}
    assert (await store.show("k", "resp_c"))["id"] == "resp_c"


async def test_another_owner_finds_nothing(store: StoredResponses) -> None:
    await put_chain(store, "a")
    for owner in ("other", ""):
        with pytest.raises(NotFound):
            await store.show(owner, "resp_a")
        with pytest.raises(NotFound):
            await store.delete(owner, "resp_a")
        with pytest.raises(NotFound):
            await store.input_items(owner, "resp_a")
        with pytest.raises(InvalidRequest):
            await store.conversation(owner, "resp_a")
        assert await store.find_items(owner, ["msg_a_in"]) == {}


async def test_the_same_item_of_two_owners_is_two(store: StoredResponses) -> None:
    await store.put("one", response("a"), [{**item("x"), "content": "one"}])
    await store.put("two", response("b"), [{**item("x"), "content": "two"}])
    for owner in ("one", "two"):
        assert (await store.find_items(owner, ["msg_x"]))["msg_x"]["content"] == owner


async def test_what_is_past_its_time_does_not_exist_and_is_swept(
    store: StoredResponses, clock: Clock, database: Engine
) -> None:
    await put_chain(store, "a")
    clock.now += KEEP_S - 1
    assert store.sweep() == 0
    await put_chain(store, "b")
    clock.now += 1
    with pytest.raises(NotFound):
        await store.show("k", "resp_a")
    assert await store.find_items("k", ["msg_a_in"]) == {}
    assert store.sweep() == 1
    with database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(db.stored_items)).scalar() == 2
    assert (await store.show("k", "resp_b"))["id"] == "resp_b"


async def test_a_conversation_lasts_as_long_as_its_newest_response(store: StoredResponses, clock: Clock) -> None:
    await put_chain(store, "a")
    clock.now += KEEP_S - 1
    before = await store.conversation("k", "resp_a")
    await store.put("k", response("b", "resp_a"), [item("b_in")], before.chain)
    clock.now += KEEP_S - 1
    assert store.sweep() == 0
    assert ids((await store.conversation("k", "resp_b")).items) == ["a_in", "a_out", "b_in", "b_out"]


async def test_a_conversation_that_is_too_long_is_refused(
    store: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_chain(store, "a", "b", "c")
    monkeypatch.setattr(stored_responses, "CHAIN_LIMIT", 2)
    with pytest.raises(InvalidRequest, match="too long"):
        await store.conversation("k", "resp_c")
    monkeypatch.undo()
    monkeypatch.setattr(stored_responses, "CHAIN_BYTES", 100)
    with pytest.raises(InvalidRequest, match="too long"):
        await store.conversation("k", "resp_c")


async def test_a_database_that_fails_is_an_error_of_ours(store: StoredResponses, database: Engine) -> None:
    db.stored_responses.drop(database)
    with pytest.raises(StorageFailed) as caught:
        await store.show("k", "resp_a")
    assert (caught.value.status, dict(caught.value.headers)) == (503, {})
    with pytest.raises(StorageFailed) as caught:
        await store.put("k", response("a"), [])
    assert caught.value.headers == {b"x-should-retry": b"false"}


@pytest.mark.parametrize("name", ["\0", "x" * 10_000], ids=["a NUL", "long"])
async def test_ids_that_no_table_holds_are_not_found_and_stored_without(store: StoredResponses, name: str) -> None:
    for attempt in (store.show("k", name), store.delete("k", name)):
        with pytest.raises(NotFound):
            await attempt
    with pytest.raises(InvalidRequest):
        await store.conversation("k", name)
    assert await store.find_items("k", [name]) == {}
    await store.put("k", response("a"), [{**item("x"), "id": name}])
    assert await store.find_items("k", ["msg_a_out"]) != {}
    assert (await store.input_items("k", "resp_a"))[0]["id"] == name
