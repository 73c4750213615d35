from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sqlalchemy import Engine, text

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


def test_what_is_saved_is_loaded_again(engine: Engine) -> None:
    store = ReplicaStore(engine)
    store.save([FULL, replace(FULL, id="r2", failure=None)])
    store.save([replace(FULL, note="changed")], forgotten=["r2"])
    assert ReplicaStore(engine).load() == [replace(FULL, note="changed")]


def test_a_record_of_another_version_is_passed_over(engine: Engine) -> None:
    store = ReplicaStore(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO replicas (id, record, gateway) VALUES ('a', '{\"id\": \"a\"}', ''), ('b', 'not json', '')"
            )
        )
    assert store.load() == []


def test_gateways_that_share_a_database_leave_each_others_replicas_alone(engine: Engine) -> None:
    one, other = ReplicaStore(engine, "one"), ReplicaStore(engine, "other")
    one.save([FULL])
    other.save([], forgotten=["r1"])
    assert other.load() == []
    assert one.load() == [FULL]


def test_the_table_of_an_earlier_version_is_taken_over(engine: Engine) -> None:
    ReplicaStore(engine, "one").save([FULL])
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE replicas DROP COLUMN gateway"))
    assert ReplicaStore(engine, "one").load() == [FULL]


def test_stores_that_are_opened_together_make_one_table(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: ReplicaStore(engine), range(8)))
    stores[0].save([FULL])
    assert stores[-1].load() == [FULL]
