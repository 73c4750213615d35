"""A chat request -> what a deliberation needs of it; formats and schemas that clients send; what children say."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InvalidRequest, MalformedResponse
from tribunal.latencies import EVERY, LEAST, Latencies
from tribunal.moves import Usage
from tribunal.profile import Kind, Member, Profile
from tribunal.replies import Heard, Thoughts, chunks_in
from tribunal.requests import asked_of
from tribunal.response_format import SCHEMA_BYTES, format_of

PROFILE = Profile(name="", members=(Member("a", "a"), Member("b", "b"), Member("c", "c")))
MESSAGES = [{"role": "user", "content": "?"}]


def asked(**body: Any) -> Any:
    return asked_of(PROFILE, {"model": "tribunal", "messages": MESSAGES, **body}, stream=False)


def test_messages_are_the_clients_own_objects() -> None:
    assert asked().question.messages is MESSAGES


def test_parameters_that_are_not_ours_are_the_models() -> None:
    question = asked(temperature=0.5, top_k=3, user="me", store=True, seed=4, n=2, max_tokens=9).question
    assert question.params == {"temperature": 0.5, "top_k": 3}
    assert (question.n, question.max_tokens) == (2, 9)


def test_max_completion_tokens_goes_before_the_older_name() -> None:
    assert asked(max_tokens=9, max_completion_tokens=5).question.max_tokens == 5


def test_null_is_as_good_as_nothing() -> None:
    names = ("n", "seed", "max_tokens", "response_format", "tools", "tribunal", "logprobs", "logit_bias", "stop")
    plain = asked(**dict.fromkeys(names))
    assert plain.question == asked().question
    assert plain.profile is PROFILE


def test_an_empty_list_of_tools_is_none() -> None:
    assert asked(tools=[], tool_choice="auto").question.tools == {}


def test_tools_are_kept_apart_from_what_every_child_gets() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    question = asked(tools=tools, tool_choice="required", parallel_tool_calls=False).question
    assert question.tools == {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    assert question.params == {}


def test_an_answer_that_is_to_be_json_is_compared_as_json() -> None:
    assert asked(response_format={"type": "json_object"}).question.kind is Kind.JSON
    assert asked(response_format={"type": "text"}).question.kind is Kind.AUTO


@given(st.dictionaries(st.text(max_size=12), st.none() | st.booleans() | st.integers() | st.text(max_size=5)))
def test_whatever_stands_under_tribunal_is_taken_or_refused_by_its_name(wishes: dict[str, Any]) -> None:
    def param() -> str | None:
        try:
            asked(tribunal=wishes)
        except InvalidRequest as error:
            return error.param
        return "tribunal"

    assert (param() or "").startswith("tribunal")


# -- formats ---------------------------------------------------------------------------------------------------------


def valid(schema: Any, text: str) -> bool:
    _, test = format_of({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert test is not None
    return test(text)


def test_an_object_is_one_json_object_and_nothing_else() -> None:
    _, test = format_of({"type": "json_object"})
    assert test is not None
    assert [test(text) for text in ('{"a": 1}', "[1]", '{"a": 1} indeed', "", "null")] == [True] + [False] * 4


def test_a_schema_decides() -> None:
    schema = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    assert valid(schema, '{"n": 1}')
    assert not valid(schema, '{"n": "1"}')
    assert not valid(schema, "n: 1")


def test_a_schema_without_a_schema_wants_any_json() -> None:
    _, test = format_of({"type": "json_schema", "json_schema": {"name": "x"}})
    assert test is not None
    assert (test("[1]"), test("one")) == (True, False)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/secret"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nowhere"},
        {"type": "nope"},
        {"pattern": "("},
        {"description": "x" * SCHEMA_BYTES},
        "a text",
    ],
    ids=str,
)
def test_a_schema_that_is_none_or_leads_elsewhere_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        valid(schema, "1")
    assert raised.value.param == "response_format.json_schema.schema"


def test_a_pattern_that_would_take_forever_does_not() -> None:
    begun = time.perf_counter()
    assert not valid({"type": "string", "pattern": "^(a|a)*(?=b)c$"}, orjson.dumps("a" * 5000).decode())
    assert time.perf_counter() - begun < 5


# -- what children say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b"{}", b'{"choices": []}', b'{"choices": "x"}', b'{"choices": [{"message": null}]}',
     b'{"choices": [{"message": {"content": 5}}]}', b'{"choices": [{"message": {"content": ["x"]}}]}',
     b'{"choices": [{"message": {"content": "x", "tool_calls": 5}}]}'],
)  # fmt: skip
def test_a_reply_of_another_shape_is_malformed_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(MalformedResponse):
        Heard().whole(body)


KEYS = ["choices", "delta", "content", "tool_calls", "function", "index", "usage", "finish_reason", "id"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(KEYS),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["choices", "usage", "id"]), json_values))
def test_a_chunk_of_any_shape_is_read_or_malformed(chunk: dict[str, Any]) -> None:
    with contextlib.suppress(MalformedResponse):
        Heard().chunk(chunk)


def test_a_stream_is_put_together() -> None:
    heard = Heard()
    part = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    deltas = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"tool_calls": [part]},
        {"tool_calls": [more]},
    ]
    seen = [heard.chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
    assert seen == [None, None, {"tool_calls": [part]}, {"tool_calls": [more]}]
    heard.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    heard.chunk({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4,
                                          "completion_tokens_details": {"reasoning_tokens": 2}}})  # fmt: skip
    assert heard.over
    assert heard.usage == Usage(3, 4, 2, 0)
    assert heard.said() == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}],
    }


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", " ", "\n", "a", "b", "<", "</thi"]), max_size=8))
def test_thoughts_are_left_out_the_same_however_a_text_is_cut(pieces: list[str]) -> None:
    text = "".join(pieces)
    at_once = Thoughts().seen(text, last=True)
    thoughts = Thoughts()
    shown = [thoughts.seen(piece) for piece in pieces]
    assert "".join(shown) + thoughts.seen("", last=True) == at_once
    if "<think>" not in text:
        assert at_once == text


def test_thoughts_are_no_part_of_an_answer() -> None:
    assert Thoughts().seen("<think>Is it 4?</think>\n\nIt is 4. <think>", last=True) == "It is 4. <think>"
    assert Thoughts().seen("<think>Is it", last=True) == ""
    assert Thoughts().seen("<", last=True) == "<"
    heard = Heard()
    deltas = ["<th", "ink>", "hm</thi", "nk>", "\n", "Yes", " it is"]
    seen = [heard.chunk({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in deltas]
    assert seen == [None] * 5 + [{"content": "Yes"}, {"content": " it is"}]
    assert heard.text == "Yes it is"


def test_events_are_taken_apart() -> None:
    assert list(chunks_in(b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n')) == [{"a": 1}, {"b": 2}]
    with pytest.raises(MalformedResponse):
        list(chunks_in(b"data: 5\n\n"))


# -- latencies -------------------------------------------------------------------------------------------------------


def test_nobody_knows_how_long_a_model_takes_before_it_has_answered_some() -> None:
    latencies = Latencies()
    for _ in range(LEAST - 1):
        latencies.note("m", 1.0)
    assert latencies.p95_s("m") is None
    latencies.note("m", 1.0)
    assert latencies.p95_s("m") == 1.0
    assert latencies.p95_s("other") is None


def test_what_a_model_takes_follows_its_last_replies() -> None:
    latencies = Latencies()
    for _ in range(200):
        latencies.note("m", 1.0)
    for _ in range(10 * EVERY):
        latencies.note("m", 3.0)
    assert latencies.p95_s("m") == 3.0
