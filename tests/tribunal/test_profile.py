"""Profiles: what is impossible, and what a request may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.errors import InvalidRequest
from tribunal.profile import Critic, Judge, Kind, Member, Profile, Shares, Verdict, mistakes, overridden
from tribunal.templates import Templates, fill

from .simulated import members, profile


def wrong(**fields: Any) -> list[str]:
    return [name for name, _ in mistakes(profile(**fields))]


def test_the_defaults_are_possible() -> None:
    assert wrong() == []
    assert wrong(rounds=0, judge=None, verdict=Verdict.SELECT) == []


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("members", {"members": ()}),
        ("members", {"members": (Member("a", "x"), Member("a", "y"))}),
        ("members", {"members": (Member("a", "x", samples=17),)}),
        ("members.m1.weight", {"members": members(0.0, 1.0)}),
        ("members.m1.weight", {"members": members(float("nan"), 1.0)}),
        ("quorum", {"quorum": 4}),
        ("quorum", {"quorum": 0}),
        ("rounds", {"rounds": 5}),
        ("agree", {"agree": 1}),
        ("agree_share", {"agree_share": 1.0}),
        ("first_wave", {"first_wave": 4}),
        ("shares", {"shares": Shares(0.5, 0.5, 0.5, 0.5)}),
        ("shares", {"shares": Shares(1.0, 0.0, 0.0, 0.0)}),
        ("max_calls", {"max_calls": 1}),
        ("max_tokens", {"max_tokens": 100}),
        ("deadline_s", {"deadline_s": 0.0}),
        ("critics", {"members": (Member("a", "x", samples=3),), "critics": (Critic("c", "x"),)}),
        ("alternate", {"judge": None, "alternate": Judge("j")}),
        ("prompts.judge", {"templates": Templates(judge="{candidates} {secret}")}),
        ("prompts.critique", {"templates": Templates(critique="no candidates here")}),
    ],
)
def test_what_is_impossible_is_named(field: str, fields: dict[str, Any]) -> None:
    assert field in wrong(**fields)


def test_a_member_asked_three_times_has_three_seats() -> None:
    one = profile(members=(Member("a", "x", samples=3), Member("b", "y")))
    assert [seat.label for seat in one.seats] == ["a", "a#2", "a#3", "b"]


def test_equal_profiles_have_equal_fingerprints() -> None:
    assert profile().fingerprint == profile().fingerprint
    assert profile().fingerprint != profile(rounds=2).fingerprint


def test_the_full_plan_of_three_takes_eleven_calls() -> None:
    assert profile(verdict=Verdict.SELECT).full_calls == 3 + 3 + 3 + 2


# -- what one request may change ------------------------------------------------------------------


def test_a_request_without_wishes_has_the_profile_itself() -> None:
    one = profile()
    assert overridden(one, None) is one
    assert overridden(one, {}) == one


def test_a_request_may_choose_some_of_the_members() -> None:
    fewer = overridden(profile(quorum=3), {"members": ["m3", "m1"], "rounds": 0, "kind": "number", "progress": True})
    assert [member.name for member in fewer.members] == ["m3", "m1"]
    assert (fewer.quorum, fewer.rounds, fewer.kind, fewer.progress) == (2, 0, Kind.NUMBER, True)
    assert list(mistakes(fewer)) == []


@pytest.mark.parametrize(
    ("param", "wishes"),
    [
        ("tribunal", "fast"),
        ("tribunal", ["rounds"]),
        ("tribunal.rounds", {"rounds": -1}),
        ("tribunal.rounds", {"rounds": 5}),
        ("tribunal.rounds", {"rounds": True}),
        ("tribunal.rounds", {"rounds": "1"}),
        ("tribunal.rounds", {"rounds": 1.0}),
        ("tribunal.members", {"members": []}),
        ("tribunal.members", {"members": ["m1", "m1"]}),
        ("tribunal.members", {"members": ["nobody"]}),
        ("tribunal.members", {"members": [{"a": 1}]}),
        ("tribunal.kind", {"kind": "poem"}),
        ("tribunal.kind", {"kind": None}),
        ("tribunal.verdict", {"verdict": 1}),
        ("tribunal.deadline_s", {"deadline_s": 121}),
        ("tribunal.deadline_s", {"deadline_s": 0}),
        ("tribunal.deadline_s", {"deadline_s": float("nan")}),
        ("tribunal.max_calls", {"max_calls": 33}),
        ("tribunal.max_calls", {"max_calls": 1}),
        ("tribunal.max_tokens", {"max_tokens": 0}),
        ("tribunal.quorum", {"quorum": 4}),
        ("tribunal.quorum", {"members": ["m1"], "quorum": 2}),
        ("tribunal.early_exit", {"early_exit": 1}),
        ("tribunal.judge", {"judge": "gpt"}),
        ("tribunal.prompts", {"prompts": {}}),
    ],
)
def test_an_override_out_of_range_is_refused_and_named(param: str, wishes: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        overridden(profile(), wishes)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_a_request_cannot_have_kept_what_the_site_redacts() -> None:
    assert overridden(profile(), {"redact": True}).redact
    with pytest.raises(InvalidRequest):
        overridden(profile(redact=True), {"redact": False})


# -- templates ------------------------------------------------------------------------------------


def test_what_is_filled_in_is_not_looked_at_for_fields() -> None:
    assert fill("{a} and {b}", {"a": "{b}", "b": "{a.__class__}"}) == "{b} and {a.__class__}"


def test_json_in_a_template_is_no_field() -> None:
    assert list(Templates(critique='{candidates} {"label": {}} { x }').mistakes()) == []


def test_a_profile_is_a_value() -> None:
    with pytest.raises(AttributeError):
        profile().rounds = 3  # type: ignore[misc]
    assert replace(profile(), rounds=3).rounds == 3
    assert isinstance(profile(), Profile)
