"""What is kept of a deliberation, and what is not once it is redacted."""

from __future__ import annotations

import orjson

from tribunal.plan import Ask, Phase

from .simulated import Outcome, ballot_of, deliberate, profile, question

SAID = {"m1": "The answer is A, secretly", "m2": "The answer is B, secretly", "m3": "So, secretly: the answer is A"}


def deliberated() -> Outcome:
    def script(ask: Ask) -> str:
        if ask.phase is Phase.DRAFT:
            return SAID[ask.label]
        if ask.phase is Phase.CRITIQUE:
            return ballot_of(ask, lambda text: 5, lambda text: ["secretly wrong"])
        return "secretly C"

    return deliberate(profile(early_exit=False), question(), script)


def test_a_trace_tells_who_said_what_and_why_it_ended_so() -> None:
    trace = deliberated().plan.trace
    told = orjson.loads(orjson.dumps(trace.as_json()))
    assert told["outcome"] == "answered"
    assert told["kind"] == "choice"
    assert [exit[0] for exit in told["exits"]] == ["draft", "critique", "refine", "verdict"]
    assert told["candidates"][0]["text"] == SAID["m1"]
    assert told["candidates"][0]["key"] == told["candidates"][2]["key"] == "choice:A"
    assert told["dissents"] == [2]
    assert len(told["ballots"]) == 3
    assert all(call["usage"]["completion"] == 5 for call in told["calls"])
    assert told["usage"]["completion"] == 5 * len(told["calls"])


def test_a_redacted_trace_has_no_word_of_any_model() -> None:
    trace = deliberated().plan.trace
    text = orjson.dumps(trace.redacted().as_json()).decode()
    assert "secretly" not in text
    assert "choice:A" not in text
    told = orjson.loads(text)
    assert [candidate["key"] for candidate in told["candidates"][:3]] == ["answer 1", "answer 2", "answer 1"]
    assert told["usage"] == trace.as_json()["usage"]
    assert "secretly" in orjson.dumps(trace.as_json()).decode(), "the trace itself is as it was"
