"""/v1/messages over real sockets, with requests and headers as Anthropic's SDK 2.12 sends them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.chat_engine import (
    WORDS,
    Answers,
    AnswersWith,
    BreaksInItsStream,
    DiesMidStream,
    DiesOnRequests,
    NeverBegins,
)
from tests.fakes.scripted_engine import Counts, Says, SpeaksMessages, tool_call
from tests.proxy.endpoints_alone import MODEL, Served, serving

PATH = "/v1/messages"
QUESTION: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "secret question"}],
}


async def post(served: Served, path: str = PATH, key: str | None = None, **options: Any) -> httpx.Response:
    options.setdefault("json", QUESTION)
    headers = {"x-api-key": key or served.key, "anthropic-version": "2023-06-01", "anthropic-beta": "x"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=30) as http:
        return await http.post(path, **options)


def read(text: str) -> list[dict[str, Any]]:
    """Events as Anthropic's SDK reads them: without a name they are nothing."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def assert_error(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return str(body["error"]["message"])


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_a_question_is_answered_by_chat(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served:
        response = await post(served)
        assert response.status_code == 200, response.text
        assert response.headers["request-id"].startswith("req_")
        message = response.json()
        assert message["content"] == [{"type": "text", "text": "".join(WORDS)}]
        assert (message["type"], message["role"], message["model"]) == ("message", "assistant", MODEL)
        assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (7, 3)
        asked = engine.requests[0]
        assert asked.path == "/v1/chat/completions"
        assert asked.body == {**QUESTION, "messages": [{"role": "user", "content": "secret question"}]}
        assert served.key not in str(asked.headers)


async def test_a_stream_has_all_its_events(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served:
        response = await post(served, path=PATH + "?beta=true", json={**QUESTION, "stream": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = read(response.text)
        assert [event["type"] for event in events] == [
            *("message_start", "ping", "content_block_start"),
            *["content_block_delta"] * 3,
            *("content_block_stop", "message_delta", "message_stop"),
        ]
        assert events[-2]["usage"]["output_tokens"] == 3
        assert [row["prompt_tokens"] for row in served.accounting.take()] == [7]


async def test_a_tool_is_called(tmp_path: Path) -> None:
    tool = {"name": "get_weather", "input_schema": {"type": "object"}}
    calls = (*tool_call(0, "get_weather", '{"city":', '"Bern"}'), *tool_call(1, "get_weather", "{}"))
    async with Says(*calls, finish="tool_calls") as engine, serving(engine, tmp_path) as served:
        asked = {**QUESTION, "tools": [tool], "tool_choice": {"type": "any"}}
        message = (await post(served, json=asked)).json()
        assert message["stop_reason"] == "tool_use"
        assert [(block["id"], block["input"]) for block in message["content"]] == [
            ("call_0", {"city": "Bern"}),
            ("call_1", {}),
        ]
        assert engine.requests[0].body["tool_choice"] == "required"
        events = read((await post(served, json={**asked, "stream": True})).text)
        pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
        assert pieces == ['{"city":', '"Bern"}', "{}"]


# -- keys and errors -------------------------------------------------------------------------------------------------


async def test_a_key_comes_in_either_header(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served, httpx.AsyncClient(timeout=30) as http:
        for headers, status in (
            ({"x-api-key": served.key}, 200),
            ({"authorization": f"Bearer {served.key}"}, 200),
            ({"authorization": f"Bearer {served.key}", "x-api-key": "wrong"}, 200),
            ({"x-api-key": "wrong", "authorization": f"Bearer {served.key}"}, 200),
            ({"x-api-key": served.key, "authorization": "Bearer wrong"}, 401),
            ({"x-api-key": "wrong"}, 401),
            ({}, 401),
        ):
            response = await http.post(served.url + PATH, json=QUESTION, headers=headers)
            assert response.status_code == status, headers
            if status == 401:
                assert_error(response, 401, "authentication_error")


async def test_errors_are_anthropic_s_whoever_raised_them(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path, max_body=1000) as served:
        assert "gpt-9" in assert_error(await post(served, json={**QUESTION, "model": "gpt-9"}), 404, "not_found_error")
        assert_error(await post(served, content=b"{", json=None), 400, "invalid_request_error")
        assert_error(await post(served, json={"model": MODEL}), 400, "invalid_request_error")
        assert_error(await post(served, json={**QUESTION, "x": "y" * 1000}), 413, "request_too_large")
        assert_error(await post(served, path="/v1/messages/batches"), 404, "not_found_error")
        async with served.http() as http:
            wrong = await http.get(PATH)
            assert_error(wrong, 405, "invalid_request_error")
            assert wrong.headers["allow"] == "POST"
            elsewhere = await http.post("/v1/messagesandmore", json={})
            assert elsewhere.json()["error"].keys() == {"message", "type", "param", "code"}
            assert "request-id" not in elsewhere.headers
        assert engine.requests == []


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error":{"message":"bad","type":"BadRequestError","code":400}}', "invalid_request_error"),
        (429, b'{"error":"Model is overloaded","error_type":"overloaded"}', "rate_limit_error"),
        (200, b"<html>", "api_error"),
    ],
)
async def test_an_engine_s_error_is_anthropic_s_too(tmp_path: Path, status: int, body: bytes, kind: str) -> None:
    async with AnswersWith(status, body) as engine, serving(engine, tmp_path) as served:
        response = await post(served)
        assert_error(response, 502 if status == 200 else status, kind)
        assert ("retry-after" in response.headers) is (status == 429)


async def test_an_engine_that_dies_gives_an_error_and_never_a_silent_end(tmp_path: Path) -> None:
    for number, fails in enumerate((DiesMidStream(), BreaksInItsStream({"error": {"message": "oom"}}))):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with fails as engine, serving(engine, directory) as served:
            response = await post(served, json={**QUESTION, "stream": True})
            last = read(response.text)[-1]
            assert (last["type"], last["error"]["type"]) == ("error", "api_error")
            assert last["request_id"] == response.headers["request-id"]
        assert '"error":' in served.log.read_text()
    directory = tmp_path / "before"
    directory.mkdir()
    async with DiesOnRequests() as engine, serving(engine, directory) as served:
        assert_error(await post(served, json={**QUESTION, "stream": True}), 502, "api_error")


async def test_a_client_that_leaves_frees_the_engine(tmp_path: Path) -> None:
    async with NeverBegins() as engine, serving(engine, tmp_path) as served:
        asking = asyncio.create_task(post(served), name="asking")
        request = await engine.request()
        asking.cancel()
        await asyncio.wait_for(request.over.wait(), 30)


async def test_nothing_that_was_said_is_logged(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served:
        await post(served)
        await post(served, json={**QUESTION, "stream": True})
        await post(served, key="secret key")
    text = served.log.read_text()
    for secret in ("secret", "".join(WORDS), served.key):
        assert secret not in text
    assert [json.loads(line)["endpoint"] for line in text.splitlines()] == [PATH, PATH, ""]


# -- counting --------------------------------------------------------------------------------------------------------


async def test_tokens_are_counted_by_the_engine_s_tokenizer(tmp_path: Path) -> None:
    body = {"model": MODEL, "messages": QUESTION["messages"], "system": "s"}
    async with Counts() as engine, serving(engine, tmp_path, "/tokenize") as served:
        response = await post(served, path=PATH + "/count_tokens", json=body)
        assert (response.status_code, response.json()) == (200, {"input_tokens": 5})
        assert engine.requests[0].path == "/tokenize"
        assert engine.requests[0].body == {
            "model": MODEL,
            "messages": [{"role": "system", "content": "s"}, *QUESTION["messages"]],
            "add_generation_prompt": True,
        }


async def test_without_a_tokenizer_nothing_is_guessed(tmp_path: Path) -> None:
    async with Answers() as engine, serving(engine, tmp_path) as served:
        response = await post(served, path=PATH + "/count_tokens")
        assert "tokenizer" in assert_error(response, 400, "invalid_request_error")
        unknown = await post(served, path=PATH + "/count_tokens", json={**QUESTION, "model": "gpt-9"})
        assert_error(unknown, 404, "not_found_error")
        assert engine.requests == []


# -- an engine that has the endpoint itself --------------------------------------------------------------------------

USAGE = {"input_tokens": 4, "output_tokens": 2}
MESSAGE = {
    "id": "msg_e",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": USAGE,
}
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "usage": {"input_tokens": 4, "output_tokens": 0}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


async def test_such_an_engine_is_asked_as_the_client_asked(tmp_path: Path) -> None:
    paths = (PATH, PATH + "/count_tokens")
    async with SpeaksMessages(MESSAGE, EVENTS) as engine, serving(engine, tmp_path, *paths) as served:
        for stream in (False, True):
            asked = {**QUESTION, "stream": stream, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}
            raw = json.dumps(asked, indent=1).encode()
            response = await post(served, content=raw, json=None)
            assert engine.requests[-1].raw == raw
            assert engine.requests[-1].path == PATH
            assert read(response.text) == EVENTS if stream else response.json() == MESSAGE
        counted = await post(served, path=PATH + "/count_tokens")
        assert counted.json() == {"input_tokens": 11}
        rows = served.accounting.take()
        assert [(row["prompt_tokens"], row["completion_tokens"]) for row in rows] == [(8, 4)]
    assert '"error"' not in served.log.read_text()


async def test_such_an_engine_that_stops_too_early_gives_an_error(tmp_path: Path) -> None:
    async with SpeaksMessages(MESSAGE, EVENTS[:3]) as engine, serving(engine, tmp_path, PATH) as served:
        events = read((await post(served, json={**QUESTION, "stream": True})).text)
        assert events[:-1] == EVENTS[:3]
        assert events[-1]["type"] == "error"
