"""`slurmgate keys`, `projects` and `usage`, on both databases, as a user types them."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import Engine
from typer.testing import CliRunner

from backends.base import Usage
from proxy.accounting import Accounting
from proxy.cli_admin import mount
from proxy.keys import KeyStore, digest
from proxy.terminal import Mistake

Run = Callable[..., str]


@pytest.fixture
def run(engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; its output. A mistake is raised."""
    config = tmp_path / "config.toml"
    config.write_text(
        '[database]\nurl_env = "THE_DATABASE"\n[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]'
    )
    monkeypatch.setenv("THE_DATABASE", database_url)
    monkeypatch.setenv("SLURMGATE_CONFIG", str(config))
    monkeypatch.setenv("SLURMGATE_STATE_DIR", str(tmp_path / "state"))
    app = typer.Typer()
    mount(app)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        if done.exception is not None:
            raise done.exception
        return done.stdout

    return run


def shown(run: Run, *arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_a_key_with_everything(run: Run, engine: Engine) -> None:
    project = run("projects", "create", "physics", "--account", "phys", "--tokens-per-month", "100000").strip()
    made = run(
        *("keys", "create", "ada", "--project", "physics", "--model", "b", "--model", "a", "--class", "batch"),
        *(
            "--rpm",
            "60",
            "--tpm",
            "1000",
            "--concurrent",
            "2",
            "--tokens-per-day",
            "5000",
            "--tokens-per-month",
            "9000",
        ),
        *("--expires", "30d", "--admin"),
    )
    key = made.strip()
    assert made == f"{key}\n"
    principal = KeyStore(engine).valid()[digest(key)]
    assert (principal.project_id, principal.account, principal.admin) == (project, "phys", True)
    card = shown(run, "keys", "show", "ada")
    assert card["models"] == ["a", "b"]
    assert card["priority"] == "batch"
    assert list(card["limits"].values()) == [60, 1000, 2, 5000, 9000]
    assert 29 * 86400 < card["expires_at"] - time.time() <= 30 * 86400
    assert shown(run, "keys", "list") == [card]
    listed = run("keys", "list")
    for word in ("ada", "physics", "batch, admin", "a, b", "60 requests/min", "5000 tokens/day", "valid"):
        assert word in listed
    for text in (listed, run("keys", "show", "ada"), json.dumps(card)):
        assert key not in text


def test_a_key_is_changed_disabled_enabled_and_revoked(run: Run) -> None:
    run("keys", "create", "ada", "--rpm", "60", "--tpm", "5", "--model", "a", "--expires", "2100-01-01")
    card = shown(run, "keys", "show", "ada")
    assert card["expires_at"] == int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
    assert run("keys", "update", "ada", "--rpm", "none", "--all-models", "--expires", "never", "--name", "eve") == (
        f"changed {card['id']} (eve)\n"
    )
    changed = shown(run, "keys", "show", "eve")
    assert (changed["limits"]["requests_per_minute"], changed["limits"]["tokens_per_minute"]) == (None, 5)
    assert (changed["models"], changed["expires_at"]) == (None, None)
    run("keys", "disable", "eve")
    assert "disabled" in run("keys", "list")
    run("keys", "enable", "eve")
    assert "valid" in run("keys", "list")
    assert run("keys", "revoke", card["id"]) == "revoked 1 key\n"
    assert "revoked" in run("keys", "list")


def test_a_project_is_changed_and_archived(run: Run) -> None:
    run("projects", "create", "physics", "--rpm", "5")
    run("keys", "create", "ada", "--project", "physics")
    run("projects", "update", "physics", "--account", "phys", "--model", "m", "--disable", "--name", "chemistry")
    card = shown(run, "projects", "show", "chemistry")
    assert (card["account"], card["models"], card["status"]) == ("phys", ["m"], "disabled")
    assert card["limits"]["requests_per_minute"] == 5
    assert "its project is disabled" in run("keys", "list")
    run("keys", "update", "ada", "--project", "none")
    assert "valid" in run("keys", "list")
    run("projects", "archive", "chemistry")
    assert "archived" in run("projects", "list")
    assert shown(run, "projects", "list")[0]["archived_at"] > 0
    assert "phys" in run("projects", "show", "chemistry")


MISTAKES = {
    "a blank name": (("keys", "create", " "), "'name': expected 1 to 200 printable characters"),
    "no such project": (("keys", "create", "x", "--project", "y"), "No project has the id or the name 'y'"),
    "no such key": (("keys", "show", "y"), "No key has the id or the name 'y'"),
    "no key to revoke": (("keys", "revoke", "y"), "no valid key has the id or the name 'y'"),
    "no number": (("keys", "create", "x", "--rpm", "many"), "--rpm: found 'many', expected a whole number, or none"),
    "zero": (("keys", "create", "x", "--rpm", "0"), "'limits.requests_per_minute': expected at least 1"),
    "a contradiction": (
        ("keys", "create", "x", "--tokens-per-day", "9", "--tokens-per-month", "5"),
        "expected tokens_per_day (9) to be at most tokens_per_month (5)",
    ),
    "two wishes": (("keys", "update", "x", "--model", "a", "--all-models"), "contradict each other"),
    "no change": (("keys", "update", "x"), "nothing to change"),
    "no change of a project": (("projects", "update", "x"), "nothing to change"),
    "no time": (("keys", "create", "x", "--expires", "soon"), "--expires: found 'soon', expected a time such as 30d"),
    "a time that is past": (("keys", "create", "x", "--expires", "2020-01-01"), "expected a time in the future"),
    "no dimension": (("usage", "--by", "colour"), "expected one of 'key', 'project', 'model' or 'day'"),
    "no day": (("usage", "--since", "ever"), "--since: found 'ever', expected a time such as 30d"),
    "the wrong way round": (
        ("usage", "--since", "2026-11-02", "--until", "2026-11-01"), "--until: 2026-11-01 is before 2026-11-02",
    ),
}  # fmt: skip


def test_mistakes_are_one_sentence(run: Run) -> None:
    for mistake, (arguments, told) in MISTAKES.items():
        with pytest.raises(Mistake) as caught:
            run(*arguments)
        assert told in str(caught.value), mistake
        assert "\n" not in str(caught.value), mistake
    assert shown(run, "keys", "list") == []


def test_a_database_that_cannot_be_reached_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_DATABASE", "postgresql://ada:secret@127.0.0.1:1/name")
    with pytest.raises(Mistake, match=r"^the database postgresql://ada@127\.0\.0\.1:1/name cannot be used: ") as caught:
        run("keys", "list")
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("THE_DATABASE")
    with pytest.raises(Mistake, match="the environment variable THE_DATABASE is not set"):
        run("usage")


@pytest.fixture
def days(run: Run, engine: Engine) -> list[str]:
    """Three days of usage of one key, ten days ago, six days ago and today."""
    run("keys", "create", "ada")
    (key,) = KeyStore(engine).list()
    now = datetime.now(UTC)
    days = [now - timedelta(days=ago) for ago in (10, 6, 0)]
    for index, day in enumerate(days):
        accounting = Accounting(engine, now=day.timestamp)
        for _ in range(1000 * (index + 1)):
            accounting.add(key.id, "", "m, or n", Usage(10, 1))
        accounting.write(accounting.take())
    return [day.date().isoformat() for day in days]


def test_usage_as_a_table_has_names_and_a_total(run: Run, days: list[str]) -> None:
    lines = run("usage", "--by", "key,day").splitlines()
    assert lines[0].split() == [
        "key", "day", "requests", "failed", "prompt", "tokens", "completion", "tokens", "tokens",
    ]  # fmt: skip
    assert lines[1].split() == ["ada", days[0], "1,000", "0", "10,000", "1,000", "11,000"]
    assert lines[-1].split() == ["total", "6,000", "0", "60,000", "6,000", "66,000"]


def test_usage_as_csv_can_be_read_back(run: Run, days: list[str]) -> None:
    rows = list(csv.DictReader(run("usage", "--by", "day,model", "--since", "7d", "--format", "csv").splitlines()))
    assert rows == [
        {
            "day": day, "model": "m, or n", "requests": f"{n}000", "failed": "0", "prompt_tokens": f"{n}0000",
            "completion_tokens": f"{n}000", "total_tokens": f"{n * 11}000",
        }
        for day, n in ((days[1], 2), (days[2], 3))
    ]  # fmt: skip


def test_usage_as_json(run: Run, days: list[str]) -> None:
    told = json.loads(run("usage", "--by", "project", "--since", days[0], "--until", days[1], "--format", "json"))
    assert told == [
        {
            "project_id": "", "project_name": None, "requests": 3000, "failed": 0, "prompt_tokens": 30000,
            "completion_tokens": 3000, "total_tokens": 33000,
        }
    ]  # fmt: skip
