"""The simulated court through the whole gateway, a few questions of each arm: it runs, and its books balance."""

from __future__ import annotations

import random
from pathlib import Path

import orjson
import pytest

from bench import tribunal_eval
from bench.tribunal_members import Court, World, right_answer, tempting, wrong_ones

pytestmark = pytest.mark.timeout(180)


def draft(court: Court, number: int, model: str = "m1") -> str | None:
    asked = {"model": model, "messages": [{"role": "user", "content": f"World w, question {number}."}]}
    return court.reply_to(asked, f"req_x-{number}")[1]


@pytest.mark.parametrize("accuracy", [0.4, 0.8])
def test_a_member_is_right_as_often_as_is_stated(accuracy: float) -> None:
    court = Court({"w": World((accuracy,))})
    right = sum(draft(court, number) == right_answer("w", number) for number in range(3000))
    low, high = tribunal_eval.wilson(right, 3000, 4.0)
    assert low <= accuracy <= high


def test_those_who_are_wrong_agree_as_often_as_is_stated() -> None:
    court = Court({"w": World((0.0,), agree=1.0)})
    assert {draft(court, 5, model) for model in ("m1", "m2", "m3")} == {tempting("w", 5)}
    assert tempting("w", 5) in wrong_ones(right_answer("w", 5))


def test_members_without_luck_of_their_own_are_right_together() -> None:
    court = Court({"w": World((0.5,), correlation=1.0)})
    for number in random.Random(1).sample(range(1000), 50):
        assert len({draft(court, number, model) for model in ("m1", "m2", "m3")}) == 1


def test_a_whole_run_is_as_it_must_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.json"
    assert tribunal_eval.main(["--trials", "30", "--json", str(found)]) == 0, capsys.readouterr().out
    told = orjson.loads(found.read_bytes())
    assert told["wrong"] == []
    assert {arm["name"] for arm in told["arms"]} >= {"vote7", "full", "early", "hedged", "chaos"}
    assert "all as it must be" in capsys.readouterr().out
