from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxy.state import StateDir, StateDirInUse, StateDirUnusable


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    first = StateDir(tmp_path / "state")
    first.lock()
    second = StateDir(tmp_path / "state")
    with pytest.raises(StateDirInUse, match=f"process {os.getpid()}.*--state-dir"):
        second.lock()
    assert second.holder() == os.getpid()
    first.unlock()
    assert second.holder() is None
    second.lock()
    second.unlock()


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    secret = state.secret()
    assert len(secret) == 32
    assert StateDir(tmp_path / "state").secret() == secret
    assert stat.S_IMODE((state.path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirUnusable, match="cannot be used"):
        StateDir(tmp_path / "file" / "state")


def test_a_secret_that_was_cut_off_is_not_used(tmp_path: Path) -> None:
    """Whoever knows that a secret is empty knows every replica's key."""
    state = StateDir(tmp_path / "state")
    (state.path / "secret").write_bytes(b"")
    with pytest.raises(StateDirUnusable, match="is cut off"):
        state.secret()


def test_two_that_make_the_secret_at_once_have_the_same(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: state.secret(), range(32)))
    assert len(found) == 1
    assert [path.name for path in state.path.iterdir()] == ["secret"]
