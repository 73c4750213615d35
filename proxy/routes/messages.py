"""/v1/messages and /v1/messages/count_tokens, Anthropic's API: by chat where the engine does not have it itself."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from backends.base import Call, Reply
from backends.errors import InvalidRequest, MalformedResponse
from proxy.bodies import BodyReader, parse_object
from proxy.disconnects import while_connected
from proxy.dispatch import Dispatcher
from proxy.record import Record, record_of
from proxy.replies import send_json
from proxy.translate import messages
from proxy.translate.chunks import Json
from proxy.translate.message_events import MessageEvents
from proxy.translate.relay import MessageRelay, message_usage
from proxy.translate.responses import CHAT

from .translated import Serves, answer, chat_call, native_call, parsed_reply

TOKENIZE = "/tokenize"


class CreateMessage:
    path = messages.PATH

    def __init__(self, dispatcher: Dispatcher, bodies: BodyReader, serves: Serves) -> None:
        self._dispatcher = dispatcher
        self._bodies = bodies
        self._serves = serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        raw = await self._bodies.read(receive)
        body = parse_object(raw)
        messages.check(body)
        record.stream = body.get("stream") is True
        async with while_connected(scope):
            native = self._serves(body["model"], self.path)
            exchange = _Native(body, raw, record) if native else _Chat(body, record)
            await answer(send, record, self._dispatcher, exchange)


class _Native:
    """With an engine that has the endpoint."""

    def __init__(self, body: Json, raw: bytes, record: Record) -> None:
        self.call = native_call(record, messages.PATH, body, raw)
        self.events = MessageRelay(record.id)

    def whole(self, reply: Reply) -> None:
        message = parsed_reply(reply)
        usage = message.get("usage") if isinstance(message, dict) else None
        reply.usage = message_usage(usage) if isinstance(usage, dict) else None

    async def keep(self, final: Json) -> None:
        """Nothing is."""


class _Chat:
    """With an engine that is asked by chat."""

    def __init__(self, body: Json, record: Record) -> None:
        self.call = chat_call(record, CHAT, messages.to_chat(body))
        self.events = MessageEvents(body, request_id=record.id)

    def whole(self, reply: Reply) -> Json:
        return self.events.whole(parsed_reply(reply))

    async def keep(self, final: Json) -> None:
        """Nothing is."""


class CountTokens:
    """By the engine's own tokenizer and chat template, or not at all: an estimate would be taken for a count."""

    path = messages.COUNT_PATH

    def __init__(self, dispatcher: Dispatcher, bodies: BodyReader, serves: Serves) -> None:
        self._dispatcher = dispatcher
        self._bodies = bodies
        self._serves = serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint = self.path
        raw = await self._bodies.read(receive)
        body = parse_object(raw)
        messages.check_count(body)
        self._dispatcher.find(body["model"], record)
        async with while_connected(scope):
            if self._serves(body["model"], self.path):
                await self._ask(native_call(record, self.path, body, raw), record, send)
            elif self._serves(body["model"], TOKENIZE):
                asked = messages.conversation(body)
                asked = {name: asked[name] for name in ("model", "messages", "tools") if name in asked}
                await self._ask(chat_call(record, TOKENIZE, {**asked, "add_generation_prompt": True}), record, send)
            else:
                raise InvalidRequest(
                    "The engine of this model cannot count tokens: it has no tokenizer endpoint.",
                    param="model",
                    code="unsupported_endpoint",
                )

    async def _ask(self, call: Call, record: Record, send: Send) -> None:
        async with self._dispatcher.answer(call, record) as reply:
            if not isinstance(reply, Reply):
                raise MalformedResponse("The engine streamed a count of tokens.")
            await send_json(send, {"input_tokens": counted(parsed_reply(reply))})


def counted(answer: object) -> int:
    """The number of tokens in a reply of an engine's own count_tokens, or of its /tokenize: `count`, or the `tokens`.

    Raises `MalformedResponse`.
    """
    match answer:
        case {"input_tokens": int(count)} | {"count": int(count)}:
            return count
        case {"tokens": list(tokens)}:
            return len(tokens)
        case _:
            raise MalformedResponse("The engine's answer is no count of tokens.")
