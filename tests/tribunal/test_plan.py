"""The deliberation: its phases, and every way in which it may go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tribunal.children import OUT_OF_TIME
from tribunal.plan import Ask, Phase, Plan, Time, Usage
from tribunal.profile import BelowQuorum, Critic, Judge, Kind, Member, Tally, Verdict

from .simulated import (
    NONCE,
    Outcome,
    Says,
    Script,
    ballot_of,
    deliberate,
    members,
    picking,
    preferring,
    profile,
    question,
    shown,
)

STORY = "Tell me about Rome."


def phases(outcome: Outcome) -> dict[str, int]:
    return dict(Counter(ask.phase.value for ask in outcome.asks))


def drafts(texts: Mapping[str, Any], **others: Any) -> Script:
    """Members that say these; `critique`, `refine`, `judge` and `verdict` are functions of an Ask, or what is said."""

    def script(ask: Ask) -> Says | str | None:
        said = texts[ask.label] if ask.phase is Phase.DRAFT else others.get(ask.phase.value, "")
        answer: Says | str | None = said(ask) if callable(said) else said
        return answer

    return script


ABC = {"m1": "The answer is A", "m2": "The answer is B", "m3": "The answer is C"}
TALES = {"m1": "first tale", "m2": "second tale", "m3": "third tale"}


def fair(*texts: str) -> Any:
    return lambda ask: ballot_of(ask, preferring(*texts))


# -- the phases -----------------------------------------------------------------------------------


def test_members_that_agree_are_the_answer_and_the_last_one_is_dropped() -> None:
    out = deliberate(
        profile(), question(), drafts({"m1": "B", "m2": Says("The answer is (B).", 2.0), "m3": Says("C", 50.0)})
    )
    assert out.text == "B"
    assert phases(out) == {"draft": 3}
    assert out.dropped == [3]
    assert out.now_s == 2.0
    assert out.plan.trace.verdict == "early_exit"


def test_a_vote_that_can_still_be_lost_is_waited_for() -> None:
    five = profile(members=members(1, 1, 1, 1, 1), rounds=0, judge=None)
    said = {"m1": "A", "m2": "A", "m3": Says("B", 2.0), "m4": Says("B", 3.0), "m5": Says("B", 4.0)}
    assert deliberate(five, question(), drafts(said)).text == "B"


def test_members_held_back_are_asked_only_if_the_first_ones_do_not_agree() -> None:
    two_first = profile(first_wave=2, rounds=0)
    assert phases(deliberate(two_first, question(), drafts({"m1": "A", "m2": "A"}))) == {"draft": 2}
    out = deliberate(two_first, question(), drafts({"m1": "A", "m2": "B", "m3": "B"}))
    assert out.text == "B"
    failing = drafts({"m1": "A", "m2": Says(status=503), "m3": "A"})
    assert phases(deliberate(two_first, question(), failing)) == {"draft": 3}


def test_a_straggler_of_the_first_ones_does_not_hold_the_others_up() -> None:
    three_first = profile(members=members(1, 1, 1, 1), first_wave=3, rounds=0, judge=None, grace_s=5.0)
    out = deliberate(three_first, question(), drafts({"m1": "A", "m2": "B", "m3": None, "m4": "B"}))
    assert phases(out) == {"draft": 4}
    assert out.text == "B"
    assert out.now_s == 11.0, "one second, the grace, and the grace of the fourth"


def test_every_critic_sees_all_but_its_own_in_an_order_of_its_own() -> None:
    five = profile(members=members(1, 1, 1, 1, 1), judge=None)
    said = {f"m{n}": f"The answer is {letter}" for n, letter in enumerate("ABCDE", 1)}
    ask = question("Which?\n" + "\n".join(f"{letter}. x" for letter in "ABCDE"))
    out = deliberate(five, ask, drafts(said, critique=lambda ask: ballot_of(ask, lambda text: 5)))
    orders = []
    for critique in out.of(Phase.CRITIQUE):
        own = said[critique.label.removeprefix("critic:")]
        assert sorted(shown(critique).values()) == sorted(set(said.values()) - {own})
        assert not any(f"m{n}" in str(critique.messages) or f"model-{n}" in str(critique.messages) for n in range(1, 6))
        orders.append(tuple(shown(critique).values()))
    assert len(set(orders)) == 5
    assert list(shown(out.of(Phase.CRITIQUE)[0])) == ["C1", "C2", "C3", "C4"]


def test_a_critic_of_its_own_is_shown_no_candidate_of_its_model() -> None:
    out = deliberate(
        profile(critics=(Critic("x", "model-2"), Critic("y", "other"))),
        question(),
        drafts(ABC, critique=lambda ask: ballot_of(ask, lambda text: 5)),
    )
    first, second = out.of(Phase.CRITIQUE)
    assert sorted(shown(first).values()) == [ABC["m1"], ABC["m3"]]
    assert sorted(shown(second).values()) == sorted(ABC.values())


def test_the_best_by_the_critics_is_given_word_for_word() -> None:
    out = deliberate(profile(), question(), drafts(ABC, critique=fair(ABC["m3"], ABC["m1"], ABC["m2"])))
    assert out.text == ABC["m3"]
    assert phases(out) == {"draft": 3, "critique": 3}
    assert out.answers[0].from_ask == 3
    assert out.answers[0].degraded is None


def test_the_median_of_scores_can_decide_instead_of_ranks() -> None:
    out = deliberate(
        profile(tally=Tally.MEDIAN), question(), drafts(ABC, critique=fair(ABC["m3"], ABC["m1"], ABC["m2"]))
    )
    assert out.text == ABC["m3"]


def test_a_candidate_is_written_anew_only_if_two_critics_name_an_error() -> None:
    def critique(ask: Ask) -> str:
        wrong = {ABC["m1"], ABC["m2"]} if ask.label == "critic:m3" else {ABC["m1"]}
        return ballot_of(ask, lambda text: 5, lambda text: ["2 + 2 is not 5"] if text in wrong else [])

    out = deliberate(profile(), question(), drafts(ABC, critique=critique, refine="The answer is C", judge="C1"))
    (refinement,) = out.of(Phase.REFINE)
    assert refinement.model == "model-1"
    assert "2 + 2 is not 5" in str(refinement.messages)
    assert "m2" not in str(refinement.messages)
    trace = out.plan.trace
    assert [c.of for c in trace.candidates] == [None, None, None, 1], "the original stays a candidate"


def test_a_refinement_that_says_the_same_ends_the_rounds() -> None:
    def critique(ask: Ask) -> str:
        return ballot_of(ask, lambda text: 5, lambda text: ["wrong"])

    same = drafts(ABC, critique=critique, refine=lambda ask: "Anew: the answer is " + "ABC"[int(ask.label[-1]) - 1])
    out = deliberate(profile(rounds=3, judge=None), question(), same)
    assert phases(out) == {"draft": 3, "critique": 3, "refine": 3}
    changing = drafts(ABC, critique=critique, refine=lambda ask: f"The answer is D, as {ask.ask_id} says")
    out = deliberate(profile(rounds=2, judge=None), question(), changing)
    assert phases(out)["critique"] == 6
    assert len(shown(out.of(Phase.CRITIQUE)[-1])) == 4, "in the second round the new ones, too, but for one's own two"


def test_a_judge_is_asked_in_both_orders_only_if_two_are_close() -> None:
    def divided(ask: Ask) -> str:
        return ballot_of(ask, lambda text: 5)

    out = deliberate(
        profile(), question(), drafts(ABC, critique=divided, judge=lambda ask: picking(ask, "The answer is B"))
    )
    one, two = out.of(Phase.JUDGE)
    assert list(shown(one).values()) == list(reversed(shown(two).values()))
    assert out.text == "The answer is B"
    assert out.plan.trace.winner == 2


def test_a_judge_that_goes_by_the_order_changes_nothing() -> None:
    out = deliberate(
        profile(members=members(1, 2, 1)),
        question(),
        drafts(ABC, critique=lambda ask: ballot_of(ask, lambda text: 5), judge="C1"),
    )
    assert out.text == ABC["m2"], "the heavier one"
    assert out.answers[0].degraded is None


def test_free_text_is_written_anew_and_streamed() -> None:
    out = deliberate(
        profile(),
        question(STORY, stream=True),
        drafts(TALES, critique=fair(*TALES.values()), verdict=Says("all three tales", 3.0, began_s=1.0)),
    )
    (verdict,) = out.of(Phase.VERDICT)
    assert verdict.stream
    assert sorted(shown(verdict).values()) == sorted(TALES.values())
    assert out.answers[0].streamed
    assert out.text == "all three tales"


def test_a_lone_dissent_is_passed_on_to_the_writer() -> None:
    said = {"m1": "The answer is A", "m2": "Answer: A", "m3": "The answer is B"}
    out = deliberate(
        profile(early_exit=False, verdict=Verdict.SYNTHESISE, rounds=0), question(), drafts(said, verdict="A")
    )
    (verdict,) = out.of(Phase.VERDICT)
    label = picking(verdict, "The answer is B")
    assert f"These differ from what most say: {label}." in str(verdict.messages[-1]["content"])
    assert out.plan.trace.dissents == [3]


def test_with_tools_the_final_call_alone_has_them_and_nobody_is_quicker() -> None:
    tools = {"tools": [{"type": "function"}], "tool_choice": "auto"}
    calls = Says("", tool_calls=True, finish_reason="tool_calls", began_s=0.5)
    out = deliberate(
        profile(rounds=0),
        question(tools=tools, stream=True, params={"tools": 1, "temperature": 0.5}),
        drafts({"m1": "A", "m2": "A", "m3": "A"}, verdict=calls),
    )
    assert all("tools" not in ask.params for ask in out.of(Phase.DRAFT))
    (verdict,) = out.of(Phase.VERDICT)
    assert verdict.params["tools"] == tools["tools"]
    assert out.answers[0].finish_reason == "tool_calls"


def test_several_choices_are_the_best_candidates_in_their_order() -> None:
    out = deliberate(profile(judge=None), question(n=2), drafts(ABC, critique=fair(ABC["m3"], ABC["m1"], ABC["m2"])))
    assert [(answer.index, answer.text) for answer in out.answers] == [(0, ABC["m3"]), (1, ABC["m1"])]


def test_several_choices_may_be_the_same_word_if_so_many_members_have_said_it() -> None:
    out = deliberate(profile(), question(n=2), drafts({"m1": "B", "m2": "B", "m3": "C"}))
    assert [answer.text for answer in out.answers] == ["B", "B"]
    assert phases(out) == {"draft": 3}
    waited = deliberate(profile(), question(n=3), drafts({"m1": "B", "m2": "B", "m3": Says("C", 3.0)}))
    assert [answer.text for answer in waited.answers] == ["B", "B", "C"], "drafts are there, so none is written"


def test_several_syntheses_have_seeds_of_their_own() -> None:
    out = deliberate(profile(rounds=0), question(STORY, n=3), drafts(TALES, verdict=lambda ask: f"v{ask.index}"))
    assert sorted((answer.index, answer.text) for answer in out.answers) == [(0, "v0"), (1, "v1"), (2, "v2")]
    assert len({ask.params["seed"] for ask in out.of(Phase.VERDICT)}) == 3


def test_more_choices_than_candidates_are_written_not_copied() -> None:
    out = deliberate(profile(rounds=0, judge=None), question(n=4), drafts(ABC, verdict="The answer is D"))
    assert [answer.text for answer in out.answers] == [*ABC.values(), "The answer is D"]
    failing = deliberate(profile(rounds=0, judge=None), question(n=4), drafts(ABC, verdict=Says(status=500)))
    assert failing.answers[3].degraded == "fewer_candidates"


def test_samples_of_one_model_are_valid_members_and_review_one_another() -> None:
    alone = profile(members=(Member("a", "x", samples=3),), judge=None)
    said = {"a": "A", "a#2": "B", "a#3": "C"}
    out = deliberate(alone, question(), drafts(said, critique=fair("C", "B", "A")))
    assert out.text == "C"
    assert len({ask.params["seed"] for ask in out.of(Phase.DRAFT)}) == 3


def test_the_seed_gives_the_same_deliberation_again() -> None:
    script = drafts(ABC, critique=lambda ask: ballot_of(ask, lambda text: 5), judge="C1")
    one, two = (deliberate(profile(), question(), script, seed=7) for _ in range(2))
    assert one.asks == two.asks
    assert deliberate(profile(), question(), script, seed=8).asks != one.asks


def test_children_keep_to_what_the_client_asked_for() -> None:
    given = {"temperature": 0.3, "stop": ["x"], "n": 5, "stream": True, "max_completion_tokens": 7, "logprobs": True}
    own = (Member("m1", "model-1", temperature=0.9, system="You are careful."), *members()[1:])
    out = deliberate(
        profile(members=own),
        question(max_tokens=50, params=given),
        drafts(ABC, critique=lambda ask: ballot_of(ask, lambda text: 5), judge="C1"),
    )
    first, second, _ = out.of(Phase.DRAFT)
    assert {**first.params, "seed": 0} == {"temperature": 0.9, "stop": ["x"], "max_tokens": 50, "seed": 0}
    assert second.params["temperature"] == 0.3
    assert first.messages[0] == {"role": "system", "content": "You are careful."}
    assert second.messages is not first.messages
    critic = out.of(Phase.CRITIQUE)[0]
    assert "stop" not in critic.params
    assert critic.params["max_tokens"] == 1024, "internal calls have caps of their own"


def test_usage_is_the_sum_of_all_children_failed_and_dropped_ones_too() -> None:
    said = {"m1": "A", "m2": Says("B", usage=Usage(1, 2, 1, 1)), "m3": Says(status=500)}
    out = deliberate(profile(rounds=0, judge=None), question(), drafts(said))
    assert out.closed is not None
    assert out.closed.usage == Usage(11, 7, 1, 1)
    assert out.plan.trace.usage == out.closed.usage


# -- degraded modes -------------------------------------------------------------------------------


def test_a_straggler_has_its_grace_once_there_is_a_quorum() -> None:
    out = deliberate(
        profile(grace_s=4.0, rounds=0, judge=None),
        question(),
        drafts({"m1": "A", "m2": Says("B", 2.0), "m3": Says("B", 5.9)}),
    )
    assert out.text == "B"
    late = drafts({"m1": "A", "m2": Says("B", 2.0), "m3": Says("B", 6.1)})
    out = deliberate(profile(grace_s=4.0, rounds=0, judge=None), question(), late)
    assert out.now_s == 6.0
    assert out.dropped == [3]
    assert out.answers[0].degraded is None, "a quorum is all that the profile promises"


@pytest.mark.parametrize("nothing", ["", "  \n", "<|im_end|>", "x" * 300_000])
def test_one_usable_draft_is_given_and_marked(nothing: str) -> None:
    said = {"m1": nothing, "m2": "The answer is B", "m3": Says(status=500)}
    out = deliberate(profile(), question(), drafts(said))
    assert out.text == "The answer is B"
    assert out.answers[0].degraded == "one_answer"
    refused = deliberate(profile(below_quorum=BelowQuorum.FAIL), question(), drafts(said))
    assert refused.failure is not None
    assert (refused.failure.status, refused.answers) == (503, [])


def test_fewer_than_the_quorum_go_on_marked() -> None:
    out = deliberate(profile(quorum=3, rounds=0), question(), drafts({"m1": "A", "m2": "B", "m3": Says(status=500)}))
    assert out.answers[0].degraded == "below_quorum"


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (Says(""), 502, "tribunal_no_answer"),
        (Says(status=502), 502, "tribunal_no_answer"),
        (Says(status=503), 503, "model_unavailable"),
        (Says(status=429), 503, "model_unavailable"),
        (Says(status=504), 504, OUT_OF_TIME),
        (None, 504, OUT_OF_TIME),
        (Says(status=400, code="context_length_exceeded"), 400, "context_length_exceeded"),
    ],
)
def test_without_any_usable_draft_there_is_an_error_and_no_text(said: Says | None, status: int, code: str) -> None:
    out = deliberate(profile(), question(), drafts({"m1": said, "m2": said, "m3": said}))
    assert out.answers == []
    assert out.failure is not None
    assert (out.failure.status, out.failure.code) == (status, code)
    assert out.closed is not None
    assert out.closed.outcome == code


def test_a_late_only_answer_is_worth_waiting_for_until_the_deadline() -> None:
    out = deliberate(profile(), question(), drafts({"m1": Says(status=500), "m2": None, "m3": Says("B", 100.0)}))
    assert out.text == "B"
    assert out.answers[0].degraded == "one_answer"


def test_a_critic_whose_json_is_bad_is_asked_once_more_then_dropped() -> None:
    def critique(ask: Ask) -> str:
        if ask.label == "critic:m1" and len(ask.messages) == 1:
            return "C1 is best!"
        if ask.label == "critic:m2":
            return "{"
        return ballot_of(ask, preferring(ABC["m2"], ABC["m3"], ABC["m1"]))

    out = deliberate(profile(judge=None), question(), drafts(ABC, critique=critique))
    asked = Counter(ask.label for ask in out.of(Phase.CRITIQUE))
    assert asked == {"critic:m1": 2, "critic:m2": 2, "critic:m3": 1}
    repair = next(ask for ask in out.of(Phase.CRITIQUE) if len(ask.messages) > 1)
    assert [message["role"] for message in repair.messages] == ["user", "assistant", "user"]
    assert out.text == ABC["m2"]
    ballots = {ballot.critic: (ballot.usable, ballot.repaired) for ballot in out.plan.trace.ballots}
    assert ballots == {"m1": (True, True), "m2": (False, True), "m3": (True, False)}
    assert out.answers[0].degraded is None


@pytest.mark.parametrize("critic", ["garbage", Says(status=500), None], ids=["garbage", "failing", "silent"])
def test_without_a_critic_the_vote_alone_decides(critic: Any) -> None:
    split = profile(members=members(1, 1, 1.5), judge=None)
    out = deliberate(split, question(), drafts(ABC, critique=lambda ask: critic))
    assert out.text == ABC["m3"]
    assert out.answers[0].degraded == ("deadline" if critic is None else "no_critic")


def test_a_judge_that_fails_is_stood_in_for() -> None:
    def judge(ask: Ask) -> str | Says:
        return Says(status=500) if ask.model == "judge" else picking(ask, ABC["m2"])

    script = drafts(ABC, critique=lambda ask: ballot_of(ask, lambda text: 5), judge=judge)
    out = deliberate(profile(alternate=Judge("other")), question(), script)
    assert out.text == ABC["m2"]
    assert phases(out)["judge"] == 4
    out = deliberate(profile(), question(), script)
    assert out.text == ABC["m1"]
    assert out.answers[0].degraded == "judge_failed"


def test_a_judge_that_hangs_leaves_time_for_the_other() -> None:
    def judge(ask: Ask) -> str | None:
        return None if ask.model == "judge" else picking(ask, ABC["m2"])

    script = drafts(ABC, critique=lambda ask: ballot_of(ask, lambda text: 5), judge=judge)
    out = deliberate(profile(alternate=Judge("other")), question(), script)
    assert out.text == ABC["m2"]
    assert out.now_s < 120


@pytest.mark.parametrize(
    "said", ["", Says(status=502), None, Says("late", 500.0)], ids=["empty", "fails", "hangs", "late"]
)
def test_a_synthesis_that_fails_gives_way_to_the_best_candidate(said: Any) -> None:
    script = drafts(TALES, critique=fair("second tale", "first tale"), verdict=lambda ask: said)
    out = deliberate(profile(), question(STORY, stream=True), script)
    assert out.text == "second tale"
    assert not out.answers[0].streamed
    late = said is None or (isinstance(said, Says) and said.after_s > 100)
    assert out.answers[0].degraded == ("deadline" if late else "verdict_failed")
    assert out.now_s <= 120.0


def test_the_alternate_writes_when_the_judge_does_not() -> None:
    script = drafts(TALES, verdict=lambda ask: "by other" if ask.model == "other" else Says(status=500))
    out = deliberate(profile(rounds=0, alternate=Judge("other")), question(STORY), script)
    assert out.text == "by other"
    assert out.answers[0].degraded is None


def test_a_stream_that_breaks_off_after_it_began_is_an_error_and_not_another_answer() -> None:
    broken = Says(status=502, after_s=3.0, began_s=1.0, code="engine_disconnected")
    out = deliberate(profile(rounds=0), question(STORY, stream=True), drafts(TALES, verdict=broken))
    assert out.answers == []
    assert out.failure is not None
    assert (out.failure.status, out.failure.code) == (502, "engine_disconnected")


def test_a_stream_that_began_in_time_is_not_cut_off_by_the_deadline() -> None:
    slow = Says("a long tale", after_s=500.0, began_s=1.0)
    out = deliberate(profile(rounds=0), question(STORY, stream=True), drafts(TALES, verdict=slow))
    assert out.text == "a long tale"
    assert out.answers[0].streamed


def test_a_deadline_within_the_critique_leaves_the_rest_its_time() -> None:
    out = deliberate(profile(judge=None), question(), drafts(ABC, critique=lambda ask: None))
    phase, _, seconds = out.plan.trace.exits[1]
    assert phase == "critique"
    assert seconds == pytest.approx(78.0), "65 % of the time"
    assert out.answers[0].degraded == "deadline"


def test_a_budget_of_calls_ends_in_the_best_so_far() -> None:
    script = drafts(ABC, critique=fair(*ABC.values()), judge="C1")
    out = deliberate(profile(max_calls=4), question(), script)
    assert len(out.asks) == 4
    assert out.answers[0].degraded == "budget"


def test_what_the_verdict_needs_is_set_aside_first() -> None:
    script = drafts(TALES, critique=fair(*TALES.values()), verdict="all of it")
    out = deliberate(profile(max_calls=4), question(STORY), script)
    assert phases(out) == {"draft": 3, "verdict": 1}
    assert out.text == "all of it"
    tight = profile(max_tokens=11_000, draft_max_tokens=1000, verdict_max_tokens=2000)
    used = drafts(
        {name: Says(text, usage=Usage(100, 1000)) for name, text in TALES.items()},
        critique=lambda ask: Says(ballot_of(ask, lambda text: 5), usage=Usage(1000, 1000)),
        verdict=Says("all of it", usage=Usage(3000, 500)),
    )
    out = deliberate(tight, question(STORY), used)
    assert out.text == "all of it"
    assert out.closed is not None
    assert out.closed.usage.prompt + out.closed.usage.completion <= 11_000


def test_a_budget_too_small_for_a_draft_is_an_error() -> None:
    out = deliberate(profile(max_tokens=10), question(), drafts(ABC))
    assert out.failure is not None
    assert (out.failure.status, out.failure.code) == (503, "tribunal_budget")


def test_a_slow_member_is_asked_again_elsewhere_and_the_first_to_answer_counts() -> None:
    def script(ask: Ask) -> Says | str:
        if ask.label != "m3":
            return {"m1": "A", "m2": "B"}.get(ask.label, "")
        return Says("B", 1.0 if ask.hedge_of else 60.0)

    out = deliberate(profile(grace_s=30.0, rounds=0), question(), script, p95_s={"model-3": 5.0})
    assert [ask.hedge_of for ask in out.asks] == [None, None, None, 3]
    assert out.asks[3].params == out.asks[2].params
    assert out.text == "B"
    assert out.now_s == 6.0
    assert out.dropped == [3]
    once = deliberate(profile(hedge=False, grace_s=30.0, rounds=0), question(), script, p95_s={"model-3": 5.0})
    assert len(once.of(Phase.DRAFT)) == 3


def test_a_member_whose_first_child_fails_may_still_answer_by_its_second() -> None:
    def script(ask: Ask) -> Says | str:
        if ask.label != "m3":
            return {"m1": "A", "m2": "B"}[ask.label]
        return Says("B", 3.0) if ask.hedge_of else Says(status=500, after_s=6.0)

    out = deliberate(profile(grace_s=30.0, rounds=0), question(), script, p95_s={"model-3": 5.0})
    assert out.text == "B"
    assert out.now_s == 8.0


def test_answers_that_break_the_response_format_are_no_candidates() -> None:
    def valid(text: str) -> bool:
        return text.startswith("{")

    wants: dict[str, Any] = {"response_format": {"type": "json_object"}, "valid": valid}
    said = {"m1": '{"a": 1}', "m2": "sorry", "m3": '{"a": 2}'}
    out = deliberate(profile(judge=None, rounds=0), question(**wants), drafts(said))
    assert out.text == '{"a": 1}'
    assert out.plan.trace.kind == "json"
    assert all(ask.params["response_format"] == {"type": "json_object"} for ask in out.of(Phase.DRAFT))
    writes = profile(rounds=0, verdict=Verdict.SYNTHESISE)
    out = deliberate(writes, question(**wants, stream=True), drafts(said, verdict="a text"))
    assert not out.of(Phase.VERDICT)[0].stream, "it cannot be looked at before it is whole"
    assert out.text == '{"a": 1}'
    assert out.answers[0].degraded == "verdict_failed"
    assert deliberate(writes, question(**wants), drafts(dict.fromkeys(said, "no"))).failure is not None


def test_a_client_that_leaves_ends_everything() -> None:
    plan = Plan(profile(), question(), seed=1, now_s=0.0, nonce=NONCE)
    plan.start()
    drop, close = plan.cancel(1.0)
    assert drop.ask_ids == (1, 2, 3)  # type: ignore[union-attr]
    assert close.outcome == "cancelled"  # type: ignore[union-attr]
    assert plan.closed
    assert plan.on(Time(), 2.0) == plan.cancel(3.0) == []


def test_progress_tells_what_happens_and_never_what_is_said() -> None:
    out = deliberate(profile(), question(STORY), drafts(TALES, critique=fair(*TALES.values()), verdict="x"))
    assert out.told
    assert not any("tale" in text or "Rome" in text for text in out.told)


def test_a_kind_that_the_answers_do_not_bear_out_is_free_text() -> None:
    said = {"m1": "It depends on the season.", "m2": "Nobody knows.", "m3": "42"}
    out = deliberate(profile(rounds=0), question("How many birds are there?"), drafts(said, verdict="x"))
    assert out.plan.trace.kind == "text"
    told = deliberate(
        profile(rounds=0), question("How many birds are there?", kind=Kind.NUMBER), drafts({**said, "m2": "It is 42.0"})
    )
    assert told.plan.trace.kind == "number"


def test_a_member_alone_is_a_tribunal_too() -> None:
    out = deliberate(profile(members=members(1.0), quorum=1), question(), drafts({"m1": "B"}))
    assert out.text == "B"
    assert out.answers[0].degraded is None
