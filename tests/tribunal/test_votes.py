"""Thousands of deliberations with simulated members: the votes are those of the binomial distribution."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tribunal.plan import Ask, Phase
from tribunal.profile import Profile, Verdict

from .simulated import Outcome, Says, ballot_of, deliberate, members, picking, profile, question

RIGHT = "B"
WRONG = ("C", "ACD")
"""Those who are wrong agree, the worst case, which the table is for; or each is wrong in a way of its own."""

TRIALS = 1500


def majority(n: int, p: float) -> float:
    """Exact: more than half of n are right."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n // 2 + 1, n + 1))


def believing(own: str, chance: random.Random) -> str:
    """A critic that thinks right what it has answered itself: it knows no more than it knew as a member."""
    return own


def knowing(own: str, chance: random.Random) -> str:
    """A critic that finds out anew, and is right in 80 % of all cases whatever it has answered."""
    return RIGHT if chance.random() < 0.8 else WRONG[0]


def vote(
    accuracies: list[float],
    seed: int,
    made_of: Profile,
    *,
    wrong: str = WRONG[0],
    thinking: Callable[[str, random.Random], str] = believing,
) -> tuple[float, float]:
    """Accuracy, and calls for each answer. `wrong`: the answers that those who are wrong choose from."""
    chance = random.Random(seed)
    right = calls = 0
    own: dict[str, str] = {}

    def script(ask: Ask) -> Says | str:
        who = ask.label.removeprefix("critic:")
        if ask.phase is Phase.DRAFT:
            own[who] = RIGHT if chance.random() < accuracies[int(who[1:]) - 1] else chance.choice(wrong)
            return Says(own[who], chance.random())
        better = thinking(own.get(who) or (RIGHT if chance.random() < 0.8 else wrong[0]), chance)
        if ask.phase is Phase.CRITIQUE:
            return ballot_of(ask, lambda text: 9.0 if text == better else 3.0)
        return picking(ask, better)

    for trial in range(TRIALS):
        out: Outcome = deliberate(made_of, question(), script, seed=trial)
        right += out.text == RIGHT
        calls += len(out.asks)
    return right / TRIALS, calls / TRIALS


def within(p: float) -> float:
    """Four standard errors: a seed that fails is a mistake, not bad luck."""
    return 4 * math.sqrt(p * (1 - p) / TRIALS)


@pytest.mark.parametrize(
    ("p", "n", "expected"),
    [
        *((0.4, n, x) for n, x in ((1, 0.400), (3, 0.352), (5, 0.317), (7, 0.290))),
        *((0.6, n, x) for n, x in ((1, 0.600), (3, 0.648), (5, 0.683), (7, 0.710))),
        *((0.7, n, x) for n, x in ((1, 0.700), (3, 0.784), (5, 0.837), (7, 0.874))),
        *((0.8, n, x) for n, x in ((1, 0.800), (3, 0.896), (5, 0.942), (7, 0.967))),
    ],
)
def test_a_vote_is_as_right_as_the_binomial_distribution_says(p: float, n: int, expected: float) -> None:
    assert majority(n, p) == pytest.approx(expected, abs=6e-4)
    alone = profile(members=members(*[1.0] * n), rounds=0, judge=None, quorum=1, verdict=Verdict.SELECT, agree=2)
    accuracy, _ = vote([p] * n, 1, alone)
    assert accuracy == pytest.approx(majority(n, p), abs=within(majority(n, p)))


def weight(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("accuracies", "unweighted"), [([0.85, 0.6, 0.6], 0.768), ([0.8, 0.7, 0.7], 0.826)], ids=["worse", "better"]
)
def test_unequal_members_need_weights(accuracies: list[float], unweighted: float) -> None:
    """Three equal votes of .85, .6 and .6 are worse than the best alone; with weights they never are."""
    plain, _ = vote(accuracies, 2, profile(rounds=0, judge=None))
    assert plain == pytest.approx(unweighted, abs=within(unweighted))
    weighted = profile(members=members(*map(weight, accuracies)), rounds=0, judge=None)
    found, _ = vote(accuracies, 2, weighted)
    best = max(accuracies[0], unweighted)
    assert found == pytest.approx(best, abs=within(best))
    assert found >= accuracies[0] - within(accuracies[0])


@pytest.mark.parametrize("wrong", WRONG, ids=["wrong ones agree", "wrong ones differ"])
@pytest.mark.parametrize(("n", "first_wave"), [(3, 0), (3, 2), (5, 3)])
def test_an_early_exit_saves_almost_half_of_the_calls_and_no_accuracy(n: int, first_wave: int, wrong: str) -> None:
    """Against all steps with the same members: critics that are members know no more than they have voted for."""
    everybody = members(*[1.0] * n)
    full_accuracy, full_calls = vote([0.8] * n, 3, profile(members=everybody, early_exit=False), wrong=wrong)
    accuracy, calls = vote([0.8] * n, 4, profile(members=everybody, first_wave=first_wave), wrong=wrong)
    assert full_calls >= 2 * n
    assert calls <= 0.55 * full_calls
    assert accuracy >= full_accuracy - within(full_accuracy) * math.sqrt(2)


def test_critics_that_know_more_than_the_members_are_worth_waiting_for() -> None:
    """The other side of it: where critics find out anew, an exit at a bare majority gives away what they would have
    mended, and an exit only where all agree does not."""
    asked = {"wrong": WRONG[0], "thinking": knowing}
    full, _ = vote([0.8] * 3, 5, profile(early_exit=False), **asked)  # type: ignore[arg-type]
    majority_exit, _ = vote([0.8] * 3, 6, profile(), **asked)  # type: ignore[arg-type]
    unanimous, _ = vote([0.8] * 3, 7, profile(agree=3), **asked)  # type: ignore[arg-type]
    assert majority_exit == pytest.approx(majority(3, 0.8), abs=within(0.896))
    assert full > majority_exit + 0.02
    assert unanimous >= full - within(full) * math.sqrt(2)
