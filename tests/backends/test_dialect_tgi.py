"""TGI behind the gateway: every deviation of its, asked of an engine that has it."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from backends.base import Reply
from backends.dialects.json_mode import ANY_OBJECT
from backends.dialects.tgi import prepare
from backends.dialects.tgi_replies import ChatChunks
from backends.errors import EngineRefused, GatewayError, InvalidRequest
from tests.backends.asking import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    NAME,
    RERANK,
    TOKENIZE,
    ask,
    backend_of,
    call,
    finishes,
    stream,
    text,
)
from tests.fakes.dialect_engines import PROMPT_TOKENS, SpeaksTGI

WEATHER = {"type": "function", "function": {"name": "weather", "description": "tells it"}}
SCHEMA = {"type": "object", "properties": {"up": {"type": "boolean"}}, "required": ["up"]}


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


# -- requests --------------------------------------------------------------------------------------------------------


async def test_the_engine_is_asked_for_itself_and_the_public_name_comes_back() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend)
        assert reply["choices"][0]["message"]["content"] == "Slurm is up"
        assert reply["model"] == NAME
        assert {chunk["model"] for chunk in await stream(backend)} == {NAME}
        assert {request.body["model"] for request in engine.requests} == {"tgi"}


async def test_a_presence_penalty_of_nothing_does_not_punish_repetition() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend, presence_penalty=0)
        assert "repetition_penalty" not in reply["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (CHAT, "presence_penalty", 0.5),
        (CHAT, "logit_bias", {"5": -100}),
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "top_logprobs", 20),
        (COMPLETIONS, "presence_penalty", 0.5),
        (COMPLETIONS, "logprobs", 1),
        (COMPLETIONS, "echo", True),
        (COMPLETIONS, "best_of", 2),
        (COMPLETIONS, "suffix", "the end"),
    ],
)
async def test_what_it_cannot_do_is_refused_by_name_or_left_out_if_the_model_says_so(
    path: str, name: str, value: Any
) -> None:
    more: dict[str, Any] = {"logprobs": True} if name == "top_logprobs" else {}
    more |= {"prompt": "P"} if path == COMPLETIONS else {}
    async with SpeaksTGI() as engine:
        async with backend_of(engine, "tgi") as backend:
            with pytest.raises(InvalidRequest) as caught:
                await ask(backend, path, **more, **{name: value})
            assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
            assert engine.requests == []
        async with backend_of(engine, "tgi", drop_unsupported=True) as backend:
            reply = await ask(backend, path, **more, **{name: value})
            assert reply["choices"]


@pytest.mark.parametrize(
    "harmless",
    [
        {"logit_bias": {}},
        {"top_p": 1},
        {"top_p": 0},
        {"stream": False, "stream_options": None, "stop": None, "n": None, "tools": None, "response_format": None},
        {"max_tokens": 9, "max_completion_tokens": 9},
        {"seed": -1},
        {"tools": []},
        {"tools": [WEATHER], "tool_choice": "none", "response_format": json_schema(SCHEMA)},
        {"response_format": {"type": "text"}},
        {"logprobs": False, "top_logprobs": 20},
        {"modalities": ["text"], "parallel_tool_calls": True, "user": "me", "store": False},
    ],
)
async def test_what_asks_for_nothing_is_not_refused(harmless: dict[str, Any]) -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        assert (await ask(backend, **harmless))["choices"][0]["finish_reason"] == "stop"


async def test_streams_are_asked_for_usage_also_with_null_options() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        chunks = await stream(backend, stream_options=None)
        assert engine.requests[0].body["stream_options"] == {"include_usage": True}
        assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("stop", [" up", [" up"], ["x", "is up", " up"]])
async def test_a_stop_is_wrapped_and_not_part_of_the_answer(stop: Any) -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        expected = "Slurm is" if "is up" not in stop else "Slurm "
        reply = await ask(backend, stop=stop)
        assert reply["choices"][0]["message"]["content"] == expected
        assert reply["choices"][0]["finish_reason"] == "stop"
        chunks = await stream(backend, stop=stop)
        assert (text(chunks), finishes(chunks)) == (expected, ["stop"])
        reply = await ask(backend, COMPLETIONS, prompt="P: ", stop=stop)
        assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == (f"P: {expected}", "stop")
        chunks = await stream(backend, COMPLETIONS, prompt="P: ", stop=stop)
        assert (text(chunks), finishes(chunks)) == (expected, ["stop"])


@pytest.mark.parametrize("stop", ["upper", "Slurm is down", "p!"])
async def test_what_only_looks_like_a_stop_is_not_lost(stop: str) -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        assert text(await stream(backend, stop=stop)) == "Slurm is up"
        assert text(await stream(backend, stop=stop, max_tokens=2)) == "Slurm is"
        assert text(await stream(backend, COMPLETIONS, prompt="P", stop=stop)) == "Slurm is up"


async def test_more_than_four_stops_are_refused_as_openai_refuses_them() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, stop=["1", "2", "3", "4", "5"])
        assert (caught.value.param, caught.value.code) == ("stop", "array_above_max_length")


async def test_json_schema_becomes_a_grammar() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend, response_format=json_schema(SCHEMA))
        assert orjson.loads(reply["choices"][0]["message"]["content"]) == {"up": True}
        assert engine.requests[0].body["response_format"] == {"type": "json_object", "value": SCHEMA}
        assert orjson.loads(text(await stream(backend, response_format=json_schema(SCHEMA)))) == {"up": True}


@pytest.mark.parametrize("asked", [{"type": "json_object"}, json_schema({"type": "object"})])
async def test_json_mode_is_a_regular_expression_for_any_object(asked: dict[str, Any]) -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend, response_format=asked)
        assert orjson.loads(reply["choices"][0]["message"]["content"]) == {"up": True}
        assert engine.requests[0].body["response_format"] == {"type": "regex", "value": ANY_OBJECT}


@pytest.mark.parametrize(
    ("json", "fits"),
    [
        ("{}", True),
        ('{"a": [1, -2.5e3, {"b": null}], "c": "\\u00e9 \\"x\\""}', True),
        ('{"a": {"b": ["c"]}}', True),
        ("[1]", False),
        ('{"a": 01}', False),
        ('{"a": 1,}', False),
        ("{a: 1}", False),
        ('{"a": "\n"}', False),
    ],
)
def test_the_expression_fits_objects_and_nothing_else(json: str, fits: bool) -> None:
    assert (re.fullmatch(ANY_OBJECT, json) is not None) == fits


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
        (json_schema({"anyOf": [SCHEMA]}), "response_format"),
    ],
)
async def test_a_schema_that_cannot_be_a_grammar_is_refused_by_name(asked: dict[str, Any], param: str) -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, response_format=asked)
        assert caught.value.param == param


async def test_tools_and_a_response_format_exclude_each_other() -> None:
    both: dict[str, Any] = {"tools": [WEATHER], "response_format": json_schema(SCHEMA)}
    async with SpeaksTGI() as engine:
        async with backend_of(engine, "tgi") as backend:
            with pytest.raises(InvalidRequest) as caught:
                await ask(backend, **both)
            assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_parameter")
        async with backend_of(engine, "tgi", drop_unsupported=True) as backend:
            reply = await ask(backend, **both)
            assert reply["choices"][0]["message"]["tool_calls"]


async def test_calls_without_parameters_get_some() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        await ask(backend, tools=[WEATHER])
        function = engine.requests[0].body["tools"][0]["function"]
        assert function["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("content", ["", None, "Let me see."])
async def test_the_assistants_calls_reach_the_template_whatever_its_content_is(content: str | None) -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    messages = [
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": content, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "it is"},
    ]
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        await ask(backend, messages=messages)
        assert [role for role, _ in engine.seen] == ["user", "assistant", "tool"]
        assert orjson.loads(engine.seen[1][1])[0]["function"]["name"] == "weather"


async def test_results_come_in_the_order_of_their_calls_since_their_ids_are_dropped() -> None:
    calls = [{"id": f"call_{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(3)]
    results = [{"role": "tool", "tool_call_id": f"call_{i}", "content": f"result {i}"} for i in (2, 0, 1)]
    messages = [{"role": "assistant", "tool_calls": calls}, *results, {"role": "user", "content": "So?"}]
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        await ask(backend, messages=messages)
        assert [said for _, said in engine.seen[1:]] == ["result 0", "result 1", "result 2", "So?"]


async def test_a_developer_is_a_system_and_no_content_is_empty_content() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "assistant"}, {"role": "user", "content": "?"}]
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        await ask(backend, messages=messages)
        assert engine.seen == [("system", "Be brief."), ("assistant", ""), ("user", "?")]


async def test_parts_of_messages_pass() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        reply = await ask(backend, messages=messages)
        assert reply["choices"][0]["message"]["content"] == "Slurm is up (1 image)"
        assert engine.requests[0].body["messages"] == messages


async def test_token_ids_as_a_prompt_are_refused() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, COMPLETIONS, prompt=[1, 2, 3])
        assert caught.value.param == "prompt"


@pytest.mark.parametrize("path", [EMBEDDINGS, RERANK, "/v1/audio/transcriptions"])
async def test_endpoints_that_it_has_not_are_refused_before_it_is_asked(path: str) -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, path, input="x")
        assert (caught.value.status, caught.value.code) == (400, "unsupported_endpoint")
        assert engine.requests == []


def test_the_clients_body_is_not_changed() -> None:
    asked = call(stop="x", n=2, messages=[{"role": "developer", "content": "x"}], tools=[WEATHER])
    before = orjson.dumps(asked.body)
    prepare(asked, False)
    assert orjson.dumps(asked.body) == before == asked.raw


# -- replies ---------------------------------------------------------------------------------------------------------


async def test_ids_are_made_of_the_requests_and_stay_the_same() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        assert (await ask(backend))["id"] == "chatcmpl-1f"
        assert {chunk["id"] for chunk in await stream(backend)} == {"chatcmpl-1f"}
        assert (await ask(backend, COMPLETIONS, prompt="P"))["id"] == "cmpl-1f"
        assert {chunk["id"] for chunk in await stream(backend, COMPLETIONS, prompt="P")} == {"cmpl-1f"}


async def test_a_call_of_a_tool_is_one_as_openai_writes_it() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        choice = (await ask(backend, tools=[WEATHER]))["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"] == {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {
                    "id": "call_1f_0",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Berlin"}'},
                }
            ],
        }


async def test_a_streamed_call_says_id_type_and_name_once_and_ends() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        chunks = await stream(backend, tools=[WEATHER], tool_choice="required", stream_options={"include_usage": True})
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        first, *others = [delta["tool_calls"][0] for delta in deltas if delta.get("tool_calls")]
        assert first == {
            "index": 0,
            "id": "call_1f_0",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city"'},
        }
        assert all(other.keys() == {"index", "function"} for other in others)
        assert all(other["function"].keys() == {"arguments"} for other in others)
        assert orjson.loads("".join(part["function"]["arguments"] for part in (first, *others))) == {"city": "Berlin"}
        assert finishes(chunks) == ["tool_calls"]
        assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 29
        assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_a_streamed_call_ends_with_its_arguments_also_where_no_usage_follows() -> None:
    engine, repair = SpeaksTGI(), ChatChunks(call(tools=[WEATHER]))
    parts = [orjson.loads(event[6:]) for event in engine.stream_tool({}, "weather", "m") if b"[DONE]" not in event]
    assert finishes([chunk for part in parts for chunk in repair(part)]) == ["tool_calls"]


async def test_an_answer_to_a_chat_with_tools_can_be_text() -> None:
    messages = [{"role": "user", "content": "no tool please"}]
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        assert text(await stream(backend, tools=[WEATHER], messages=messages)) == "Slurm is up"
        choice = (await ask(backend, tools=[WEATHER], messages=messages))["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Slurm is up", "stop")


async def test_the_limit_is_told_as_length() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        assert (await ask(backend, max_completion_tokens=2))["choices"][0]["finish_reason"] == "length"
        chunks = await stream(backend, max_tokens=2)
        assert (text(chunks), finishes(chunks)) == ("Slurm is", ["length"])


async def test_logprobs_have_bytes() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        token = (await ask(backend, logprobs=True, top_logprobs=1))["choices"][0]["logprobs"]["content"][0]
        assert token["bytes"] == token["top_logprobs"][0]["bytes"] == list(b"Slurm")
        chunks = await stream(backend, logprobs=True)
        told = [entry for c in chunks for entry in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
        assert [bytes(entry["bytes"]) for entry in told] == [b"Slurm", b" is", b" up"]


async def test_usage_has_details_and_is_null_in_every_chunk_but_the_last() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        usage = (await ask(backend))["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
        for path, more in ((CHAT, {}), (COMPLETIONS, {"prompt": "P"})):
            chunks = await stream(backend, path, stream_options={"include_usage": True}, **more)
            assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            assert (chunks[-1]["choices"], chunks[-1]["usage"]["prompt_tokens"]) == ([], PROMPT_TOKENS)
            assert all("usage" not in chunk and chunk["choices"] for chunk in await stream(backend, path, **more))


async def test_a_completions_chunks_have_no_reason_but_the_last() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        chunks = await stream(backend, COMPLETIONS, prompt="P")
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]


async def test_the_tokens_are_counted_whether_the_client_asked_or_not() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        for path, more in ((CHAT, {}), (COMPLETIONS, {"prompt": "P"})):
            for asked in ({}, {"stream_options": {"include_usage": True}}):
                answer = await backend.run(call(path, stream=True, **asked, **more))
                assert not isinstance(answer, Reply)
                async for _ in answer:
                    pass
                answer.close()
                assert answer.usage is not None
                assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 3)


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_tokens_of_a_text_and_of_a_chat() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        assert await ask(backend, TOKENIZE, prompt="Hi") == {"tokens": [72, 105], "count": 2, "token_strs": ["H", "i"]}
        reply = await ask(backend, TOKENIZE, messages=[{"role": "user", "content": "Hi"}])
        assert reply["count"] == len("<user>Hi")
        assert [request.path for request in engine.requests] == ["/tokenize", "/chat_tokenize"]
        with pytest.raises(InvalidRequest) as caught:
            await ask(backend, TOKENIZE, prompt="Hi", add_special_tokens=False)
        assert caught.value.param == "add_special_tokens"


# -- errors ----------------------------------------------------------------------------------------------------------


async def test_its_errors_are_openais() -> None:
    async with SpeaksTGI() as engine, backend_of(engine, "tgi") as backend:
        with pytest.raises(EngineRefused) as caught:
            await ask(backend, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "none such"}})
        assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
        with pytest.raises(GatewayError) as plain:
            await ask(backend, max_tokens="many", stop=3)
        assert plain.value.body()["error"].keys() == {"message", "type", "param", "code"}
