"""TEI behind the gateway."""

from __future__ import annotations

import pytest

from backends.errors import InvalidRequest
from tests.backends.asking import CHAT, EMBEDDINGS, NAME, RERANK, TOKENIZE, ask, backend_of
from tests.fakes.dialect_engines import SpeaksTEI


async def test_more_texts_than_it_takes_are_split_and_come_back_in_order() -> None:
    texts = ["x" * length for length in range(1, 101)]
    async with SpeaksTEI() as engine, backend_of(engine, "tei") as backend:
        reply = await ask(backend, EMBEDDINGS, input=texts)
        assert [item["embedding"][0] for item in reply["data"]] == list(range(1, 101))
        assert [item["index"] for item in reply["data"]] == list(range(100))
        assert reply["usage"] == {"prompt_tokens": 100, "total_tokens": 100}
        assert sorted(len(request.body["input"]) for request in engine.requests) == [4, 32, 32, 32]


async def test_an_empty_text_has_a_vector() -> None:
    async with SpeaksTEI() as engine, backend_of(engine, "tei") as backend:
        assert len((await ask(backend, EMBEDDINGS, input=["", "a"]))["data"]) == 2


async def test_ranks_are_asked_for_as_texts_and_come_back_as_results() -> None:
    documents = [{"text": "a"}, "abc", "ab"]
    async with SpeaksTEI() as engine, backend_of(engine, "tei") as backend:
        reply = await ask(backend, RERANK, query="q", documents=documents, top_n=2, return_documents=True)
        assert engine.requests[0].path == "/rerank"
        assert engine.requests[0].body == {"query": "q", "texts": ["a", "abc", "ab"]}
        assert [(result["index"], result["document"]["text"]) for result in reply["results"]] == [(1, "abc"), (2, "ab")]
        assert (reply["id"], reply["model"]) == ("rerank-1f", NAME)
        raw = await ask(backend, RERANK, query="q", documents=documents, raw_scores=True, truncate=True)
        assert raw["results"][0]["relevance_score"] == 3.0


async def test_more_documents_than_it_takes_are_ranked_together() -> None:
    documents = ["x" * (1 + place * 37 % 100) for place in range(100)]
    async with SpeaksTEI() as engine, backend_of(engine, "tei") as backend:
        reply = await ask(backend, RERANK, query="q", documents=documents, top_n=3)
        assert [len(documents[result["index"]]) for result in reply["results"]] == [100, 99, 98]
        assert len(engine.requests) == 4


async def test_the_tokens_of_a_text_and_not_of_a_chat() -> None:
    async with SpeaksTEI() as engine, backend_of(engine, "tei") as backend:
        assert (await ask(backend, TOKENIZE, prompt="Hi"))["tokens"] == [101, 72, 105]
        assert (await ask(backend, TOKENIZE, prompt="Hi", add_special_tokens=False))["token_strs"] == ["H", "i"]
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, TOKENIZE, messages=[{"role": "user", "content": "Hi"}])
        assert caught.value.param == "messages"


async def test_it_does_not_chat() -> None:
    async with SpeaksTEI() as engine, backend_of(engine, "tei") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, CHAT)
        assert caught.value.code == "unsupported_endpoint"
        assert engine.requests == []
