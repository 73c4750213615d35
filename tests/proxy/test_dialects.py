"""The official client against the whole gateway, in front of each engine as it speaks: no client notices which one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.fakes.chat_engine import Engine
from tests.fakes.dialect_engines import (
    PROMPT_TOKENS,
    SpeaksLlamaCpp,
    SpeaksSGLang,
    SpeaksTEI,
    SpeaksTGI,
    SpeaksVLLM,
    Transcribes,
    vector,
)
from tests.in_process import Served, serving

MODEL = "org/model"
QUESTION: Any = [{"role": "user", "content": "secret prompt"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "tells it",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "time")
]
SCHEMA = {
    "type": "object",
    "properties": {"up": {"type": "boolean"}},
    "required": ["up"],
    "additionalProperties": False,
}
CHATTING: dict[str, type[Engine]] = {
    "tgi": SpeaksTGI,
    "vllm": SpeaksVLLM,
    "sglang": SpeaksSGLang,
    "llamacpp": SpeaksLlamaCpp,
}
EMBEDDING: dict[str, type[Engine]] = {
    "vllm": SpeaksVLLM,
    "sglang": SpeaksSGLang,
    "llamacpp": SpeaksLlamaCpp,
    "tei": SpeaksTEI,
}
on_every_engine = pytest.mark.parametrize("name", CHATTING)
on_every_embedding_engine = pytest.mark.parametrize("name", EMBEDDING)


@asynccontextmanager
async def gateway(
    tmp_path: Path, name: str, engine: Engine, more: str = ""
) -> AsyncIterator[tuple[Served, AsyncOpenAI]]:
    # with a context length, so that no engine is asked for its own: what it is asked here is a test's business
    text = f'[models."{MODEL}"]\nengine = "{name}"\nurls = ["{engine.url}"]\ncontext_length = 4096\n{more}'
    async with serving(text, tmp_path) as served:
        client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
        async with client:
            yield served, client


@asynccontextmanager
async def chatting(tmp_path: Path, name: str, more: str = "") -> AsyncIterator[tuple[Any, AsyncOpenAI]]:
    async with CHATTING[name]() as engine, gateway(tmp_path, name, engine, more) as (_, client):
        yield engine, client


def only(calls: Any) -> Any:
    (call,) = calls
    return call


# -- chat ------------------------------------------------------------------------------------------------------------


@on_every_engine
async def test_a_chat(tmp_path: Path, name: str) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, presence_penalty=0, top_p=1)
        assert answer.id.startswith("chatcmpl-")
        assert answer.model == MODEL
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.content == "Slurm is up"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 3)


@on_every_engine
@pytest.mark.parametrize("shows_usage", [True, False])
async def test_a_streamed_chat(tmp_path: Path, name: str, shows_usage: bool) -> None:
    more: Any = {"stream_options": {"include_usage": True}} if shows_usage else {}
    async with chatting(tmp_path, name) as (_, client):
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, **more)
        chunks = [chunk async for chunk in stream]
        assert {(chunk.model, chunk.object) for chunk in chunks} == {(MODEL, "chat.completion.chunk")}
        assert len({chunk.id for chunk in chunks}) == 1
        said = [choice for chunk in chunks for choice in chunk.choices]
        assert "".join(choice.delta.content or "" for choice in said) == "Slurm is up"
        assert [choice.finish_reason for choice in said if choice.finish_reason] == ["stop"]
        assert [choice.delta.role for choice in said if choice.delta.role] == ["assistant"]
        shown = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
        assert shown == ([3] if shows_usage else [])
        assert (chunks[-1].choices == []) == shows_usage


@on_every_engine
@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "time"}}])
async def test_tools(tmp_path: Path, name: str, choice: Any) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice=choice)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        call = only(answer.choices[0].message.tool_calls)
        assert call.id.startswith("call_")
        assert call.type == "function"
        assert call.function.name == ("time" if isinstance(choice, dict) else "weather")
        assert json.loads(call.function.arguments) == {"city": "Berlin"}


@on_every_engine
async def test_streamed_tools(tmp_path: Path, name: str) -> None:
    """By the SDK's own accumulator, which is strict about ids and names that come twice."""
    async with chatting(tmp_path, name) as (_, client):
        async with client.chat.completions.stream(model=MODEL, messages=QUESTION, tools=TOOLS) as stream:
            completion = await stream.get_final_completion()
        call = only(completion.choices[0].message.tool_calls)
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Berlin"})
        assert call.id.startswith("call_")
        assert completion.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp"])
