"""Engines' event streams as they send them, and what the client gets for them."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.base import Usage
from backends.errors import Disconnected, EngineRefused, MalformedResponse, Unavailable
from backends.sse import DONE, EVENT_BYTES, EventFilter, error_event, usage_of


def event(payload: object) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(payload)


def word(text: str, **more: object) -> dict[str, object]:
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [delta], **more}


USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 1}}
WORD = event(word("Hello"))
USAGE_CHUNK = event({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
ERROR = event({"error": {"message": "boom", "type": "server_error", "param": None, "code": "engine_error"}})
STREAM = WORD * 3 + USAGE_CHUNK + DONE


def through(*reads: bytes, forward_usage: bool = False) -> tuple[bytes, EventFilter]:
    events = EventFilter(forward_usage=forward_usage)
    out = b"".join([events.feed(read) for read in reads])
    return out + events.end(), events


# -- what is right passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [WORD, WORD * 4, event(word("x", usage=None)) * 2, event(word('a \\"usage\\": {1} "b'))]
)
def test_what_is_right_passes_as_the_same_object(data: bytes) -> None:
    assert EventFilter(forward_usage=False).feed(data) is data


def test_a_whole_stream_passes_but_for_the_usage_the_client_did_not_ask_for() -> None:
    out, events = through(STREAM)
    assert out == WORD * 3 + DONE
    assert events.usage == Usage(5, 7)
    assert events.done
    assert events.over
    assert events.failure is None


def test_a_client_who_asked_for_usage_gets_it() -> None:
    out, events = through(STREAM, forward_usage=True)
    assert out == STREAM
    assert events.usage == Usage(5, 7)


def test_a_client_never_sees_a_part_of_an_event() -> None:
    events = EventFilter(forward_usage=False)
    assert events.feed(WORD[:20]) == b""
    assert events.feed(WORD[20:] + WORD[:5]) == WORD
    assert events.feed(WORD[5:]) == WORD


def test_an_event_that_looks_whole_is_not_if_something_came_before_it() -> None:
    assert through(WORD + b": ", WORD, DONE)[0] == WORD + DONE


def test_a_line_within_a_line_is_found() -> None:
    assert through(b'data: {"a":1}\rid: {}\n\n', DONE)[0] == b'data: {"a":1}\n\n' + DONE


def test_an_event_without_end_is_malformed() -> None:
    events = EventFilter(forward_usage=False)
    events.feed(b"data: {")
    with pytest.raises(MalformedResponse):
        for _ in range(EVENT_BYTES // 2**20 + 1):
            events.feed(b"x" * 2**20)


@pytest.mark.parametrize("newline", [b"\r\n", b"\r"])
def test_other_line_ends_become_ours(newline: bytes) -> None:
    data = STREAM.replace(b"\n", newline)
    assert through(data)[0] == WORD * 3 + DONE
    for cut in range(len(data)):
        assert through(data[:cut], data[cut:])[0] == WORD * 3 + DONE


@pytest.mark.parametrize(
    "noise",
    [
        b": ping\n\n",
        b":\n\n",
        b"\n\n",
        b"\n",
        b"event: ping\n\n",
        b"retry: 3000\n\n",
        b"id: 7\n\n",
        b"data:\n\n",
        b"data: \n\n",
        b"data\n\n",
    ],
)
def test_an_event_without_data_is_left_out(noise: bytes) -> None:
    assert through(noise + WORD + noise + WORD + noise + DONE)[0] == WORD * 2 + DONE


@pytest.mark.parametrize(
    "dressed",
    [
        b"id: 1\n%sevent: message\n\n" % WORD[:-1],
        b": comment\n%s" % WORD,
        b"event: message\r\n" + WORD,
        WORD.replace(b"data: ", b"data:"),
    ],
)
def test_only_the_data_of_an_event_is_kept(dressed: bytes) -> None:
    assert through(dressed + DONE)[0] == WORD + DONE


def test_data_over_several_lines_stays_so() -> None:
    assert through(b'data: {"choices":\ndata: [1]}\n\n' + DONE)[0] == b'data: {"choices":\ndata: [1]}\n\n' + DONE


def test_after_done_nothing_follows() -> None:
    out, events = through(DONE + WORD, WORD, b"garbage")
    assert out == DONE
    assert events.done


# -- usage ----------------------------------------------------------------------------------------------------------


def test_usage_on_a_chunk_with_choices_is_counted_and_cut_out() -> None:
    out, events = through(event(word("a", usage=USAGE)) + DONE)
    assert out == event(word("a")) + DONE
    assert events.usage == Usage(5, 7)


def test_the_last_of_several_usages_counts() -> None:
    first, last = ({"prompt_tokens": 5, "completion_tokens": count} for count in (1, 9))
    out, events = through(event(word("a", usage=first)), event(word("b", usage=last)), DONE)
    assert out == event(word("a")) + event(word("b")) + DONE
    assert events.usage == Usage(5, 9)


def test_spaces_in_the_json_do_not_hide_usage() -> None:
    chunk = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\n'
    out, events = through(chunk + DONE)
    assert out == DONE
    assert events.usage == Usage(5, 7)


@pytest.mark.parametrize(
    "text", ['{"usage":{"prompt_tokens":1}}', '"usage"', "usage", '"error":{"message":"x"}', "data: {\n\ndata: [DONE]"]
)
def test_text_about_usage_and_errors_is_only_text(text: str) -> None:
    out, events = through(event(word(text)) + DONE)
    assert out == event(word(text)) + DONE
    assert events.usage is None
    assert events.failure is None


def test_usage_elsewhere_in_a_chunk_is_not_the_usage() -> None:
    chunk = event({"choices": [{"delta": {"usage": USAGE, "error": "none"}}]})
    out, events = through(chunk + DONE)
    assert out == chunk + DONE
    assert events.usage is None
    assert events.failure is None


# -- errors and the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "face"),
    [
        (
            b'data:{"error":{"message":"boom","http_status_code":422}}\n\ndata: [DONE]\n\n',
            ("boom", "invalid_request_error", None, None),
        ),
        (
            b'data: {"error":"boom","error_type":"generation"}\n\n',
            ("boom", "server_error", None, "engine_error"),
        ),
        (
            b'data: {"error": {"message": "boom", "type": "BadRequestError", "param": null, "code": 400}}\n\n',
            ("boom", "invalid_request_error", None, None),
        ),
        (
            b'data: {"object":"error","message":"boom","type":"InternalServerError","code":500}\n\n',
            ("boom", "server_error", None, "engine_error"),
        ),
        (
            b'data: {"error":{"code":500,"message":"boom","type":"server_error"}}\n\n',
            ("boom", "server_error", None, "engine_error"),
        ),
        (
            b'error: {"code":503,"message":"boom","type":"unavailable_error"}\n\n',
            ("boom", "server_error", None, "model_unavailable"),
        ),
        (b"event: error\ndata: boom\n\n", ("boom", "server_error", None, "engine_error")),
        (b"data: boom\n\n", ("boom", "server_error", None, "engine_error")),
    ],
)
def test_an_error_in_any_shape_becomes_an_error_with_four_keys(
    data: bytes, face: tuple[str, str, str | None, str | None]
) -> None:
    out, events = through(WORD + data + WORD, DONE)
    message, type_, param, code = face
    assert out == WORD + event({"error": {"message": message, "type": type_, "param": param, "code": code}})
    assert isinstance(events.failure, EngineRefused | Unavailable)
    assert events.over


def test_an_error_that_is_null_is_none() -> None:
    chunk = event(word("a", error=None))
    out, events = through(chunk + DONE)
    assert out == chunk + DONE
    assert events.failure is None


@pytest.mark.parametrize("reads", [(WORD,), (WORD, WORD[:30]), (WORD, b'data: {"a":"data: [DONE]')])
def test_an_end_without_done_is_an_error(reads: tuple[bytes, ...]) -> None:
    out, events = through(*reads)
    message = "The engine closed the stream before its end."
    error = {"message": message, "type": "server_error", "param": None, "code": "engine_disconnected"}
    assert out == WORD + event({"error": error})
    assert isinstance(events.failure, Disconnected)
    assert events.end() == b""


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n", b"data:[DONE]\r"])
def test_done_without_its_blank_line_is_done(last: bytes) -> None:
    out, events = through(WORD + last)
    assert out == WORD + DONE
    assert events.done


def test_an_error_event_has_four_keys() -> None:
    assert error_event(EngineRefused("boom", status=500, type="server_error", code="engine_error")) == ERROR


# -- however the network cuts it ------------------------------------------------------------------------------------

RECORDED = (
    b": ping\n\n"
    + WORD
    + event(word("x", usage=None))
    + b"id: 3\r\nevent: message\r\n"
    + WORD.replace(b"\n", b"\r\n")
    + b'data: {"choices":\r\ndata: [1]}\r\n\r\n'
    + WORD.replace(b"\n", b"\r")
    + b"\n"
    + event(word("y", usage=USAGE))
    + b'data: {broken "usage":null}\n\ndata: {} \n\n'
    + USAGE_CHUNK
)
ENDS = {
    "done": DONE,
    "error": b'data: {"error":"boom"}\n\n' + DONE,
    "cut off": WORD[:40],
    "done, no blank line": DONE[:-2],
}


@given(end=st.sampled_from(sorted(ENDS)), forward_usage=st.booleans(), cuts=st.lists(st.integers(0, 2000), max_size=30))
@example(end="done", forward_usage=False, cuts=list(range(2000)))
@example(end="error", forward_usage=True, cuts=list(range(2000)))
def test_the_output_does_not_depend_on_how_the_input_is_cut(end: str, forward_usage: bool, cuts: list[int]) -> None:
    data = RECORDED + ENDS[end]
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reads = [data[start:stop] for start, stop in itertools.pairwise(places)]
    whole, at_once = through(data, forward_usage=forward_usage)
    out, in_pieces = through(*reads, forward_usage=forward_usage)
    assert out == whole
    assert (in_pieces.usage, in_pieces.done) == (at_once.usage, at_once.done)
    assert (in_pieces.failure is None) == (at_once.failure is None)


@given(
    st.lists(
        st.sampled_from([b"data: ", b"data: {", b"}", b'"usage":', b"null", b"\n", b"\r", b"\n\n", b":", b"id: 1"])
    )
)
def test_whatever_comes_the_client_gets_whole_events_of_data_lines(parts: list[bytes]) -> None:
    out, _ = through(b"".join(parts))
    assert out == through(*parts)[0]
    assert out.endswith(b"\n\n")
    assert b"\r" not in out
    for block in out.removesuffix(b"\n\n").split(b"\n\n"):
        assert all(line.startswith(b"data: ") for line in block.split(b"\n"))


# -- usage of plain replies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (orjson.dumps({"choices": [], "usage": USAGE}), Usage(5, 7)),
        (orjson.dumps({"usage": USAGE, "choices": []}), Usage(5, 7)),
        (b'{"choices": [],\n "usage": {"prompt_tokens": 5, "completion_tokens": 7}\n}', Usage(5, 7)),
        (orjson.dumps({"data": [{"embedding": [0.1] * 9}], "usage": {"prompt_tokens": 5}}), Usage(5, 0)),
        (orjson.dumps({"choices": [], "usage": None}), None),
        (orjson.dumps({"choices": []}), None),
        (orjson.dumps({"text": '"usage":{"prompt_tokens":1}'}), None),
        (orjson.dumps({"text": 'x,"usage":{"prompt_tokens":1}', "usage": USAGE}), Usage(5, 7)),
        (orjson.dumps({"usage": USAGE, "text": ',"usage":{"prompt_tokens":1}'}), Usage(5, 7)),
        (orjson.dumps({"usage": USAGE, "tokens": ["usage", ":", "{"]}), Usage(5, 7)),
        (orjson.dumps({"usage": USAGE, 'a"usage': {"prompt_tokens": 1}}), Usage(5, 7)),
        (b'{"usage":{broken}}', None),
        (b'{"usage":{"prompt_tokens":5', None),
        (b"not json", None),
        (b"", None),
    ],
)
def test_usage_is_found_in_a_plain_reply_without_parsing_it(body: bytes, usage: Usage | None) -> None:
    assert usage_of(body) == usage


@given(text=st.text(), before=st.booleans())
def test_no_text_is_taken_for_usage(text: str, before: bool) -> None:
    content = {"text": text + '"usage":{"prompt_tokens":1}' + text}
    body = orjson.dumps({**content, "usage": USAGE} if before else {"usage": USAGE, **content})
    assert usage_of(body) == Usage(5, 7)
