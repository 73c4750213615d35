"""SGLang behind the gateway."""

from __future__ import annotations

import base64
import struct

import pytest

from backends.errors import EngineRefused, InvalidRequest
from tests.backends.asking import EMBEDDINGS, NAME, RERANK, TOKENIZE, ask, backend_of, stream, text
from tests.fakes.dialect_engines import SpeaksSGLang, vector


async def test_chats_are_openais() -> None:
    async with SpeaksSGLang() as engine, backend_of(engine, "sglang") as backend:
        assert len((await ask(backend, n=2))["choices"]) == 2
        assert text(await stream(backend)) == "Slurm is up"


async def test_a_flat_error_is_openais() -> None:
    async with SpeaksSGLang() as engine, backend_of(engine, "sglang") as backend:
        with pytest.raises(EngineRefused) as caught:
            await ask(backend, EMBEDDINGS, input=[" "])
        assert (caught.value.status, caught.value.code) == (400, None)
        assert caught.value.message == "Input cannot be empty or whitespace only"


async def test_vectors_have_the_public_name_and_the_format_that_was_asked_for() -> None:
    async with SpeaksSGLang() as engine, backend_of(engine, "sglang") as backend:
        reply = await ask(backend, EMBEDDINGS, input=["ab"], encoding_format="base64")
        assert reply["model"] == NAME
        assert list(struct.unpack("<4f", base64.b64decode(reply["data"][0]["embedding"]))) == vector("ab")
        assert (await ask(backend, EMBEDDINGS, input="ab"))["data"][0]["embedding"] == vector("ab")


async def test_an_empty_text_has_a_vector() -> None:
    async with SpeaksSGLang() as engine, backend_of(engine, "sglang") as backend:
        assert len((await ask(backend, EMBEDDINGS, input=["", "a"]))["data"]) == 2


async def test_a_bare_list_of_ranks_becomes_a_ranking() -> None:
    async with SpeaksSGLang() as engine, backend_of(engine, "sglang") as backend:
        asked = ["a", {"text": "abc"}, "ab"]
        reply = await ask(backend, RERANK, query="q", documents=asked, top_n=2, return_documents=True)
        assert reply["results"] == [
            {"index": 1, "relevance_score": 0.03, "document": {"text": "abc"}},
            {"index": 2, "relevance_score": 0.02, "document": {"text": "ab"}},
        ]
        assert (reply["model"], reply["usage"]["prompt_tokens"]) == (NAME, 9)


async def test_the_tokens_of_a_text_and_not_of_a_chat() -> None:
    async with SpeaksSGLang() as engine, backend_of(engine, "sglang") as backend:
        assert (await ask(backend, TOKENIZE, prompt="Hi"))["tokens"] == [72, 105]
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, TOKENIZE, messages=[{"role": "user", "content": "Hi"}])
        assert (caught.value.param, caught.value.code) == ("messages", "unsupported_parameter")
