"""One request with several choices, asked of an engine that gives one at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from backends.base import EventStream, Reply
from backends.errors import Disconnected, GatewayError, InvalidRequest
from backends.fanout import MOST, split
from tests.backends.asking import COMPLETIONS, ask, backend_of, call, finishes, stream, text
from tests.fakes.chat_engine import STREAM_HEAD, NeverBegins, Request, Write, chunk, event, whole
from tests.fakes.dialect_engines import PROMPT_TOKENS, WORDS, SpeaksTGI

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class FailsOnSeed(SpeaksTGI):
    """An error for one of the choices, before it has said a word; the others are not answered until `release`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.release = asyncio.Event()

    async def answer(self, request: Request, write: Write) -> bool:
        if request.body["seed"] == self.seed:
            await write(whole(424, b'{"error":"CUDA died","error_type":"generation"}'))
            return True
        await self.release.wait()
        return await super().answer(request, write)


class BreaksOneStream(SpeaksTGI):
    """Of several streams the one with this seed ends as `how` says after its first chunk; the others go on for ever."""

    def __init__(self, seed: int, how: bytes | None) -> None:
        super().__init__()
        self.seed = seed
        self.how = how

    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(event(self.chunk({"role": "assistant", "content": "x"}, None, "m"))))
        if request.body["seed"] != self.seed:
            return True
        if self.how is None:
            return False
        await write(chunk(self.how))
        return True


class FailsWhenAnotherStreams(BreaksOneStream):
    """The stream with this seed is refused as soon as the gateway has the heads of the others."""

    def __init__(self, seed: int, others: int) -> None:
        super().__init__(seed, None)
        self.others = asyncio.Barrier(others + 1)

    async def answer(self, request: Request, write: Write) -> bool:
        if request.body["seed"] == self.seed:
            await self.others.wait()
            await write(whole(424, b'{"error":"CUDA died","error_type":"generation"}'))
            return True
        await super().answer(request, write)
        await self.others.wait()
        return True


# -- whole answers ---------------------------------------------------------------------------------------------------


async def test_choices_are_numbered_and_each_has_a_seed_of_its_own() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend, n=3, seed=10)
        assert [(c["index"], c["message"]["content"]) for c in reply["choices"]] == [
            (0, "Slurm is up #10"),
            (1, "Slurm is up #11"),
            (2, "Slurm is up #12"),
        ]
        assert reply["id"] == "chatcmpl-1f"
        assert [request.body.get("n") for request in engine.requests] == [None] * 3


async def test_usage_counts_the_prompt_once_and_every_choice() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        answer = await backend.run(call(n=3))
        assert isinstance(answer, Reply)
        usage = orjson.loads(answer.body)["usage"]
        assert usage == {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": 9,
            "total_tokens": PROMPT_TOKENS + 9,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 9)


async def test_several_prompts_with_several_choices() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend, COMPLETIONS, prompt=["a", "b", "c", "d", "e"], n=2, best_of=2)
        assert [choice["text"][0] for choice in reply["choices"]] == list("aabbccddee")
        assert [choice["index"] for choice in reply["choices"]] == list(range(10))
        assert reply["usage"]["prompt_tokens"] == 5 * PROMPT_TOKENS
        assert reply["usage"]["completion_tokens"] == 10 * len(WORDS)


async def test_one_choice_is_one_call_of_the_same_bytes() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        for more in ({}, {"n": 1}, {"n": None}):
            assert len((await ask(backend, **more))["choices"]) == 1
        assert len((await ask(backend, COMPLETIONS, prompt=["a"]))["choices"]) == 1
        assert len(engine.requests) == 4


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"n": 0}, "n"),
        ("/v1/chat/completions", {"n": -1}, "n"),
        ("/v1/chat/completions", {"n": MOST + 1}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 65, "n": 2}, "prompt"),
    ],
)
async def test_too_many_choices_are_refused_before_anything_is_asked(path: str, body: Any, param: str) -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, path, **body)
        assert caught.value.param == param
        assert engine.requests == []


def test_parts_have_ids_of_their_own_so_that_their_tool_calls_do() -> None:
    parts = split(call(n=3), [], 3)
    assert [part.id for part in parts] == ["req_1f", "req_1f-1", "req_1f-2"]


