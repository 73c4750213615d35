"""The Responses API over chat, as pure values: requests, items, events, objects."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import omit
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from backends.errors import Disconnected, GatewayError, InvalidRequest, MalformedResponse, NotFound
from backends.sse import DONE
from proxy.translate.items import as_items, chat_messages, kept, references, resolved
from proxy.translate.relay import ResponseRelay
from proxy.translate.response_events import ResponseEvents
from proxy.translate.responses import check, skeleton, to_chat

Json = dict[str, Any]
BODY: Json = {"model": "m", "input": "hi"}


def counting() -> Callable[[str], str]:
    numbers = itertools.count(1)
    return lambda prefix: f"{prefix}_{next(numbers)}"


def machine(**fields: Any) -> ResponseEvents:
    return ResponseEvents({**BODY, **fields}, now=lambda: 1000.5, id_for=counting())


def chunk(delta: Json | None = None, finish: str | None = None, **fields: Any) -> Json:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **fields}


def sse(*chunks: Json) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in chunks)


def read(data: bytes) -> list[Json]:
    """Events as a client reads them, each with the right name."""
    events = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        name, value = block.split("\n")
        events.append(json.loads(value.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def told(*chunks: Json, **fields: Any) -> list[Json]:
    events = machine(**fields)
    return read(events.feed(sse(*chunks)) + events.finish())


def types(events: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def call(index: int, arguments: str = "", name: str = "", call_id: str = "") -> Json:
    found: Json = {"index": index, "function": {"arguments": arguments}}
    if name:
        found["function"]["name"] = name
    if call_id:
        found |= {"id": call_id, "type": "function"}
    return {"tool_calls": [found]}


# -- requests --------------------------------------------------------------------------------------------------------


def test_a_plain_question_is_a_plain_chat() -> None:
    assert to_chat(BODY, as_items("hi")) == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_sampling_and_hints_have_their_chat_names() -> None:
    body = {
        **BODY,
        "temperature": 0,
        "top_p": 0.5,
        "max_output_tokens": 7,
        "user": "u",
        "reasoning": {"effort": "low"},
        "text": {"verbosity": "low"},
        "top_logprobs": 2,
        "stream": True,
        "store": True,
        "metadata": {"a": "b"},
        "truncation": "auto",
        "service_tier": "auto",
    }
    check(body)
    chat = to_chat(body, as_items("hi"))
    del chat["messages"]
    assert chat == {
        "model": "m",
        "temperature": 0,
        "top_p": 0.5,
        "user": "u",
        "max_tokens": 7,
        "verbosity": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": None},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
def test_formats(given: Json | None, expected: Json | None) -> None:
    assert to_chat({**BODY, "text": {"format": given}}, []).get("response_format") == expected


@pytest.mark.parametrize(
    ("choice", "tools", "expected"),
    [
        ("auto", ["a", "b"], "auto"),
        ("required", ["a", "b"], "required"),
        ({"type": "function", "name": "a"}, ["a", "b"], {"type": "function", "function": {"name": "a"}}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]},
            ["b"],
            "required",
        ),
    ],
)
def test_tool_choices(choice: Any, tools: list[str], expected: Any) -> None:
    body = {**BODY, "tools": [{"type": "function", "name": name} for name in "ab"], "tool_choice": choice}
    chat = to_chat({**body, "parallel_tool_calls": False}, [])
    assert [tool["function"]["name"] for tool in chat["tools"]] == tools
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == (expected, False)


def test_without_tools_nothing_is_said_of_them() -> None:
    chat = to_chat({**BODY, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, [])
    assert chat.keys() == {"model", "messages"}


def test_what_stands_at_the_beginning_is_one_system_message() -> None:
    items = as_items(
        [
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [{"type": "input_text", "text": "b"}]},
            {"role": "user", "content": "c"},
            {"role": "developer", "content": "d"},
        ]
    )
    assert chat_messages(items, "instructions") == [
        {"role": "system", "content": "instructions\n\na\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "system", "content": "d"},
    ]


def test_parts_have_their_chat_shape() -> None:
    content = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
    ]
    assert chat_messages(as_items([{"role": "user", "content": content}]))[0]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
    ]


def test_one_turn_of_the_assistant_is_one_message() -> None:
    items = as_items(
        [
            {"role": "user", "content": "q"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "think"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me see"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "one"}]},
            {"type": "function_call_output", "call_id": "c2", "output": "two"},
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "xxx"},
            {"role": "assistant", "content": "done"},
        ]
    )
    assert chat_messages(items)[1:] == [
        {
            "role": "assistant",
            "reasoning_content": "think",
            "content": "let me see",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "assistant", "content": "done"},
    ]


def test_an_empty_content_never_stands_beside_calls() -> None:
    items = as_items(
        [
            {"role": "assistant", "content": ""},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        ]
    )
    assert "content" not in chat_messages(items)[0]


def test_references_are_found_or_named() -> None:
    items = as_items([{"id": "msg_1"}, {"type": "item_reference", "id": "msg_2"}, {"role": "user", "content": "x"}])
    assert references(items) == ["msg_1", "msg_2"]
    one: Json = {"type": "message", "role": "user", "content": "one"}
    assert resolved(items, {"msg_1": one, "msg_2": one})[:2] == [one, one]
    with pytest.raises(NotFound, match="msg_2"):
        resolved(items, {"msg_1": one})


def test_kept_items_have_ids_parts_and_a_status_and_say_the_same() -> None:
    items = as_items(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "o"},
            {"type": "reasoning"},
        ]
    )
    stored = kept(items)
    assert [item["id"].split("_")[0] for item in stored] == ["msg", "msg", "fc", "fco", "rs"]
    assert stored[2]["id"] == "fc_1"
    assert stored[0]["content"] == [{"type": "input_text", "text": "q"}]
    assert [item.get("status") for item in stored] == [*["completed"] * 4, None]
    assert chat_messages(stored) == chat_messages(items)


def test_metadata_has_openai_s_limits() -> None:
    check({**BODY, "metadata": {f"{'k' * 62}{n:02d}": "v" * 512 for n in range(16)}})
    for metadata in ({"k" * 65: "v"}, {"k": "v" * 513}, {"k": None}, {str(n): "v" for n in range(17)}):
        with pytest.raises(InvalidRequest):
            check({**BODY, "metadata": metadata})


FIELDS = [
    "type",
    "role",
    "content",
    "text",
    "name",
    "format",
    "schema",
    "input",
    "call_id",
    "arguments",
    "output",
    "id",
]
KINDS = ["function", "message", "function_call", "reasoning", "item_reference", "json_schema", "input_text", "user"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5) | st.sampled_from(KINDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "top_logprobs"]),
        json_values,
    )
)
def test_any_body_is_translated_or_refused(fields: Json) -> None:
    body = {**BODY, **fields}
    with contextlib.suppress(InvalidRequest):
        check(body)
        items = as_items(body["input"])
        json.dumps([to_chat(body, resolved(items, {})), skeleton(body, "resp_1", 1), kept(items)])


# -- events ----------------------------------------------------------------------------------------------------------


def test_text_is_a_message() -> None:
    events = told(chunk({"role": "assistant", "content": ""}), chunk({"content": "a"}), chunk({"content": "b"}, "stop"))
    assert types(events) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    place = {"item_id": "msg_2", "output_index": 0, "content_index": 0}
    assert events[4] == {
        "type": "response.output_text.delta",
        "sequence_number": 4,
        **place,
        "delta": "a",
        "logprobs": [],
    }
    assert events[6] | place == events[6]
    assert events[6]["text"] == "ab"
    response = events[-1]["response"]
    assert response["created_at"] == response["completed_at"] == 1000
    assert response["output"] == [events[-2]["item"]]
    assert events[0]["response"]["status"] == "in_progress"


def test_thoughts_text_and_calls_follow_each_other() -> None:
    events = told(
        chunk({"reasoning_content": "t"}),
        chunk({"content": "c"}),
        chunk(call(0, "", "f", "call_a")),
        chunk(call(0, '{"x"')),
        chunk(call(0, ":1}")),
        chunk(call(1, "{}", "g", "call_b"), "tool_calls"),
    )
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "t"}]
    assert (items[2]["call_id"], items[2]["name"], items[2]["arguments"]) == ("call_a", "f", '{"x":1}')
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"], event["output_index"]) for event in done] == [
        ("f", '{"x":1}', 2),
        ("g", "{}", 3),
    ]
    assert types(events)[2:7] == [
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        "content_part.done",
    ]
    assert events[-1]["type"] == "response.completed"


def test_thoughts_are_a_summary_for_who_asked_for_one() -> None:
    events = told(chunk({"reasoning": "t"}), chunk({"content": "c"}, "stop"), reasoning={"summary": "auto"})
    assert types(events)[3:7] == [
        *("reasoning_summary_part.added", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done"),
    ]
    assert all(event["summary_index"] == 0 for event in events[3:7])
    assert events[-1]["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": "t"}]


def test_a_refusal_is_one() -> None:
    events = told(chunk({"refusal": "no"}), chunk({}, "stop"))
    assert types(events)[3:7] == ["content_part.added", "refusal.delta", "refusal.done", "content_part.done"]
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "no"}]


def test_an_empty_answer_is_a_message_without_words() -> None:
    response = told(chunk({}, "stop"))[-1]["response"]
    assert response["status"] == "completed"
    assert [part["text"] for part in response["output"][0]["content"]] == [""]


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        (None, "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_how_it_ends(finish: str | None, status: str, reason: str | None) -> None:
    last = told(chunk({"content": "x"}, finish))[-1]
    response = last["response"]
    assert (last["type"], response["status"]) == (f"response.{status}", status)
    assert response["incomplete_details"] == ({"reason": reason} if reason else None)
    assert response["output"][0]["status"] == status
    assert (response["completed_at"] is None) is (reason is not None)


def test_usage_has_all_its_parts() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert told(chunk({"content": "x"}, "stop"), chunk(usage=usage))[-1]["response"]["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 5},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 13,
    }
    assert told(chunk({"content": "x"}, "stop"))[-1]["response"]["usage"] is None


def test_logprobs_come_with_their_text() -> None:
    token = {"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "y", "logprob": -1.0}]}
    one = chunk({"content": "x"}, "stop")
    one["choices"][0]["logprobs"] = {"content": [token]}
    events = told(one)
    expected = [{**token, "bytes": [], "top_logprobs": [{"token": "y", "logprob": -1.0, "bytes": []}]}]
    assert events[4]["logprobs"] == expected
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected


def test_only_the_first_choice_counts() -> None:
    other = chunk({"content": "b"})
    other["choices"][0]["index"] = 1
    assert told(chunk({"content": "a"}), other)[-1]["response"]["output"][0]["content"][0]["text"] == "a"


def test_calls_without_ids_get_some_and_repeated_names_are_one_call() -> None:
    response = told(chunk(call(0, "{", "f")), chunk(call(0, "}", "f")))[-1]["response"]
    assert [(item["name"], item["arguments"]) for item in response["output"]] == [("f", "{}")]
    assert response["output"][0]["call_id"].startswith("call_")


def test_two_calls_at_the_same_index_are_two() -> None:
    response = told(chunk(call(0, "{}", "f", "a")), chunk(call(0, "{}", "g", "b")))[-1]["response"]
    assert [item["name"] for item in response["output"]] == ["f", "g"]


def test_an_engine_that_mixes_up_its_calls_is_told_so() -> None:
    events = machine()
    with pytest.raises(MalformedResponse):
        events.feed(sse(chunk(call(0, "{", "f", "a")), chunk(call(1, "{}", "g", "b")), chunk(call(0, "}"))))


def test_an_error_in_the_stream_ends_it() -> None:
    events = machine()
    error = {"error": {"message": "oom", "type": "server_error", "param": None, "code": "engine_error"}}
    out = read(events.feed(sse(chunk({"content": "a"}), error, chunk({"content": "b"}))))
    assert types(out)[-2:] == ["output_text.delta", "failed"]
    assert out[-1]["response"]["error"] == {"code": "server_error", "message": "oom"}
    assert events.over
    assert events.failure is not None


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        ("rate_limit_exceeded", "requests", "rate_limit_exceeded"),
        (None, "invalid_request_error", "invalid_prompt"),
        ("engine_error", "server_error", "server_error"),
    ],
)
def test_the_codes_of_failed_responses_are_few(code: str | None, kind: str, expected: str) -> None:
    error = GatewayError("m", code=code)
    error.type = kind
    assert read(machine().fail(error))[-1]["response"]["error"]["code"] == expected


def test_a_failure_before_anything_was_said_still_has_its_beginning() -> None:
    assert types(read(machine().fail(Disconnected("gone", received=True)))) == ["created", "in_progress", "failed"]


def test_a_sign_of_life_begins_the_response_or_says_that_it_goes_on() -> None:
    events = machine()
    first = events.quiet()
    assert types(read(first)) == ["created", "in_progress"]
    out = read(first + events.quiet() + events.feed(sse(chunk({"content": "x"}, "stop"))) + events.finish())
    assert types(out)[:4] == ["created", "in_progress", "in_progress", "output_item.added"]
    assert [event["sequence_number"] for event in out] == list(range(len(out)))


def test_a_whole_reply_is_what_its_stream_adds_up_to() -> None:
    message = {
        "role": "assistant",
        "reasoning_content": "t",
        "content": "c",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": {"x": 1}}},
        ],
    }
    whole = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    streamed = told(
        chunk({"reasoning_content": "t"}),
        chunk({"content": "c"}),
        chunk(call(0, "{}", "f", "a")),
        chunk(call(1, '{"x":1}', "g", "b"), "tool_calls"),
    )
    assert machine().whole(whole) == streamed[-1]["response"]


# -- the property ----------------------------------------------------------------------------------------------------

RECORDED = sse(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Let "}),
    chunk({"reasoning_content": "me see"}),
    chunk({"content": "The weather \n\n"}),
    chunk({"content": "data: é 🌧"}),
    chunk(call(0, "", "get_weather", "call_1")),
    chunk(call(0, '{"city":')),
    chunk(call(0, '"Bern"}')),
    chunk(call(1, '{"city":"Rome"}', "get_weather", "call_2")),
    chunk({}, "tool_calls"),
    chunk(usage={"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}),
) + DONE  # fmt: skip
BLOCKS = [block + b"\n\n" for block in RECORDED.removesuffix(b"\n\n").split(b"\n\n")]


def groups(cuts: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(BLOCKS), *cuts})
    for start, end in itertools.pairwise(edges):
        yield b"".join(BLOCKS[start:end])


def rebuilt(events: list[Json]) -> Json:
    """The response as a client puts it together from everything but the last event."""
    response: Json = {}
    for event in events[:-1]:
        match event["type"].removeprefix("response."):
            case "created":
                response = {**event["response"], "output": []}
            case "output_item.added":
                assert event["output_index"] == len(response["output"])
                response["output"].append({"item": event["item"], "text": ""})
            case "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta":
                entry = response["output"][event["output_index"]]
                assert event["item_id"] == entry["item"]["id"]
                entry["text"] += event["delta"]
            case "output_item.done":
                entry = response["output"][event["output_index"]]
                item = event["item"]
                assert entry["text"] == (item["arguments"] if "arguments" in item else item["content"][0]["text"])
                response["output"][event["output_index"]] = item
    return response


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, len(BLOCKS)), max_size=len(BLOCKS)))
def test_however_the_stream_is_cut_its_events_rebuild_the_response_that_the_last_one_carries(cuts: list[int]) -> None:
    events = machine()
    out = b"".join(events.feed(group) for group in groups(cuts)) + events.finish()
    read_events = read(out)
    final = read_events[-1]["response"]
    assert rebuilt(read_events)["output"] == final["output"]
    assert events.final == final
    assert [event["sequence_number"] for event in read_events] == list(range(len(read_events)))
    whole = machine()
    assert whole.feed(RECORDED) + whole.finish() == out
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=[], text_format=omit)
    snapshots: dict[int, str] = {}
    for event in read_events:
        typed: Any = construct_type_unchecked(type_=ResponseStreamEvent, value=event)  # type: ignore[arg-type]
        assert typed.to_dict() == event
        for shown in state.handle_event(typed):
            if shown.type in ("response.output_text.delta", "response.function_call_arguments.delta"):
                snapshots[shown.output_index] = shown.snapshot
    items = final["output"]
    assert snapshots == {1: items[1]["content"][0]["text"], 2: items[2]["arguments"], 3: items[3]["arguments"]}
    Response.model_validate(final, strict=True)


# -- an engine's own events ------------------------------------------------------------------------------------------


def test_an_engine_s_own_events_get_their_names_back_and_stay_as_they_are() -> None:
    relay = ResponseRelay()
    created = b'{"type":"response.created", "sequence_number":0, "response":{"id":"resp_e","output":[]}}'
    assert relay.feed(b"data: %s\n\n" % created) == b"event: response.created\ndata: %s\n\n" % created
    done = b'{"type":"response.completed","sequence_number":1,"response":{"id":"resp_e","usage":{"input_tokens":4}}}'
    assert relay.feed(b"data: %s\n\ndata: [DONE]\n\n" % done).endswith(done + b"\n\n")
    assert relay.over
    assert relay.usage is not None
    assert relay.usage.prompt_tokens == 4


def test_an_engine_s_own_response_becomes_ours() -> None:
    relay = ResponseRelay(lambda response: {**response, "id": "resp_ours"})
    events = read(relay.feed(sse({"type": "response.completed", "response": {"id": "resp_e"}})))
    assert events[0]["response"]["id"] == "resp_ours"
    assert relay.final == {"id": "resp_ours"}


def test_an_engine_s_own_stream_that_ends_too_early_fails() -> None:
    relay = ResponseRelay()
    relay.feed(sse({"type": "response.created", "sequence_number": 5, "response": {"id": "r", "output": []}}))
    event = read(relay.finish())[0]
    assert (event["type"], event["sequence_number"]) == ("response.failed", 6)
    assert event["response"]["id"] == "r"
    nothing = ResponseRelay()
    assert read(nothing.finish())[0]["type"] == "error"
