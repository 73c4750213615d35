"""Validating and ending a batch, with real files; and what happens when the disk or the database is not what it was."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from proxy import database as db
from proxy.batch.step_store import KEPT_S
from proxy.batch.steps import GONE, RETRY_S, REVOKED
from proxy.batch.values import Batch, Status, Step, Window, Worker
from proxy.files.batch_lines import Rules

from .rows_given import done
from .worker_process import ENDPOINT, LINES, Gateway

WHO = Worker("ann", "home", "boot")


@pytest.fixture
def gateway(database_url: str, tmp_path: Path) -> Iterator[Gateway]:
    with opened(database_url, tmp_path) as gateway:
        yield gateway


@contextlib.contextmanager
def opened(url: str, directory: Path) -> Iterator[Gateway]:
    gateway = Gateway(url, directory, WHO)
    try:
        gateway.store.beat(WHO)
        yield gateway
    finally:
        gateway.engine.dispose()
        gateway.files.disk.close()


def step_of(gateway: Gateway) -> Step:
    step = gateway.store.claim_step(WHO)
    assert step is not None
    return step


def validated(gateway: Gateway, lines: int = LINES) -> Batch:
    gateway.submit(lines)
    batch = gateway.steps.run(step_of(gateway))
    assert batch is not None
    assert batch.status is Status.IN_PROGRESS
    return batch


def claimed(gateway: Gateway, batch: Batch) -> Window:
    window = gateway.store.claim_window(WHO, batch.id)
    assert window is not None
    return window


def left_behind(gateway: Gateway) -> set[str]:
    """Files without a row, whole or not."""
    found = [path.name for path in gateway.files.disk.directory.glob("*/*/*") if path.name != "lock"]
    return set(found) - gateway.files.store.known(found)


# -- validating ------------------------------------------------------------------------------------------------------


def test_every_mistake_in_an_input_is_told(gateway: Gateway) -> None:
    made = gateway.submit(3)
    path = gateway.files.disk.path(made.input_file_id)
    path.write_bytes(path.read_bytes() + b'{"custom_id": "c1"}\nno JSON\n')
    failed = gateway.steps.run(step_of(gateway))
    assert failed is not None
    card = failed.card()
    assert (card["status"], card["request_counts"]["total"], card["in_progress_at"]) == ("failed", 0, None)
    assert [(one["line"], one["code"]) for one in card["errors"]["data"]] == [
        (4, "duplicate_custom_id"),
        (4, "missing_required_parameter"),
        (4, "missing_required_parameter"),
        (4, "missing_required_parameter"),
        (5, "invalid_json_line"),
    ]
    assert gateway.store.find("one", made.id) == failed


def test_an_input_that_is_gone_is_a_clear_failure(gateway: Gateway) -> None:
    first, second = gateway.submit(1), gateway.submit(LINES)
    for made in (first, second):
        step = step_of(gateway)
        if made is first:
            gateway.files.disk.path(made.input_file_id).unlink()
        found = gateway.steps.run(step)
        assert found is not None
        assert found.status is (Status.FAILED if made is first else Status.IN_PROGRESS)
    assert gateway.store.find("one", first.id).errors == (GONE,)
    window = claimed(gateway, second)
    gateway.store.commit(done(window, 1))
    gateway.files.disk.path(second.input_file_id).unlink()
    with pytest.raises(FileNotFoundError):
        gateway.steps.open_input(second)
    over = gateway.steps.run(step_of(gateway))
    assert over is not None
    assert (over.status, over.completed, over.failed, over.errors) == (Status.FAILED, 1, LINES - 1, (GONE,))
    assert [one["error"]["code"] for one in gateway.content(over.error_file_id)] == [GONE.code] * (LINES - 1)


def test_a_batch_whose_key_is_revoked_keeps_what_it_has(gateway: Gateway) -> None:
    made = validated(gateway)
    gateway.steps.abandon(made.id, REVOKED)
    gateway.steps.abandon(made.id, REVOKED)
    over = gateway.steps.run(step_of(gateway))
    assert over is not None
    assert (over.status, over.output_file_id) == (Status.FAILED, None)
    assert [one["custom_id"] for one in gateway.content(over.error_file_id)] == [f"c{at}" for at in range(1, LINES + 1)]


def test_what_an_interrupted_validation_left_is_taken_away(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.batch.input.WINDOW_LINES", 2)
    monkeypatch.setattr("proxy.batch.steps.SLICE_LINES", 2)
    gateway.submit(LINES)
    step = step_of(gateway)
    with broken(gateway.engine, commits=3), pytest.raises(SQLAlchemyError):
        gateway.steps.run(step)
    batch = gateway.steps.run(step)
    assert batch is not None
    assert (batch.total, [one.lines for one in gateway.store.active()]) == (LINES, [LINES])


@contextlib.contextmanager
def broken(engine: Engine, commits: int) -> Iterator[None]:
    """The database is lost at one commit, before it is done."""
    left = commits

    def fail(_: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise SQLAlchemyError("lost")

    event.listen(engine, "commit", fail)
    try:
        yield
    finally:
        event.remove(engine, "commit", fail)


def test_a_batch_that_is_cancelled_while_it_is_validated_ends(gateway: Gateway) -> None:
    made = gateway.submit(LINES)
    step = step_of(gateway)

    def rules(batch: Batch) -> Rules:
        gateway.store.cancel("one", made.id)
        return Rules(ENDPOINT)

    gateway.steps._rules_of = rules
    assert gateway.steps.run(step) is None
    over = gateway.steps.run(step_of(gateway))
    assert over is not None
    assert (over.status, over.output_file_id, over.error_file_id) == (Status.CANCELLED, None, None)


# -- ending ----------------------------------------------------------------------------------------------------------


def test_files_are_made_again_with_the_same_bytes_under_the_same_ids(gateway: Gateway) -> None:
    made = validated(gateway)
    gateway.run(made, claimed(gateway, made))
    step = step_of(gateway)
    seen = 0
    files: set[tuple[str, bytes]] = set()
    while True:
        seen += 1
        with contextlib.suppress(SQLAlchemyError), broken(gateway.engine, seen):
            over = gateway.steps.run(step)
            break
        files |= {(path.name, path.read_bytes()) for path in gateway.files.disk.directory.glob("content/*/*")}
    assert over is not None
    assert seen == 5  # it broke at the ending, at its files' ids, at the row of each file
    ids = {made.input_file_id, over.output_file_id, over.error_file_id}
    assert {name for name, _ in files} <= ids
    assert len(files) == len({name for name, _ in files})
    assert left_behind(gateway) == set()
    assert [one["custom_id"] for one in gateway.content(over.output_file_id)] == ["c1", "c2", "c4", "c5"]
    assert gateway.files.store.find("one", over.output_file_id or "").filename == f"{made.id}_output.jsonl"


def test_rows_of_old_batches_go_with_the_next_step(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    made = validated(gateway)
    gateway.run(made, claimed(gateway, made))
    gateway.steps.run(step_of(gateway))
    assert len(gateway.store.results(made.id, 0, 99)) == LINES
    now = gateway.store._now
    monkeypatch.setattr(gateway.rows, "_now", lambda: now() + KEPT_S + 2)
    monkeypatch.setattr("proxy.batch.steps.TIDY_EVERY_S", -1.0)
    validated(gateway)
    assert gateway.store.results(made.id, 0, 99) == []
    assert gateway.store.find("one", made.id).completed + gateway.store.find("one", made.id).failed == LINES


def test_who_has_lost_a_step_puts_no_file_in_place(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    made = validated(gateway)
    gateway.run(made, claimed(gateway, made))
    step = step_of(gateway)
    lines = gateway.rows.lines

    def and_lose_it(*arguments: Any) -> Any:
        gateway.store.release(WHO)
        gateway.store.beat(WHO)
        gateway.store.claim_step(WHO)
        return lines(*arguments)

    monkeypatch.setattr(gateway.rows, "lines", and_lose_it)
    assert gateway.steps.run(step) is None
    assert len(gateway.files.store.page("one", limit=9)) == 1
    assert left_behind(gateway) == set()


# -- trouble ---------------------------------------------------------------------------------------------------------


def test_a_locked_database_is_waited_for_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_S", 0.05)
    with opened(f"sqlite:///{tmp_path / 'db'}", tmp_path) as gateway:
        made = validated(gateway)
        window = claimed(gateway, made)
        other = sqlite3.connect(tmp_path / "db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        verbs: list[Callable[[], Any]] = [
            lambda: gateway.store.commit(done(window)),
            lambda: gateway.store.beat(WHO),
            lambda: gateway.store.give_back(window),
            lambda: gateway.store.claim_window(WHO, made.id),
        ]
        for verb in verbs:
            with pytest.raises(SQLAlchemyError):
                verb()
        assert gateway.store.find("one", made.id).completed == 0
        other.execute("ROLLBACK")
        other.close()
        assert gateway.store.commit(done(window)).lines == LINES


def test_an_answer_that_is_lost_with_the_connection_counts_once(database_url: str, tmp_path: Path) -> None:
    with opened(database_url, tmp_path) as gateway:
        if gateway.engine.dialect.name == "sqlite":
            pytest.skip("it has no connections that can be lost")
        made = validated(gateway)
        window = claimed(gateway, made)

        def end_it(connection: Any) -> None:
            number = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with killer.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:number)"), {"number": number})

        killer = db.open_database(database_url)
        event.listen(gateway.engine, "commit", end_it)
        for results in (done(window, 1, 2), done(window, 3)):
            with pytest.raises(SQLAlchemyError):
                gateway.store.commit(results)
        event.remove(gateway.engine, "commit", end_it)
        assert gateway.store.find("one", made.id).completed == 0
        assert gateway.store.commit(done(window)).lines == LINES
        assert gateway.store.commit(done(window)).lines == 0
        assert gateway.store.find("one", made.id).completed == LINES
        killer.dispose()


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        reason = f"no tmpfs can be mounted here: {tried.stderr.strip()}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path) -> Path:
    path = directory / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return path


def test_a_full_disk_under_the_database_loses_no_result(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 4), opened(f"sqlite:///{tmp_path / 'small' / 'db'}", tmp_path) as gateway:
        made = validated(gateway)
        window = claimed(gateway, made)
        assert gateway.store.commit(done(window, 1)).lines == 1
        filler = fill(tmp_path / "small")
        large = [one._replace(data=b"x" * 100_000) for one in done(window, 2, 3)]
        for _ in range(2):
            with pytest.raises(SQLAlchemyError, match="full"):
                gateway.store.commit(large)
        assert gateway.store.find("one", made.id).completed == 1
        filler.unlink()
        assert gateway.store.commit(large).lines == 2
        gateway.store.commit(done(window))
        over = gateway.steps.run(step_of(gateway)) if gateway.store.find("one", made.id).completed == LINES else None
        assert over is not None
        assert (over.status, over.completed) == (Status.COMPLETED, LINES)


def test_output_waits_for_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    with small_disk(small, 2), opened(f"sqlite:///{tmp_path / 'db'}", small) as gateway:
        made = validated(gateway)
        gateway.run(made, claimed(gateway, made))
        filler = fill(small)
        assert gateway.steps.run(step_of(gateway)) is None
        assert gateway.store.claim_step(WHO) is None
        assert gateway.store.find("one", made.id).status is Status.FINALIZING
        filler.unlink()
        now = gateway.store._now
        monkeypatch.setattr(gateway.store, "_now", lambda: now() + RETRY_S + 2)
        over = gateway.steps.run(step_of(gateway))
        assert over is not None
        assert len(gateway.content(over.output_file_id)) + len(gateway.content(over.error_file_id)) == LINES
        assert left_behind(gateway) == set()


_MEMORY = """
import json, resource, sys, tracemalloc
from pathlib import Path
from proxy.batch.values import Worker
from tests.proxy.batch.worker_process import Gateway
gateway = Gateway(sys.argv[1], Path(sys.argv[2]), Worker("a", "a", "a"))
gateway.store.beat(gateway.who)
def whole(lines, size):
    made = gateway.submit(lines, lambda number: "x" * size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    over = gateway.work(made.id)
    assert over.completed + over.failed == lines
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
whole(300, 100)
print(whole(10_000, 20_000))
"""


@pytest.mark.timeout(240)
def test_a_file_of_200_megabytes_takes_little_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, f"sqlite:///{tmp_path / 'db'}", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) < 50 * 1024  # KiB
