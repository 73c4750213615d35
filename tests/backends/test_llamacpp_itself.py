"""The one engine that runs anywhere, asked through its dialect: what the fake claims is true of the real one."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backends import engine_info, health
from backends.base import Endpoint, EventStream
from backends.compose import Options, backend_for
from backends.errors import NotTheEngine
from backends.fixed import FixedEndpoint, FixedEndpoints
from backends.model_places import ModelPlaces
from proxy import embedded
from tests.backends.asking import COMPLETIONS, EMBEDDINGS, NAME, TOKENIZE, ask, call, stream, text
from tests.waiting import until_sync

MODELS = Path(embedded.__file__).parent
MOST = 1900
"""Tokens, nearly what there is room for."""


@contextmanager
def engine(model: str, *more: str) -> Iterator[FixedEndpoints]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = [sys.executable, "-m", "slurm_launcher.xllamacpp_server", "--model", str(MODELS / model)]
    argv = [*module, "--port", str(port), "--alias", NAME, *more]
    environment = {**os.environ, "LLAMA_API_KEY": "key"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_sync(lambda: healthy(port), 60)
            yield FixedEndpoints([FixedEndpoint("one", "127.0.0.1", port, "key")])
        finally:
            process.terminate()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def chatting() -> Iterator[FixedEndpoints]:
    with engine("guide.gguf", "--metrics") as endpoints:
        yield endpoints


@pytest.fixture(scope="module")
def embedding() -> Iterator[FixedEndpoints]:
    with engine("embed.gguf", "--embeddings") as endpoints:
        yield endpoints


async def test_more_choices_than_slots(chatting: FixedEndpoints) -> None:
    backend = backend_for(NAME, ModelPlaces(NAME, chatting, engine="llamacpp"), "llamacpp")
    reply = await ask(backend, n=6, max_tokens=3, seed=1)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    assert reply["usage"]["completion_tokens"] == 18
    chunks = await stream(backend, n=6, max_tokens=3, stream_options={"include_usage": True})
    assert all(text(chunks, index) for index in range(6))
    assert chunks[-1]["usage"]["completion_tokens"] == 18
    await backend.aclose()


async def test_a_stream_that_is_left_midway_frees_its_slot(chatting: FixedEndpoints) -> None:
    (endpoint,) = chatting.endpoints(NAME)
    backend = backend_for(NAME, ModelPlaces(NAME, chatting, engine="llamacpp"), "llamacpp")
    before = await asyncio.to_thread(counted, endpoint, "tokens_predicted_total")
    left = await backend.run(call(stream=True, max_tokens=MOST, ignore_eos=True))
    assert isinstance(left, EventStream)
    assert await anext(aiter(left))
    left.close()
    await backend.aclose()
    await asyncio.to_thread(until_sync, lambda: counted(endpoint, "requests_processing") == 0)
    assert 0 < await asyncio.to_thread(counted, endpoint, "tokens_predicted_total") - before < MOST


def counted(endpoint: Endpoint, name: str) -> float:
    """As the engine's own metrics have it."""
    request = urllib.request.Request(
        f"http://{endpoint.host}:{endpoint.port}/metrics", headers={"authorization": f"Bearer {endpoint.api_key}"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith(f"llamacpp:{name} ")]
    return float(line.split()[1])


async def test_it_says_how_many_it_takes(chatting: FixedEndpoints) -> None:
    (endpoint,) = chatting.endpoints(NAME)
    takes = (await engine_info.ask("llamacpp", endpoint)).takes
    assert takes is not None
    assert await health.answers(endpoint)


async def test_it_is_ours_by_its_key_and_nobody_elses(chatting: FixedEndpoints) -> None:
    (endpoint,) = chatting.endpoints(NAME)
    assert await health.is_ours("llamacpp")(endpoint)
    another = replace(endpoint, api_key="another")
    assert await health.answers(another)
    with pytest.raises(NotTheEngine):
        await health.is_ours("llamacpp")(another)


async def test_completions(chatting: FixedEndpoints) -> None:
    backend = backend_for(NAME, ModelPlaces(NAME, chatting, engine="llamacpp"), "llamacpp")
    reply = await ask(backend, COMPLETIONS, prompt=["a", "b"], max_tokens=2, logprobs=1)
    assert [len(choice["logprobs"]["tokens"]) for choice in reply["choices"]] == [2, 2]
    assert reply["usage"]["completion_tokens"] == 4
    asked = {"prompt": "a", "max_tokens": 2, "logprobs": 1}
    chunks = await stream(backend, COMPLETIONS, stream_options={"include_usage": True}, **asked)
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 2)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"]]
    assert "".join("".join(part["tokens"]) for part in told if part) == text(chunks)
    await backend.aclose()


async def test_tokens(chatting: FixedEndpoints) -> None:
    backend = backend_for(NAME, ModelPlaces(NAME, chatting, engine="llamacpp"), "llamacpp")
    one = await ask(backend, TOKENIZE, prompt="hello", return_token_strs=True)
    assert "".join(one["token_strs"]) == "hello"
    chat = await ask(backend, TOKENIZE, messages=[{"role": "user", "content": "hello"}])
    assert chat["count"] > one["count"]
    await backend.aclose()


async def test_embeddings(embedding: FixedEndpoints) -> None:
    backend = backend_for(
        NAME, ModelPlaces(NAME, embedding, engine="llamacpp"), "llamacpp", options=Options(matryoshka=True)
    )
    floats = await ask(backend, EMBEDDINGS, input=["hello world", ""])
    ids = await ask(backend, EMBEDDINGS, input=[[15339, 1917], [15339]], encoding_format="base64")
    packed = base64.b64decode(ids["data"][0]["embedding"])
    numbers = struct.unpack(f"<{len(packed) // 4}f", packed)
    assert numbers == pytest.approx(floats["data"][0]["embedding"], abs=1e-5)
    cut = (await ask(backend, EMBEDDINGS, input="hello world", dimensions=8))["data"][0]["embedding"]
    assert len(cut) == 8
    assert math.hypot(*cut) == pytest.approx(1)
    await backend.aclose()
