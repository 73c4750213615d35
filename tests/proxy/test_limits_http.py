"""Limits as a client sees them: by the official SDK and on the wire, in front of an engine."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from backends.base import Backend, Call, EventStream, Reply
from backends.places import Priority
from proxy.keys import KeyStore
from proxy.principals import Principal
from tests.fakes.chat_engine import Answers, DiesOnRequests, Engine, NeverBegins, StopsMidStream
from tests.in_process import Served, serving
from tests.waiting import until

from .test_cancellation import asking

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
PATH = "/v1/chat/completions"


def config(engine: Engine, limits: str = "", model: str = "") -> str:
    return f'[limits]\n{limits}\n[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]\n{model}'


def sdk(served: Served, retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=retries)


def http(served: Served) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, headers=served.headers, timeout=30)


async def chat(client: AsyncOpenAI, max_tokens: int = 20) -> None:
    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=max_tokens)


def stop_the_clock(served: Served) -> None:
    """So that nothing flows back while a slow machine runs a test."""
    served.gateway.control.limits._clock = lambda: 0.0


def asked_for(engine: Engine) -> list[dict[str, Any]]:
    """The chat requests that came; the gateway itself may ask an engine other things."""
    return [request.body for request in engine.requests if request.path == PATH]


def out(served: Served) -> int:
    return served.gateway.control.limits.in_flight


async def test_the_sdk_sees_openais_error_for_too_many_requests(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine, "requests_per_minute = 2"), tmp_path) as served:
        stop_the_clock(served)
        async with sdk(served) as client:
            for left in ("1", "0"):
                raw = await client.chat.completions.with_raw_response.create(**BODY)  # type: ignore[call-overload]
                assert raw.headers["x-ratelimit-limit-requests"] == "2"
                assert raw.headers["x-ratelimit-remaining-requests"] == left
                assert raw.headers["x-ratelimit-reset-requests"] == {"1": "30s", "0": "1m0s"}[left]
            with pytest.raises(openai.RateLimitError) as caught:
                await chat(client)
    error = caught.value
    assert (error.type, error.code, error.param) == ("requests", "rate_limit_exceeded", None)
    assert error.message.startswith("Error code: 429")
    body = error.response.json()["error"]
    assert body["message"].startswith("Rate limit reached for m in key key_")
    assert "on requests per min (RPM): Limit 2, Used 2, Requested 1. Please try again in 30s." in body["message"]
    assert error.response.headers["retry-after"] == "30"
    assert error.response.headers["retry-after-ms"] == "30000"
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(asked_for(engine)) == 2


async def test_the_sdk_waits_as_long_as_it_is_told_and_then_succeeds(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine, "requests_per_minute = 600"), tmp_path) as served:
        async with sdk(served, retries=2) as client:
            await chat(client)
            (owner,) = served.gateway.control.limits._keys.values()
            assert owner.requests is not None
            owner.requests.used = 600.0  # as by 600 requests; a tenth of a second makes room for one
            await chat(client)
    assert len(asked_for(engine)) == 2


async def test_tokens_are_refused_by_estimate_and_counted_by_the_engine(tmp_path: Path) -> None:
    limits = "tokens_per_minute = 600"
    async with Answers() as engine, serving(config(engine, limits), tmp_path) as served, http(served) as client:
        stop_the_clock(served)
        response = await client.post(PATH, json={**BODY, "max_tokens": 500})
        headers = response.headers
        assert headers["x-ratelimit-limit-tokens"] == "600"
        assert int(headers["x-ratelimit-remaining-tokens"]) < 100  # while it ran
        response = await client.post(PATH, json={**BODY, "max_tokens": 500})  # the engine told 10 tokens
        assert response.status_code == 200
        response = await client.post(PATH, json={**BODY, "max_tokens": 601})
        assert response.status_code == 429
        error = response.json()["error"]
        assert error["type"] == "tokens"
        assert error["message"].startswith("Request too large for m in key key_")
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers


async def test_a_budget_is_insufficient_quota_and_is_right_again_after_a_restart(tmp_path: Path) -> None:
    limits = "tokens_per_day = 60"
    async with Answers() as engine:
        for left in (True, False):
            async with serving(config(engine, limits), tmp_path) as served, sdk(served) as client:
                if left:
                    key = served.key
                    await chat(client)
                    await chat(client)
                    continue
                client.api_key = key
                await chat(client, max_tokens=10)
                with pytest.raises(openai.RateLimitError) as caught:
                    await chat(client, max_tokens=25)
    error = caught.value
    assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
    assert "Limit 60, Used 30, Requested" in error.message
    assert error.response.headers["x-should-retry"] == "false"
    assert error.response.headers["retry-after"] == "120"


async def test_streams_have_the_headers_too(tmp_path: Path) -> None:
    limits = "requests_per_minute = 60\ntokens_per_minute = 6000"
    async with Answers() as engine, serving(config(engine, limits), tmp_path) as served, http(served) as client:
        async with client.stream("POST", PATH, json={**BODY, "stream": True}) as response:
            assert response.headers["x-ratelimit-remaining-requests"] == "59"
            assert response.headers["x-ratelimit-reset-requests"] == "1s"
            assert "x-ratelimit-remaining-tokens" in response.headers
            await response.aread()
        await until(lambda: not out(served))


async def test_an_answer_that_failed_has_the_headers_and_gives_the_tokens_back(tmp_path: Path) -> None:
    limits = "requests_per_minute = 60\ntokens_per_minute = 6000"
    async with DiesOnRequests() as engine, serving(config(engine, limits), tmp_path) as served, http(served) as client:
        stop_the_clock(served)
        first = await client.post(PATH, json=BODY)
        second = await client.post(PATH, json=BODY)
        assert first.status_code == second.status_code == 502
        for kind, step in (("requests", 1), ("tokens", 0)):
            name = f"x-ratelimit-remaining-{kind}"
            assert int(first.headers[name]) - int(second.headers[name]) == step
        assert not out(served)


async def test_who_has_no_limits_gets_no_headers(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, http(served) as client:
        response = await client.post(PATH, json=BODY)
        assert not [name for name in response.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_byte_frees_its_place(tmp_path: Path, stream: bool) -> None:
    limits = "concurrent_requests = 1\ntokens_per_minute = 6000"
    async with NeverBegins() as engine, serving(config(engine, limits), tmp_path) as served:
        async with asking(served, stream=stream):
            await engine.request()
            assert out(served) == 1
            async with http(served) as client:
                response = await client.post(PATH, json=BODY)
                assert response.status_code == 429
                assert "concurrent requests" in response.json()["error"]["message"]
        await until(lambda: not out(served))


async def test_a_client_that_leaves_while_it_waits_for_an_engine_frees_its_place(tmp_path: Path) -> None:
    local = f'[launcher]\nkind = "local"\nservice = "t"\n[models.m]\nengine = "llamacpp"\nsource = "{tmp_path}/none"\n'
    never = 'command = ["/bin/sleep", "1000"]\n[limits]\nconcurrent_requests = 1\n'
    async with serving(local + never, tmp_path) as served:
        async with asking(served, stream=True):
            await until(lambda: out(served))
        await until(lambda: not out(served))


async def test_a_client_that_leaves_in_the_stream_pays_for_what_it_got(tmp_path: Path) -> None:
    limits = "concurrent_requests = 1\ntokens_per_minute = 6000"
    async with StopsMidStream() as engine, serving(config(engine, limits), tmp_path) as served:
        async with asking(served, stream=True) as (reader, _):
            await reader.readuntil(b"Slurm")
            assert out(served) == 1
        await until(lambda: not out(served))
        await until(lambda: '"error":"client_disconnected"' in served.log_text())
        (line,) = [json.loads(text) for text in served.log_text().splitlines() if "client_disconnected" in text]
        assert line["estimated"] is True
        assert line["completion_tokens"] == 1
        assert line["prompt_tokens"] > 10


async def test_many_at_once_never_are_more_than_may_be(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine, "requests_per_minute = 20"), tmp_path) as served:
        stop_the_clock(served)
        async with http(served) as client:
            answers = await asyncio.gather(*(client.post(PATH, json=BODY) for _ in range(60)))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == len(asked_for(engine)) == 20
    assert statuses.count(429) == 40


async def test_the_sdks_time_out_and_the_request_class_reach_the_backend(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, sdk(served) as client:
        backend = NotesCalls(served.gateway.serving._registry.find("m").backend)
        entry = served.gateway.serving._registry.find("m")
        served.gateway.serving._registry.replace([replace(entry, backend=backend)])
        before = time.monotonic()
        await client.with_options(timeout=40).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], service_tier="flex"
        )
        await client.responses.create(model="m", input="hi", service_tier="flex", timeout=60)
    chat_call, response_call = backend.calls
    for call, seconds in ((chat_call, 40), (response_call, 60)):
        assert call.priority == Priority.BATCH
        assert call.deadline is not None
        assert before + seconds <= call.deadline <= time.monotonic() + seconds
    assert asked_for(engine)[0]["service_tier"] == "flex"  # engines ignore it, providers may honour it


class NotesCalls:
    def __init__(self, backend: Backend) -> None:
        self.calls: list[Call] = []
        self._backend = backend
        self.in_flight, self.aclose = backend.in_flight, backend.aclose

    async def run(self, call: Call) -> Reply | EventStream:
        self.calls.append(call)
        return await self._backend.run(call)


# -- models and names ------------------------------------------------------------------------------------------------


async def test_a_key_sees_the_models_that_it_may_use_and_aliases_are_models(tmp_path: Path) -> None:
    more = 'aliases = ["best"]\n[models.hidden]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]'
    async with Answers() as engine, serving(config(engine, model=more), tmp_path) as served, sdk(served) as client:
        assert [model.id async for model in client.models.list()] == ["m", "best", "hidden"]
        restrict(served, frozenset({"m"}))
        assert [model.id async for model in client.models.list()] == ["m", "best"]
        assert (await client.models.retrieve("best")).id == "best"
        answer = await client.chat.completions.create(model="best", messages=[{"role": "user", "content": "hi"}])
        assert answer.model == "m"
        assert asked_for(engine)[-1]["model"] == "m"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("hidden")
        assert caught.value.code == "model_not_found"
        chat_body: dict[str, object] = {"messages": BODY["messages"], "max_tokens": 5}
        asked: dict[str, dict[str, object]] = {
            PATH: chat_body,
            "/v1/responses": {"input": "hi"},
            "/v1/messages": chat_body,
            "/v1/messages/count_tokens": {"messages": BODY["messages"]},
            "/tokenize": {"prompt": "hi"},
            "/v1/embeddings": {"input": "hi"},
        }
        for path, body in asked.items():
            async with http(served) as raw:
                response = await raw.post(path, json={"model": "hidden", **body})
            assert response.status_code == 404, path
            assert "does not exist or you do not have access to it" in response.text


def restrict(served: Served, models: frozenset[str]) -> None:
    ring = served.gateway.serving._keys
    ring._store = OnlySome(ring._store, models)
    ring.refresh()


class OnlySome:
    """A store whose keys may use some models only."""

    def __init__(self, store: object, models: frozenset[str]) -> None:
        assert isinstance(store, KeyStore)
        self._store = store
        self._models = models

    def valid(self) -> dict[str, Principal]:
        return {hash: Principal(p.key_id, models=self._models) for hash, p in self._store.valid().items()}

    def ever(self) -> bool:
        return True
