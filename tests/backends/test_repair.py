"""Where a dialect meets a stream and a reply: sse.py's filter with a repair, and replicas.py with a dialect."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Call, Reply, Usage
from backends.compose import Composed, backend_for
from backends.dialects import DIALECTS, PLAIN
from backends.errors import Disconnected, EngineRefused, InvalidRequest, MalformedResponse
from backends.fixed import FixedEndpoints
from backends.model_places import ModelPlaces
from backends.replicas import mended
from backends.sse import DONE, EventFilter
from proxy.routes import chat, completions, tokenize
from slurm_launcher.engines import ENGINES
from tests.backends.asking import COMPLETIONS, ask, backend_of, call
from tests.fakes.chat_engine import Answers, AnswersWith

Json = dict[str, Any]
PARAMETERS = re.findall(
    r"\w+",
    "stop n seed top_p temperature max_tokens max_completion_tokens tools tool_choice response_format logit_bias "
    "logprobs top_logprobs presence_penalty stream_options functions audio modalities echo best_of suffix prompt "
    "messages content tool_calls tool_call_id add_special_tokens return_token_strs",
)
WORDS = re.findall(
    r"\w+",
    "type function name parameters properties json_schema schema value text id arguments index delta message content "
    "tool_calls finish_reason logprobs token role usage prompt_tokens tokens piece results score meta_info data "
    "embedding",
)
USAGE = {"prompt_tokens": 5, "completion_tokens": 7}


def event(chunk: object) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(chunk)


def word(text: str, **more: Any) -> Json:
    return {"choices": [{"index": 0, "text": text}], **more}


def shouted(chunk: Json) -> Sequence[Json]:
    """A repair: what is empty is dropped, what has a colon is two."""
    if not chunk["choices"]:
        return (chunk,)
    text = chunk["choices"][0]["text"]
    return [{**chunk, **word(part.upper())} for part in text.split(":")] if text else ()


def through(*reads: bytes, forward_usage: bool = False, repair: Any = shouted) -> tuple[list[Any], EventFilter]:
    events = EventFilter(forward_usage=forward_usage, repair=repair)
    data = b"".join([events.feed(read) for read in reads]) + events.end()
    parts = [part.removeprefix(b"data: ") for part in data.split(b"\n\n") if part]
    return [part if part == b"[DONE]" else orjson.loads(part) for part in parts], events


STREAM = event(word("a")) + b": ping\n\n" + event(word("")) + event(word("b:c")) + DONE


@pytest.mark.parametrize("cut", range(0, len(STREAM), 7))
def test_each_chunk_is_repaired_wherever_the_network_cut_it(cut: int) -> None:
    assert through(STREAM[:cut], STREAM[cut:])[0] == [word("A"), word("B"), word("C"), b"[DONE]"]


def test_a_stream_that_was_plain_once_is_repaired_all_the_same() -> None:
    parts, _ = through(*[event(word("a"))] * 3, DONE)
    assert parts == [word("A")] * 3 + [b"[DONE]"]


def test_usage_beside_a_choice_gets_a_chunk_of_its_own() -> None:
    parts, events = through(event(word("a")), event(word("b", usage=USAGE)), DONE, forward_usage=True)
    assert parts == [
        word("A", usage=None),
        word("B", usage=None),
        {"choices": [], "usage": USAGE},
        b"[DONE]",
    ]
    assert events.usage == Usage(5, 7)


def test_usage_that_nobody_asked_for_is_counted_and_left_out() -> None:
    for chunks in ([word("a", usage=USAGE)], [word("a"), {"choices": [], "usage": USAGE}]):
        parts, events = through(*map(event, chunks), DONE)
        assert parts == [word("A"), b"[DONE]"]
        assert events.usage == Usage(5, 7)


def test_usage_of_a_chunk_that_is_dropped_is_counted() -> None:
    parts, events = through(event({**word(""), "usage": USAGE}), DONE)
    assert (parts, events.usage) == ([b"[DONE]"], Usage(5, 7))


def test_an_error_is_not_repaired_but_told() -> None:
    parts, events = through(event(word("a")), event({"error": {"message": "out", "http_status_code": 500}}))
    assert parts[1]["error"]["message"] == "out"
    assert isinstance(events.failure, EngineRefused)


def test_a_repaired_stream_that_ends_early_is_an_error_too() -> None:
    parts, events = through(event(word("a")))
    assert parts[-1]["error"]["code"] == "engine_disconnected"
    assert isinstance(events.failure, Disconnected)


@pytest.mark.parametrize("chunk", [{"choices": [{}]}, {"choices": 3}, {"no": "choices"}])
def test_a_chunk_of_another_shape_is_malformed(chunk: Any) -> None:
    with pytest.raises(MalformedResponse):
        through(event(chunk))


async def test_a_reply_of_another_shape_is_malformed() -> None:
    for body in (b"[]", b"<html>", b'{"choices":[3]}'):
        async with AnswersWith(200, body) as engine, backend_of(engine, "tgi") as backend:
            with pytest.raises(MalformedResponse):
                await ask(backend)


async def test_a_model_of_an_unknown_engine_is_taken_to_speak_openai() -> None:
    async with Answers() as engine, backend_of(engine, "another") as backend:
        asked = call()
        reply = await backend.run(asked)
        assert isinstance(reply, Reply)
        assert engine.requests[0].raw == asked.raw
        with pytest.raises(InvalidRequest) as caught:
            await backend.run(call("/v1/rerank", query="q", documents=["a"]))
        assert caught.value.code == "unsupported_endpoint"


def test_every_engine_that_can_be_launched_has_a_dialect() -> None:
    assert set(DIALECTS) == set(ENGINES)


def test_a_dialect_without_repair_stands_in_nobodys_way() -> None:
    backend = backend_for("m", ModelPlaces("m", FixedEndpoints([])), "vllm")
    assert isinstance(backend, Composed)
    assert COMPLETIONS not in backend._ways
    plain = backend_for("m", ModelPlaces("m", FixedEndpoints([])), PLAIN.name)
    assert isinstance(plain, Composed)
    assert plain._ways == {}


# -- whatever comes ----------------------------------------------------------------------------------------------------

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 9) | st.floats(-3, 3) | st.sampled_from(["", "a", "tool", "object"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(PARAMETERS)), VALUES, max_size=6)
CHECKS = {chat.PATH: chat.check, completions.PATH: completions.check, tokenize.PATH: tokenize.check}
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"])}), max_size=3)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("path", CHECKS)
@given(fields=FIELDS, messages=MESSAGES, more=st.lists(FIELDS, max_size=3))
@settings(max_examples=60)
def test_any_request_that_passed_the_routes_check_is_prepared_or_refused(
    name: str, path: str, fields: Json, messages: list[Json], more: list[Json]
) -> None:
    body = {"messages": [{**extra, **m} for m, extra in zip(messages, more, strict=False)], "prompt": "P", **fields}
    if path == tokenize.PATH:
        del body["messages" if len(messages) % 2 else "prompt"]
    body["model"] = "m"
    try:
        CHECKS[path](body)
    except InvalidRequest:
        return
    dialect = DIALECTS[name]
    if "prompt" not in body and dialect.template_path is not None:
        return  # Tokenize has made a prompt of them
    prepare = dialect.prepare
    asked = Call("req_1", path, "m", body, orjson.dumps(body))
    for drop in (False, True):
        prepared = asked
        with contextlib.suppress(InvalidRequest):
            prepared = asked if prepare is None else prepare(asked, drop)
        assert orjson.loads(prepared.raw) == prepared.body
    assert orjson.dumps(body) == asked.raw


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("path", [*CHECKS, "/v1/rerank", "/v1/embeddings"])
@given(reply=VALUES | st.fixed_dictionaries({"choices": VALUES, "usage": VALUES, "data": VALUES}))
@settings(max_examples=60)
def test_any_reply_and_any_chunk_is_repaired_or_malformed(name: str, path: str, reply: Any) -> None:
    dialect = DIALECTS[name]
    asked = call(path, prompt="P", stop=["a"], logprobs=1)
    repair = dialect.repair_reply(asked) if dialect.repair_reply is not None else None
    if repair is not None:
        with contextlib.suppress(MalformedResponse):
            mended(orjson.dumps(reply), repair)
    chunks = dialect.repair_chunks(asked) if dialect.repair_chunks is not None else None
    if chunks is not None:
        events = EventFilter(forward_usage=True, repair=chunks)
        with contextlib.suppress(MalformedResponse):
            events.feed(event(reply) * 2)
