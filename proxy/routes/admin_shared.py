"""What the endpoints under /admin share: who may, what is asked, the database off the event loop, pages of lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Receive, Scope

from backends.errors import InvalidRequest
from proxy.bodies import BodyReader, parse_object
from proxy.record import record_of
from proxy.stored_responses import StorageFailed
from proxy.terms import parsed

Json = dict[str, Any]
T = TypeVar("T")
Asked = TypeVar("Asked", bound=BaseModel)


class NotAdmin(InvalidRequest):
    """A key that is none of an administrator's."""

    status = 403
    code = "insufficient_permissions"


def administrator(scope: Scope, endpoint: str) -> str:
    """Who asks, for the log: the key's id; "operator" at the operators' socket. Raises `NotAdmin`."""
    record = record_of(scope)
    record.endpoint = endpoint
    if not record.principal.admin:
        raise NotAdmin(
            "You have insufficient permissions for this operation: it takes an admin key, which an operator makes with "
            "`slurmgate keys create NAME --admin`."
        )
    return record.key_id or "operator"


async def body_of(kind: type[Asked], receive: Receive, bodies: BodyReader) -> Asked:
    """The request's body. Raises `InvalidRequest`."""
    return parsed(kind, parse_object(await bodies.read(receive)))


def query_of(kind: type[Asked], scope: Scope) -> Asked:
    """The query: the last value of each parameter; of a list, all of them. Raises `InvalidRequest`."""
    given: dict[str, str] = {}
    for name, values in parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).items():
        plain = name.removesuffix("[]")  # as OpenAI's clients write lists
        given[plain] = ",".join(values) if plain == "group_by" else values[-1]
    return parsed(kind, given)


async def in_database(work: Callable[[], T]) -> T:
    """`work`, in a thread. Raises `StorageFailed` where the database does."""
    try:
        return await asyncio.to_thread(work)
    except SQLAlchemyError as error:
        raise StorageFailed("The database cannot be reached now.", retry_after_s=5.0) from error


def listed(cards: Sequence[Json], limit: int) -> Json:
    """A page, from one more than fits on it."""
    shown = cards[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(cards) > limit,
    }
