"""What a deliberation may cost, and how long its phases may take."""

from __future__ import annotations

import pytest

from tribunal.budget import Budget, Deadlines, estimate_tokens
from tribunal.plan import Phase, Usage
from tribunal.profile import Shares

from .simulated import profile


def test_the_verdicts_share_is_nobody_elses() -> None:
    budget = Budget(3, 1000, verdict_calls=1, verdict_tokens=400)
    assert budget.affords(Phase.DRAFT, 600)
    assert not budget.affords(Phase.DRAFT, 601)
    budget.take(1, Phase.DRAFT, 300)
    budget.take(2, Phase.CRITIQUE, 300)
    assert not budget.affords(Phase.CRITIQUE, 0), "the last call is the verdict's"
    assert budget.affords(Phase.VERDICT, 400)
    assert not budget.affords(Phase.VERDICT, 401)


def test_what_was_not_used_is_for_others_again() -> None:
    budget = Budget(9, 1000, verdict_calls=0, verdict_tokens=0)
    budget.take(1, Phase.DRAFT, 900)
    assert not budget.affords(Phase.DRAFT, 200)
    budget.settle(1, Usage(50, 50))
    assert budget.affords(Phase.DRAFT, 900)


def test_a_child_that_does_not_say_what_it_used_counts_as_all_it_might_have_used() -> None:
    budget = Budget(9, 1000, verdict_calls=0, verdict_tokens=0)
    budget.take(1, Phase.DRAFT, 900)
    budget.settle(1, None)
    budget.settle(1, None)
    assert budget.spent == 900


def test_a_synthesis_that_is_not_needed_sets_nothing_aside() -> None:
    budget = Budget(2, 1000, verdict_calls=1, verdict_tokens=600)
    budget.release()
    assert budget.affords(Phase.JUDGE, 1000)


def test_a_child_beyond_the_budget_is_a_mistake() -> None:
    with pytest.raises(ValueError):
        Budget(0, None, verdict_calls=0, verdict_tokens=0).take(1, Phase.DRAFT, 0)


def test_the_phases_share_the_time_and_the_rounds_share_theirs() -> None:
    one = Deadlines(profile(deadline_s=100.0), 1000.0)
    ends = [one.of(phase) for phase in (Phase.DRAFT, Phase.CRITIQUE, Phase.REFINE, Phase.JUDGE, Phase.VERDICT)]
    assert ends == pytest.approx([1045, 1065, 1080, 1090, 1100])
    two = Deadlines(profile(deadline_s=100.0, rounds=2, shares=Shares(0.4, 0.2, 0.2, 0.2)), 0.0)
    rounds = [two.of(phase, n) for n in (0, 1) for phase in (Phase.CRITIQUE, Phase.REFINE)]
    assert rounds == pytest.approx([50, 60, 70, 80])


def test_tokens_are_estimated_rather_high() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 100  # ten tokens a sentence
    assert estimate_tokens([{"role": "user", "content": text}]) > 1000
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "data:" + "x" * 10_000_000}}]
    assert 2000 < estimate_tokens([{"role": "user", "content": parts}]) < 4000
    assert estimate_tokens([{"role": "assistant", "content": None, "tool_calls": [{"id": "x" * 700}]}]) > 200
