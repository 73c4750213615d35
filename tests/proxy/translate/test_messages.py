"""Anthropic's Messages API over chat, as pure values: requests, events, messages, errors.

The expectations are what Anthropic's SDK 2.12 sends and reads, recorded from it: it is not a dependency here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import Usage
from backends.errors import Disconnected, InvalidRequest
from backends.sse import DONE
from proxy.translate.message_events import MessageEvents, error_body, usage_of
from proxy.translate.messages import check, check_count, conversation, to_chat
from proxy.translate.relay import MessageRelay
from tests.proxy.translate.test_responses import call, chunk, read, sse

Json = dict[str, Any]
BODY: Json = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
TOOL: Json = {"name": "f", "description": "does f", "input_schema": {"type": "object"}}


def machine() -> MessageEvents:
    numbers = itertools.count(1)
    return MessageEvents(BODY, request_id="req_1", id_for=lambda prefix: f"{prefix}_{next(numbers)}")


def told(*chunks: Json) -> list[Json]:
    events = machine()
    return read(events.feed(sse(*chunks)) + events.finish())


def messages(*given: Json) -> list[Json]:
    body = {**BODY, "messages": list(given)}
    check(body)
    found: list[Json] = to_chat(body)["messages"]
    return found


# -- requests --------------------------------------------------------------------------------------------------------


def test_everything_has_its_chat_name() -> None:
    body = {
        **BODY,
        "system": [
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "b"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
        "stream": True,
        "tools": [TOOL],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "service_tier": "auto",
    }
    check(body)
    assert to_chat(body) == {
        "model": "m",
        "messages": [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["END"],
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
        },
    }


@pytest.mark.parametrize(("given_choice", "expected"), [("auto", "auto"), ("any", "required"), ("none", "none")])
def test_tool_choices(given_choice: str, expected: str) -> None:
    chat = to_chat({**BODY, "tools": [TOOL], "tool_choice": {"type": given_choice}})
    assert chat["tool_choice"] == expected
    assert "parallel_tool_calls" not in chat


def test_images_and_documents() -> None:
    content = [
        {"type": "text", "text": "see"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "doc"}},
    ]
    assert messages({"role": "user", "content": content})[0]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "text", "text": "doc"},
    ]


def test_a_round_of_tools() -> None:
    found = messages(
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "one"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "is_error": True,
                    "content": [
                        {"type": "text", "text": "two"},
                        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                    ],
                },
                {"type": "text", "text": "and?"},
            ],
        },
    )
    assert found[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "t",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "one"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "two"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "text", "text": "and?"},
            ],
        },
    ]


def test_a_result_alone_is_no_question_and_a_call_alone_has_no_content() -> None:
    result = {"type": "tool_result", "tool_use_id": "t"}
    assert messages({"role": "user", "content": [result]}) == [{"role": "tool", "tool_call_id": "t", "content": ""}]
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    assert "content" not in messages({"role": "assistant", "content": [use]})[0]
    assert messages({"role": "assistant", "content": ""})[0] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ],
)
def test_a_mistake_is_named(change: Json, param: str) -> None:
    body = {**BODY, **change}
    with pytest.raises(InvalidRequest) as caught:
        check(body)
        to_chat(body)
    assert caught.value.param == param


def test_counting_needs_no_limit() -> None:
    body = {"model": "m", "messages": BODY["messages"], "system": "s", "tools": [TOOL]}
    check_count(body)
    assert conversation(body).keys() == {"model", "messages", "tools"}


WORDS = ["type", "role", "content", "text", "source", "input", "id", "name", "tool_use_id", "input_schema", "url"]
KINDS = ["text", "image", "tool_use", "tool_result", "thinking", "user", "assistant", "url", "base64", "tool", "custom"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5) | st.sampled_from(KINDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["messages", "system", "tools", "tool_choice", "metadata", "output_config", "stop_sequences"]),
        json_values,
    )
)
def test_any_body_is_translated_or_refused(fields: Json) -> None:
    body = {**BODY, **fields}
    with contextlib.suppress(InvalidRequest):
        check(body)
        json.dumps(to_chat(body))


# -- events ----------------------------------------------------------------------------------------------------------


def test_text_is_a_block() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    none = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    assert told(chunk({"content": "a"}), chunk({"content": "b"}, "stop"), chunk(usage=usage)) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": none,
            },
        },
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {**none, "input_tokens": 7, "output_tokens": 2},
        },
        {"type": "message_stop"},
    ]


def test_thoughts_text_and_calls_are_blocks_one_after_the_other() -> None:
    events = told(
        chunk({"reasoning_content": "t"}),
        chunk({"content": "c"}),
        chunk(call(0, "", "f", "call_a")),
        chunk(call(0, '{"x"')),
        chunk(call(0, ":1}")),
        chunk(call(1, "{}", "g", "call_b"), "tool_calls"),
    )
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "call_a", "name": "f", "input": {}},
        {"type": "tool_use", "id": "call_b", "name": "g", "input": {}},
    ]
    assert [event["delta"] for event in events if event["type"] == "content_block_delta"] == [
        {"type": "thinking_delta", "thinking": "t"},
        {"type": "text_delta", "text": "c"},
        {"type": "input_json_delta", "partial_json": '{"x"'},
        {"type": "input_json_delta", "partial_json": ":1}"},
        {"type": "input_json_delta", "partial_json": "{}"},
    ]
    indexes = [event["index"] for event in events if "index" in event]
    assert indexes == sorted(indexes)
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("delta", "choice", "reason", "sequence"),
    [
        ({"content": "x"}, {"finish_reason": "stop"}, "end_turn", None),
        ({"content": "x"}, {"finish_reason": None}, "end_turn", None),
        ({"content": "x"}, {"finish_reason": "length"}, "max_tokens", None),
        ({"content": "x"}, {"finish_reason": "content_filter"}, "refusal", None),
        ({"refusal": "x"}, {"finish_reason": "stop"}, "refusal", None),
        ({"content": "x"}, {"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"content": "x"}, {"finish_reason": "stop", "stop_reason": 151643}, "end_turn", None),
        (call(0, "{}", "f", "a"), {"finish_reason": "stop"}, "tool_use", None),
        (call(0, "{}", "f", "a"), {"finish_reason": "tool_calls"}, "tool_use", None),
    ],
)
def test_why_it_stopped(delta: Json, choice: Json, reason: str, sequence: str | None) -> None:
    one = chunk(delta)
    one["choices"][0] |= choice
    assert told(one)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_cached_tokens_are_not_among_the_given() -> None:
    assert usage_of({"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}) == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 1,
    }


def test_an_empty_answer_has_no_blocks() -> None:
    assert [event["type"] for event in told(chunk({}, "stop"))] == [
        *("message_start", "ping", "message_delta", "message_stop"),
    ]


@pytest.mark.parametrize(("arguments", "given_input"), [('{"x":1}', {"x": 1}), ("", {}), ('{"x"', {}), ("[1]", {})])
def test_a_whole_reply_is_a_message(arguments: str, given_input: Json) -> None:
    function = {"name": "f", "arguments": arguments}
    message = {"content": "c", "tool_calls": [{"id": "a", "type": "function", "function": function}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    completion = {
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": usage,
    }
    assert machine().whole(completion) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "text", "text": "c"},
            {"type": "tool_use", "id": "a", "name": "f", "input": given_input},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": usage_of(usage),
    }


def test_an_error_in_the_stream_is_an_event_and_the_last() -> None:
    events = machine()
    error = {"error": {"message": "oom", "type": "server_error", "param": None, "code": "engine_error"}}
    out = read(events.feed(sse(chunk({"content": "a"}), error, chunk({"content": "b"}))))
    assert out[-1] == {"type": "error", "error": {"type": "api_error", "message": "oom"}, "request_id": "req_1"}
    assert events.over


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error")),
        *((404, "not_found_error"), (405, "invalid_request_error"), (408, "invalid_request_error")),
        *((413, "request_too_large"), (429, "rate_limit_error"), (500, "api_error"), (502, "api_error")),
        *((503, "overloaded_error"), (504, "timeout_error"), (529, "overloaded_error")),
    ],
)
def test_each_status_has_its_type(status: int, kind: str) -> None:
    assert error_body(status, "m", "r")["error"] == {"type": kind, "message": "m"}


RECORDED = (
    sse(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Let "}),
        chunk({"reasoning_content": "me see"}),
        chunk({"content": "It is\n\n"}),
        chunk({"content": "event: é 🌧"}),
        chunk(call(0, "", "get_weather", "call_1")),
        chunk(call(0, '{"city":')),
        chunk(call(0, '"Bern"}')),
        chunk(call(1, '{"city":"Rome"}', "get_weather", "call_2")),
        chunk({}, "tool_calls"),
        chunk(usage={"prompt_tokens": 3, "completion_tokens": 9}),
    )
    + DONE
)
BLOCKS = [block + b"\n\n" for block in RECORDED.removesuffix(b"\n\n").split(b"\n\n")]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, len(BLOCKS)), max_size=len(BLOCKS)))
def test_however_the_stream_is_cut_its_events_rebuild_the_message(cuts: list[int]) -> None:
    events = machine()
    edges = sorted({0, len(BLOCKS), *cuts})
    out = b"".join(events.feed(b"".join(BLOCKS[a:b])) for a, b in itertools.pairwise(edges)) + events.finish()
    message: Json = {}
    parts: list[str] = []
    for event in read(out):
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                parts = []
            case "content_block_delta":
                parts += [text for name, text in event["delta"].items() if name != "type"]
            case "content_block_stop":
                block = message["content"][event["index"]]
                said = "".join(parts)
                block |= {"input": json.loads(said)} if block["type"] == "tool_use" else {block["type"]: said}
            case "message_delta":
                message |= {**event["delta"], "usage": event["usage"]}
    assert message == events.final


# -- an engine's own events ------------------------------------------------------------------------------------------


def test_an_engine_s_own_events_get_their_names_back_and_are_counted() -> None:
    relay = MessageRelay("req_1")
    start = b'{"type":"message_start", "message":{"usage":{"input_tokens":4,"cache_read_input_tokens":2}}}'
    assert relay.feed(b"data: %s\n\n" % start) == b"event: message_start\ndata: %s\n\n" % start
    relay.feed(sse({"type": "message_delta", "usage": {"output_tokens": 3}}, {"type": "message_stop"}))
    assert relay.over
    assert relay.usage == Usage(6, 3)


def test_an_engine_s_own_stream_that_ends_too_early_ends_in_an_error() -> None:
    relay = MessageRelay("req_1")
    relay.feed(sse({"type": "message_start", "message": {}}))
    assert read(relay.finish())[0]["type"] == "error"
    assert isinstance(relay.failure, Disconnected)
