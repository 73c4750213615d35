"""Which requests belong together, and what a call asks of the places."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import pytest

from backends.affinity import PREFIX_CHARS, affinity_of
from backends.base import Call
from backends.places import Priority
from backends.service_rate import UNKNOWN_S, ServiceRate
from backends.wants import tokens_of, want_of

LONG = "You answer by these documents. " * 40


def call(path: str = "/v1/chat/completions", **body: Any) -> Call:
    return Call("req_1", path, "m", body, orjson.dumps(body))


def chat(*texts: Any) -> Call:
    return call(messages=[{"role": "user" if n else "system", "content": text} for n, text in enumerate(texts)])


def test_the_same_system_prompt_belongs_together_whatever_is_asked() -> None:
    assert affinity_of(chat(LONG, "a")) == affinity_of(chat(LONG, "b", "c")) != 0
    assert affinity_of(chat(LONG)) != affinity_of(chat("x" + LONG))


def test_short_prompts_belong_nowhere() -> None:
    assert affinity_of(chat("hello", "world")) == 0
    assert affinity_of(call("/v1/completions", prompt="x" * (PREFIX_CHARS - 1))) == 0
    assert affinity_of(call("/v1/completions", prompt="x" * PREFIX_CHARS)) != 0


def test_a_conversation_of_short_messages_has_a_prefix_once_it_is_long() -> None:
    turns = ["a question that is short"] * 40
    assert affinity_of(chat(*turns)) == affinity_of(chat(*turns, "one more")) != 0


def test_parts_count_by_their_text() -> None:
    parts = [{"type": "text", "text": LONG}, {"type": "image_url", "image_url": {"url": "data:..."}}]
    assert affinity_of(chat(parts)) != 0


@pytest.mark.parametrize(
    "body", [{}, {"messages": ["x"]}, {"messages": [{}]}, {"prompt": [1, 2]}, {"input": "x" * 999}]
)
def test_odd_bodies_have_none(body: Any) -> None:
    assert affinity_of(call(**body)) == 0


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "from backends.affinity import affinity_of; from backends.base import Call;"
        f"print(affinity_of(Call('', '', 'm', {{'prompt': {LONG!r}}}, b' ' * 2000)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == affinity_of(call("/v1/completions", prompt=LONG))


def test_a_want_has_what_fairness_needs() -> None:
    asked = call(messages=[{"role": "user", "content": "x" * 400}], max_tokens=1000)
    asked.key_id, asked.priority, asked.deadline = "key", 1, 7.0
    want = want_of(asked, frozenset({"r1"}))
    assert (want.owner, want.priority, want.deadline, want.avoid) == ("key", Priority.BATCH, 7.0, frozenset({"r1"}))
    assert want.tokens == 1000 + len(asked.raw) // 4
    assert want.affinity == 0


@pytest.mark.parametrize("limit", [{"max_completion_tokens": 50}, {"max_tokens": 25, "n": 2}])
def test_tokens_are_prompt_and_limit(limit: dict[str, int]) -> None:
    body: dict[str, Any] = {"prompt": "", **limit}
    assert tokens_of(call(**body)) - len(call(**body).raw) // 4 == 50


def test_embeddings_have_no_completion() -> None:
    assert tokens_of(call("/v1/embeddings", input="x" * 400)) < 120


def test_the_wait_is_by_the_measured_rate() -> None:
    rate = ServiceRate()
    assert rate.wait_s(10, 4) == UNKNOWN_S
    for _ in range(20):
        rate.served(2.0)
    assert rate.per_second(4) == pytest.approx(2.0)
    assert rate.wait_s(9, 4) == 5.0
    assert rate.wait_s(0, 4) == 1.0
    for _ in range(500):
        rate.served(6.0)
    assert rate.per_second(4) == pytest.approx(4 / 6, rel=0.01)