async def test_parallel_tools(tmp_path: Path, name: str) -> None:
    asked: Any = [{"role": "user", "content": "both"}]
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=asked, tools=TOOLS)
        assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == ["weather", "time"]  # type: ignore[union-attr]
        async with client.chat.completions.stream(model=MODEL, messages=asked, tools=TOOLS) as stream:
            calls = (await stream.get_final_completion()).choices[0].message.tool_calls or ()
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("weather", {"city": "Berlin"}),
            ("time", {"city": "Berlin"}),
        ]


@on_every_engine
async def test_the_rest_of_a_conversation_with_tools(tmp_path: Path, name: str) -> None:
    async with chatting(tmp_path, name) as (_, client):
        first = await client.chat.completions.create(model=MODEL, messages=QUESTION, tools=TOOLS)
        message = first.choices[0].message
        call = only(message.tool_calls)
        result = {"role": "tool", "tool_call_id": call.id, "content": "no tool any more: sunny"}
        conversation: Any = [*QUESTION, {**message.model_dump(), "content": ""}, result]
        answer = await client.chat.completions.create(model=MODEL, messages=conversation, tools=TOOLS)
        assert answer.choices[0].message.content == "Slurm is up"


@on_every_engine
@pytest.mark.parametrize(
    "asked",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}},
    ],
)
async def test_json(tmp_path: Path, name: str, asked: Any) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=asked)
        assert json.loads(answer.choices[0].message.content or "") == {"up": True}


@on_every_engine
async def test_three_choices(tmp_path: Path, name: str) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 9)
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, n=3, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        for index in range(3):
            said = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
            assert "".join(choice.delta.content or "" for choice in said) == "Slurm is up"
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [9]


@on_every_engine
async def test_logprobs(tmp_path: Path, name: str) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, logprobs=True, top_logprobs=1)
        assert answer.choices[0].logprobs is not None
        tokens = answer.choices[0].logprobs.content or []
        assert b"".join(bytes(token.bytes or ()) for token in tokens) == b"Slurm is up"
        assert tokens[0].top_logprobs[0].token == "Slurm"


@on_every_engine
@pytest.mark.parametrize("stop", [" up", [" up", "never"]])
async def test_a_stop(tmp_path: Path, name: str, stop: Any) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, stop=stop)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Slurm is", "stop")


@on_every_engine
async def test_a_seed_and_a_limit(tmp_path: Path, name: str) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, seed=7)
        assert answer.choices[0].message.content == "Slurm is up #7"
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, max_completion_tokens=1)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Slurm", "length")


@on_every_engine
async def test_parts_of_a_message(tmp_path: Path, name: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    asked: Any = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    async with chatting(tmp_path, name) as (engine, client):
        answer = await client.chat.completions.create(model=MODEL, messages=asked)
        assert answer.choices[0].message.content == "Slurm is up (1 image)"
        assert engine.requests[0].body["messages"] == asked


@on_every_engine
async def test_completions(tmp_path: Path, name: str) -> None:
    async with chatting(tmp_path, name) as (_, client):
        answer = await client.completions.create(model=MODEL, prompt=["a", "b"], n=2)
        assert [(choice.index, choice.text) for choice in answer.choices] == [
            (index, f"{prompt}Slurm is up") for index, prompt in enumerate("aabb")
        ]
        stream = await client.completions.create(
            model=MODEL, prompt="a", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Slurm is up"
        assert [choice.finish_reason for c in chunks for choice in c.choices if choice.finish_reason] == ["stop"]
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None


async def test_what_an_engine_cannot_do_names_the_parameter_unless_it_is_to_be_dropped(tmp_path: Path) -> None:
    async with chatting(tmp_path / "refused", "tgi") as (engine, client):
        with pytest.raises(BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=QUESTION, logit_bias={"5": 1})
        assert (caught.value.param, caught.value.code) == ("logit_bias", "unsupported_parameter")
        assert engine.requests == []
    async with chatting(tmp_path / "dropped", "tgi", "drop_unsupported = true") as (_, client):
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, logit_bias={"5": 1})
        assert answer.choices[0].message.content == "Slurm is up"


# -- embeddings ------------------------------------------------------------------------------------------------------


@on_every_embedding_engine
@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_embeddings(tmp_path: Path, name: str, form: Any) -> None:
    """The SDK asks for base64 by itself and decodes it."""
    async with EMBEDDING[name]() as engine, gateway(tmp_path, name, engine) as (_, client):
        more = {} if form is None else {"encoding_format": form}
        texts = ["", *("x" * length for length in range(1, 50))]
        answer = await client.embeddings.create(model=MODEL, input=texts, **more)
        assert answer.model == MODEL
        assert [item.index for item in answer.data] == list(range(50))
        if form != "base64":
            assert [item.embedding for item in answer.data[1:]] == [vector(text) for text in texts[1:]]
        answer = await client.embeddings.create(model=MODEL, input=[[15339, 1917], [15339]])
        assert [item.embedding[0] for item in answer.data] == [len("hello world"), len("hello")]


@on_every_embedding_engine
async def test_cut_embeddings(tmp_path: Path, name: str) -> None:
    async with EMBEDDING[name]() as engine, gateway(tmp_path, name, engine, "matryoshka = true") as (_, client):
        answer = await client.embeddings.create(model=MODEL, input="four", dimensions=2)
        assert answer.data[0].embedding == pytest.approx([0.8, 0.6])


@pytest.mark.parametrize("body", [{"input": ["a", 1]}, {"input": [[1], None]}])
async def test_a_wrong_input_is_named(tmp_path: Path, body: Any) -> None:
    async with SpeaksTEI() as engine, gateway(tmp_path, "tei", engine) as (served, _):
        async with httpx.AsyncClient(headers=served.headers) as http:
            response = await http.post(f"{served.url}/v1/embeddings", json={"model": MODEL, **body})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "input[1]")


