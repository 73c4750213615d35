"""Hosted models: several providers' shapes through litellm (respx in place of the network), and real sockets where
connections matter."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
import respx

from backends.base import Call, EventStream, Reply, Usage
from backends.errors import ConnectFailed, Disconnected, EngineTimeout, GatewayError, InvalidRequest
from backends.hosted import HostedBackend, load_litellm
from backends.hosted_errors import translate
from backends.hosted_shapes import arguments_for
from backends.transport import Timeouts
from tests.fakes.chat_engine import (
    STREAM_HEAD,
    USAGE,
    WORDS,
    Answers,
    DiesMidStream,
    DiesOnRequests,
    Engine,
    NeverBegins,
    Request,
    StopsMidStream,
    Write,
    chunk,
    delta,
    event,
)
from tests.litellm_warnings import ignore_litellm_warnings

pytestmark = ignore_litellm_warnings

CHAT = "/v1/chat/completions"
OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com/v1/messages"
MISTRAL = "https://api.mistral.ai/v1"
KEY = "sk-provider-key-1234"
PROMPT = "a secret prompt"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]}

PROVIDERS = {
    "openai": ("openai/gpt-4o-mini", f"{OPENAI}/chat/completions"),
    "anthropic": ("anthropic/claude-3-haiku-20240307", ANTHROPIC),
    "mistral": ("mistral/mistral-small-latest", f"{MISTRAL}/chat/completions"),
}


def call_of(body: dict[str, Any], path: str = CHAT) -> Call:
    body = {"model": "public/name", **body}
    return Call("req_1", path, "public/name", body, orjson.dumps(body), body.get("stream") is True)


@asynccontextmanager
async def hosted(model: str = "openai/gpt-4o-mini", **options: Any) -> AsyncIterator[HostedBackend]:
    options.setdefault("api_key", KEY)
    options.setdefault("aiohttp_transport", False)
    backend = HostedBackend("public/name", model, **options)
    try:
        yield backend
    finally:
        await backend.aclose()


async def answered(backend: HostedBackend, body: dict[str, Any], path: str = CHAT) -> tuple[dict[str, Any], Reply]:
    reply = await backend.run(call_of(body, path))
    assert isinstance(reply, Reply)
    return json.loads(reply.body), reply


async def streamed(backend: HostedBackend, body: dict[str, Any], path: str = CHAT) -> tuple[list[Any], EventStream]:
    """All events, parsed; "[DONE]" as it is."""
    stream = await backend.run(call_of({**body, "stream": True}, path))
    assert isinstance(stream, EventStream)
    try:
        blocks = b"".join([events async for events in stream]).split(b"\n\n")[:-1]
    finally:
        stream.close()
    texts = [block.removeprefix(b"data: ") for block in blocks]
    return [text.decode() if text == b"[DONE]" else json.loads(text) for text in texts], stream


def sse(values: Iterable[Any], *, done: bool = True) -> httpx.Response:
    text = "".join(f"data: {json.dumps(value)}\n\n" for value in values) + ("data: [DONE]\n\n" if done else "")
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


def openai_chunk(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}


def piece(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return openai_chunk([{"index": index, "delta": delta, "finish_reason": finish}])


USAGE_CHUNK = openai_chunk([], usage=USAGE)


def anthropic_events(*words: str, end: bool = True) -> str:
    started: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "c",
        "stop_reason": None,
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**started, "usage": {"input_tokens": 7, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": w}} for w in words),
    ]
    if end:
        stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
        events += [{"type": "content_block_stop", "index": 0}, stop, {"type": "message_stop"}]
    return "".join(f"event: {value['type']}\ndata: {json.dumps(value)}\n\n" for value in events)


def openai_answer(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}


ANTHROPIC_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-3-haiku-20240307",
    "content": [{"type": "text", "text": "".join(WORDS)}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 7, "output_tokens": 3},
}


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_any_provider_s_answer_is_openai_s_with_the_public_name(provider: str) -> None:
    model, url = PROVIDERS[provider]
    given = ANTHROPIC_ANSWER if provider == "anthropic" else openai_answer({"content": "".join(WORDS)})
    with respx.mock:
        route = respx.post(url).respond(json=given)
        async with hosted(model) as backend:
            body, reply = await answered(backend, {**QUESTION, "temperature": 0.5})
    assert (body["object"], body["model"], reply.served_by) == ("chat.completion", "public/name", provider)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(WORDS), "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"].items() >= USAGE.items()
    assert reply.usage == Usage(7, 3)
    sent = route.calls.last.request
    assert json.loads(sent.content)["temperature"] == 0.5
    assert json.loads(sent.content)["model"] == model.partition("/")[2]
    assert KEY in (sent.headers.get("x-api-key") or sent.headers["authorization"])


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_any_provider_s_stream_is_openai_s(provider: str, shown: bool) -> None:
    model, url = PROVIDERS[provider]
    chunks = [*(piece({"content": word}) for word in WORDS), piece({}, "stop"), USAGE_CHUNK]
    given = sse(chunks)
    if provider == "anthropic":
        given = httpx.Response(200, text=anthropic_events(*WORDS), headers={"content-type": "text/event-stream"})
    with respx.mock:
        respx.post(url).mock(return_value=given)
        async with hosted(model) as backend:
            options = {"stream_options": {"include_usage": True}} if shown else {}
            events, stream = await streamed(backend, {**QUESTION, **options})
    *parts, done = events
    assert done == "[DONE]"
    assert {part["model"] for part in parts} == {"public/name"}
    usage = [part["usage"] for part in parts if part.get("usage")]
    assert len(usage) == shown
    if shown:
        assert parts[-1]["choices"] == []
        assert usage[0].items() >= USAGE.items()
        assert all(part["usage"] is None for part in parts[:-1])
        parts.pop()
    else:
        assert all("usage" not in part for part in parts)
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts) == "".join(WORDS)
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert stream.usage == Usage(7, 3)


async def test_tool_calls_keep_their_ids_indexes_and_reason_in_a_stream() -> None:
    def fragment(index: int, arguments: str, **named: Any) -> dict[str, Any]:
        head = {"id": named["id"], "type": "function"} if named else {}
        function = {"arguments": arguments, **({"name": named["name"]} if named else {})}
        return piece({"tool_calls": [{"index": index, **head, "function": function}]})

    chunks = [
        fragment(0, "", id="call_1", name="f"),
        fragment(0, '{"a":'),
        fragment(0, "1}"),
        fragment(1, "{}", id="call_2", name="g"),
        piece({}, "tool_calls"),
        USAGE_CHUNK,
    ]
    with respx.mock:
        respx.post(f"{OPENAI}/chat/completions").mock(return_value=sse(chunks))
        async with hosted() as backend:
            events, _ = await streamed(backend, {**QUESTION, "tools": [tool("f"), tool("g")]})
    calls = [c for part in events[:-1] for c in part["choices"][0]["delta"].get("tool_calls", [])]
    assert [c["id"] for c in calls if "id" in c] == ["call_1", "call_2"]
    assert "".join(c["function"]["arguments"] for c in calls if c["index"] == 0) == '{"a":1}'
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


async def test_an_answer_of_tool_calls_has_its_empty_content() -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    with respx.mock:
        respx.post(f"{OPENAI}/chat/completions").respond(json=openai_answer({"tool_calls": calls}, "tool_calls"))
        async with hosted() as backend:
            body, _ = await answered(backend, {**QUESTION, "tools": [tool("f")]})
    message = body["choices"][0]["message"]
    assert (message["content"], body["choices"][0]["finish_reason"]) == (None, "tool_calls")
    assert message["tool_calls"][0]["id"] == "call_1"


async def test_each_of_several_choices_gets_its_end() -> None:
    chunks = [piece({"content": word}, index=i) for word in "ab" for i in (0, 1)]
    chunks += [piece({}, "length", index=i) for i in (0, 1)]
    with respx.mock:
        respx.post(f"{OPENAI}/chat/completions").mock(return_value=sse([*chunks, USAGE_CHUNK]))
        async with hosted() as backend:
            events, _ = await streamed(backend, {**QUESTION, "n": 2})
    choices = [part["choices"][0] for part in events[:-1]]
    assert [c["index"] for c in choices if c["finish_reason"] == "length"] == [0, 1]
    assert "".join(c["delta"].get("content") or "" for c in choices if c["index"] == 1) == "ab"


async def test_text_completions_go_to_a_provider_that_has_them() -> None:
    choices = [{"index": i, "text": text, "finish_reason": "stop", "logprobs": None} for i, text in enumerate("ab")]
    given = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": choices, "usage": USAGE}
    with respx.mock:
        route = respx.post(f"{OPENAI}/completions").respond(json=given)
        async with hosted("openai/gpt-3.5-turbo-instruct") as backend:
            body, reply = await answered(backend, {"prompt": ["x", "y"], "echo": True}, "/v1/completions")
    assert [choice["text"] for choice in body["choices"]] == ["a", "b"]
    assert (body["model"], body["object"], reply.usage) == ("public/name", "text_completion", Usage(7, 3))
    sent = json.loads(route.calls.last.request.content)
    assert sent == {"model": "gpt-3.5-turbo-instruct", "prompt": ["x", "y"], "echo": True}


async def test_streamed_text_completions_at_a_provider_that_has_them() -> None:
    def text(word: str, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": word, "finish_reason": finish, "logprobs": None}
        return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}

    chunks = [*(text(word) for word in WORDS), text("", "length"), {**text(""), "choices": [], "usage": USAGE}]
    with respx.mock:
        respx.post(f"{OPENAI}/completions").mock(return_value=sse(chunks))
        async with hosted("openai/gpt-3.5-turbo-instruct") as backend:
            events, stream = await streamed(backend, {"prompt": "x"}, "/v1/completions")
    assert "".join(part["choices"][0]["text"] for part in events[:-1]) == "".join(WORDS)
    assert (events[-2]["choices"][0]["finish_reason"], events[-1], stream.usage) == ("length", "[DONE]", Usage(7, 3))


async def test_text_completions_at_a_provider_without_them_are_a_chat() -> None:
    with respx.mock:
        route = respx.post(ANTHROPIC).respond(json=ANTHROPIC_ANSWER)
        async with hosted("anthropic/claude-3-haiku-20240307") as backend:
            body, _ = await answered(backend, {"prompt": [PROMPT], "max_tokens": 3}, "/v1/completions")
            with pytest.raises(InvalidRequest, match="'echo'") as caught:
                await backend.run(call_of({"prompt": "x", "echo": True}, "/v1/completions"))
            with pytest.raises(InvalidRequest, match="one prompt"):
                await backend.run(call_of({"prompt": ["x", "y"]}, "/v1/completions"))
            streams = httpx.Response(200, text=anthropic_events(*WORDS), headers={"content-type": "text/event-stream"})
            route.mock(return_value=streams)
            events, _ = await streamed(backend, {"prompt": "x"}, "/v1/completions")
    assert body["choices"][0] == {"index": 0, "text": "".join(WORDS), "logprobs": None, "finish_reason": "stop"}
    assert body["object"] == "text_completion"
    assert caught.value.param == "echo"
    assert "".join(part["choices"][0]["text"] for part in events[:-1]) == "".join(WORDS)
    assert events[0]["object"] == "text_completion"


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_embeddings_in_order_and_in_the_encoding_that_was_asked_for(encoding: str | None) -> None:
    data = [{"object": "embedding", "index": i, "embedding": [i + 0.5, 1]} for i in (1, 0)]
    given = {"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    options = {} if encoding is None else {"encoding_format": encoding}
    with respx.mock:
        respx.post(f"{OPENAI}/embeddings").respond(json=given)
        async with hosted("openai/text-embedding-3-small") as backend:
            body, reply = await answered(backend, {"input": ["a", "b"], **options}, "/v1/embeddings")
    vectors = [item["embedding"] for item in body["data"]]
    if encoding == "base64":
        vectors = [list(struct.unpack("<2f", base64.b64decode(vector))) for vector in vectors]
    assert vectors == [[0.5, 1.0], [1.5, 1.0]]
    assert (body["model"], body["usage"]["prompt_tokens"], reply.usage) == ("public/name", 4, Usage(4, 0))


async def test_token_ids_become_text_for_a_provider_with_another_vocabulary() -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
    given = {"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    with respx.mock:
        mistral = respx.post(f"{MISTRAL}/embeddings").respond(json=given)
        openai = respx.post(f"{OPENAI}/embeddings").respond(json=given)
        async with hosted("mistral/mistral-embed") as backend:
            await answered(backend, {"input": [[9906, 1917], [0]]}, "/v1/embeddings")
            with pytest.raises(InvalidRequest) as caught:
                await backend.run(call_of({"input": [10**9]}, "/v1/embeddings"))
        async with hosted("openai/text-embedding-3-small") as backend:
            await answered(backend, {"input": [[9906, 1917]]}, "/v1/embeddings")
    assert json.loads(mistral.calls.last.request.content)["input"] == ["Hello world", "!"]
    assert json.loads(openai.calls.last.request.content)["input"] == [[9906, 1917]]
    assert caught.value.code == "invalid_tokens"


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["api_base", "base_url", "api_key", "mock_response", "fallbacks", "extra_headers", "custom_llm_provider"]
)
def test_a_client_cannot_set_what_litellm_takes_from_the_same_keywords(name: str) -> None:
    body = {**QUESTION, name: "http://attacker.example", "metadata": {"a": "b"}, "seed": None}
    with pytest.raises(InvalidRequest) as caught:
        arguments_for(call_of(body))
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
    assert arguments_for(call_of(body), drop_unsupported=True) == QUESTION


async def test_what_a_provider_cannot_do_is_named_or_dropped() -> None:
    with respx.mock:
        route = respx.post(ANTHROPIC).respond(json=ANTHROPIC_ANSWER)
        async with hosted("anthropic/claude-3-haiku-20240307") as backend:
            with pytest.raises(InvalidRequest) as caught:
                await backend.run(call_of({**QUESTION, "logprobs": True}))
            assert not route.called
        async with hosted("anthropic/claude-3-haiku-20240307", drop_unsupported=True) as backend:
            await answered(backend, {**QUESTION, "logprobs": True})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "logprobs", "unsupported_parameter")
    assert "litellm" not in caught.value.message
    assert "logprobs" not in json.loads(route.calls.last.request.content)


async def test_the_caller_s_body_is_not_changed() -> None:
    body = {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}]
    }
    call = call_of(body)
    before = orjson.dumps(call.body)
    with respx.mock:
        respx.post(ANTHROPIC).respond(json=ANTHROPIC_ANSWER)
        async with hosted("anthropic/claude-3-haiku-20240307") as backend:
            await backend.run(call)
    assert orjson.dumps(call.body) == before


async def test_a_path_that_no_provider_has_is_refused() -> None:
    async with hosted() as backend:
        with pytest.raises(InvalidRequest) as caught:
            await backend.run(call_of({}, "/v1/rerank"))
    assert caught.value.code == "unsupported_endpoint"


# -- failures --------------------------------------------------------------------------------------------------------


def openai_error(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def anthropic_error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


CONTEXT = "This model's maximum context length is 8 tokens."
LEAKY = f"Incorrect API key provided: {KEY}. See https://platform.openai.com/account/api-keys."


@pytest.mark.parametrize(
    ("provider", "status", "body", "expected"),
    [
        ("openai", 401, openai_error(LEAKY, "invalid_api_key"), (502, "provider_authentication_failed", None)),
        ("openai", 403, openai_error("country"), (502, "provider_authentication_failed", None)),
        ("openai", 404, openai_error("no model", "model_not_found"), (502, "provider_model_not_found", None)),
        ("openai", 429, openai_error("slow down", "rate_limit_exceeded"), (429, "rate_limit_exceeded", None)),
        ("openai", 429, openai_error("pay", "insufficient_quota"), (503, "model_unavailable", None)),
        ("openai", 400, openai_error(CONTEXT, "context_length_exceeded"), (400, "context_length_exceeded", None)),
        ("openai", 400, openai_error("bad", None, "temperature"), (400, None, "temperature")),
        ("openai", 400, openai_error("no", "content_policy_violation"), (400, "content_policy_violation", None)),
        ("openai", 413, openai_error("big"), (413, "request_too_large", None)),
        ("openai", 422, openai_error("bad"), (400, None, None)),
        ("openai", 500, openai_error("boom"), (502, "engine_error", None)),
        ("openai", 502, openai_error("boom"), (502, "engine_error", None)),
        ("openai", 503, openai_error("later"), (503, "model_unavailable", None)),
        ("openai", 504, openai_error("late"), (504, "engine_timeout", None)),
        (
            "anthropic",
            401,
            anthropic_error("authentication_error", LEAKY),
            (502, "provider_authentication_failed", None),
        ),
        ("anthropic", 429, anthropic_error("rate_limit_error", "slow"), (429, "rate_limit_exceeded", None)),
        ("anthropic", 529, anthropic_error("overloaded_error", "Overloaded"), (429, "rate_limit_exceeded", None)),
        (
            "anthropic",
            400,
            anthropic_error("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"),
            (400, "context_length_exceeded", None),
        ),
        ("anthropic", 400, anthropic_error("invalid_request_error", "messages.0: bad"), (400, None, None)),
        ("mistral", 401, {"message": "Unauthorized"}, (502, "provider_authentication_failed", None)),
        ("mistral", 500, {"message": "boom"}, (502, "engine_error", None)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_s_error_becomes_ours(
    provider: str, status: int, body: dict[str, Any], expected: tuple[int, str | None, str | None], stream: bool
) -> None:
    model, url = PROVIDERS[provider]
    with respx.mock:
        respx.post(url).respond(status, json=body, headers={"retry-after": "7"})
        async with hosted(model) as backend:
            with pytest.raises(GatewayError) as caught:
                await backend.run(call_of({**QUESTION, "stream": stream}))
    error = caught.value
    assert (error.status, error.code, error.param) == expected
    assert error.type == {429: "requests"}.get(
        error.status, "invalid_request_error" if error.status < 500 else "server_error"
    )
    if error.status in (429, 503):
        assert error.retry_after_s == (None if "quota" in error.message else 7)
    for text in (error.message, repr(error), str(getattr(error, "detail", ""))):
        assert KEY not in text
        assert "://" not in text
        assert "litellm" not in text
        assert "{" not in text
    assert error.__cause__ is None
    assert error.__suppress_context__


async def test_a_provider_s_words_reach_the_caller_who_can_use_them() -> None:
    with respx.mock:
        respx.post(f"{OPENAI}/chat/completions").respond(400, json=openai_error("Invalid 'seed': no.", None, "seed"))
        async with hosted() as backend:
            with pytest.raises(GatewayError) as caught:
                await backend.run(call_of(QUESTION))
    assert caught.value.message == "Invalid 'seed': no."


@pytest.mark.parametrize(
    ("failure", "kind", "status"),
    [
        (httpx.ConnectError("refused at https://api.openai.com"), ConnectFailed, 502),
        (httpx.ConnectTimeout("slow"), ConnectFailed, 502),
        (httpx.ReadTimeout("slow"), EngineTimeout, 504),
        (httpx.RemoteProtocolError("closed"), Disconnected, 502),
        (httpx.ReadError("reset"), Disconnected, 502),
    ],
)
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_happens_on_the_way_to_a_provider(
    provider: str, failure: Exception, kind: type[GatewayError], status: int
) -> None:
    model, url = PROVIDERS[provider]
    with respx.mock:
        respx.post(url).mock(side_effect=failure)
        async with hosted(model) as backend:
            with pytest.raises(kind) as caught:
                await backend.run(call_of(QUESTION))
    assert caught.value.status == status
    assert "://" not in caught.value.message


async def test_an_answer_that_is_none() -> None:
    with respx.mock:
        respx.post(f"{OPENAI}/chat/completions").respond(200, text="<html>")
        async with hosted() as backend:
            with pytest.raises(GatewayError) as caught:
                await backend.run(call_of(QUESTION))
    assert (caught.value.status, caught.value.code) == (502, "engine_error")


async def test_a_provider_that_nobody_knows() -> None:
    async with hosted("nonsense/model") as backend:
        with pytest.raises(GatewayError) as caught:
            await backend.run(call_of(QUESTION))
    assert (caught.value.status, caught.value.code) == (502, "provider_unknown")


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_a_stream_that_ends_without_its_end_is_an_error(provider: str) -> None:
    model, url = PROVIDERS[provider]
    given = sse([piece({"content": "Slurm"})], done=False)
    if provider == "anthropic":
        text = anthropic_events("Slurm", end=False)
        given = httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})
    with respx.mock:
        respx.post(url).mock(return_value=given)
        async with hosted(model) as backend:
            with pytest.raises(Disconnected):
                await streamed(backend, QUESTION)


async def test_an_error_inside_a_stream_becomes_ours() -> None:
    text = anthropic_events("Slurm", end=False)
    text += f"event: error\ndata: {json.dumps(anthropic_error('overloaded_error', 'Overloaded'))}\n\n"
    with respx.mock:
        given = httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})
        respx.post(ANTHROPIC).mock(return_value=given)
        async with hosted("anthropic/claude-3-haiku-20240307") as backend:
            with pytest.raises(GatewayError) as caught:
                await streamed(backend, QUESTION)
    assert caught.value.status == 429


def test_our_own_errors_pass_through_the_seam() -> None:
    error = InvalidRequest("x")
    assert translate(error) is error


@pytest.mark.parametrize(
    ("text", "secrets", "shown"),
    [
        (f"key {KEY} at https://h:1/v1?k=2 end", (), "key *** at [address] end"),
        ("token abcdef12 here", ("abcdef12", ""), "token *** here"),
    ],
)
def test_keys_and_addresses_are_blacked_out(text: str, secrets: Sequence[str], shown: str) -> None:
    class BadRequest(Exception):
        status_code = 400
        message = f"litellm.BadRequestError: OpenAIException - {text}"

    assert translate(BadRequest(), secrets).message == shown


# -- connections: real sockets, an OpenAI-compatible server at api_base ----------------------------------------------


class TextStopsMidStream(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        choice = {"index": 0, "text": "Slurm", "finish_reason": None, "logprobs": None}
        value = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
        await write(STREAM_HEAD + chunk(event(value)))
        return True


class AnthropicStopsMidStream(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(anthropic_events("Slurm", end=False).encode()))
        return True


class EndsWithoutReason(Engine):
    async def answer(self, request: Request, write: Write) -> bool:
        await write(STREAM_HEAD + chunk(event(delta("m", "Slurm"))) + b"0\r\n\r\n")
        return True


def at(engine: Engine, **options: Any) -> Any:
    return hosted("openai/m", api_base=f"{engine.url}/v1", aiohttp_transport=True, **options)


STOPPING = {
    "chat": (StopsMidStream, "openai/m", "/v1", QUESTION, CHAT),
    "text": (TextStopsMidStream, "openai/m", "/v1", {"prompt": "x"}, "/v1/completions"),
    "anthropic": (AnthropicStopsMidStream, "anthropic/claude-3-haiku-20240307", "", QUESTION, CHAT),
}


async def test_an_openai_compatible_server_answers_plain_and_streamed() -> None:
    async with Answers() as engine, at(engine) as backend:
        body, reply = await answered(backend, QUESTION)
        events, stream = await streamed(backend, QUESTION)
        assert body["choices"][0]["message"]["content"] == "".join(WORDS)
        assert "".join(part["choices"][0]["delta"].get("content") or "" for part in events[:-1]) == "".join(WORDS)
        assert reply.usage == stream.usage == Usage(7, 3)
        assert engine.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert engine.requests[1].body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("aiohttp", [True, False])
@pytest.mark.parametrize("kind", STOPPING)
async def test_closing_a_stream_closes_the_provider_s_connection(kind: str, aiohttp: bool) -> None:
    engine_type, model, suffix, body, path = STOPPING[kind]
    async with engine_type() as engine:
        async with hosted(model, api_base=engine.url + suffix, aiohttp_transport=aiohttp) as backend:
            stream = await backend.run(call_of({**body, "stream": True}, path))
            assert isinstance(stream, EventStream)
            assert b"Slurm" in await anext(stream)
            request = await engine.request()
            assert not request.over.is_set()
            stream.close()
            stream.close()
            await asyncio.wait_for(request.over.wait(), 10)
            assert await anext(stream, b"") == b""


@pytest.mark.parametrize("kind", STOPPING)
async def test_cancelling_a_stream_s_reader_and_closing_it_closes_the_connection(kind: str) -> None:
    engine_type, model, suffix, body, path = STOPPING[kind]
    async with engine_type() as engine, hosted(model, api_base=engine.url + suffix) as backend:
        stream = await backend.run(call_of({**body, "stream": True}, path))
        assert isinstance(stream, EventStream)
        await anext(stream)
        reading = asyncio.create_task(anext(stream), name="reader")
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        stream.close()
        await asyncio.wait_for((await engine.request()).over.wait(), 10)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_before_the_first_byte_closes_the_connection(path: str, stream: bool) -> None:
    body = {CHAT: QUESTION, "/v1/completions": {"prompt": "x"}, "/v1/embeddings": {"input": "x"}}[path]
    async with NeverBegins() as engine, at(engine) as backend:
        asking = asyncio.create_task(backend.run(call_of({**body, "stream": stream}, path)), name="asking")
        request = await engine.request()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(request.over.wait(), 10)


async def test_time_outs_are_ours_and_free_the_connection() -> None:
    times = Timeouts(5.0, 0.2, 0.2)
    load_litellm()  # not within the time-out of the request
    async with NeverBegins() as engine, at(engine, timeouts=times) as backend:
        with pytest.raises(EngineTimeout) as caught:
            await backend.run(call_of(QUESTION))
        await asyncio.wait_for((await engine.request()).over.wait(), 10)
    assert caught.value.phase == "first byte"
    async with StopsMidStream() as stopping, at(stopping, timeouts=Timeouts(5.0, 30.0, 0.2)) as backend:
        with pytest.raises(EngineTimeout) as caught:
            await streamed(backend, QUESTION)
        await asyncio.wait_for((await stopping.request()).over.wait(), 10)
    assert caught.value.phase == "idle"


@pytest.mark.parametrize(("engine_type", "kind"), [(DiesMidStream, Disconnected), (EndsWithoutReason, Disconnected)])
async def test_a_server_that_dies_mid_stream(engine_type: type[Engine], kind: type[GatewayError]) -> None:
    async with engine_type() as engine, at(engine) as backend:
        with pytest.raises(kind):
            await streamed(backend, QUESTION)


async def test_a_server_that_is_gone_or_dies_on_a_request() -> None:
    async with DiesOnRequests() as engine, at(engine) as backend:
        with pytest.raises(GatewayError) as caught:
            await backend.run(call_of(QUESTION))
        assert caught.value.status == 502
        assert len(engine.requests) == 1  # nobody retries behind our back
    async with at(engine) as backend:
        with pytest.raises(ConnectFailed) as caught:
            await backend.run(call_of(QUESTION))
    assert str(engine.port) not in caught.value.message


# -- silence ---------------------------------------------------------------------------------------------------------


async def test_nothing_of_a_request_is_printed_or_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "LiteLLM")
    with respx.mock:
        respx.post(f"{OPENAI}/chat/completions").mock(
            side_effect=[
                httpx.Response(200, json=openai_answer({"content": "x"})),
                httpx.Response(400, json=openai_error(f"you said {PROMPT}")),
                sse([piece({"content": "x"})], done=False),
            ]
        )
        async with hosted() as backend:
            await backend.run(call_of(QUESTION))
            with pytest.raises(GatewayError):
                await backend.run(call_of(QUESTION))
            with pytest.raises(GatewayError):
                await streamed(backend, QUESTION)
    out, err = capfd.readouterr()
    for text in (out, err, caplog.text):
        assert PROMPT not in text
        assert KEY not in text
        assert "litellm" not in text.lower()


def test_litellm_is_told_to_fetch_nothing_and_keep_quiet() -> None:
    litellm = load_litellm()
    assert litellm.suppress_debug_info
    assert not litellm.drop_params
    assert litellm.litellm_mode == "PRODUCTION"
    assert litellm.callbacks == []
