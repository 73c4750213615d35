"""Rows of batches, on both databases: what clients ask, what workers claim and commit, and who comes too late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Engine, select

from backends.errors import InvalidRequest, NotFound
from proxy import database as db
from proxy.batch.leases import LEASE_S
from proxy.batch.step_store import KEPT_S, Lost, StepStore
from proxy.batch.store import CANCELLING_S, EXPIRING_S, BatchStore
from proxy.batch.values import Kind, Status, Window
from proxy.files.batch_lines import Mistake
from proxy.files.values import new_id

from .rows_given import NOW, Clock, batch, begun, done, states, windows, worker

ANN, BOB = worker("ann"), worker("bob")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Engine, clock: Clock) -> BatchStore:
    return BatchStore(database, clock, clock)


@pytest.fixture
def steps(database: Engine, clock: Clock) -> StepStore:
    return StepStore(database, clock)


def claimed(store: BatchStore, batch_id: str, who: object = ANN) -> Window:
    assert who in (ANN, BOB)
    window = store.claim_window(ANN if who is ANN else BOB, batch_id)
    assert window is not None
    return window


def silent(store: BatchStore, clock: Clock) -> None:
    """Time passes in which only Ann gives signs of life."""
    store.beat(ANN)
    for _ in range(4):
        clock.now += LEASE_S / 3
        store.beat(ANN)


# -- clients ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_found_by_its_owner_only(store: BatchStore) -> None:
    made = batch(metadata={"a": "é"}, webhook="https://x", mixed_models=True, output_keep_s=9)
    assert store.create(made) == made
    assert store.find("one", made.id) == made
    for owner, batch_id in (("two", made.id), ("one", "batch_x"), ("one", "\0"), ("one", "b" * 100)):
        with pytest.raises(NotFound):
            store.find(owner, batch_id)


def test_a_batch_that_is_asked_for_again_is_the_same_one(store: BatchStore) -> None:
    first = store.create(batch(), ("key", "digest"))
    assert store.create(batch(), ("key", "digest")) == first
    assert store.same("one", "key", "digest") == first
    assert store.same("one", "other", "digest") is None
    assert store.create(batch(owner="two"), ("key", "digest")) != first
    attempts: tuple[Callable[[], object], ...] = (
        lambda: store.create(batch(), ("key", "other")),
        lambda: store.same("one", "key", "other"),
    )
    for again in attempts:
        with pytest.raises(InvalidRequest) as caught:
            again()
        assert (caught.value.status, caught.value.code) == (409, "idempotency_key_reused")
    assert len(store.page("one", 9)) == 1


def test_of_many_who_ask_at_once_one_makes_the_batch(store: BatchStore) -> None:
    begin = threading.Barrier(6)

    def make(_: int) -> str:
        begin.wait(30)
        return store.create(batch(), ("key", "digest")).id

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(make, range(6)))) == 1


def test_pages_are_newest_first(store: BatchStore) -> None:
    made = sorted((store.create(batch()) for _ in range(5)), key=lambda one: one.id, reverse=True)
    store.create(batch(owner="two"))
    assert store.page("one", 2) == made[:3]
    assert store.page("one", 2, made[1].id) == made[2:]
    with pytest.raises(InvalidRequest):
        store.page("one", 2, "file-x")


def test_a_batch_that_rests_is_not_run(store: BatchStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock)
    store.beat(ANN)
    assert store.pause("one", made.id).paused_at == NOW
    clock.now += 1
    assert store.pause("one", made.id).paused_at == NOW
    assert (store.active(), store.claim_window(ANN, made.id)) == ([], None)
    assert store.resume("one", made.id).paused_at is None
    assert [one.batch.id for one in store.active()] == [made.id]
    assert store.claim_window(ANN, made.id) is not None


def test_what_has_ended_is_neither_cancelled_nor_paused(
    store: BatchStore, steps: StepStore, database: Engine, clock: Clock
) -> None:
    made = store.create(batch())
    store.beat(ANN)
    step = store.claim_step(ANN)
    assert step is not None
    told = [Mistake("empty_file", "The file has no requests.")]
    assert steps.failed(step, told).errors == tuple(told)
    for verb in (store.cancel, store.pause, store.resume):
        with pytest.raises(InvalidRequest) as caught:
            verb("one", made.id)
        assert caught.value.status == 409
        with pytest.raises(NotFound):
            verb("two", made.id)
    card = store.find("one", made.id).card()
    assert (card["status"], card["failed_at"], card["errors"]["data"][0]["code"]) == ("failed", NOW, "empty_file")
    assert store.claim_step(ANN) is None


# -- windows and results ---------------------------------------------------------------------------------------------


def test_a_window_is_claimed_once(store: BatchStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock, windows(("m", "n"), each=2, lines=3))
    store.beat(ANN)
    store.beat(BOB)
    progress = store.active()
    assert [(one.model, one.windows, one.free, one.lines, one.tokens) for one in progress] == [
        ("m", 2, 2, 6, 60),
        ("n", 2, 2, 6, 60),
    ]
    found = [store.claim_window(who, made.id, "n") for who in (ANN, BOB, ANN)]
    assert [window and window.window_no for window in found] == [2, 3, None]
    first = found[0]
    assert first is not None
    assert [(line.line_no, line.offset, line.size, line.attempts) for line in first.lines] == [
        (7, 600, 99, 0),
        (8, 700, 99, 0),
        (9, 800, 99, 0),
    ]
    assert [(one.model, one.free) for one in store.active()] == [("m", 2), ("n", 0)]
    other = store.claim_window(BOB, made.id)
    assert other is not None
    assert other.window_no == 0


def test_results_are_counted_with_their_lines(store: BatchStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock)
    store.beat(ANN)
    first, second = claimed(store, made.id), claimed(store, made.id)
    committed = store.commit([*done(first, 1), *done(second, 5, ok=False)])
    assert (committed.lines, committed.lost, committed.answered) == (2, frozenset(), frozenset())
    found = store.find("one", made.id)
    assert (found.total, found.completed, found.failed) == (6, 1, 1)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens, found.reasoning_tokens) == (6, 2, 4, 2)
    assert store.active()[0].lines == 4
    committed = store.commit([*done(second, 4, 6), *done(first)])
    assert (committed.lines, committed.answered) == (4, frozenset({made.id}))
    assert store.active() == []
    seen = store.results(made.id, 0, 4) + store.results(made.id, 4, 4)
    assert [one.seq for one in seen] == [1, 2, 3, 4, 5, 6]
    assert {one.line_no: one.ok for one in seen} == {1: True, 2: True, 3: True, 4: True, 5: False, 6: True}


def test_a_result_that_comes_twice_counts_once(store: BatchStore, database: Engine, clock: Clock) -> None:
    """As from a worker whose database went away before it said that it had committed."""
    made = begun(database, clock)
    store.beat(ANN)
    window = claimed(store, made.id)
    assert store.commit(done(window, 1, said="first") * 2).lines == 1
    assert store.commit(done(window, 1, 2, said="second")).lines == 1
    assert store.commit(done(window)).lines == 1
    assert store.commit(done(window)).lost == frozenset({(made.id, window.window_no)})
    assert [one.data for one in store.results(made.id, 0, 9)] == [b"1 first", b"2 second", b"3 "]
    assert store.find("one", made.id).completed == 3


def test_a_dead_workers_lines_are_taken_over_and_it_commits_nothing(
    store: BatchStore, database: Engine, clock: Clock
) -> None:
    made = begun(database, clock, windows(each=1))
    store.beat(BOB)
    bobs = claimed(store, made.id, BOB)
    assert store.commit(done(bobs, 1, said="bob")).lines == 1
    silent(store, clock)
    anns = claimed(store, made.id)
    assert (anns.epoch, [line.line_no for line in anns.lines]) == (bobs.epoch + 1, [2, 3])
    late = store.commit(done(bobs, 2, 3, said="bob"))
    assert (late.lines, late.lost) == (0, frozenset({(made.id, 0)}))
    store.give_back(bobs)
    assert store.claim_window(ANN, made.id) is None
    assert store.claim_window(BOB, made.id) is None
    assert store.beat(BOB) is False
    assert store.commit(done(anns, said="ann")).lines == 2
    assert [one.data for one in store.results(made.id, 0, 9)] == [b"1 bob", b"2 ann", b"3 ann"]


def test_a_worker_that_lives_keeps_what_it_has(store: BatchStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock, windows(each=1))
    bobs = BatchStore(database, clock, clock)
    bobs.beat(BOB)
    assert claimed(store, made.id, BOB)
    for _ in range(30):
        clock.now += LEASE_S / 4
        store.beat(ANN)
        assert bobs.beat(BOB) is True
    assert store.claim_window(ANN, made.id) is None


def test_who_starts_again_in_the_same_directory_goes_on_at_once(database: Engine, clock: Clock) -> None:
    made = begun(database, clock, windows(each=3))
    old, elsewhere = worker("old", "home", "1"), worker("elsewhere", "other home", "1")
    new, beside = worker("new", "home", "2"), worker("beside", "home", "2")
    stores = {who: BatchStore(database, clock, clock) for who in (old, elsewhere, new, beside)}
    for who, window_no, epoch in ((old, 0, 1), (elsewhere, 1, 1), (new, 0, 2), (beside, 2, 1)):
        assert stores[who].beat(who) is False
        found = stores[who].claim_window(who, made.id)
        assert found is not None
        assert (found.window_no, found.epoch) == (window_no, epoch)
    assert stores[old].beat(old) is False  # it is still ending
    assert stores[new].beat(new) is True


def test_who_stops_leaves_everything_at_once(store: BatchStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock, windows(each=1))
    store.create(batch(id=f"{made.id}0"))
    store.beat(BOB)
    store.beat(ANN)
    window, step = claimed(store, made.id, BOB), store.claim_step(BOB)
    assert step is not None
    assert store.claim_step(ANN) is None
    store.release(BOB)
    assert store.claim_step(ANN) is not None
    assert claimed(store, made.id).epoch == window.epoch + 1


def test_a_window_given_back_is_somebody_elses_in_time(store: BatchStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock, windows(each=1))
    store.beat(ANN)
    store.beat(BOB)
    window = claimed(store, made.id)
    store.commit(done(window, 2))
    store.give_back(window, clock.now + 9.5, {1: 3, 2: 1})
    assert store.claim_window(BOB, made.id) is None
    clock.now += 10
    again = claimed(store, made.id, BOB)
    assert [(line.line_no, line.attempts) for line in again.lines] == [(1, 3), (3, 0)]


def test_what_comes_after_a_window_was_given_back_counts_until_it_is_claimed(
    store: BatchStore, database: Engine, clock: Clock
) -> None:
    made = begun(database, clock, windows(each=1))
    store.beat(ANN)
    window = claimed(store, made.id)
    store.give_back(window)
    assert store.commit(done(window, 1)).lines == 1
    again = claimed(store, made.id)
    assert [line.line_no for line in again.lines] == [2, 3]
    assert store.commit(done(window, 2)).lost == {(made.id, 0)}


def test_a_worker_that_has_not_said_that_it_lives_gets_nothing(
    store: BatchStore, database: Engine, clock: Clock
) -> None:
    made = begun(database, clock)
    store.create(batch())
    assert store.claim_window(ANN, made.id) is None
    assert store.claim_step(ANN) is None


# -- endings ---------------------------------------------------------------------------------------------------------


def test_a_batch_ends_when_its_last_line_has_its_result(
    store: BatchStore, steps: StepStore, database: Engine, clock: Clock
) -> None:
    made = begun(database, clock, windows(each=1))
    store.beat(ANN)
    window = claimed(store, made.id)
    store.commit(done(window, 1, 2))
    assert store.claim_step(ANN) is None
    store.commit(done(window, 3, ok=False))
    step = store.claim_step(ANN)
    assert step is not None
    assert step.kind is Kind.END
    clock.now += 5
    ending = steps.begin_ending(step)
    assert (ending.status, ending.ending) == (Status.FINALIZING, Status.COMPLETED)
    decided = steps.decide_files(step)
    assert steps.decide_files(step) == decided
    assert decided.output_file_id is not None
    assert decided.error_file_id is not None
    assert decided.card()["output_file_id"] is None
    over = steps.finished(step)
    assert over.status.over
    card = over.card()
    assert (card["finalizing_at"], card["completed_at"], card["output_file_id"]) == (
        NOW + 5,
        NOW + 5,
        decided.output_file_id,
    )
    with pytest.raises(Lost):
        steps.finished(step)


def test_a_step_is_one_workers(store: BatchStore, steps: StepStore, database: Engine, clock: Clock) -> None:
    store.create(batch())
    store.beat(BOB)
    bobs = store.claim_step(BOB)
    assert bobs is not None
    silent(store, clock)
    anns = store.claim_step(ANN)
    assert anns is not None
    assert anns.batch.epoch == bobs.batch.epoch + 1
    for attempt in (
        lambda: steps.add(bobs, windows()),
        lambda: steps.validated(bobs, 6, "m"),
        lambda: steps.failed(bobs, []),
        lambda: steps.clear(bobs),
        lambda: steps.check(bobs),
    ):
        with pytest.raises(Lost):
            attempt()
    steps.drop(bobs)
    steps.put_off(bobs, 100)
    assert store.claim_step(BOB) is None
    steps.add(anns, windows())
    steps.clear(anns)
    steps.add(anns, windows())
    assert steps.validated(anns, 6, "m").status is Status.IN_PROGRESS


def test_a_step_that_is_put_off_comes_again(store: BatchStore, steps: StepStore, clock: Clock) -> None:
    store.create(batch())
    store.beat(ANN)
    step = store.claim_step(ANN)
    assert step is not None
    steps.put_off(step, 10)
    assert store.claim_step(ANN) is None
    clock.now += 11
    assert store.claim_step(ANN) is not None


def test_a_cancelled_batch_ends_when_nobody_holds_its_lines(
    store: BatchStore, steps: StepStore, database: Engine, clock: Clock
) -> None:
    made = begun(database, clock)
    store.beat(ANN)
    window = claimed(store, made.id)
    assert store.cancel("one", made.id).cancelling_at == NOW
    assert store.cancel("one", made.id).status is Status.CANCELLING
    assert (store.active(), store.claim_window(ANN, made.id), store.claim_step(ANN)) == ([], None, None)
    assert store.commit(done(window, 1, 2)).lines == 2
    store.give_back(window)
    step = store.claim_step(ANN)
    assert step is not None
    ending = steps.begin_ending(step)
    assert (ending.status, ending.ending) == (Status.CANCELLING, Status.CANCELLED)
    assert store.commit(done(window, 3)).lost == {(made.id, 0)}
    decided = steps.decide_files(step)
    assert (decided.output_file_id is None, decided.error_file_id) == (False, None)
    over = steps.finished(step)
    assert (over.status, over.total, over.completed, over.failed) == (Status.CANCELLED, 6, 2, 0)


def test_a_cancellation_does_not_wait_for_ever(store: BatchStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock)
    store.beat(ANN)
    assert claimed(store, made.id)
    store.cancel("one", made.id)
    clock.now += CANCELLING_S - 1
    assert store.claim_step(ANN) is None
    clock.now += 1
    assert store.claim_step(ANN) is not None


def test_a_batch_is_cancelled_while_it_is_validated(store: BatchStore, steps: StepStore) -> None:
    made = store.create(batch())
    store.beat(ANN)
    step = store.claim_step(ANN)
    assert step is not None
    steps.add(step, windows())
    store.cancel("one", made.id)
    for attempt in (lambda: steps.add(step, windows()), lambda: steps.validated(step, 6, "m")):
        with pytest.raises(Lost):
            attempt()
    assert store.claim_step(ANN) is None
    steps.drop(step)
    end = store.claim_step(ANN)
    assert end is not None
    steps.begin_ending(end)
    steps.decide_files(end)
    assert steps.finished(end).status is Status.CANCELLED


def test_a_batch_is_cancelled_after_its_end_was_claimed(
    store: BatchStore, steps: StepStore, database: Engine, clock: Clock
) -> None:
    made = begun(database, clock)
    store.beat(ANN)
    clock.now += 86400 + EXPIRING_S
    step = store.claim_step(ANN)
    assert step is not None
    store.cancel("one", made.id)
    assert steps.begin_ending(step).ending is Status.CANCELLED
    steps.decide_files(step)
    assert steps.finished(step).status is Status.CANCELLED


def test_lines_without_time_are_errors(store: BatchStore, steps: StepStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock)
    store.beat(ANN)
    window = claimed(store, made.id)
    store.commit(done(window, 1))
    clock.now += 86400
    assert (store.active(), store.claim_window(ANN, made.id), store.claim_step(ANN)) == ([], None, None)
    assert store.commit(done(window, 2)).lines == 1
    clock.now += EXPIRING_S
    step = store.claim_step(ANN)
    assert step is not None
    assert step.kind is Kind.END
    assert steps.begin_ending(step).ending is Status.EXPIRED
    assert store.commit(done(window, 3)).lost == {(made.id, 0)}
    assert steps.close_lines(step, 0, 2) == 4
    assert steps.close_lines(step, 4, 2) == 6
    assert steps.close_lines(step, 6, 2) is None
    assert steps.close_lines(step, 0, 9) is None
    decided = steps.decide_files(step)
    assert (decided.completed, decided.failed) == (2, 4)
    data = steps.lines(made.id, 2, 0, 9, 10_000)
    assert data[0] == (
        3,
        b'{"id":"batch_req_%b000003","custom_id":"custom 3","response":null,"error":{"code":"batch_expired","message":'
        b'"This request could not be executed before the completion window expired."}}'
        % made.id.removeprefix("batch_").encode(),
    )
    assert steps.finished(step).status is Status.EXPIRED


def test_a_batch_that_cannot_go_on_says_why_in_each_line(
    store: BatchStore, steps: StepStore, database: Engine, clock: Clock
) -> None:
    made = begun(database, clock, windows(each=1))
    store.beat(ANN)
    window = claimed(store, made.id)
    store.commit(done(window, 1))
    assert store.abandon(made.id, [Mistake("key_revoked", "Gone.")])
    assert not store.abandon(made.id, [Mistake("other", "Gone.")])
    assert store.commit(done(window, 2)).lost
    step = store.claim_step(ANN)
    assert step is not None
    steps.begin_ending(step)
    assert steps.close_lines(step, 0, 9) == 3
    assert b'"code":"key_revoked"' in steps.lines(made.id, 2, 0, 9, 10_000)[1][1]
    steps.decide_files(step)
    over = steps.finished(step)
    assert (over.status, over.completed, over.failed, over.errors[0].code) == (Status.FAILED, 1, 2, "key_revoked")


def test_slices_of_results_are_bounded(store: BatchStore, steps: StepStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock, windows(each=1, lines=5))
    store.beat(ANN)
    window = claimed(store, made.id)
    store.commit([one._replace(data=b"x" * 100, ok=one.line_no != 2) for one in done(window)])

    def numbers(after: int, lines: int, size: int) -> list[int]:
        return [line_no for line_no, _ in steps.lines(made.id, 1, after, lines, size)]

    assert numbers(0, 9, 1) == [1]
    assert numbers(1, 9, 200) == [3, 4]
    assert numbers(0, 2, 1000) == [1, 3]
    assert numbers(5, 9, 1000) == []


def test_who_waits_for_the_end_is_told_in_the_same_transaction(
    store: BatchStore, database: Engine, clock: Clock
) -> None:
    def events(over: object) -> list[dict[str, object]]:
        row = {"id": new_id("evt_"), "batch_id": made.id, "type": "x", "url": "u", "body": b"", "created_at": NOW}
        return [{**row, "attempts": 0, "next_at": NOW}]

    made = store.create(batch())
    store.beat(ANN)
    step = store.claim_step(ANN)
    assert step is not None
    StepStore(database, clock, events).failed(step, [Mistake("empty_file", "Empty.")])
    with database.connect() as connection:
        assert len(connection.execute(select(db.webhook_events)).all()) == 1


def test_rows_of_lines_go_a_day_after_the_end(
    store: BatchStore, steps: StepStore, database: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.batch.step_store.CLEAR_LINES", 2)
    made, lasting = begun(database, clock, windows(each=1)), begun(database, clock)
    store.beat(ANN)
    store.commit(done(claimed(store, made.id)))
    step = store.claim_step(ANN)
    assert step is not None
    steps.begin_ending(step)
    steps.finished(step)
    assert steps.forget() == 0
    clock.now += KEPT_S + 1
    assert (steps.forget(), steps.forget()) == (1, 0)
    assert (states(database, made.id), len(states(database, lasting.id))) == ({}, 6)
    assert store.find("one", made.id).completed == 3


def test_illegal_steps_are_refused(store: BatchStore, steps: StepStore, database: Engine, clock: Clock) -> None:
    made = begun(database, clock)
    store.beat(ANN)
    store.abandon(made.id, [])
    step = store.claim_step(ANN)
    assert step is not None
    assert store.claim_step(ANN) is None
    with pytest.raises(Lost):
        steps.validated(step, 1, "m")
    with pytest.raises(Lost):
        steps.finished(replace(step, batch=replace(step.batch, worker="somebody")))
