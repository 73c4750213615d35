"""A deliberation over a real engine, asked by the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from proxy.embedded import configuration
from tests.gateway_process import GatewayProcess
from tests.waiting import until_sync

CHAT = "slurmgate-guide"
CONFIG = """
[launcher]
kind = "local"
service = "court"

[models.slurmgate-guide]
engine = "llamacpp"
source = "{model}"
command = {command}
context_length = 2048

[models.another]
engine = "llamacpp"
source = "{model}"
command = {command}
context_length = 2048

[tribunal]
members = [{{ model = "slurmgate-guide", samples = 2, temperature = 0.7 }}, "another"]
judge = "another"
verdict = "synthesise"
early_exit = false
draft_max_tokens = 48
critique_max_tokens = 48
verdict_max_tokens = 48
max_calls = 16

[tribunal.profiles.vote]
members = [{{ model = "slurmgate-guide", samples = 3, temperature = 0.7 }}]
rounds = 0
verdict = "select"
"""
QUESTION = [{"role": "user", "content": "What happens at the wall time?"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    known = configuration().models[CHAT]
    config = CONFIG.format(model=known.source, command=json.dumps(known.command))
    gateway = GatewayProcess(tmp_path_factory.mktemp("court"), config)
    gateway.start()
    gateway.until_ready(**{CHAT: 1, "another": 1})
    yield gateway
    gateway.run("stop", "--stop-replicas")
    gateway.stop()


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.key()


@pytest.fixture
def openai(gateway: GatewayProcess, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


def test_it_is_a_model_like_any_other(openai: OpenAI) -> None:
    assert {"tribunal", "tribunal/vote"} <= {model.id for model in openai.models.list()}


@pytest.mark.parametrize("model", ["tribunal", "tribunal/vote"])
def test_it_answers_counts_and_can_be_read_afterwards(
    gateway: GatewayProcess, openai: OpenAI, key: str, model: str
) -> None:
    raw = openai.chat.completions.with_raw_response.create(model=model, messages=QUESTION, seed=3)  # type: ignore[arg-type]
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    path = f"{gateway.url}/v1/tribunal/deliberations/{raw.headers['x-slurmgate-deliberation']}"
    mine = {"authorization": f"Bearer {key}"}
    until_sync(lambda: httpx.get(path, headers=mine).status_code == 200)  # it is written a moment after its answer
    told = httpx.get(path, headers=mine).json()
    assert [call["phase"] for call in told["calls"]].count("draft") == 3
    assert {call["model"] for call in told["calls"]} <= {CHAT, "another"}
    assert httpx.get(path, headers={"authorization": "Bearer sk-other"}).status_code == 401


def test_a_synthesis_is_streamed_token_by_token(openai: OpenAI) -> None:
    options = {"include_usage": True}
    stream = openai.chat.completions.create(model="tribunal", messages=QUESTION, stream=True, stream_options=options)  # type: ignore[call-overload]
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 1
    assert chunks[-1].usage.total_tokens > 0


def test_it_answers_as_a_response_too(openai: OpenAI) -> None:
    assert openai.responses.create(model="tribunal/vote", input="What happens at the wall time?").output_text
