"""A request that its engine dies of: it is tried once more, and never at every replica."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from backends.base import Call
from backends.errors import Disconnected
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from backends.replicas import ReplicaBackend
from tests.fakes.chat_engine import Answers, Request, Write


class DiesOfPoison(Answers):
    """Answers, and ends for good with whoever asks for poison: nobody listens there any more."""

    dead = False

    async def answer(self, request: Request, write: Write) -> bool:
        if request.body["messages"] != "poison":
            return await super().answer(request, write)
        self.dead = True
        self._server.close()
        return False


def asked(messages: str) -> Call:
    body = {"model": "m", "messages": messages}
    return Call("req_1", "/v1/chat/completions", "m", {}, b"").with_body(body)


@pytest.mark.parametrize("warm", [False, True], ids=["new connections", "connections that were used before"])
async def test_a_request_that_kills_its_engine_kills_one_other_at_most(warm: bool) -> None:
    """On a connection that was used before, the engine's end looks like that of an idle connection."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(DiesOfPoison()) for _ in range(4)]
        endpoints = FixedEndpoints([FixedEndpoint(f"r{n}", e.host, e.port) for n, e in enumerate(engines)])
        backend = ReplicaBackend("m", ModelPlaces("m", endpoints))
        stack.push_async_callback(backend.aclose)
        if warm:
            await asyncio.gather(*(backend.run(asked("water")) for _ in engines))
            assert all(len(engine.requests) == 1 for engine in engines)
        with pytest.raises(Disconnected):
            await backend.run(asked("poison"))
        assert sum(engine.dead for engine in engines) == 2
        await backend.run(asked("water"))
