"""Embeddings as LangChain and the SDK ask for them, of engines that know a part of it."""

from __future__ import annotations

import base64
import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from backends import cl100k
from backends.base import Reply
from backends.embeddings import cut
from backends.errors import EngineRefused, GatewayError, InvalidRequest, MalformedResponse
from tests.backends.asking import EMBEDDINGS, ask, backend_of, call
from tests.fakes.chat_engine import AnswersWith
from tests.fakes.dialect_engines import SpeaksLlamaCpp, SpeaksSGLang, SpeaksTEI, SpeaksVLLM, vector

HELLO_WORLD = [15339, 1917]
"""tiktoken.get_encoding("cl100k_base").encode("hello world")"""


def floats(text: str) -> list[float]:
    content = base64.b64decode(text)
    return list(struct.unpack(f"<{len(content) // 4}f", content))


# -- token ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (HELLO_WORLD, ["hello world"]),
        ([HELLO_WORLD, [15339]], ["hello world", "hello"]),
        ([[100257]], ["<|endoftext|>"]),
        ([[9468, 239]], ["�"]),
    ],
)
@pytest.mark.parametrize(("name", "engine"), [("vllm", SpeaksVLLM), ("tei", SpeaksTEI), ("llamacpp", SpeaksLlamaCpp)])
async def test_ids_of_cl100k_are_decoded(name: str, engine: Any, given: Any, texts: list[str]) -> None:
    async with engine() as one, backend_of(one, name) as backend:
        reply = await ask(backend, EMBEDDINGS, input=given)
        assert one.requests[0].body["input"] == texts
        assert [item["embedding"][0] for item in reply["data"]] == [len(text) for text in texts]


async def test_ids_of_the_engines_own_vocabulary_pass_if_the_model_says_so() -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm", own_vocabulary=True) as backend:
        asked = call(EMBEDDINGS, input=[[1, 2], [3]])
        await backend.run(asked)
        assert engine.requests[0].raw == asked.raw


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (["a", 1], "input[1]", "invalid_type"),
        ([1, "a"], "input[1]", "invalid_type"),
        ([1, True], "input[1]", "invalid_type"),
        ([[1], "a"], "input[1]", "invalid_type"),
        ([[1], [2, "a"]], "input[1]", "invalid_type"),
        ([[1], []], "input[1]", "empty_array"),
        ([{"text": "a"}], "input[0]", "invalid_type"),
        ([None], "input[0]", "invalid_type"),
        ([1.5], "input[0]", "invalid_type"),
        ([5, -1], "input[1]", "invalid_value"),
        ([[5], [200_000]], "input[1]", "invalid_value"),
        ([[5], [-7]], "input[1]", "invalid_value"),
        ([[5], [2**63 - 1]], "input[1]", "invalid_value"),
    ],
)
async def test_a_wrong_input_is_named(given: Any, param: str, code: str) -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, EMBEDDINGS, input=given)
        assert (caught.value.param, caught.value.code) == (param, code)
        assert engine.requests == []


def test_decoding_takes_neither_litellm_nor_tiktoken_nor_a_variable() -> None:
    code = (
        "import os, sys\n"
        "from backends.cl100k import decode_now\n"
        "before = dict(os.environ)\n"
        f"print(decode_now([{HELLO_WORLD}]))\n"
        "assert dict(os.environ) == before\n"
        "print([name for name in ('litellm', 'tiktoken', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines() == ["['hello world']", "[]"]


def test_what_tiktoken_encodes_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    shipped = Path(str(importlib.util.find_spec("litellm").origin)).parent / "litellm_core_utils" / "tokenizers"  # type: ignore[union-attr]
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shipped))
    text = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 👍 <|x|>\n\tdef f(): return 1_000"
    assert cl100k.decode_now([tiktoken.get_encoding("cl100k_base").encode(text)]) == [text]


async def test_a_missing_vocabulary_is_the_gateways_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cl100k, "_pieces", {})
    monkeypatch.setattr(cl100k, "FILE", "none")
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        with pytest.raises(GatewayError) as caught:
            await ask(backend, EMBEDDINGS, input=HELLO_WORLD)
        assert (caught.value.status, caught.value.code) == (500, "no_vocabulary")


# -- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"input": "a text"},
        {"input": ["a", "b"]},
        {"input": ["a", "b"], "encoding_format": "float"},
        {"input": ["a", "b"], "encoding_format": "base64"},
        {"input": ""},
    ],
)
async def test_texts_in_one_batch_pass_as_the_same_bytes_both_ways(asked: dict[str, Any]) -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        sent = call(EMBEDDINGS, **asked)
        reply = await backend.run(sent)
        assert isinstance(reply, Reply)
        assert engine.requests[0].raw == sent.raw
        assert b'"embedding": ' in reply.body  # with the engine's own blank


# -- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["base64", "float"])
@pytest.mark.parametrize(("name", "engine"), [("sglang", SpeaksSGLang), ("tei", SpeaksTEI), ("vllm", SpeaksVLLM)])
async def test_both_formats_whatever_the_engine_can(name: str, engine: Any, wanted: str) -> None:
    texts = ["x" * length for length in range(1, 40)]
    async with engine() as one, backend_of(one, name) as backend:
        reply = await ask(backend, EMBEDDINGS, input=texts, encoding_format=wanted)
        got = [item["embedding"] for item in reply["data"]]
        assert [floats(item) if wanted == "base64" else item for item in got] == [vector(text) for text in texts]


