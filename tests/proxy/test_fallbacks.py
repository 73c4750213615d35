"""Fallbacks, hosted models and plugins through the whole gateway, over sockets, with the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, InternalServerError, RateLimitError

from tests.fakes.chat_engine import (
    WORDS,
    Answers,
    AnswersWith,
    BreaksInItsStream,
    DiesMidStream,
    DiesOnRequests,
    Engine,
    StopsMidStream,
)
from tests.in_process import Served, serving
from tests.litellm_warnings import ignore_litellm_warnings
from tests.plugins import example, installed

pytestmark = ignore_litellm_warnings

PROMPT = "secret prompt"
KEY = "sk-of-the-provider"
QUESTION: dict[str, Any] = {"model": "first", "messages": [{"role": "user", "content": PROMPT}]}
TOO_LONG = (
    b'{"error":{"message":"maximum context length is 8 tokens","type":"invalid_request_error","param":null,"code":400}}'
)
BUSY = b'{"error":"Model is overloaded","error_type":"overloaded"}'
WRONG = b'{"error":{"message":"no such role","type":"invalid_request_error","param":"messages","code":400}}'


class Gone(Engine):
    """Nobody listens there."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await super().__aexit__(None, None, None)
        return self

    async def __aexit__(self, *failure: object) -> None:
        pass


@asynccontextmanager
async def two_models(
    directory: Path, first: Engine, second: Engine, *, fallbacks: str = '["org/second"]', hosted: bool = False
) -> AsyncIterator[tuple[Served, AsyncOpenAI]]:
    another = f'engine = "vllm"\nurls = ["{second.url}"]\n'
    if hosted:
        another = f'hosted = "openai/m"\napi_base = "{second.url}/v1"\napi_key_env = "PROVIDER_KEY"\n'
    config = f'[models.first]\nengine = "vllm"\nurls = ["{first.url}"]\nfallbacks = {fallbacks}\n'
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(f'{config}[models."org/second"]\n{another}', directory))
        client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
        yield served, await stack.enter_async_context(client)


FAILING = {
    "dead": (Gone, "unavailable"),
    "dying": (DiesOnRequests, "unavailable"),
    "busy": (lambda: AnswersWith(429, BUSY), "overloaded"),
    "failing": (lambda: AnswersWith(503, b"{}"), "unavailable"),
    "too short": (lambda: AnswersWith(400, TOO_LONG), "context"),
}


