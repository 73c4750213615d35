"""llama.cpp behind the gateway."""

from __future__ import annotations

import pytest

from backends.base import Reply
from backends.errors import InvalidRequest
from tests.backends.asking import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    TOKENIZE,
    ask,
    backend_of,
    call,
    finishes,
    stream,
    text,
)
from tests.fakes.dialect_engines import PROMPT_TOKENS, SpeaksLlamaCpp


async def test_a_chat_goes_through_as_the_bytes_it_is() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        asked = call(CHAT, temperature=0.5)
        reply = await backend.run(asked)
        assert isinstance(reply, Reply)
        assert engine.requests[0].raw == asked.raw
        assert b'"timings"' in reply.body


async def test_pings_are_left_out_of_its_streams() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        chunks = await stream(backend)
        assert (text(chunks), finishes(chunks)) == ("Slurm is up", ["stop"])


async def test_more_choices_than_slots_and_the_tokens_of_all_of_them() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        reply = await ask(backend, n=5)
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3, 4]
        assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (PROMPT_TOKENS, 15)


async def test_several_prompts_are_all_counted() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        reply = await ask(backend, COMPLETIONS, prompt=["a", "b"])
        assert [choice["text"] for choice in reply["choices"]] == ["aSlurm is up", "bSlurm is up"]
        assert reply["usage"]["prompt_tokens"] == 2 * PROMPT_TOKENS
        assert reply["usage"]["total_tokens"] == 2 * PROMPT_TOKENS + 6


async def test_the_logprobs_of_completions_are_those_of_completions() -> None:
    expected = {
        "tokens": ["Slurm", " is", " up"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"Slurm": -0.5}, {" is": -0.5}, {" up": -0.5}],
        "text_offset": [0, 5, 8],
    }
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        assert (await ask(backend, COMPLETIONS, prompt="P", logprobs=1))["choices"][0]["logprobs"] == expected
        chunks = await stream(backend, COMPLETIONS, prompt="P", logprobs=1)
        told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
        assert {name: [part[name][0] for part in told] for name in expected} == expected


async def test_the_usage_of_a_completions_stream_has_a_chunk_of_its_own() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        chunks = await stream(backend, COMPLETIONS, prompt="P", stream_options={"include_usage": True})
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 3)
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert finishes(chunks) == ["stop"]
        assert all("usage" not in chunk for chunk in await stream(backend, COMPLETIONS, prompt="P"))


async def test_dimensions_that_it_would_ignore_are_refused() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, EMBEDDINGS, input="text", dimensions=2)
        assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")
        assert engine.requests == []


async def test_an_empty_text_has_a_vector() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        assert len((await ask(backend, EMBEDDINGS, input=""))["data"]) == 1


async def test_ranks_show_documents_if_asked_to() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        reply = await ask(backend, RERANK, query="q", documents=["a", "ab"])
        assert reply["results"] == [{"index": 1, "relevance_score": 0.02}, {"index": 0, "relevance_score": 0.01}]
        reply = await ask(backend, RERANK, query="q", documents=["a", "ab"], top_n=1, return_documents=True)
        assert reply["results"] == [{"index": 1, "relevance_score": 0.02, "document": {"text": "ab"}}]


async def test_the_tokens_of_a_text_and_of_a_chat_that_it_renders_first() -> None:
    async with SpeaksLlamaCpp() as engine, backend_of(engine, "llamacpp") as backend:
        assert await ask(backend, TOKENIZE, prompt="Hi") == {"tokens": [1, 72, 105], "count": 3}
        assert (await ask(backend, TOKENIZE, prompt="Hi", add_special_tokens=False))["tokens"] == [72, 105]
        reply = await ask(backend, TOKENIZE, messages=[{"role": "user", "content": "Hi"}], return_token_strs=True)
        assert "".join(reply["token_strs"]) == "<user>Hi"
        assert [request.path for request in engine.requests[-2:]] == ["/apply-template", "/tokenize"]
