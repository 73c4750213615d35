"""Weights copied to the node's disk: real files, real locks, processes that race, under the oldest Python there is."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_launcher import local_copy
from slurm_launcher.local_copy import NoCopy, localised
from tests.pythons import pythons
from tests.waiting import until_sync

SOURCE = Path(local_copy.__file__)
USER = f"slurmgate-weights-{os.getuid()}"

PROGRAM = """
import json, sys, time
sys.path.insert(0, {directory!r})
import local_copy
local_copy.LOOK_EVERY_S = 0.02
local_copy.PIECE = 4096
{changes}
def out(kind, text):
    sys.stdout.write(kind + " " + text + "\\n")
    sys.stdout.flush()
folder = local_copy.localised(json.loads(sys.argv[1]), lambda t: out("say", t), lambda t: out("tell", t))
out("folder", folder)
sys.stdin.read()
"""

SLOW = """
def slowly(source, target, size, ended, real=local_copy.copy_file):
    time.sleep(0.05)
    real(source, target, size, ended)
local_copy.copy_file = slowly
local_copy.THREADS = 1
"""

STOPS = """
def never(source, target, size, ended):
    with open(target, "wb") as file:
        file.write(b"half")
    out("say", "stuck")
    sys.stdin.read()
local_copy.copy_file = never
"""


class Replica:
    """A process that takes the copy into use, and keeps it until its standard input closes."""

    def __init__(self, plan: dict[str, Any], log: Path, python: str = sys.executable, changes: str = "") -> None:
        program = PROGRAM.format(directory=str(SOURCE.parent), changes=changes)
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [python, "-I", "-S", "-c", program, json.dumps(plan)], stdin=subprocess.PIPE, stdout=out, stderr=out
            )

    def lines(self, kind: str) -> list[str]:
        return [line[len(kind) + 1 :] for line in self._log.read_text().splitlines() if line.startswith(kind + " ")]

    def folder(self) -> Path:
        """What it reads the weights from. Waits for it."""
        until_sync(lambda: self.lines("folder") or self.process.poll() is not None)
        assert self.lines("folder"), self._log.read_text()
        return Path(self.lines("folder")[0])

    def end(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(10)


Start = Callable[..., Replica]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    replicas: list[Replica] = []

    def begin(plan: dict[str, Any], **options: Any) -> Replica:
        replicas.append(Replica(plan, tmp_path / f"replica{len(replicas)}", **options))
        return replicas[-1]

    yield begin
    for replica in replicas:
        replica.process.kill()
        replica.end()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Ten files, as on the shared file system; one of them a link, as in the hub's cache."""
    source = tmp_path / "shared" / "llama"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "original").mkdir()
    for number in range(8):
        (source / f"model-{number}.safetensors").write_bytes(bytes([number]) * 20_000)
    (source / "config.json").write_text("{}")
    (source / "1_Pooling" / "config.json").write_text("[]")
    (source / "blob").write_text("tokens")
    (source / "tokenizer.json").symlink_to(source / "blob")
    (source / "pytorch_model.bin").write_bytes(bytes(9000))
    (source / "original" / "consolidated.00.pth").write_bytes(bytes(9000))
    return source


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


def plan_of(source: Path, directory: Path) -> dict[str, Any]:
    return {"source": str(source), "directory": str(directory)}


def copies(scratch: Path) -> list[Path]:
    return [path for path in (scratch / USER).iterdir() if path.is_dir()]


def ignore(text: str) -> None:
    pass


@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).parent.parent.name)
def test_two_replicas_that_start_together_copy_once(start: Start, weights: Path, scratch: Path, python: str) -> None:
    plan = plan_of(weights, scratch)
    one, two = start(plan, python=python, changes=SLOW), start(plan, python=python, changes=SLOW)
    assert one.folder() == two.folder()
    assert one.folder().parent == scratch / USER
    assert copies(scratch) == [one.folder()]
    copy = one.folder() / "llama"
    for number in range(8):
        assert (copy / f"model-{number}.safetensors").read_bytes() == bytes([number]) * 20_000
    assert (copy / "1_Pooling" / "config.json").read_text() == "[]"
    assert (copy / "tokenizer.json").read_text() == "tokens"
    assert not (copy / "tokenizer.json").is_symlink()
    assert not (copy / "original").exists()
    assert not (copy / "pytorch_model.bin").exists()
    told = one.lines("tell") + two.lines("tell")
    copied = [line for line in told if line.startswith("copying weights: ")]
    waited = [line for line in told if line.startswith("waiting for another replica's copy: ")]
    assert copied
    assert waited
    assert bool([t for t in one.lines("tell") if t in copied]) != bool([t for t in two.lines("tell") if t in copied])


def test_the_next_replica_takes_what_is_there(start: Start, weights: Path, scratch: Path) -> None:
    first = start(plan_of(weights, scratch))
    copy = first.folder() / "llama"
    first.end()
    (copy / "config.json").write_text("the same copy")
    second = start(plan_of(weights, scratch))
    assert second.folder() == first.folder()
    assert (copy / "config.json").read_text() == "the same copy"
    assert second.lines("tell") == []


def test_a_replica_that_dies_while_copying_leaves_the_work_to_the_next(
    start: Start, weights: Path, scratch: Path
) -> None:
    plan = plan_of(weights, scratch)
    dying = start(plan, changes=STOPS)
    until_sync(lambda: dying.lines("say"))
    waiting = start(plan)
    until_sync(lambda: waiting.lines("tell"))
    dying.process.send_signal(signal.SIGKILL)
    copy = waiting.folder() / "llama"
    assert (copy / "model-7.safetensors").read_bytes() == bytes([7]) * 20_000
    assert copies(scratch) == [copy.parent]


