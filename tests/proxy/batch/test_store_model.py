"""The store against a model in memory: workers claim, commit, die, wake up again; batches are paused, cancelled and run
out of time, in any order that hypothesis can think of. Whatever happens, no line has two results, what is counted is
what is there, and at the end each line has its one line of output or error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, func, select

from backends.errors import InvalidRequest
from proxy import database as db
from proxy.batch.leases import LEASE_S
from proxy.batch.step_store import Lost, StepStore
from proxy.batch.store import BatchStore
from proxy.batch.values import Done, Kind, Status, Step, Window, Worker
from proxy.files.batch_lines import Mistake

from .rows_given import Clock, batch, done, windows, worker

NAMES = ("ann", "bob", "cem")
SELDOM = st.integers(0, 5)
"""0: now. What ends a batch comes seldom, or nothing else would."""


class Person:
    """A worker: what it believes to hold, which may be wrong."""

    def __init__(self, engine: Engine, clock: Clock, name: str) -> None:
        self.store = BatchStore(engine, clock, clock)
        self.steps = StepStore(engine, clock)
        self.worker: Worker = worker(name)
        self.held: list[Window] = []
        self.step: Step | None = None


class Machine(RuleBasedStateMachine):
    engine: Engine

    @initialize(owned=st.integers(1, 2))
    def begin(self, owned: int) -> None:
        self.clock = Clock()
        self.people = {name: Person(self.engine, self.clock, name) for name in NAMES}
        self.plain = BatchStore(self.engine, self.clock, self.clock)
        with db.writing(self.engine) as connection:  # of the example before
            for table in (db.batches, db.batch_windows, db.batch_lines, db.batch_workers):
                connection.execute(table.delete())
        self.batches = [self.plain.create(batch()).id for _ in range(owned)]
        self.made = windows(("m", "n"), each=2, lines=2)
        self.results: dict[tuple[str, int], bytes] = {}
        self.epochs: dict[tuple[str, int], int] = {}
        self.said = 0
        for name in NAMES:
            self.beats(name)
        self.takes_a_step("ann")  # one batch runs already, most examples would get no farther than that
        self.goes_on_with_its_step("ann", 6)

    def _person(self, name: str) -> Person:
        return self.people[name]

    @rule(name=st.sampled_from(NAMES))
    def beats(self, name: str) -> None:
        person = self._person(name)
        person.store.beat(person.worker)

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 3]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(name=st.sampled_from(NAMES))
    def only_one_lives(self, name: str) -> None:
        for _ in range(5):
            self.beats(name)
            self.clock.now += LEASE_S / 3

    @rule(name=st.sampled_from(NAMES))
    def is_killed_and_starts_again(self, name: str) -> None:
        old = self._person(name).worker
        new = self.people[name] = Person(self.engine, self.clock, name)
        new.worker = Worker(f"{old.id}'", old.home, f"{old.boot}'")
        new.store.beat(new.worker)

    @rule(name=st.sampled_from(NAMES), seldom=SELDOM)
    def stops(self, name: str, seldom: int) -> None:
        person = self._person(name)
        if not seldom:
            person.store.release(person.worker)

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 1))
    def claims(self, name: str, which: int) -> None:
        person = self._person(name)
        window = person.store.claim_window(person.worker, self.batches[which % len(self.batches)])
        if window is not None:
            assert all((window.batch_id, line.line_no) not in self.results for line in window.lines)
            assert window.epoch > self.epochs.get((window.batch_id, window.window_no), 0)
            self.epochs[window.batch_id, window.window_no] = window.epoch
            person.held.append(window)

    @precondition(lambda self: any(person.held for person in self.people.values()))
    @rule(data=st.data(), ok=st.booleans(), again=st.booleans())
    def commits(self, data: Any, ok: bool, again: bool) -> None:
        person = self._holder(data)
        some = data.draw(st.lists(st.sampled_from(person.held), min_size=1, max_size=3))
        results: list[Done] = []
        for window in some:
            self.said += 1  # a line's result under an old epoch is told from that under a newer one
            if window.lines:
                line = data.draw(st.sampled_from(window.lines))
                results += done(window, line.line_no, ok=ok, said=str(self.said))
        self._commit(person, results, again=again)

    def _commit(self, person: Person, results: list[Done], *, again: bool = False) -> None:
        before = self._rows()
        open_ones = {one for one in self.batches if self.plain.find("one", one).ending is None}
        committed = person.store.commit(results)
        if again:  # the answer was lost
            assert person.store.commit(results).lines == 0
        new = {key: value for key, value in self._rows().items() if key not in before}
        assert len(new) == committed.lines
        for key, value in new.items():
            [its] = {one for one in results if (one.batch_id, one.line_no) == key and one.data == value}
            assert its.epoch == self.epochs[its.batch_id, its.window_no]
            assert its.batch_id in open_ones
        self.results |= new

    @precondition(lambda self: any(person.held for person in self.people.values()))
    @rule(data=st.data(), later=st.booleans())
    def gives_back(self, data: Any, later: bool) -> None:
        person = self._holder(data)
        window = data.draw(st.sampled_from(person.held))  # which it goes on to believe its own
        person.store.give_back(window, self.clock.now + 3 if later else 0, {1: 1})

    def _holder(self, data: Any) -> Person:
        found: Person = data.draw(st.sampled_from([person for person in self.people.values() if person.held]))
        return found

    @precondition(lambda self: any(person.held for person in self.people.values()))
    @rule(data=st.data(), name=st.sampled_from(NAMES), seldom=SELDOM)
    def wakes_up_too_late(self, data: Any, name: str, seldom: int) -> None:
        """What it holds has been taken over, or its batch is ending; its results come now."""
        window = data.draw(st.sampled_from(self._holder(data).held))
        if not seldom:
            self.plain.abandon(window.batch_id, [Mistake("key_revoked", "Gone.")])
        self.only_one_lives(name)
        self.claims(name, self.batches.index(window.batch_id))
        self.takes_a_step(name)
        self.goes_on_with_its_step(name, 1)
        self._commit(self._person(name), [one._replace(data=one.data + b"late") for one in done(window)])

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 1), data=st.data(), lines=st.integers(0, 3))
    def works(self, name: str, which: int, data: Any, lines: int) -> None:
        self.beats(name)
        self.claims(name, which)
        for _ in range(lines):
            if any(person.held for person in self.people.values()):
                self.commits(data, True, False)

    @rule(which=st.integers(0, 1), verb=st.sampled_from(["pause", "resume", "cancel"]), seldom=SELDOM)
    def is_told(self, which: int, verb: str, seldom: int) -> None:
        if seldom and verb != "resume":
            return
        with contextlib.suppress(InvalidRequest):
            getattr(self.plain, verb)("one", self.batches[which % len(self.batches)])

    @precondition(lambda self: self.clock.now < 1_080_000)
    @rule(seldom=SELDOM)
    def a_day_passes(self, seldom: int) -> None:
        if not seldom:
            self.clock.now += 86_400

    @rule(which=st.integers(0, 1), seldom=SELDOM)
    def is_abandoned(self, which: int, seldom: int) -> None:
        if not seldom:
            self.plain.abandon(self.batches[which % len(self.batches)], [Mistake("key_revoked", "Gone.")])

    @rule(name=st.sampled_from(NAMES))
    def takes_a_step(self, name: str) -> None:
        person = self._person(name)
        if (step := person.store.claim_step(person.worker)) is not None:
            person.step = step

    @rule(name=st.sampled_from(NAMES), far=st.integers(1, 6))
    def goes_on_with_its_step(self, name: str, far: int) -> None:
        """From the beginning, as after being killed, so far and no farther."""
        person = self._person(name)
        if person.step is not None:
            try:
                self._go(person, person.step, far)
            except Lost:
                person.steps.drop(person.step)
                person.step = None

    def _go(self, person: Person, step: Step, far: int) -> None:
        steps = person.steps
        if step.kind is Kind.VALIDATE:
            verbs: list[Callable[[], object]] = [
                lambda: steps.clear(step),
                lambda: steps.add(step, self.made[:2]),
                lambda: steps.add(step, self.made[2:]),
                lambda: steps.validated(step, 8, "m"),
            ]
        else:
            verbs = [
                lambda: steps.begin_ending(step),
                lambda: self._close(steps, step, 2),
                lambda: self._close(steps, step, 100),
                lambda: steps.decide_files(step),
                lambda: steps.finished(step),
            ]
        for verb in verbs[:far]:
            verb()

    def _close(self, steps: StepStore, step: Step, limit: int) -> None:
        if steps.begin_ending(step).ending in (Status.EXPIRED, Status.FAILED):
            steps.close_lines(step, 0, limit)
            self.results |= self._rows()

    # -- what must be true --------------------------------------------------------------------------------------------

    def _rows(self) -> dict[tuple[str, int], bytes]:
        lines = db.batch_lines
        with self.engine.connect() as connection:
            rows = connection.execute(select(lines).where(lines.c.state > 0))
            return {(row.batch_id, row.line_no): bytes(row.result) for row in rows}

    @invariant()
    def no_result_is_lost_or_changed(self) -> None:
        if hasattr(self, "results"):
            assert self._rows() == self.results

    @invariant()
    def what_is_counted_is_there(self) -> None:
        if not hasattr(self, "batches"):
            return
        lines, left = db.batch_lines, db.batch_windows
        with self.engine.connect() as connection:
            for batch_id in self.batches:
                found = self.plain.find("one", batch_id)
                counted = (
                    select(lines.c.state, func.count()).where(lines.c.batch_id == batch_id).group_by(lines.c.state)
                )
                by_state = {int(state): int(count) for state, count in connection.execute(counted)}
                assert (found.completed, found.failed) == (by_state.get(1, 0), by_state.get(2, 0))
                seqs = connection.execute(
                    select(lines.c.seq).where(lines.c.batch_id == batch_id, lines.c.seq.is_not(None))
                ).scalars()
                assert sorted(seqs) == list(range(1, found.completed + found.failed + 1))
                if found.status is Status.IN_PROGRESS:
                    waits = select(func.coalesce(func.sum(left.c.lines_left), 0)).where(left.c.batch_id == batch_id)
                    assert connection.execute(waits).scalar_one() == by_state.get(0, 0)
                    assert found.total == sum(by_state.values()) == 8

    def teardown(self) -> None:
        """One worker that lives brings everything to its end."""
        if not hasattr(self, "batches"):
            return
        last = Person(self.engine, self.clock, "last")
        for _ in range(200):
            self.clock.now += LEASE_S / 3
            last.store.beat(last.worker)
            for batch_id in self.batches:
                with contextlib.suppress(InvalidRequest):
                    self.plain.resume("one", batch_id)
                while (window := last.store.claim_window(last.worker, batch_id)) is not None:
                    last.store.commit(done(window))
            while (step := last.store.claim_step(last.worker)) is not None:
                self._go(last, step, 9)
            if all(self.plain.find("one", batch_id).status.over for batch_id in self.batches):
                break
        for batch_id in self.batches:
            found = self.plain.find("one", batch_id)
            assert found.status.over, found
            rows = {line_no for of, line_no in self._rows() if of == batch_id}
            if found.status is not Status.CANCELLED:
                assert rows == set(range(1, 9))
                assert found.completed + found.failed == found.total == 8
            assert (found.output_file_id is not None, found.error_file_id is not None) == (
                found.completed > 0,
                found.failed > 0,
            )


def test_no_line_is_lost_or_run_twice_whatever_happens(database: Engine) -> None:
    examples = 60 if database.dialect.name == "sqlite" else 10

    class Here(Machine):
        engine = database

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            database=None, derandomize=bool(os.environ.get("CI")),
        ),
    )  # fmt: skip