async def test_floats_are_made_of_base64_where_the_engine_gives_that() -> None:
    body = {"object": "list", "data": [{"index": 0, "embedding": base64.b64encode(struct.pack("<2f", 1, 2)).decode()}]}
    async with AnswersWith(200, orjson.dumps(body)) as engine, backend_of(engine, "vllm") as backend:
        assert (await ask(backend, EMBEDDINGS, input="a"))["data"][0]["embedding"] == [1.0, 2.0]


async def test_an_unknown_format_is_refused() -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, EMBEDDINGS, input="a", encoding_format="hex")
        assert caught.value.param == "encoding_format"


# -- batches ---------------------------------------------------------------------------------------------------------


async def test_a_thousand_lists_of_ids_in_base64_as_langchain_sends_them() -> None:
    async with SpeaksTEI() as engine, backend_of(engine, "tei") as backend:
        given = [[15339] * (1 + number % 7) for number in range(1000)]
        reply = await ask(backend, EMBEDDINGS, input=given, encoding_format="base64")
        assert [item["index"] for item in reply["data"]] == list(range(1000))
        assert [floats(item["embedding"])[0] for item in reply["data"]] == [5.0 * len(ids) for ids in given]
        assert len(engine.requests) == 32
        assert engine.connections <= 4


async def test_a_model_can_have_a_batch_of_its_own() -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm", max_inputs=3) as backend:
        assert len((await ask(backend, EMBEDDINGS, input=["a"] * 7))["data"]) == 7
        assert sorted(len(request.body["input"]) for request in engine.requests) == [1, 3, 3]


async def test_an_error_of_one_batch_is_the_error_of_all() -> None:
    async with SpeaksSGLang() as engine, backend_of(engine, "sglang", max_inputs=2) as backend:
        with pytest.raises(EngineRefused):
            await ask(backend, EMBEDDINGS, input=["a", "b", "c", " ", "d", "e"])


@pytest.mark.parametrize("data", [[], [{"index": 1, "embedding": [1.0]}], None])
async def test_an_answer_that_lacks_vectors_is_malformed(data: Any) -> None:
    body = orjson.dumps({"object": "list", "data": data})
    async with AnswersWith(200, body) as engine, backend_of(engine, "tei", max_inputs=1) as backend:
        with pytest.raises(MalformedResponse):
            await ask(backend, EMBEDDINGS, input=["a", "b"])


# -- dimensions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "engine"), [("llamacpp", SpeaksLlamaCpp), ("tei", SpeaksTEI), ("vllm", SpeaksVLLM)])
@pytest.mark.parametrize("wanted", ["base64", "float"])
async def test_vectors_of_a_matryoshka_model_are_cut_and_of_length_1(name: str, engine: Any, wanted: str) -> None:
    async with engine() as one, backend_of(one, name, matryoshka=True) as backend:
        reply = await ask(backend, EMBEDDINGS, input="four", dimensions=2, encoding_format=wanted)
        got = reply["data"][0]["embedding"]
        assert (floats(got) if wanted == "base64" else got) == pytest.approx([0.8, 0.6])
        assert "dimensions" not in one.requests[0].body
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, EMBEDDINGS, input="four", dimensions=5)
        assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    ("name", "engine"), [("llamacpp", SpeaksLlamaCpp), ("tei", SpeaksTEI), ("sglang", SpeaksSGLang)]
)
async def test_vectors_of_another_model_are_not_cut(name: str, engine: Any) -> None:
    async with engine() as one:
        async with backend_of(one, name) as backend:
            with pytest.raises(InvalidRequest) as caught:
                await ask(backend, EMBEDDINGS, input="four", dimensions=2)
            assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")
        async with backend_of(one, name, drop_unsupported=True) as backend:
            assert (await ask(backend, EMBEDDINGS, input="four", dimensions=2))["data"][0]["embedding"] == vector(
                "four"
            )


@pytest.mark.parametrize("size", [0, -1, True, "2"])
async def test_dimensions_that_are_none_are_refused(size: Any) -> None:
    async with SpeaksVLLM() as engine, backend_of(engine, "vllm", matryoshka=True) as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, EMBEDDINGS, input="four", dimensions=size)
        assert caught.value.param == "dimensions"


def test_a_vector_of_nothing_stays_one() -> None:
    assert list(cut([0.0, 0.0, 1.0], 2)) == [0.0, 0.0]


async def test_embeddings_have_no_choices() -> None:
    async with SpeaksVLLM() as engine:
        async with backend_of(engine, "vllm") as backend:
            with pytest.raises(InvalidRequest) as caught:
                await ask(backend, EMBEDDINGS, input="four", n=2)
            assert (caught.value.param, caught.value.code) == ("n", "unsupported_parameter")
        async with backend_of(engine, "vllm", drop_unsupported=True) as backend:
            await ask(backend, EMBEDDINGS, input="four", n=2)
            assert "n" not in engine.requests[0].body
