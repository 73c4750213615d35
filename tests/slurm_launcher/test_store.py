from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sqlalchemy import create_engine, text

from slurm_launcher.states import Failure, Replica, Status, Target
from slurm_launcher.store import ReplicaStore

FULL = Replica(
    "r1",
    "llama",
    "abc",
    created_at=1.0,
    target=Target.STOP,
    status=Status.FAILED,
    job_id="7",
    failure=Failure("node", "Gone.", ("last", "lines")),
)


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    store = ReplicaStore(engine)
    store.save([FULL, replace(FULL, id="r2", failure=None)])
    store.save([replace(FULL, note="changed")], forgotten=["r2"])
    assert ReplicaStore(engine).load() == [replace(FULL, note="changed")]
    engine.dispose()


def test_a_record_of_another_version_is_passed_over(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    store = ReplicaStore(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO replicas VALUES ('a', '{\"id\": \"a\"}'), ('b', 'not json')"))
    assert store.load() == []
    engine.dispose()
