"""Real processes on one database: each is killed at every moment that matters, and many take lines side by side."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from proxy import database as db
from proxy.batch.values import Worker
from tests.waiting import until_sync

from .worker_process import LINES, Gateway

ROOT = Path(__file__).parents[3]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.proxy.batch.worker_process", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def check_files(card: dict[str, Any], output: list[Any], error: list[Any], lines: int) -> None:
    """Each line has one result, in the file where it belongs, in the order of the input."""
    good = [number for number in range(1, lines + 1) if number % 3]
    bad = [number for number in range(1, lines + 1) if not number % 3]
    assert [one["custom_id"] for one in output] == [f"c{number}" for number in good]
    assert [one["custom_id"] for one in error] == [f"c{number}" for number in bad]
    assert card["status"] == "completed"
    assert card["request_counts"] == {"total": lines, "completed": len(good), "failed": len(bad)}


@pytest.mark.timeout(300)
def test_a_worker_killed_at_any_moment_loses_and_repeats_nothing(database_url: str, tmp_path: Path) -> None:
    process = start("killed", database_url, str(tmp_path))
    try:
        said, complaints = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == 0, complaints[-3000:]
    told = [json.loads(line) for line in said.splitlines()]
    assert [one["killed"] for one in told] == [signal.SIGKILL] * (len(told) - 1) + [0]
    assert len(told) > 30
    for number, one in enumerate(told, 1):
        check_files(one["card"], one["output"], one["error"], LINES)
        assert not set(one["before"]) & set(one["ran"])
        assert sorted(one["before"] + one["ran"]) == list(range(1, LINES + 1))
        assert one["files"] == 3 * number  # no file twice
        assert one["on_disk"] == 3 * number  # and nothing is left behind
    assert any(0 < len(one["before"]) < LINES for one in told)


@contextmanager
def racing(url: str, directory: Path, names: list[str]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    processes = {name: start("race", url, str(directory), name) for name in names}
    try:
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield processes
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)


def tell(process: subprocess.Popen[str], batch_id: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{batch_id}\n")
    process.stdin.flush()


@pytest.mark.timeout(180)
def test_workers_share_a_batch_and_take_over_from_one_that_is_killed(database_url: str, tmp_path: Path) -> None:
    lines = 12_800
    gateway = Gateway(database_url, tmp_path, Worker("main", "main", "boot"))
    with racing(database_url, tmp_path, ["ann", "bob", "cem"]) as processes:
        batch = gateway.submit(lines)
        for process in processes.values():
            tell(process, batch.id)
        until_sync(lambda: gateway.store.find("one", batch.id).completed > 500, 120)
        processes["cem"].send_signal(signal.SIGKILL)
        ran: list[int] = []
        shares = []
        for name in ("ann", "bob"):
            said, complaints = processes[name].communicate(timeout=150)
            assert processes[name].returncode == 0, complaints[-3000:]
            mine = json.loads(said)
            shares.append(len(mine))
            ran += mine
    over = gateway.store.find("one", batch.id)
    check_files(over.card(), gateway.content(over.output_file_id), gateway.content(over.error_file_id), lines)
    assert all(shares)
    assert len(ran) == len(set(ran))
    by_cem = [one for one in gateway.content(over.output_file_id) if one["said"].startswith("cem:")]
    assert len(by_cem) <= lines - len(ran)
    counted = select(func.count()).where(db.batch_lines.c.batch_id == batch.id, db.batch_lines.c.state > 0)
    with gateway.engine.connect() as connection:
        assert connection.execute(counted).scalar_one() == lines
    gateway.engine.dispose()
    gateway.files.disk.close()
