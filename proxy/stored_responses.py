"""Responses that clients asked to store (`store`, OpenAI's default), in the gateway's database.

    put            a response and the items of its request, before the client hears that it is stored
    conversation   everything that was said up to a response: what `previous_response_id` stands for
    show, delete, input_items, find_items
    sweep          what is past its time

A response belongs to the key that made it; to any other it does not exist. Each row has only what was new in it, and
the chain of `previous_id`s has the rest. So a long conversation does not grow by its square, and what a client deletes
is gone from every conversation it was in: those that went through it cannot be gone on with. Using a chain makes all of
it last as long as its newest response.

Nothing of this is ever logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, Engine, delete, func, insert, literal, select, update
from sqlalchemy.exc import SQLAlchemyError

from backends.errors import GatewayError, InvalidRequest, NotFound

from . import database as db

KEEP_S = 30 * 24 * 3600
"""As long as OpenAI keeps them."""

CHAIN_LIMIT = 2000
"""Responses in one conversation."""

CHAIN_BYTES = 64 * 1024 * 1024
"""Of one conversation: it is read into memory for each of its requests."""

REFERENCE_LIMIT = 1000
"""Items that one request can refer to."""

ID_LENGTH = 200
"""Characters in an item's id; longer ones cannot be referred to."""

Json = dict[str, Any]
T = TypeVar("T")
_responses = db.stored_responses
_items = db.stored_items


