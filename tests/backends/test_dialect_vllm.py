"""vLLM behind the gateway: its bytes go through as they are."""

from __future__ import annotations

import orjson
import pytest

from backends.base import Reply
from backends.dialects import DIALECTS
from backends.errors import EngineRefused
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
from tests.fakes.dialect_engines import SpeaksVLLM


async def test_nothing_is_repaired_so_bytes_and_fields_pass() -> None:
    dialect = DIALECTS["vllm"]
    assert (dialect.prepare, dialect.repair_reply, dialect.repair_chunks) == (None, None, None)
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        asked = call(CHAT, priority=-5, min_p=0.1, presence_penalty=0, response_format={"type": "json_object"})
        reply = await backend.run(asked)
        assert isinstance(reply, Reply)
        assert engine.requests[0].raw == asked.raw
        assert b'"kv_transfer_params"' in reply.body
        assert orjson.loads(reply.body)["choices"][0]["stop_reason"] is None


async def test_choices_and_several_prompts_are_its_own_business() -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        assert len((await ask(backend, n=3))["choices"]) == 3
        chunks = await stream(backend, n=2)
        assert [text(chunks, index) for index in (0, 1)] == ["Slurm is up"] * 2
        assert finishes(chunks) == ["stop", "stop"]
        assert len((await ask(backend, COMPLETIONS, prompt=["a", "b"], n=2))["choices"]) == 4
        assert len(engine.requests) == 3


@pytest.mark.parametrize("flat", [False, True])
async def test_an_error_has_a_word_for_a_code_in_both_shapes(flat: bool) -> None:
    async with SpeaksVLLM(flat_errors=flat) as engine, backend_of(engine, "vllm") as backend:
        with pytest.raises(EngineRefused) as caught:
            await ask(backend, messages=[{"role": "user", "content": "x" * 6000}])
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


async def test_it_judges_dimensions_itself() -> None:
    async with SpeaksVLLM(matryoshka=True) as engine, backend_of(engine, "vllm") as backend:
        reply = await ask(backend, EMBEDDINGS, input="text", dimensions=2)
        assert len(reply["data"][0]["embedding"]) == 2
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        with pytest.raises(EngineRefused, match="matryoshka"):
            await ask(backend, EMBEDDINGS, input="text", dimensions=2)


async def test_ranks_and_tokens_are_its_own() -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        reply = await ask(backend, RERANK, query="q", documents=["a", "abc", "ab"], top_n=2)
        assert [result["index"] for result in reply["results"]] == [1, 2]
        assert reply["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
        reply = await ask(backend, TOKENIZE, prompt="Hi")
        assert (reply["tokens"], reply["max_model_len"]) == ([72, 105], 4096)
        assert (await ask(backend, TOKENIZE, messages=[{"role": "user", "content": "Hi"}]))["count"] == 2