# -- ranks and tokens ------------------------------------------------------------------------------------------------


@on_every_embedding_engine
@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_ranks(tmp_path: Path, name: str, path: str) -> None:
    async with EMBEDDING[name]() as engine, gateway(tmp_path, name, engine) as (served, _):
        asked = {"model": MODEL, "query": "q", "documents": ["a", {"text": "abc"}, "ab"], "top_n": 2}
        async with httpx.AsyncClient(headers=served.headers) as http:
            response = await http.post(served.url + path, json={**asked, "return_documents": True})
        assert response.status_code == 200
        reply = response.json()
        assert [(result["index"], result["document"]) for result in reply["results"]] == [
            (1, {"text": "abc"}),
            (2, {"text": "ab"}),
        ]
        assert reply["results"][0]["relevance_score"] > reply["results"][1]["relevance_score"]
        assert reply["id"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a", 3]}, "documents[1]"),
        ({"query": "q", "documents": [{"no": "text"}]}, "documents[0]"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a"], "stream": True}, "stream"),
    ],
)
async def test_a_wrong_request_for_ranks_is_told_what_is_wrong(tmp_path: Path, body: Any, param: str) -> None:
    async with SpeaksTEI() as engine, gateway(tmp_path, "tei", engine) as (served, _):
        async with httpx.AsyncClient(headers=served.headers) as http:
            response = await http.post(f"{served.url}/v1/rerank", json={"model": MODEL, **body})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert engine.requests == []


@pytest.mark.parametrize("name", [*CHATTING, "tei"])
async def test_tokens(tmp_path: Path, name: str) -> None:
    async with {**CHATTING, **EMBEDDING}[name]() as engine, gateway(tmp_path, name, engine) as (served, _):
        async with httpx.AsyncClient(headers=served.headers) as http:
            response = await http.post(f"{served.url}/tokenize", json={"model": MODEL, "prompt": "Hi"})
            assert response.status_code == 200
            assert response.json()["tokens"][-2:] == [72, 105]
            assert response.json()["count"] == len(response.json()["tokens"])
            response = await http.post(f"{served.url}/tokenize", json={"model": MODEL, "messages": QUESTION})
            if name in ("sglang", "tei"):
                assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
            else:
                assert response.json()["count"] >= len("secret prompt")
            both = {"prompt": "a", "messages": QUESTION}
            wrong: dict[str, Any]
            for wrong in ({"other": 1}, both, {"messages": []}, {"messages": [3]}):
                response = await http.post(f"{served.url}/tokenize", json={"model": MODEL, **wrong})
                assert response.status_code == 400


@pytest.mark.parametrize("path", ["/rerank", "/tokenize"])
async def test_what_is_outside_v1_needs_a_key_too(tmp_path: Path, path: str) -> None:
    async with SpeaksTEI() as engine, gateway(tmp_path, "tei", engine) as (served, _):
        asked = {"model": MODEL, "query": "q", "documents": ["a"], "prompt": "a"}
        async with httpx.AsyncClient() as http:
            response = await http.post(served.url + path, json=asked)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert engine.requests == []


@pytest.mark.parametrize(
    ("name", "path"), [("tgi", "/v1/embeddings"), ("tgi", "/v1/rerank"), ("tei", "/v1/completions")]
)
async def test_an_endpoint_that_the_engine_has_not(tmp_path: Path, name: str, path: str) -> None:
    asked = {"model": MODEL, "input": "a", "query": "q", "documents": ["a"], "prompt": "a"}
    async with {**CHATTING, **EMBEDDING}[name]() as engine, gateway(tmp_path, name, engine) as (served, _):
        async with httpx.AsyncClient(headers=served.headers) as http:
            response = await http.post(served.url + path, json=asked)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_endpoint")
        assert engine.requests == []


# -- transcriptions --------------------------------------------------------------------------------------------------

