"""/tokenize of a chat, for engines whose /tokenize takes text only but that can render messages (llama.cpp)."""

from __future__ import annotations

import orjson

from .base import Backend, Call, EventStream, Reply
from .dialects.seam import without
from .errors import MalformedResponse
from .together import whole


class Tokenize:
    """A Backend around a Backend. `template_path` renders `{"messages": [...]}` into `{"prompt": "..."}`."""

    def __init__(self, inner: Backend, template_path: str) -> None:
        self._inner = inner
        self._template_path = template_path

    async def run(self, call: Call) -> Reply | EventStream:
        messages = call.body.get("messages")
        if messages is None:
            return await self._inner.run(call)
        wanted = {name: call.body[name] for name in ("messages", "tools") if call.body.get(name) is not None}
        rendered = whole(await self._inner.run(call.with_body(wanted, self._template_path)))
        try:
            prompt = orjson.loads(rendered.body)["prompt"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            raise MalformedResponse("The engine's answer holds no prompt.") from None
        # a template writes the special tokens itself
        body = {"add_special_tokens": False, **without(call.body, "messages", "tools"), "prompt": prompt}
        return await self._inner.run(call.with_body(body))

    def in_flight(self, replica_id: str) -> int:
        return self._inner.in_flight(replica_id)

    async def aclose(self) -> None:
        await self._inner.aclose()