class StorageFailed(GatewayError):
    """The database is locked or full. Asking again may help; where there was an answer already, it costs another."""

    status = 503
    code = "storage_failed"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, oldest first, and the responses that it is made of."""

    items: Sequence[Json] = ()
    chain: Sequence[str] = ()


class StoredResponses:
    """now: seconds since the epoch. keep_s: how long a response can be used after its last use."""

    def __init__(self, engine: Engine, *, now: Callable[[], float] = time.time, keep_s: int = KEEP_S) -> None:
        self._engine = engine
        self._now = now
        self._keep_s = keep_s

    # -- what endpoints ask: off the event loop -----------------------------------------------------------------------

    async def put(self, owner: str, response: Json, items: Sequence[Json], chain: Sequence[str] = ()) -> None:
        """Store a response with the items of its own request. `chain` lives on with it. Raises `StorageFailed`."""
        try:
            await self._in_thread(lambda connection: self._put(connection, owner, response, items, chain), writes=True)
        except StorageFailed as error:
            error.headers = MappingProxyType({b"x-should-retry": b"false"})
            raise

    async def show(self, owner: str, response_id: str) -> Json:
        """The response object. Raises `NotFound`."""
        row = await self._in_thread(lambda connection: self._row(connection, owner, response_id))
        response: Json = orjson.loads(row.response)
        return response

    async def delete(self, owner: str, response_id: str) -> None:
        """Raises `NotFound`."""
        await self._in_thread(lambda connection: self._delete(connection, owner, response_id), writes=True)

    async def conversation(self, owner: str, response_id: str) -> Conversation:
        """Up to and with a response. Raises `InvalidRequest` as OpenAI does when it, or one before it, is not there."""
        return await self._in_thread(lambda connection: self._conversation(connection, owner, response_id))

    async def input_items(self, owner: str, response_id: str) -> list[Json]:
        """The items that a response was made from, oldest first. Raises `NotFound`."""
        return await self._in_thread(lambda connection: self._input_items(connection, owner, response_id))

    async def find_items(self, owner: str, item_ids: Iterable[str]) -> dict[str, Json]:
        """Stored items by their ids, as far as they are there."""
        wanted = {item_id for item_id in item_ids if _can_be_an_id(item_id)}
        if len(wanted) > REFERENCE_LIMIT:
            raise InvalidRequest(f"More than {REFERENCE_LIMIT} item references.", param="input")
        return await self._in_thread(lambda connection: self._find_items(connection, owner, wanted)) if wanted else {}

    def sweep(self) -> int:
        """Forget what is past its time; how many responses that was. To be called in a thread."""
        with db.writing(self._engine) as connection:
            past = select(_responses.c.id).where(_responses.c.expires_at <= int(self._now()))
            connection.execute(delete(_items).where(_items.c.response_id.in_(past)))
            done = connection.execute(delete(_responses).where(_responses.c.expires_at <= int(self._now())))
            return int(done.rowcount)

    async def _in_thread(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        def run() -> T:
            with db.writing(self._engine) if writes else self._engine.connect() as connection:
                return work(connection)

        try:
            return await asyncio.to_thread(run)
        except SQLAlchemyError as error:
            raise StorageFailed("Stored responses cannot be reached now.", retry_after_s=5.0) from error

    # -- in a transaction ---------------------------------------------------------------------------------------------

    def _put(
        self, connection: Connection, owner: str, response: Json, items: Sequence[Json], chain: Sequence[str]
    ) -> None:
        expires_at = int(self._now()) + self._keep_s
        row = {
            "id": response["id"],
            "key_id": owner,
            "previous_id": response.get("previous_response_id"),
            "expires_at": expires_at,
            "response": orjson.dumps(response),
            "input": orjson.dumps(items),
        }
        connection.execute(insert(_responses).values(**row))
        held = [
            {"key_id": owner, "item_id": item["id"], "response_id": response["id"]}
            for item in (*items, *response["output"])
            if isinstance(item.get("id"), str) and _can_be_an_id(item["id"])
        ]
        if held:
            db.upsert(connection, _items, held, lambda new: {"response_id": new.response_id})
        if chain:
            mine = (_responses.c.id.in_(chain), _responses.c.key_id == owner)
            # locked in one order: two requests that go on with one conversation wait, and do not lock each other out
            connection.execute(select(_responses.c.id).where(*mine).order_by(_responses.c.id).with_for_update())
            connection.execute(update(_responses).where(*mine).values(expires_at=expires_at))

    def _row(self, connection: Connection, owner: str, response_id: str) -> Any:
        mine = select(_responses).where(
            _responses.c.id == response_id, _responses.c.key_id == owner, _responses.c.expires_at > int(self._now())
        )
        row = connection.execute(mine).first() if _can_be_an_id(response_id) else None
        if row is None:
            raise NotFound(f"Response with id '{response_id[:80]}' not found.")
        return row

    def _delete(self, connection: Connection, owner: str, response_id: str) -> None:
        self._row(connection, owner, response_id)
        connection.execute(delete(_items).where(_items.c.response_id == response_id))
        connection.execute(delete(_responses).where(_responses.c.id == response_id, _responses.c.key_id == owner))

    def _input_items(self, connection: Connection, owner: str, response_id: str) -> list[Json]:
        row = self._row(connection, owner, response_id)
        try:
            before = self._conversation(connection, owner, row.previous_id).items if row.previous_id else ()
        except InvalidRequest:  # deleted since
            before = ()
        return [*before, *orjson.loads(row.input)]

    def _find_items(self, connection: Connection, owner: str, wanted: set[str]) -> dict[str, Json]:
        holders = (
            select(_responses.c.response, _responses.c.input)
            .join(_items, (_items.c.response_id == _responses.c.id) & (_items.c.key_id == _responses.c.key_id))
            .where(_items.c.key_id == owner, _items.c.item_id.in_(wanted), _responses.c.expires_at > int(self._now()))
            .distinct()
        )
        found: dict[str, Json] = {}
        for row in connection.execute(holders):
            for item in (*orjson.loads(row.input), *orjson.loads(row.response)["output"]):
                if item.get("id") in wanted:
                    found[item["id"]] = item
        return found

    def _conversation(self, connection: Connection, owner: str, response_id: str) -> Conversation:
        valid = (_responses.c.key_id == owner, _responses.c.expires_at > int(self._now()))
        size = (func.length(_responses.c.response) + func.length(_responses.c.input)).label("size")
        columns = (_responses.c.id, _responses.c.previous_id, size)
        chain = (
            select(*columns, literal(0).label("age")).where(_responses.c.id == response_id, *valid).cte(recursive=True)
        )
        older = select(*columns, chain.c.age + 1).join(chain, _responses.c.id == chain.c.previous_id)
        chain = chain.union_all(older.where(*valid, chain.c.age < CHAIN_LIMIT))
        links = connection.execute(select(chain).order_by(chain.c.age)).all() if _can_be_an_id(response_id) else []
        missing = links[-1].previous_id if links else response_id
        if len(links) > CHAIN_LIMIT or sum(link.size for link in links) > CHAIN_BYTES:
            raise InvalidRequest(
                "The conversation behind 'previous_response_id' is too long to be gone on with.",
                param="previous_response_id",
                code="context_length_exceeded",
            )
        if missing is not None:
            raise InvalidRequest(
                f"Previous response with id '{missing[:80]}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        parts = (
            select(_responses.c.response, _responses.c.input)
            .join(chain, _responses.c.id == chain.c.id)
            .order_by(chain.c.age.desc())
        )
        items: list[Json] = []
        for row in connection.execute(parts):
            items += orjson.loads(row.input)
            items += orjson.loads(row.response)["output"]
        return Conversation(items, [link.id for link in links])


def _can_be_an_id(text: str) -> bool:
    """Whether it fits the tables: ids come from clients, and PostgreSQL refuses what is longer, or holds a NUL."""
    return len(text) <= ID_LENGTH and "\0" not in text
