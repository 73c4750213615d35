"""/v1/responses over real sockets, asked by the official client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, InternalServerError, NotFoundError
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel

from proxy.stored_responses import StorageFailed
from tests.fakes.chat_engine import (
    USAGE,
    WORDS,
    Answers,
    AnswersWith,
    BreaksInItsStream,
    DiesMidStream,
    DiesOnRequests,
    NeverBegins,
    StopsMidStream,
)
from tests.fakes.scripted_engine import DiesWhenTold, PausesAfterOne, Says, SaysThenDies, SpeaksResponses, tool_call
from tests.proxy.endpoints_alone import MODEL, serving

ANSWER = "".join(WORDS)
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


async def ask(openai: AsyncOpenAI, **options: Any) -> Response:
    response: Response = await openai.responses.create(**{"model": MODEL, "input": "secret question", **options})
    return response


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_a_question_is_answered_by_chat(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        response = await ask(
            openai, instructions="Be brief.", temperature=0.5, max_output_tokens=9, metadata={"a": "b"}
        )
        assert response.output_text == ANSWER
        assert response.status == "completed"
        assert response.id.startswith("resp_")
        assert (response.instructions, response.temperature, response.metadata) == ("Be brief.", 0.5, {"a": "b"})
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 3, 10)
        asked = engine.requests[0]
        assert asked.path == "/v1/chat/completions"
        assert asked.body == {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "secret question"},
            ],
            "temperature": 0.5,
            "max_tokens": 9,
        }


async def test_every_field_of_the_sdk_s_type_is_there(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.http() as http:
        body = (await http.post("/v1/responses", json={"model": MODEL, "input": "hi"})).json()
        assert set(Response.model_fields) <= set(body)
        Response.model_validate(body, strict=True)
        assert body["output"][0]["content"][0] == {
            "type": "output_text",
            "annotations": [],
            "logprobs": [],
            "text": ANSWER,
        }


async def test_a_stream_is_made_of_named_numbered_events(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.http() as http:
        answer = await http.post("/v1/responses", json={"model": MODEL, "input": "hi", "stream": True})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        names, events = [], []
        for block in answer.text.removesuffix("\n\n").split("\n\n"):
            name, data = block.split("\n")
            names.append(name.removeprefix("event: "))
            events.append(json.loads(data.removeprefix("data: ")))
        assert names == [event["type"] for event in events]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert names == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * 3,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert engine.requests[0].body["stream_options"] == {"include_usage": True}


async def test_the_sdk_s_stream_helper_adds_up_to_the_whole_answer(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        async with openai.responses.stream(model=MODEL, input="hi") as stream:
            pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert "".join(pieces) == final.output_text == ANSWER
        assert final.usage is not None
        assert final.usage.total_tokens == USAGE["total_tokens"]


async def test_tokens_are_counted_and_the_connection_is_used_again(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        await ask(openai)
        for _ in range(3):
            async for _event in await openai.responses.create(model=MODEL, input="hi", stream=True):
                pass
        assert [row["prompt_tokens"] for row in served.accounting.take()] == [28]
        assert engine.connections == 1


async def test_a_tool_is_called_and_its_result_given_back(tmp_path: Path) -> None:
    calls = (*tool_call(0, "get_weather", '{"city":', '"Bern"}'), *tool_call(1, "get_weather", '{"city":"Rome"}'))
    async with Says(*calls, finish="tool_calls") as engine, serving(engine, tmp_path) as served:
        async with served.openai() as openai:
            first = await ask(openai, tools=[WEATHER], tool_choice={"type": "function", "name": "get_weather"})
            called = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
            assert [(c.name, c.arguments, c.call_id, c.status) for c in called] == [
                ("get_weather", '{"city":"Bern"}', "call_0", "completed"),
                ("get_weather", '{"city":"Rome"}', "call_1", "completed"),
            ]
            results: Any = [{"type": "function_call_output", "call_id": c.call_id, "output": "sunny"} for c in called]
            engine.deltas, engine.finish = ({"content": "Sunny."},), "stop"
            second = await ask(openai, input=results, previous_response_id=first.id, tools=[WEATHER])
            assert second.output_text == "Sunny."
        asked = engine.requests[0].body
        function = {name: WEATHER[name] for name in ("name", "description", "parameters", "strict")}
        assert asked["tools"] == [{"type": "function", "function": function}]
        assert asked["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
        assert engine.requests[1].body["messages"] == [
            {"role": "user", "content": "secret question"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                    for c in called
                ],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]


async def test_a_streamed_tool_call_comes_in_pieces(tmp_path: Path) -> None:
    calls = tool_call(0, "get_weather", '{"city":', '"Bern"}')
    async with Says(*calls, finish="tool_calls") as engine, serving(engine, tmp_path) as served:
        async with (
            served.openai() as openai,
            openai.responses.stream(model=MODEL, input="hi", tools=[WEATHER]) as stream,
        ):
            pieces = []
            async for event in stream:
                if event.type == "response.function_call_arguments.delta":
                    pieces.append((event.delta, event.snapshot))
                if event.type == "response.function_call_arguments.done":
                    assert (event.name, event.arguments) == ("get_weather", '{"city":"Bern"}')
            assert pieces == [('{"city":', '{"city":'), ('"Bern"}', '{"city":"Bern"}')]
            final = (await stream.get_final_response()).output[0]
            assert final.type == "function_call"
            assert final.parsed_arguments == {"city": "Bern"}


class Person(BaseModel):
    name: str
    age: int


async def test_a_structured_answer_is_parsed(tmp_path: Path) -> None:
    async with Says({"content": '{"name":"Ada",'}, {"content": '"age":36}'}) as engine:
        async with serving(engine, tmp_path) as served, served.openai() as openai:
            response = await openai.responses.parse(model=MODEL, input="who?", text_format=Person)
            assert response.output_parsed == Person(name="Ada", age=36)
            async with openai.responses.stream(model=MODEL, input="who?", text_format=Person) as stream:
                assert (await stream.get_final_response()).output_parsed == Person(name="Ada", age=36)
        for request in engine.requests:
            asked = request.body["response_format"]
            assert (asked["type"], asked["json_schema"]["name"]) == ("json_schema", "Person")
            assert asked["json_schema"]["strict"] is True
            assert asked["json_schema"]["schema"]["required"] == ["name", "age"]


async def test_reasoning_is_an_item_of_its_own_and_goes_back_to_the_engine(tmp_path: Path) -> None:
    said = ({"reasoning_content": "Hm"}, {"reasoning_content": "m."}, {"content": "42"})
    async with Says(*said) as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        first = await ask(openai, reasoning={"effort": "low"})
        assert [item.type for item in first.output] == ["reasoning", "message"]
        assert first.output[0].type == "reasoning"
        assert first.output[0].content is not None
        assert first.output[0].content[0].text == "Hmm."
        await ask(openai, previous_response_id=first.id, input="sure?")
        assert engine.requests[0].body["reasoning_effort"] == "low"
        told = engine.requests[1].body["messages"][1]
        assert told == {"role": "assistant", "content": "42", "reasoning_content": "Hmm."}


async def test_an_answer_that_was_cut_is_incomplete(tmp_path: Path) -> None:
    async with Says({"content": "It is"}, finish="length") as engine, serving(engine, tmp_path) as served:
        async with served.openai() as openai:
            response = await ask(openai, max_output_tokens=2)
            assert response.status == "incomplete"
            assert response.incomplete_details is not None
            assert response.incomplete_details.reason == "max_output_tokens"
            last = [event async for event in await openai.responses.create(model=MODEL, input="hi", stream=True)][-1]
            assert last.type == "response.incomplete"


# -- what is stored --------------------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_from_its_last_response(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        first = await ask(openai, input="one", instructions="not carried over")
        second = await ask(openai, input="two", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        last: Any = None
        stream = await openai.responses.create(
            model=MODEL, input=[{"role": "user", "content": "three"}], previous_response_id=second.id, stream=True
        )
        async for event in stream:
            last = event
        assert last.type == "response.completed"
        assert [(m["role"], m["content"]) for m in engine.requests[-1].body["messages"]] == [
            ("user", "one"),
            ("assistant", ANSWER),
            ("user", "two"),
            ("assistant", ANSWER),
            ("user", "three"),
        ]
        again = await openai.responses.retrieve(last.response.id)
        assert again.to_dict() == last.response.to_dict()


async def test_a_stored_response_is_shown_listed_and_deleted(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        first = await ask(openai, input="one")
        response = await ask(openai, input="two", previous_response_id=first.id)
        assert (await openai.responses.retrieve(response.id)).to_dict() == response.to_dict()
        items = [item async for item in openai.responses.input_items.list(response.id, order="asc", limit=2)]
        assert [item.type for item in items] == ["message", "message", "message"]
        texts = [item.to_dict()["content"][0]["text"] for item in items]  # type: ignore[index]
        assert texts == ["one", ANSWER, "two"]
        newest = await openai.responses.input_items.list(response.id, limit=1)
        assert newest.data[0].id == items[-1].id
        assert newest.has_more
        await openai.responses.delete(response.id)
        for gone in (openai.responses.retrieve(response.id), openai.responses.delete(response.id)):
            with pytest.raises(NotFoundError) as caught:
                await gone
            assert caught.value.type == "invalid_request_error"
        with pytest.raises(NotFoundError):
            await openai.responses.input_items.list(response.id)


async def test_one_key_s_responses_are_never_another_s(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served:
        async with served.openai() as openai, served.openai(served.other_key) as other:
            mine = await ask(openai)
            message_id: Any = mine.output[0].id
            for attempt in (
                other.responses.retrieve(mine.id),
                other.responses.delete(mine.id),
                other.responses.cancel(mine.id),
                ask(other, input=[{"type": "item_reference", "id": message_id}]),
            ):
                with pytest.raises(NotFoundError):
                    await attempt
            with pytest.raises(NotFoundError):
                await other.responses.input_items.list(mine.id)
            with pytest.raises(BadRequestError) as caught:
                await ask(other, previous_response_id=mine.id)
            assert caught.value.code == "previous_response_not_found"
            assert (await openai.responses.retrieve(mine.id)).id == mine.id
            assert len(engine.requests) == 1


async def test_what_was_not_to_be_stored_is_not(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        response = await ask(openai, store=False)
        assert (await openai.responses.with_raw_response.create(model=MODEL, input="x", store=False)).parse().id
        with pytest.raises(NotFoundError):
            await openai.responses.retrieve(response.id)


async def test_an_item_is_named_instead_of_repeated(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        first = await ask(openai, input="one")
        said: Any = first.output[0].id
        await ask(openai, input=[{"type": "item_reference", "id": said}, {"role": "user", "content": "two"}])
        messages = engine.requests[-1].body["messages"]
        assert messages == [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": "two"}]


async def test_a_response_that_is_not_in_the_background_cannot_be_cancelled(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        response = await ask(openai)
        with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response"):
            await openai.responses.cancel(response.id)
        with pytest.raises(NotFoundError):
            await openai.responses.cancel("resp_none")


async def test_nothing_that_was_said_is_logged(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        response = await ask(openai)
        await openai.responses.retrieve(response.id)
        with pytest.raises(BadRequestError):
            await ask(openai, tools=[{"type": "secret_tool"}])
    text = served.log.read_text()
    for secret in ("secret", ANSWER, served.key, response.id):
        assert secret not in text
    endpoints = [json.loads(line)["endpoint"] for line in text.splitlines()]
    assert endpoints == ["/v1/responses", "/v1/responses/{id}", "/v1/responses"]


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": 3}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"include": [{}]}, "include"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_a_mistake_is_told_before_anything_is_asked(tmp_path: Path, change: dict[str, Any], param: str) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.http() as http:
        response = await http.post("/v1/responses", json={"model": MODEL, "input": "hi", **change})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert engine.requests == []


async def test_an_unknown_model_is_not_found(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        with pytest.raises(NotFoundError) as caught:
            await ask(openai, model="gpt-9")
        assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "order=up", "after=msg_none"])
async def test_a_page_that_there_is_not(tmp_path: Path, query: str) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, served.http() as http:
        made = (await http.post("/v1/responses", json={"model": MODEL, "input": "hi"})).json()
        answer = await http.get(f"/v1/responses/{made['id']}/input_items?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == query.split("=", maxsplit=1)[0]


# -- an engine that fails --------------------------------------------------------------------------------------------


async def test_an_engine_s_refusal_keeps_its_status(tmp_path: Path) -> None:
    refusal = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'
    async with AnswersWith(400, refusal) as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        for stream in (False, True):
            with pytest.raises(BadRequestError):
                await ask(openai, stream=stream)


@pytest.mark.parametrize("reply", [b"{}", b"[]", b"<html>", b'{"choices":[]}', b'{"choices":[{"message":3}]}'])
async def test_an_answer_that_is_no_chat_completion_is_the_engine_s_error(tmp_path: Path, reply: bytes) -> None:
    async with AnswersWith(200, reply) as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        with pytest.raises(InternalServerError) as caught:
            await ask(openai)
        assert caught.value.status_code == 502


async def test_an_engine_that_dies_before_its_first_byte_is_an_http_error(tmp_path: Path) -> None:
    async with DiesOnRequests() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        with pytest.raises(InternalServerError):
            await ask(openai, stream=True)


async def test_an_engine_that_dies_midway_gives_response_failed(tmp_path: Path) -> None:
    engines = (DiesMidStream(), SaysThenDies({"content": "Slurm"}), BreaksInItsStream({"error": {"message": "oom"}}))
    for number, fails in enumerate(engines):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with fails as engine, serving(engine, directory) as served, served.openai() as openai:
            events = [event async for event in await openai.responses.create(model=MODEL, input="hi", stream=True)]
            last: Any = events[-1]
            assert last.type == "response.failed"
            assert last.response.status == "failed"
            assert last.response.error.code == "server_error"
            assert last.response.output[0].status == "incomplete"
            assert [event.sequence_number for event in events] == list(range(len(events)))
            with pytest.raises(NotFoundError):
                await openai.responses.retrieve(last.response.id)
        assert '"error":' in served.log.read_text()


async def test_what_cannot_be_stored_is_not_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with PausesAfterOne({"content": "a"}, {"content": "b"}) as engine, serving(engine, tmp_path) as served:

        async def fails(*_: Any) -> None:
            raise StorageFailed("Stored responses cannot be reached now.")

        monkeypatch.setattr(served.stored, "put", fails)
        async with served.openai() as openai:
            with pytest.raises(InternalServerError) as caught:
                await ask(openai)
            assert (caught.value.status_code, caught.value.code) == (503, "storage_failed")
            types = []
            async for event in await openai.responses.create(model=MODEL, input="hi", stream=True):
                types.append(event.type)
                engine.told.set()
            assert types[-1] == "response.failed"
            assert "response.completed" not in types
            assert (await ask(openai, store=False)).status == "completed"


async def test_an_engine_that_dies_after_a_sign_of_life_gives_response_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.events.SILENCE_S", 0.01)
    monkeypatch.setattr("proxy.events.QUIET_CHUNK_EVERY", 1)
    async with DiesWhenTold() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        types = []
        last: Any = None
        async for last in await openai.responses.create(model=MODEL, input="hi", stream=True):
            types.append(last.type)
            engine.told.set()
        assert types[:2] == ["response.created", "response.in_progress"]
        assert (last.type, last.response.error.code) == ("response.failed", "server_error")
    assert '"error":"engine_disconnected"' in served.log.read_text().replace(": ", ":")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_engine(tmp_path: Path, stream: bool) -> None:
    async with StopsMidStream() if stream else NeverBegins() as engine, serving(engine, tmp_path) as served:
        async with served.openai() as openai:
            asking = asyncio.create_task(ask(openai, stream=stream), name="asking")
            request = await engine.request()
            if stream:
                await (await asking).close()  # type: ignore[attr-defined]
            else:
                asking.cancel()
            await asyncio.wait_for(request.over.wait(), 30)


# -- an engine that has the endpoint itself --------------------------------------------------------------------------


def native(**fields: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": "Hello", "annotations": []}]
    message = {"type": "message", "id": "msg_e", "role": "assistant", "status": "completed", "content": content}
    usage = {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }
    return {
        "id": "resp_engine",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": MODEL,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "store": False,
        "previous_response_id": None,
        "usage": usage,
        **fields,
    }


def speaks() -> SpeaksResponses:
    beginning = native(status="in_progress", output=[], usage=None)
    delta = {"item_id": "msg_e", "output_index": 0, "content_index": 0, "delta": "Hello", "logprobs": []}
    return SpeaksResponses(
        native(),
        [
            {"type": "response.created", "sequence_number": 0, "response": beginning},
            {"type": "response.output_text.delta", "sequence_number": 1, **delta},
            {"type": "response.completed", "sequence_number": 2, "response": native()},
        ],
    )


async def test_what_is_not_stored_goes_to_such_an_engine_untouched(tmp_path: Path) -> None:
    async with speaks() as engine, serving(engine, tmp_path, "/v1/responses") as served, served.http() as http:
        for stream in (False, True):
            asked = {"model": MODEL, "input": "hi", "store": False, "tools": [{"type": "mcp"}], "stream": stream}
            raw = json.dumps(asked, indent=1).encode()
            answer = await http.post("/v1/responses", content=raw)
            assert answer.status_code == 200, answer.text
            assert engine.requests[-1].raw == raw
            assert engine.requests[-1].path == "/v1/responses"
        events = [block.split("\n") for block in answer.text.removesuffix("\n\n").split("\n\n")]
        assert [name for name, _ in events] == [f"event: {event['type']}" for event in engine.events]
        assert [json.loads(data.removeprefix("data: ")) for _, data in events] == engine.events
        assert [(r["prompt_tokens"], r["completion_tokens"]) for r in served.accounting.take()] == [(10, 4)]
    assert '"error"' not in served.log.read_text()


async def test_what_is_stored_is_stored_here_and_such_an_engine_gets_the_whole_conversation(tmp_path: Path) -> None:
    async with speaks() as engine, serving(engine, tmp_path, "/v1/responses") as served, served.openai() as openai:
        first = await ask(openai, input="one")
        assert first.id != "resp_engine"
        assert engine.requests[0].body["store"] is False
        events = [
            event
            async for event in await openai.responses.create(
                model=MODEL, input="two", previous_response_id=first.id, stream=True
            )
        ]
        last: Any = events[-1]
        assert [event.type for event in events] == [event["type"] for event in engine.events]
        assert last.response.previous_response_id == first.id
        assert last.response.output_text == "Hello"
        told = engine.requests[1].body
        assert "previous_response_id" not in told
        assert [item["role"] for item in told["input"]] == ["user", "assistant", "user"]
        stored = await openai.responses.retrieve(last.response.id)
        assert stored.to_dict() == last.response.to_dict()
        assert [row["requests"] for row in served.accounting.take()] == [2]


async def test_such_an_engine_that_stops_too_early_gives_response_failed(tmp_path: Path) -> None:
    whole = speaks()
    async with SpeaksResponses({}, whole.events[:2]) as engine, serving(engine, tmp_path, "/v1/responses") as served:
        async with served.openai() as openai:
            events = [event async for event in await openai.responses.create(model=MODEL, input="hi", stream=True)]
            last: Any = events[-1]
            assert (last.type, last.sequence_number) == ("response.failed", 2)
            assert last.response.error.code == "server_error"


async def test_errors_of_a_stream_are_not_lost_on_clients_that_ask_nothing(tmp_path: Path) -> None:
    async with DiesMidStream() as engine, serving(engine, tmp_path) as served, served.openai() as openai:
        with pytest.raises(RuntimeError, match="completed"):
            async with openai.responses.stream(model=MODEL, input="hi") as stream:
                await stream.get_final_response()