@pytest.mark.parametrize("how", FAILING)
@pytest.mark.parametrize("hosted", [False, True])
async def test_another_model_answers_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, hosted: bool
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    make, reason = FAILING[how]
    async with make() as first, Answers() as second:
        async with two_models(tmp_path, first, second, hosted=hosted) as (served, openai):
            plain = await openai.chat.completions.with_raw_response.create(**QUESTION)
            stream = await openai.chat.completions.with_raw_response.create(**QUESTION, stream=True)
            chunks = [chunk async for chunk in stream.parse()]

        answer = plain.parse()
        assert answer.choices[0].message.content == "".join(WORDS)
        assert answer.model == "org/second"
        assert {chunk.model for chunk in chunks} == {"org/second"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(WORDS)
        for response in (plain, stream):
            assert response.headers["x-slurmgate-model"] == "org/second"
            assert response.headers["x-slurmgate-fallback"] == reason
        assert [request.body["model"] for request in second.requests] == ["m" if hosted else "org/second"] * 2

    for secret in (PROMPT, KEY, "Slurm is"):
        assert secret not in served.log_text()


async def test_the_model_that_was_asked_answers_when_it_can(tmp_path: Path) -> None:
    async with Answers() as first, Answers() as second, two_models(tmp_path, first, second) as (_, openai):
        answer = await openai.chat.completions.with_raw_response.create(**QUESTION)
        assert answer.headers["x-slurmgate-model"] == answer.parse().model == "first"
        assert "x-slurmgate-fallback" not in answer.headers
        assert second.requests == []


async def test_the_caller_s_mistake_goes_back_to_the_caller(tmp_path: Path) -> None:
    async with AnswersWith(400, WRONG) as first, Answers() as second:
        async with two_models(tmp_path, first, second) as (_, openai):
            with pytest.raises(BadRequestError) as caught:
                await openai.chat.completions.create(**QUESTION)
        assert caught.value.param == "messages"
        assert second.requests == []


async def test_a_reason_that_is_not_listed_is_none(tmp_path: Path) -> None:
    only = '[{ model = "org/second", on = ["context"] }]'
    async with AnswersWith(429, BUSY, "retry-after: 7\r\n") as first, Answers() as second:
        async with two_models(tmp_path, first, second, fallbacks=only) as (_, openai):
            with pytest.raises(RateLimitError) as caught:
                await openai.chat.completions.create(**QUESTION)
        assert caught.value.response.headers["retry-after"] == "7"
        assert second.requests == []


@pytest.mark.parametrize("engine", [DiesMidStream, lambda: BreaksInItsStream({"error": "overloaded"})])
async def test_after_the_first_byte_the_client_gets_the_error(tmp_path: Path, engine: Any) -> None:
    async with engine() as first, Answers() as second, two_models(tmp_path, first, second) as (_, openai):
        seen = []
        with pytest.raises(APIError):
            async for chunk in await openai.chat.completions.create(**QUESTION, stream=True):
                seen += [chunk.choices[0].delta.content]
        assert seen == ["Slurm"]
        assert second.requests == []


async def test_where_nobody_can_the_error_is_of_the_model_that_was_asked(tmp_path: Path) -> None:
    async with AnswersWith(429, BUSY) as first, Gone() as second:
        async with two_models(tmp_path, first, second) as (_, openai):
            with pytest.raises(RateLimitError):
                await openai.chat.completions.create(**QUESTION)


# -- hosted models alone ---------------------------------------------------------------------------------------------


async def test_a_hosted_model_counts_its_tokens_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    async with Answers() as second, two_models(tmp_path, second, second, hosted=True) as (served, openai):
        question = {**QUESTION, "model": "org/second"}
        await openai.chat.completions.create(**question)
        async for _ in await openai.chat.completions.create(**question, stream=True):
            pass
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(served.url + "/metrics")).text
            ready = (await http.get(served.url + "/ready")).json()
        assert 'slurmgate_tokens_total{kind="prompt",model="org/second"} 14.0' in metrics
        assert ready["models"]["org/second"] == 1
        assert served.key not in str(second.requests[0].headers)
    lines = [json.loads(line) for line in served.log_text().splitlines()]
    assert [line["replica"] for line in lines if line["event"] == "request" and line["model"]] == ["openai", "openai"]
    for text in (*capfd.readouterr(), served.log_text()):
        for secret in (PROMPT, KEY, "Slurm is"):
            assert secret not in text


@pytest.mark.parametrize("stream", [False, True])
async def test_the_provider_refusing_our_key_is_not_the_client_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    said = json.dumps({"error": {"message": f"Incorrect API key: {KEY}, {PROMPT}", "code": "invalid_api_key"}})
    async with AnswersWith(401, said.encode()) as second:
        async with two_models(tmp_path, second, second, hosted=True) as (served, openai):
            with pytest.raises(InternalServerError) as caught:
                await openai.chat.completions.create(**{**QUESTION, "model": "org/second"}, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (502, "provider_authentication_failed")
    for text in (caught.value.response.text, served.log_text()):
        assert KEY not in text
        assert PROMPT not in text


async def test_a_client_that_leaves_frees_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    async with StopsMidStream() as second, two_models(tmp_path, second, second, hosted=True) as (_, openai):
        stream = await openai.chat.completions.create(**{**QUESTION, "model": "org/second"}, stream=True)
        await anext(aiter(stream))
        request = await second.request()
        assert not request.over.is_set()
        await stream.close()
        await request.over.wait()


# -- plugins ---------------------------------------------------------------------------------------------------------


async def test_a_plugin_s_model_is_a_model_like_any(tmp_path: Path) -> None:
    example(tmp_path / "site")
    config = '[models.echo]\nbackend = "echo"\noptions = { shout = true }\n'
    with installed(tmp_path / "site"):
        async with serving(config, tmp_path) as served:
            async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as openai:
                answer = await openai.chat.completions.create(**{**QUESTION, "model": "echo"})
                stream = await openai.chat.completions.create(**{**QUESTION, "model": "echo"}, stream=True)
                chunks = [chunk async for chunk in stream]
                assert [model.id async for model in openai.models.list()] == ["echo"]
    assert answer.choices[0].message.content == PROMPT.upper()
    assert chunks[0].choices[0].delta.content == PROMPT.upper()