def test_weights_that_changed_are_copied_anew(start: Start, weights: Path, scratch: Path) -> None:
    first = start(plan_of(weights, scratch)).folder()
    (weights / "model-0.safetensors").write_bytes(b"new")
    second = start(plan_of(weights, scratch)).folder()
    assert first != second
    assert (second / "llama" / "model-0.safetensors").read_bytes() == b"new"


def test_weights_that_change_while_they_are_copied_are_read_where_they_are(
    weights: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = local_copy.copy_file

    def meddle(source: str, target: str, size: int, ended: Any) -> None:
        real(source, target, size, ended)
        (weights / "config.json").write_text("{  }")

    monkeypatch.setattr(local_copy, "copy_file", meddle)
    said: list[str] = []
    assert localised(plan_of(weights, scratch), said.append, ignore) == str(weights.parent)
    assert "changed while" in said[0]
    assert copies(scratch) == []


def test_a_gguf_is_copied_with_its_parts(start: Start, tmp_path: Path, scratch: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "other.gguf"):
        (tmp_path / name).write_text(name)
    folder = start(plan_of(tmp_path / "m-00001-of-00002.gguf", scratch)).folder()
    assert (folder / "m-00001-of-00002.gguf").read_text() == "m-00001-of-00002.gguf"
    assert sorted(path.name for path in folder.iterdir()) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


# -- cleaning --------------------------------------------------------------------------------------------------------


def other(tmp_path: Path, name: str) -> Path:
    source = tmp_path / "shared" / name
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(bytes(1000))
    return source


def used_long_ago(folder: Path, days: float = 30) -> None:
    lock = folder.with_suffix(".lock")
    at = lock.stat().st_mtime - days * 86400
    os.utime(lock, (at, at))


def test_copies_that_nobody_used_for_long_are_removed(
    start: Start, weights: Path, tmp_path: Path, scratch: Path
) -> None:
    old, held = start(plan_of(other(tmp_path, "old"), scratch)), start(plan_of(other(tmp_path, "held"), scratch))
    recent = start(plan_of(other(tmp_path, "recent"), scratch))
    for replica in (old, held):
        used_long_ago(replica.folder())
    used_long_ago(recent.folder(), days=1)
    old.end()
    recent.end()
    new = start(plan_of(weights, scratch)).folder()
    assert set(copies(scratch)) == {held.folder(), recent.folder(), new}
    assert not old.folder().with_suffix(".lock").exists()


def test_room_is_made_by_removing_what_was_not_used_the_longest(
    start: Start, weights: Path, tmp_path: Path, scratch: Path
) -> None:
    made = [start(plan_of(other(tmp_path, name), scratch)) for name in ("oldest", "older", "held")]
    for replica, days in zip(made, (3, 2, 4), strict=True):
        used_long_ago(replica.folder(), days)
    for replica in made[:2]:
        replica.end()
    # the disk has room for one copy less than there is
    small = f"local_copy.room = lambda root: 10**10 if not local_copy.os.path.exists({str(made[0].folder())!r}) else 0"
    new = start(plan_of(weights, scratch), changes=small).folder()
    assert set(copies(scratch)) == {made[1].folder(), made[2].folder(), new}


def test_without_room_the_shared_weights_are_read(
    weights: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copy, "room", lambda root: 5 * 10**8)
    said: list[str] = []
    assert localised(plan_of(weights, scratch), said.append, ignore) == str(weights.parent)
    assert said[0].startswith(f"weights are read from {weights}: 0.0 GB do not fit: {scratch} has 0.5 GB free")
    assert copies(scratch) == []


# -- what may be wrong -----------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    weights: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: str, size: int, ended: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_copy, "copy_file", full)
    said: list[str] = []
    assert localised(plan_of(weights, scratch), said.append, ignore) == str(weights.parent)
    assert said == [f"weights are read from {weights}: {scratch}: No space left on device"]
    assert copies(scratch) == []


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda source, scratch: scratch.rmdir(), "this node has no"),
        (lambda source, scratch: source.rename(source.with_name("gone")), "cannot be read"),
        (lambda source, scratch: (scratch / USER).symlink_to(source), "belongs to somebody else"),
        (lambda source, scratch: (scratch / USER).mkdir() or (scratch / USER).chmod(0o777), "anybody may write there"),
        (lambda source, scratch: (scratch / USER).write_text(""), "belongs to somebody else"),
    ],
)
def test_whatever_is_wrong_with_the_node_the_engine_starts(
    weights: Path, scratch: Path, spoil: Callable[[Path, Path], Any], why: str
) -> None:
    spoil(weights, scratch)
    said: list[str] = []
    assert localised(plan_of(weights, scratch), said.append, ignore) == str(weights.parent)
    assert why in said[0]


def test_an_empty_directory_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoCopy, match="is empty"):
        local_copy.files_of(str(tmp_path / "empty"))


# -- as a part of the batch script -----------------------------------------------------------------------------------


def test_it_is_plain_text_for_python_3_6_and_shares_no_name_with_the_agent() -> None:
    """It stands before the agent in one file, so a name of one would be that of the other."""
    tree = ast.parse(SOURCE.read_text(encoding="ascii"), feature_version=(3, 6))
    for part in ("agent.py", "on_node.py"):
        if (path := SOURCE.with_name(part)).exists():
            assert not names(tree) & names(ast.parse(path.read_text(encoding="ascii"))), part


def names(tree: ast.Module) -> set[str]:
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found
