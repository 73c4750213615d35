"""/v1/batches: create, list, show, cancel; and beyond OpenAI: results while it runs, pause, resume."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from backends.errors import InvalidRequest
from proxy.batch.service import MOST_RESULTS, Batches
from proxy.bodies import BodyReader, parse_object
from proxy.principals import Principal
from proxy.record import record_of
from proxy.replies import send_bytes, send_json

from .admin_shared import listed

MOST, USUAL = 100, 20
MOST_LINE = 2**31
JSON_LINES = b"application/jsonl"
NEXT_LINE, OVER = b"x-slurmgate-next-line", b"x-slurmgate-over"
IDEMPOTENCY_KEY = b"idempotency-key"

Verb = Callable[[Principal, str], Awaitable[dict[str, Any]]]


class AllBatches:
    """GET and POST."""

    path = "/v1/batches"

    def __init__(self, batches: Batches, bodies: BodyReader) -> None:
        self._batches = batches
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        if scope["method"] == "POST":
            given = parse_object(await self._bodies.read(receive))
            key = dict(scope["headers"]).get(IDEMPOTENCY_KEY)
            await send_json(send, await self._batches.create(record.principal, given, key))
            return
        query = query_of(scope)
        limit = number_of(query, "limit", USUAL, 1, MOST)
        found = await self._batches.page(record.principal, limit, query.get("after"))
        await send_json(send, listed(found, limit))


class OneBatch:
    path = "/v1/batches/{id}"

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        await send_json(send, await self._batches.find(record.principal, scope["path_params"]["id"]))


class TellBatch:
    """POST of one verb: cancel, pause, resume. A body is not looked at."""

    def __init__(self, path: str, verb: Verb) -> None:
        self._path = path
        self._verb = verb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self._path
        await send_json(send, await self._verb(record.principal, scope["path_params"]["id"]))


CANCEL, PAUSE, RESUME = (f"{OneBatch.path}/{verb}" for verb in ("cancel", "pause", "resume"))


class BatchResults:
    """What is done by now, as JSON lines in the order in which it was done: nothing twice, nothing left out."""

    path = "/v1/batches/{id}/results"

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        query = query_of(scope)
        after_line = number_of(query, "after_line", 0, 0, MOST_LINE)
        limit = number_of(query, "limit", MOST_RESULTS, 1, MOST_RESULTS)
        found = await self._batches.results(record.principal, scope["path_params"]["id"], after_line, limit)
        headers = [(NEXT_LINE, b"%d" % found.next_line), (OVER, b"true" if found.over else b"false")]
        await send_bytes(send, 200, JSON_LINES, found.data, [*headers, (b"x-content-type-options", b"nosniff")])


def query_of(scope: Scope) -> dict[str, str]:
    """The last value of each parameter."""
    return {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}


def number_of(query: dict[str, str], name: str, usual: int, least: int, most: int) -> int:
    """Raises `InvalidRequest`."""
    given = query.get(name, str(usual))
    if not (given.isascii() and given.isdigit() and len(given) < 12 and least <= int(given) <= most):
        message = f"Invalid '{name}': expected an integer from {least} to {most}."
        raise InvalidRequest(message, param=name, code="invalid_value")
    return int(given)


def batch_routes(batches: Batches, bodies: BodyReader) -> list[Route]:
    return [
        Route(AllBatches.path, AllBatches(batches, bodies), methods=["GET", "POST"]),
        Route(OneBatch.path, OneBatch(batches), methods=["GET"]),
        Route(CANCEL, TellBatch(CANCEL, batches.cancel), methods=["POST"]),
        Route(PAUSE, TellBatch(PAUSE, batches.pause), methods=["POST"]),
        Route(RESUME, TellBatch(RESUME, batches.resume), methods=["POST"]),
        Route(BatchResults.path, BatchResults(batches), methods=["GET"]),
    ]