AUDIO = ("speech.wav", b"RIFF\r\n--not-the-boundary\r\n" + bytes(range(256)) * 40, "audio/wav")


async def test_a_form_reaches_the_engine_as_the_bytes_it_is(tmp_path: Path) -> None:
    async with Transcribes() as engine, gateway(tmp_path, "vllm", engine) as (served, client):
        answer = await client.audio.transcriptions.create(model=MODEL, file=AUDIO, language="en")
        assert answer.text == f"{len(engine.requests[0].raw)} bytes"
        request = httpx.Request("POST", "http://x", data={"model": MODEL, "temperature": "0"}, files={"file": AUDIO})
        async with httpx.AsyncClient(headers=served.headers) as http:
            kind = request.headers["content-type"]
            url = f"{served.url}/v1/audio/transcriptions"
            response = await http.post(url, content=request.read(), headers={"content-type": kind})
        assert response.status_code == 200
        assert engine.requests[1].raw == request.read()
        assert engine.requests[1].headers["content-type"] == kind


async def test_a_transcription_as_text_and_as_a_stream(tmp_path: Path) -> None:
    async with Transcribes() as engine, gateway(tmp_path, "vllm", engine) as (served, _):
        async with httpx.AsyncClient(headers=served.headers) as http:
            for fields, kind in (
                ({"response_format": "text"}, "text/plain"),
                ({"stream": "true"}, "text/event-stream"),
            ):
                response = await http.post(
                    f"{served.url}/v1/audio/transcriptions", data={"model": MODEL, **fields}, files={"file": AUDIO}
                )
                assert response.status_code == 200
                assert response.headers["content-type"].startswith(kind)
                assert f"{len(engine.requests[-1].raw)} bytes" in response.text


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"files": {"file": AUDIO}}, "model", "missing_required_parameter"),
        ({"files": {"other": AUDIO}, "data": {"model": MODEL}}, "file", "missing_required_parameter"),
        ({"files": {"file": AUDIO}, "data": {"model": [MODEL, "another"]}}, "model", "duplicate_parameter"),
        ({"files": {"file": AUDIO}, "data": {"model": "x" * 70_000}}, "model", "string_above_max_length"),
        ({"json": {"model": MODEL}}, None, "invalid_content_type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, None, "invalid_form"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, None, "invalid_form"),
        (
            {
                "content": b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm',
                "headers": {"content-type": "multipart/form-data; boundary=b"},
            },
            None,
            "invalid_form",
        ),
    ],
)
async def test_a_wrong_form_is_told_what_is_wrong(tmp_path: Path, given: Any, param: str | None, code: str) -> None:
    async with Transcribes() as engine, gateway(tmp_path, "vllm", engine) as (served, _):
        headers = {**served.headers, **given.pop("headers", {})}
        async with httpx.AsyncClient() as http:
            response = await http.post(f"{served.url}/v1/audio/transcriptions", headers=headers, **given)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["param"], error["code"]) == (param, code)
        assert engine.requests == []


async def test_a_form_that_is_too_large(tmp_path: Path) -> None:
    limit = "[server]\nmax_body_mb = 1\n"
    async with Transcribes() as engine:
        text = f'{limit}[models."{MODEL}"]\nengine = "vllm"\nurls = ["{engine.url}"]\n'
        async with serving(text, tmp_path) as served, httpx.AsyncClient(headers=served.headers) as http:
            response = await http.post(
                f"{served.url}/v1/audio/transcriptions",
                data={"model": MODEL},
                files={"file": ("a.wav", bytes(2 * 1024 * 1024), "audio/wav")},
            )
        assert response.status_code == 413
        assert engine.requests == []


# -- what the log says -----------------------------------------------------------------------------------------------


async def test_no_prompt_is_in_the_log(tmp_path: Path) -> None:
    asked: list[tuple[int, Any]] = [(200, {}), (200, {"n": 2}), (400, {"stop": list("12345")}), (400, {"suffix": "x"})]
    async with SpeaksTGI() as engine, gateway(tmp_path, "tgi", engine) as (served, _):
        async with httpx.AsyncClient(headers=served.headers) as http:
            for _, more in asked[:3]:
                body = {"model": MODEL, "messages": QUESTION, **more}
                await http.post(f"{served.url}/v1/chat/completions", json=body)
            body = {"model": MODEL, "prompt": "secret prompt", **asked[3][1]}
            refused = await http.post(f"{served.url}/v1/completions", json=body)
            assert "secret prompt" not in refused.text
    log = served.log_text()
    assert "secret prompt" not in log
    lines = [line for line in map(json.loads, log.splitlines()) if line["event"] == "request"]
    assert [line["status"] for line in lines] == [status for status, _ in asked]
    assert [line["completion_tokens"] for line in lines] == [3, 6, 0, 0]
