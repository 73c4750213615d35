"""Votes are counted in code: what is no ballot counts nothing, and a ballot no more than its weight."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tribunal.ballots import (
    BadBallot,
    Ballot,
    Opinion,
    Vote,
    agreed,
    derived,
    labelled,
    named_errors,
    parse_choice,
    parse_opinions,
    support,
    tallied,
)
from tribunal.profile import Tally

LABELS = ["C1", "C2"]


def entry(label: str, score: Any = 5, errors: Any = (), **more: Any) -> dict[str, Any]:
    return {"label": label, "fatal_errors": list(errors), "evidence": "", "score": score, **more}


def text(*entries: Any) -> str:
    return orjson.dumps({"candidates": entries}).decode()


def ballot(
    *scores: float, critic: str = "c", weight: float = 1.0, errors: dict[int, tuple[str, ...]] | None = None
) -> Ballot:
    opinions = {n: Opinion(score, (errors or {}).get(n, ())) for n, score in enumerate(scores, 1)}
    return Ballot(critic, weight, opinions)


# -- replies --------------------------------------------------------------------------------------


def test_a_ballot_is_read() -> None:
    found = parse_opinions(text(entry("C2", 3, ["wrong sum"]), entry("C1", 9.5, more="x")), LABELS)
    assert found == {"C1": Opinion(9.5), "C2": Opinion(3.0, ("wrong sum",))}


def test_a_code_fence_a_thought_and_a_bare_list_are_read_too() -> None:
    plain = orjson.dumps([entry("C1"), entry("C2")]).decode()
    assert parse_opinions(f"<think>{{</think>\n```json\n{plain}\n```", LABELS).keys() == {"C1", "C2"}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "C1 is better",
        "{",
        "null",
        "[]",
        "{}",
        '{"candidates": {}}',
        '{"candidates": ["C1", "C2"]}',
        text(entry("C1")),
        text(entry("C1"), entry("C1"), entry("C2")),
        text(entry("C1"), entry("C2"), entry("C3")),
        text(entry("C1"), entry("C2", 11)),
        text(entry("C1"), entry("C2", -1)),
        text(entry("C1"), entry("C2", True)),
        text(entry("C1"), entry("C2", "10")),
        text(entry("C1"), entry("C2", None)),
        text(entry("C1"), {"label": "C2", "fatal_errors": "none", "evidence": "", "score": 1}),
        text(entry("C1"), {"label": "C2", "fatal_errors": [1], "evidence": "", "score": 1}),
        text(entry("C1"), {"label": "C2", "fatal_errors": [], "score": 1}),
        text(entry("C1"), {"label": ["C2"], "fatal_errors": [], "evidence": "", "score": 1}),
        text(entry("C1"), entry("C2")) + " and C1 wins",
        "x" * 1_000_000,
        "[" * 50_000,
    ],
    ids=range(23),
)
def test_what_is_no_whole_ballot_is_refused(reply: str) -> None:
    with pytest.raises(BadBallot):
        parse_opinions(reply, LABELS)


@given(st.text(max_size=200))
def test_no_reply_breaks_the_reading(reply: str) -> None:
    with pytest.raises(BadBallot):
        parse_opinions(reply, LABELS)
    assert parse_choice(reply, LABELS) in (None, *LABELS)


def test_what_critics_say_is_capped() -> None:
    found = parse_opinions(text(entry("C1", 1, ["e" * 5000] * 12), entry("C2")), LABELS)
    assert [len(error) for error in found["C1"].fatal_errors] == [400] * 8


@pytest.mark.parametrize("reply", ["C2", " C2.\n", "**C2**", "(C2)", '"C2"', '{"label": "C2"}', "<think>C1?</think>C2"])
def test_a_judge_answers_with_the_label_alone(reply: str) -> None:
    assert parse_choice(reply, LABELS) == "C2"


@pytest.mark.parametrize("reply", ["", "C3", "C1 or C2", "C2 is better", "2", '{"label": "C2", "x": 1}', "C1C2", "[1]"])
def test_every_other_word_of_a_judge_is_none(reply: str) -> None:
    assert parse_choice(reply, LABELS) is None


# -- labels ---------------------------------------------------------------------------------------


def test_every_critic_has_an_order_of_its_own_and_the_seed_gives_it_again() -> None:
    ids = list(range(1, 7))
    orders = {tuple(labelled(ids, 7, "critique", 0, f"critic-{n}").values()) for n in range(20)}
    assert len(orders) > 10
    assert all(sorted(order) == ids for order in orders)
    assert labelled(ids, 7, "critique", 0, "a") == labelled(ids, 7, "critique", 0, "a")
    assert labelled(ids, 8, "critique", 0, "a") != labelled(ids, 7, "critique", 0, "a")


def test_derived_seeds_are_apart_and_fit_every_engine() -> None:
    seeds = {derived(1, "draft", f"m{n}") for n in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


# -- counting -------------------------------------------------------------------------------------


def votes(*keys: str | None, weights: list[float] | None = None) -> list[Vote]:
    return [Vote(n, key, (weights or [1.0] * len(keys))[n - 1]) for n, key in enumerate(keys, 1)]


def test_two_of_three_agree_and_two_of_four_do_not() -> None:
    assert agreed(votes("a", "a"), total=3, least=2, share=0.5) == "a"
    assert agreed(votes("a", "a"), total=4, least=2, share=0.5) is None
    assert agreed(votes("a", "b"), total=3, least=2, share=0.5) is None
    assert agreed(votes(None, None), total=3, least=2, share=0.5) is None
    assert agreed(votes("a", "a"), total=5, least=3, share=0.0) is None


def test_a_heavy_member_is_not_outvoted_by_light_ones() -> None:
    weights = [1.73, 0.41, 0.41]
    assert agreed(votes("a", "b", "b", weights=weights), total=2.55, least=2, share=0.5) is None
    shares = support(votes("a", "b", "b", weights=weights))
    assert shares[1] > shares[2] == shares[3]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10)), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10)), max_size=4),
)
def test_who_has_agreed_wins_the_vote_whatever_still_comes(first: list[Any], later: list[Any]) -> None:
    def ballots(pairs: list[Any]) -> list[Vote]:
        return [Vote(n, key, weight) for n, (key, weight) in enumerate(pairs)]

    total = sum(weight for _, weight in first + later)
    winner = agreed(ballots(first), total=total, least=2, share=0.5)
    if winner is not None:
        final = support(ballots(first + later))
        best = max(final, key=lambda n: final[n])
        assert (first + later)[best][0] == winner


def test_borda_counts_ranks_and_the_median_scores() -> None:
    ballots = [ballot(9, 8, 0, critic="a"), ballot(9, 8, 7, critic="b")]
    assert tallied(ballots, Tally.BORDA) == {1: 1.0, 2: 0.5, 3: 0.0}
    assert tallied(ballots, Tally.MEDIAN) == pytest.approx({1: 0.9, 2: 0.8, 3: 0.35})


def test_a_critic_that_gives_ten_to_all_says_nothing() -> None:
    assert set(tallied([ballot(10, 10, 10)], Tally.BORDA).values()) == {0.5}


def test_a_fatal_error_goes_below_every_score_without_one() -> None:
    assert tallied([ballot(10, 2, errors={1: ("wrong",)})], Tally.BORDA) == {1: 0.0, 2: 1.0}


def test_weights_count() -> None:
    ballots = [ballot(9, 1, critic="a", weight=3.0), ballot(1, 9, critic="b", weight=1.0)]
    assert tallied(ballots, Tally.BORDA) == {1: 0.75, 2: 0.25}
    assert tallied(ballots, Tally.MEDIAN) == {1: 0.9, 2: 0.1}


def test_candidates_that_a_critic_was_not_shown_are_not_below_the_others() -> None:
    own = Ballot("a", 1.0, {2: Opinion(9), 3: Opinion(1)})
    assert tallied([own], Tally.BORDA) == {2: 1.0, 3: 0.0}


@given(st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=2, max_size=7), st.sampled_from(Tally))
def test_one_ballot_moves_a_tally_by_no_more_than_its_share(scores: list[list[float]], method: Tally) -> None:
    honest = [ballot(*line, critic=str(n)) for n, line in enumerate(scores)]
    before = tallied(honest, method)
    for hostile in ([0, 0, 10], [10, 10, 0]):
        after = tallied([*honest[1:], ballot(*hostile, critic="0")], method)
        if method is Tally.BORDA:
            assert all(abs(after[n] - before[n]) <= 1 / len(honest) + 1e-9 for n in before)
        else:
            marks = {n: [line[n - 1] / 10 for line in scores[1:]] for n in before}
            assert all(len(scores) < 3 or min(marks[n]) - 1e-9 <= after[n] <= max(marks[n]) + 1e-9 for n in before)


def test_errors_are_counted_by_critics_not_by_errors() -> None:
    ballots = [ballot(1, 9, errors={1: ("a", "b", "c")}), ballot(2, 9, critic="d")]
    assert named_errors(ballots, 1) == (1, ("a", "b", "c"))
    assert named_errors(ballots, 2) == (0, ())