async def test_tool_calls_of_different_choices_have_different_ids() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend, n=3, tools=[WEATHER])
        ids = {choice["message"]["tool_calls"][0]["id"] for choice in reply["choices"]}
        assert len(ids) == 3
        chunks = await stream(backend, n=3, tools=[WEATHER])
        deltas = [c["delta"] for part in chunks for c in part["choices"]]
        assert {d["tool_calls"][0]["id"] for d in deltas if d.get("tool_calls") and "id" in d["tool_calls"][0]} == ids
        assert finishes(chunks) == ["tool_calls"] * 3


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shows_usage", [True, False])
async def test_streams_become_one_with_one_id_one_usage_and_one_end(shows_usage: bool) -> None:
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if shows_usage else {}
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        chunks = await stream(backend, n=3, seed=1, **more)
        assert [text(chunks, index) for index in range(3)] == [f"Slurm is up #{seed}" for seed in (1, 2, 3)]
        assert len({part["id"] for part in chunks}) == 1
        assert finishes(chunks) == ["stop"] * 3
        if shows_usage:
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"]["prompt_tokens"] == PROMPT_TOKENS
            assert chunks[-1]["usage"]["completion_tokens"] == 12
            assert all(part["usage"] is None and part["choices"] for part in chunks[:-1])
        else:
            assert all("usage" not in part and part["choices"] for part in chunks)


async def test_streams_of_several_prompts() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        chunks = await stream(backend, COMPLETIONS, prompt=["a", "b"], n=2, stream_options={"include_usage": True})
        assert [text(chunks, index) for index in range(4)] == ["Slurm is up"] * 4
        assert chunks[-1]["usage"]["prompt_tokens"] == 2 * PROMPT_TOKENS


async def test_what_a_merged_stream_has_used_is_known_without_being_shown() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        answer = await backend.run(call(stream=True, n=2))
        assert isinstance(answer, EventStream)
        async for _ in answer:
            pass
        answer.close()
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 6)
        assert answer.served_by == "one"


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_error_of_one_is_the_error_of_all_and_ends_the_others(streamed: bool) -> None:
    async with FailsOnSeed(2) as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(GatewayError) as caught:
            await backend.run(call(n=4, seed=1, stream=streamed))
        assert (caught.value.status, caught.value.code) == (502, "engine_error")
        assert backend.in_flight("one") == 0
        engine.release.set()


async def test_streams_that_have_begun_end_when_another_is_refused() -> None:
    async with FailsWhenAnotherStreams(2, others=2) as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(GatewayError):
            await backend.run(call(n=3, seed=1, stream=True))
        assert backend.in_flight("one") == 0
        for request in engine.requests:
            if request.body["seed"] != engine.seed:  # its connection is as good as new
                await asyncio.wait_for(request.over.wait(), 10)


async def test_an_error_inside_one_stream_is_the_last_event_of_all() -> None:
    broken = event({"error": {"message": "CUDA is out", "http_status_code": 500}})
    async with BreaksOneStream(2, broken) as engine, backend_of(engine, "tgi") as backend:
        answer = await backend.run(call(n=3, seed=1, stream=True))
        assert isinstance(answer, EventStream)
        events = [orjson.loads(e[6:]) async for events in answer for e in events.split(b"\n\n") if e]
        answer.close()
        assert events[-1]["error"]["message"] == "CUDA is out"
        assert all("error" not in part for part in events[:-1])
        assert answer.failure is not None
        assert answer.failure.code == "engine_error"


async def test_one_stream_that_dies_is_an_error_of_all() -> None:
    async with BreaksOneStream(2, None) as engine, backend_of(engine, "tgi") as backend:
        answer = await backend.run(call(n=3, seed=1, stream=True))
        assert isinstance(answer, EventStream)
        with pytest.raises(Disconnected):
            async for _ in answer:
                pass
        answer.close()
        for number in (1, 2, 3):
            await asyncio.wait_for((await engine.request(number)).over.wait(), 10)


async def test_more_streams_than_places_take_turns() -> None:
    """All of them have begun before the client gets a byte, so the first must be read to their end meanwhile."""
    async with SpeaksTGI() as engine, backend_of(engine, "tgi", limit=2) as backend:
        chunks = await stream(backend, n=5, seed=1)
        assert [text(chunks, index) for index in range(5)] == [f"Slurm is up #{seed}" for seed in range(1, 6)]
        assert finishes(chunks) == ["stop"] * 5


async def test_cancelling_the_request_cancels_every_part() -> None:
    async with NeverBegins() as engine, backend_of(engine, "tgi") as backend:
        task = asyncio.create_task(backend.run(call(n=3)), name="asking")
        await engine.request(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for number in (1, 2, 3):
            await asyncio.wait_for((await engine.request(number)).over.wait(), 10)


async def test_closing_a_merged_stream_closes_every_part() -> None:
    async with BreaksOneStream(99, None) as engine, backend_of(engine, "tgi") as backend:
        answer = await backend.run(call(n=3, seed=1, stream=True))
        assert isinstance(answer, EventStream)
        await anext(answer)
        assert backend.in_flight("one") == 3
        answer.close()
        answer.close()
        assert backend.in_flight("one") == 0
        for number in (1, 2, 3):
            await asyncio.wait_for((await engine.request(number)).over.wait(), 10)
