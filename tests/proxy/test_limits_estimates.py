"""Tokens where nobody has counted them: near enough to admit by, and put right afterwards."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from backends.base import Call, Usage
from proxy.limits.estimates import (
    COMPLETION_TOKENS,
    MEDIA_TOKENS,
    prompt_tokens,
    requested_tokens,
    streamed_answer,
    whole_answer,
)

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def call_of(path: str, **body: Any) -> Call:
    body = {"model": "m", **body}
    return Call("req_1", path, "m", body, orjson.dumps(body))


def said(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def test_four_bytes_are_a_token() -> None:
    call = call_of(CHAT, messages=[{"role": "user", "content": "x" * 4000}])
    assert 1000 < prompt_tokens(call) < 1030


@pytest.mark.parametrize(
    ("body", "completion"),
    [
        ({}, COMPLETION_TOKENS),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20, "max_tokens": 10}, 20),
        ({"max_output_tokens": 30}, 30),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": None, "n": None}, COMPLETION_TOKENS),
        ({"max_tokens": "many", "n": -1}, COMPLETION_TOKENS),
    ],
)
def test_an_answer_may_be_as_long_as_the_request_says(body: dict[str, Any], completion: int) -> None:
    call = call_of(CHAT, messages=said("hi"), **body)
    assert requested_tokens(call) - prompt_tokens(call) == completion


def test_each_of_many_prompts_has_an_answer() -> None:
    call = call_of(COMPLETIONS, prompt=["a", "b", "c"], max_tokens=5)
    assert requested_tokens(call) - prompt_tokens(call) == 15
    call = call_of(COMPLETIONS, prompt=[1, 2, 3], max_tokens=5)
    assert requested_tokens(call) == 3 + 5


@pytest.mark.parametrize("given", [[5] * 40, [[5] * 20, [5] * 20]])
def test_token_ids_are_counted(given: list[Any]) -> None:
    assert requested_tokens(call_of(EMBEDDINGS, input=given)) == 40


def test_images_and_sound_are_not_taken_for_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 1_000_000, "format": "wav"}}
    text = {"type": "text", "text": "x" * 4000}
    assert 2 * MEDIA_TOKENS + 1000 < prompt_tokens(call_of(CHAT, messages=said(image, text, sound))) < 3000
    item = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 1_000_000}
    assert prompt_tokens(call_of("/v1/responses", input=said(item))) < 1000


def test_an_upload_is_not_taken_for_text() -> None:
    call = Call("req_1", "/v1/audio/transcriptions", "m", {"model": "m"}, b"x" * 1_000_000, content_type=b"multipart/x")
    assert requested_tokens(call) == MEDIA_TOKENS


@pytest.mark.parametrize(
    "messages",
    ["text", [], [None], [{}], [{"content": 5}], [{"content": [None, 5, {"image_url": None}, {"image_url": [1]}]}]],
)
def test_any_shape_has_an_estimate(messages: Any) -> None:
    filler = "x" * 10_000
    for path in (CHAT, EMBEDDINGS, "/rerank", "/v1/responses"):
        for name in ("messages", "input", "prompt"):
            assert requested_tokens(call_of(path, filler=filler, **{name: messages})) > 0


def test_only_what_is_generated_is_a_completion() -> None:
    assert whole_answer(call_of(CHAT, messages=said("hi")), 400) == Usage(
        prompt_tokens(call_of(CHAT, messages=said("hi"))), 100
    )
    embedded = whole_answer(call_of(EMBEDDINGS, input="hi"), 400_000)
    assert embedded is not None
    assert embedded.completion_tokens == 0
    assert whole_answer(call_of("/tokenize", prompt="hi"), 400) is None


def test_a_stream_has_at_least_one_token_once_something_was_passed_on() -> None:
    call = call_of(CHAT, messages=said("hi"))
    assert streamed_answer(call, 0, 180.0) is None
    few = streamed_answer(call, 10, 180.0)
    assert few is not None
    assert few.completion_tokens == 1
