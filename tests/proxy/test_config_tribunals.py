"""`[tribunal]`: profiles, and every mistake in them with its path, at the start."""

from __future__ import annotations

import pytest

from proxy.config import Config, ConfigError, parse
from proxy.reload import changes
from proxy.tribunals import context_length, expected_calls, state_of
from tribunal.profile import BelowQuorum, Kind, Verdict

MODELS = """
[models.a]
engine = "vllm"
urls = ["http://127.0.0.1:1"]
aliases = ["alpha"]
[models.b]
engine = "vllm"
urls = ["http://127.0.0.1:1"]
"""


def read(tribunal: str, models: str = MODELS) -> Config:
    return parse(f"{models}\n[tribunal]\n{tribunal}")


def test_without_the_section_there_is_no_tribunal() -> None:
    assert parse(MODELS).tribunals == {}


def test_a_member_may_be_a_name_or_a_table_and_stand_there_twice() -> None:
    text = 'members = ["a", "a", {model = "b", name = "bee", weight = 2.5, samples = 2, temperature = 0.7}]'
    profile = read(text).tribunals["tribunal"]
    assert [(m.name, m.model) for m in profile.members] == [("a", "a"), ("a-2", "a"), ("bee", "b")]
    assert [seat.label for seat in profile.seats] == ["a", "a-2", "bee", "bee#2"]
    assert profile.members[2].weight == 2.5


def test_an_alias_is_made_the_models_name_so_that_nobody_judges_itself() -> None:
    profile = read('members = ["alpha", "b"]\njudge = "alpha"').tribunals["tribunal"]
    assert profile.members[0].model == "a"
    assert profile.judge is not None
    assert profile.judge.model == "a"


def test_profiles_are_over_what_the_section_says() -> None:
    text = (
        'members = ["a", "b"]\nrounds = 0\ndeadline_s = 30\n[tribunal.profiles.maths]\nanswer = "number"\nrounds = 2\n'
    )
    config = read(text)
    assert list(config.tribunals) == ["tribunal", "tribunal/maths"]
    maths = config.tribunals["tribunal/maths"]
    assert (maths.kind, maths.rounds, maths.deadline_s) == (Kind.NUMBER, 2, 30.0)
    assert config.tribunals["tribunal"].rounds == 0


def test_profiles_alone_make_no_default_one() -> None:
    config = read('[tribunal.profiles.x]\nmembers = ["a"]\nverdict = "select"\nbelow_quorum = "fail"')
    assert list(config.tribunals) == ["tribunal/x"]
    assert config.tribunals["tribunal/x"].verdict is Verdict.SELECT
    assert config.tribunals["tribunal/x"].below_quorum is BelowQuorum.FAIL
    assert config.tribunals["tribunal/x"].quorum == 1


MISTAKES = [
    ('members = ["a", "z"]', "tribunal.members.1: found 'z', expected one of the models: a, b"),
    ('members = ["a"]\ncritics = ["z"]', "tribunal.critics.0: found 'z'"),
    ('members = ["a"]\njudge = "z"', "tribunal.judge: found 'z'"),
    ('members = ["tribunal"]', "tribunal.members.0: found 'tribunal', expected no tribunal inside a tribunal"),
    ('members = ["a"]\njudge = "tribunal/x"', "tribunal.judge: found 'tribunal/x', expected no tribunal"),
    ('members = ["a", "b"]\nquorum = 3', "tribunal.quorum: expected 1 to 2"),
    ('members = ["a", "b"]\nagree = 5', "tribunal.agree: expected 2 to 2"),
    ('members = ["a"]\nmembrs = []', "tribunal.membrs: unknown key, did you mean 'members'?"),
    ('members = ["a"]\nverdict = "both"', "tribunal.verdict: found 'both'"),
    ('members = [{model = "a", weight = 0}]', "tribunal.members.0.weight"),
    ('members = ["a"]\nalternate = "b"', "tribunal.alternate: expected a judge"),
    ('members = ["a"]\nprompts.judge = "no fields"', "tribunal.prompts.judge: expected the field {candidates}"),
    ("rounds = 1", "tribunal: expected `members`"),
    ('[tribunal.profiles."a/b"]\nmembers = ["a"]', 'tribunal.profiles."a/b"'),
    ('members = ["a"]\nshares.draft = 0.9', "tribunal.shares: expected shares"),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES, ids=[told for _, told in MISTAKES])
def test_a_mistake_stops_the_start_and_names_its_path(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(text)
    assert told in str(raised.value)


def test_a_model_cannot_have_a_tribunals_name() -> None:
    for models in (MODELS.replace("models.b", "models.tribunal"), MODELS.replace('"alpha"', '"tribunal/x"')):
        with pytest.raises(ConfigError, match="which is the name of a tribunal"):
            read('members = ["a"]', models)


def test_a_tribunal_is_nobodys_fallback_so_no_circle_leads_to_it() -> None:
    models = MODELS.replace('aliases = ["alpha"]', 'fallbacks = ["tribunal"]')
    with pytest.raises(ConfigError, match=r"models\.a\.fallbacks\.0: found 'tribunal'"):
        read('members = ["a"]', models)


def test_a_reload_says_which_tribunals_changed() -> None:
    before = read('members = ["a"]\n[tribunal.profiles.x]\nrounds = 0')
    after = read('members = ["a", "b"]\n[tribunal.profiles.y]\nrounds = 0')
    done = changes(before, after)
    assert (done.added, done.removed, done.changed) == (("tribunal/y",), ("tribunal/x",), ("tribunal",))


def test_limits_reckon_with_fewer_calls_where_it_may_end_early() -> None:
    early = read('members = ["a", "b"]').tribunals["tribunal"]
    full = read('members = ["a", "b"]\nearly_exit = false').tribunals["tribunal"]
    assert 2 < expected_calls(early) < expected_calls(full) == full.full_calls


def test_it_is_ready_when_a_quorum_of_its_members_is() -> None:
    profile = read('members = ["a", "b"]\nquorum = 1').tribunals["tribunal"]
    assert state_of(profile, {"a": "ready", "b": "starting"}.__getitem__) == "ready"
    assert state_of(profile, {"a": "unavailable", "b": "starting"}.__getitem__) == "starting"
    assert state_of(profile, {"a": "unavailable", "b": "unavailable"}.__getitem__) == "unavailable"


def test_its_context_is_the_shortest_of_its_models() -> None:
    profile = read('members = ["a", "b"]').tribunals["tribunal"]
    assert context_length(profile, {"a": 100, "b": 50}.__getitem__) == 50
    assert context_length(profile, {"a": 100, "b": None}.__getitem__) is None
