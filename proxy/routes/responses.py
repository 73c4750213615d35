"""/v1/responses: create, show, delete, input items, cancel.

An engine that has the endpoint is asked as it stands when nothing is kept and nothing is looked up; otherwise it gets
the whole conversation as `input` and `store: false`, and what it answers is stored here. Any other is asked by chat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from backends.base import Call, Reply
from backends.errors import InvalidRequest, MalformedResponse
from proxy.bodies import BodyReader, parse_object
from proxy.disconnects import while_connected
from proxy.dispatch import Dispatcher
from proxy.record import Record, record_of
from proxy.replies import send_json
from proxy.stored_responses import Conversation, StoredResponses
from proxy.translate import items as its
from proxy.translate import responses
from proxy.translate.chunks import Json
from proxy.translate.relay import ResponseRelay, response_usage
from proxy.translate.response_events import ResponseEvents

from .translated import Exchange, Serves, answer, chat_call, native_call, parsed_reply

PATH = responses.PATH
Keep = Callable[[Json], Awaitable[None]]
_KEPT_STATUSES = ("completed", "incomplete")


class CreateResponse:
    path = PATH

    def __init__(self, dispatcher: Dispatcher, bodies: BodyReader, stored: StoredResponses, serves: Serves) -> None:
        self._dispatcher = dispatcher
        self._bodies = bodies
        self._stored = stored
        self._serves = serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        raw = await self._bodies.read(receive)
        body = parse_object(raw)
        responses.check(body)
        record.stream = body.get("stream") is True
        async with while_connected(scope):
            await answer(send, record, self._dispatcher, await self.exchange(body, raw, record))

    async def exchange(self, body: Json, raw: bytes, record: Record) -> Exchange:
        """How a checked body is asked. Raises `NotFound` for a response before it that is not there."""
        native = self._serves(body["model"], PATH)
        if native and not responses.stored(body) and not body.get("previous_response_id"):
            return _Untouched(native_call(record, PATH, body, raw))
        own = its.as_items(body["input"])
        before = Conversation()
        if previous := body.get("previous_response_id"):
            before = await self._stored.conversation(record.key_id, previous)
        if wanted := its.references(own):
            own = its.resolved(own, await self._stored.find_items(record.key_id, wanted))
        said = [*before.items, *own]

        async def keep(response: Json) -> None:
            if responses.stored(body) and response.get("status") in _KEPT_STATUSES:
                await self._stored.put(record.key_id, response, its.kept(own), before.chain)

        return _Native(body, said, record, keep) if native else _Chat(body, said, record, keep)


class _Untouched:
    """With an engine that has the endpoint, when nothing is kept."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.events = ResponseRelay()

    def whole(self, reply: Reply) -> None:
        reply.usage = response_usage(parsed_reply(reply))

    async def keep(self, final: Json) -> None:
        """Nothing is."""


class _Native:
    """With an engine that has the endpoint, and shall not know of what is kept here."""

    def __init__(self, body: Json, said: list[Json], record: Record, keep: Keep) -> None:
        told = {**body, "input": said, "store": False}
        told.pop("previous_response_id", None)
        self._ours = {
            "id": its.new_id("resp"),
            "previous_response_id": body.get("previous_response_id"),
            "store": responses.stored(body),
        }
        self.call = native_call(record, PATH, told, orjson.dumps(told))
        self.events = ResponseRelay(self._change)
        self.keep = keep

    def _change(self, response: Json) -> Json:
        return {**response, **self._ours}

    def whole(self, reply: Reply) -> Json:
        response = parsed_reply(reply)
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            raise MalformedResponse("The engine's answer is no response object.")
        reply.usage = response_usage(response)
        return self._change(response)


class _Chat:
    """With an engine that is asked by chat."""

    def __init__(self, body: Json, said: list[Json], record: Record, keep: Keep) -> None:
        self.call = chat_call(record, responses.CHAT, responses.to_chat(body, said))
        self.events = ResponseEvents(body)
        self.keep = keep

    def whole(self, reply: Reply) -> Json:
        return self.events.whole(parsed_reply(reply))


# -- what is stored --------------------------------------------------------------------------------------------------


class StoredResponse:
    """GET and DELETE."""

    path = "/v1/responses/{id}"

    def __init__(self, stored: StoredResponses) -> None:
        self._stored = stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        response_id = scope["path_params"]["id"]
        if scope["method"] == "DELETE":
            await self._stored.delete(record.key_id, response_id)
            await send_json(send, {"id": response_id, "object": "response", "deleted": True})
            return
        response = await self._stored.show(record.key_id, response_id)
        if _query(scope).get("stream", "").lower() in ("true", "1"):
            raise InvalidRequest(
                "Only a response that is made in the background can be streamed again.", param="stream"
            )
        await send_json(send, response)


class CancelResponse:
    """Nothing is made in the background here, so there is nothing to cancel: closing the connection does it."""

    path = "/v1/responses/{id}/cancel"

    def __init__(self, stored: StoredResponses) -> None:
        self._stored = stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        await self._stored.show(record.key_id, scope["path_params"]["id"])
        raise InvalidRequest("Cannot cancel a synchronous response.")


class InputItems:
    """A page of the items that a response was made from, those of the responses before it among them."""

    path = "/v1/responses/{id}/input_items"

    def __init__(self, stored: StoredResponses) -> None:
        self._stored = stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        query = _query(scope)
        items = await self._stored.input_items(record.key_id, scope["path_params"]["id"])
        await send_json(send, page(items, query))


def page(items: list[Json], query: dict[str, str]) -> Json:
    """`limit` (1 to 100, 20), `order` (asc, desc; desc) and `after`, an item's id, as OpenAI has them."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("Invalid value for 'order': expected one of 'asc', 'desc'.", param="order")
    try:
        limit = int(query.get("limit", "20"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 100:
        raise InvalidRequest("Invalid 'limit': expected an integer from 1 to 100.", param="limit")
    if order == "desc":
        items = items[::-1]
    if after := query.get("after"):
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(f"Item with id '{after[:80]}' not found.", param="after")
        items = items[ids.index(after) + 1 :]
    shown = items[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > limit,
    }


def _query(scope: Scope) -> dict[str, str]:
    """The last value of each parameter."""
    return {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
