"""A backend of the tests' own making around a fake engine: the whole composition, without the gateway around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from backends.base import Backend, Call, EventStream, Reply
from backends.compose import Options, backend_for
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from tests.fakes.chat_engine import Engine

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
TOKENIZE = "/tokenize"
NAME = "org/model"

Json = dict[str, Any]


def call(path: str = CHAT, **body: Any) -> Call:
    body = {"model": NAME, **body}
    if path == CHAT:
        body.setdefault("messages", [{"role": "user", "content": "Is it?"}])
    return Call("req_1f", path, NAME, body, orjson.dumps(body), body.get("stream") is True)


@asynccontextmanager
async def backend_of(engine: Engine, name: str, *, limit: int | None = None, **options: Any) -> AsyncIterator[Backend]:
    """`name` is the engine's in the configuration, `limit` what it gets at once, `options` are those of `Options`."""
    launcher = FixedEndpoints([FixedEndpoint("one", engine.host, engine.port, limit=limit)])
    places = ModelPlaces(NAME, launcher, engine=name)
    backend = backend_for(NAME, places, name, options=Options(**options))
    try:
        yield backend
        assert backend.in_flight("one") == 0
    finally:
        await backend.aclose()
        places.close()


async def ask(backend: Backend, path: str = CHAT, **body: Any) -> Json:
    """The parsed reply."""
    reply = await backend.run(call(path, **body))
    assert isinstance(reply, Reply)
    parsed: Json = orjson.loads(reply.body)
    return parsed


async def stream(backend: Backend, path: str = CHAT, **body: Any) -> list[Json]:
    """The parsed events; that they end with one `[DONE]` is asserted here."""
    answer = await backend.run(call(path, stream=True, **body))
    assert isinstance(answer, EventStream)
    try:
        data = b"".join([events async for events in answer])
    finally:
        answer.close()
    *events, done, rest = data.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


def text(chunks: list[Json], index: int = 0) -> str:
    """What one choice of a stream says."""
    said = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in said)


def finishes(chunks: list[Json]) -> list[str]:
    return [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
