"""Runs the lines of batches: one worker in each process that serves.

    look      what is left of every batch (store) -> rates, ceilings, replicas that it takes
    claim     windows, as many as keep the lanes busy: whose, `Turns` says
    lanes     ask the lines: lanes.py
    results   committed in groups: storage.py; a window is over when its last line is committed
    steps     what else is to be done with a batch: validate, finish, expire, cancel

Nothing is remembered here that the database does not have, but attempts: a process that is killed loses the lines that
were being asked and those whose results were on their way, and they are asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from proxy.config import BatchesSection
from proxy.control import BatchWork
from proxy.metrics import BatchLines, BatchNumbers
from proxy.principals import Principal
from proxy.tracebacks import frames_of

from .held import Batch, Held
from .lanes import UNREADABLE_S, Lanes, Traffic, cancelled
from .line import Asker, Asking
from .model_lanes import ModelLanes
from .pace import ceiling_of
from .rates import Rates, by_its_average
from .schedule import Hours, Work, by_model, share_at
from .steps import REVOKED, Steps
from .storage import Results, Storage
from .store import BatchStore
from .values import Committed, Done, Progress, Window, Worker
from .wanted import asked_for, work_of

TICK_S = 0.1
LOOK_EVERY_S = 1.0
BEAT_EVERY_S = 3.0
STEPS_EVERY_S = 1.0
STATES_EVERY_S = 5.0

LEAVING_S = 60.0
"""So long lines may go on that run when their batch is paused or cancelled."""

MOST_WINDOWS = 16
"""Of one model that are held at once and do not rest."""


KEY_GONE_S = 3.0
"""So long a key must be missing: it may have been made a moment ago, in another process."""


class Control(Protocol):
    """Of `proxy.control.Control` what is asked here."""

    def endpoints(self) -> Mapping[str, int]: ...

    def seats(self, model: str) -> int | None: ...

    def tell_batches(self, work: Mapping[str, BatchWork], process: object = None) -> None: ...


class BatchRunner:
    """worker      who this process is, for the database
    census         batches by state
    principal_of   whose a key is now; None for one that is no longer valid
    processes      that serve in this gateway, each with a runner
    on_stop        called when this stops: steps are to end early
    grace_s        how long running lines may go on when this stops
    """

    def __init__(
        self,
        store: BatchStore,
        steps: Steps,
        asking: Asking,
        worker: Worker,
        *,
        census: Callable[[], Mapping[str, int]],
        control: Control,
        traffic: Traffic,
        principal_of: Callable[[str], Principal | None],
        section: BatchesSection,
        processes: int,
        grace_s: float,
        on_stop: Callable[[], None],
        log: FilteringBoundLogger,
    ) -> None:
        self.rates = Rates()
        self._store = store
        self._steps = steps
        self._worker = worker
        self._census = census
        self._control = control
        self._principal_of = principal_of
        self._processes = processes
        self._grace_s = grace_s
        self._on_stop = on_stop
        self._log = log
        self._storage = Storage(log)
        self._step_storage = Storage(log)  # a step may take long
        self._results = Results(self._storage, store.commit, self._committed)
        self.lanes = Lanes(asking, self._storage, self._results, traffic, log)
        self._models: dict[str, ModelLanes] = {}
        self._batches: dict[str, Batch] = {}
        self._held: dict[tuple[str, int], Held] = {}
        self._known: dict[str, Progress] = {}
        self._works: dict[str, list[Work]] = {}
        self._keyless: dict[str, float] = {}
        self._states: Mapping[str, int] = {}
        self._share = 1.0
        self.looks = 0
        self._stopping = False
        self._wake = asyncio.Event()
        self._step_wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._look_at = self._beat_at = self._states_at = 0.0
        self.configure(section)

    # -- life ---------------------------------------------------------------------------------------------------------

    def configure(self, section: BatchesSection) -> None:
        """Go by other settings from now on."""
        self._section = section
        self.lanes.attempts = section.attempts
        self._hours = tuple(Hours(entry.days, entry.start, entry.end, entry.share) for entry in section.hours)
        self.wake()

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._run(), name="batches"),
            asyncio.create_task(self._results.keep_committing(), name="batch results"),
            asyncio.create_task(self._take_steps(), name="batch steps"),
        ]

    def wake(self) -> None:
        """Something is new: a batch was created, cancelled, paused."""
        self._look_at = 0.0
        self._wake.set()
        self._step_wake.set()

    async def stop(self) -> None:
        """Start nothing more, let running lines end within the grace, commit, and give back what is left.

        What the database does not take within the grace is left as it is: the next worker finds it.
        """
        if self._stopping:
            return
        self._stopping = True
        self._on_stop()
        looking, committing, stepping = self._tasks
        await cancelled([looking, stepping])
        await self.lanes.stop(self._models.values(), self._grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, self._grace_s)):
                await self._results.empty()
                for held in tuple(self._held.values()):
                    await self._storage(self._store.give_back, held.window, 0.0, held.attempts)
                await self._storage(self._store.release, self._worker)
        await cancelled([committing])
        self._control.tell_batches({})
        for held in tuple(self._held.values()):
            self._forget(held)
        await asyncio.to_thread(self._storage.close)
        await asyncio.to_thread(self._step_storage.close)

    # -- what is asked ------------------------------------------------------------------------------------------------

    def done_at(self, batch_id: str, done: int, total: int, began_at: float | None) -> float | None:
        """When a batch that is in progress will be done, in seconds since the epoch; None where nobody can tell."""
        now = time.time()
        found = self.rates.done_at(batch_id, now)
        return found if found or began_at is None else by_its_average(done, total, began_at, now)

    def models(self) -> Iterable[ModelLanes]:
        return self._models.values()

    def numbers(self) -> BatchNumbers:
        """For metrics."""
        lines = [BatchLines(name, one.completed, one.failed, one.in_flight) for name, one in self._models.items()]
        return BatchNumbers(lines, self._states)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._turn(time.monotonic())
            except Exception as problem:  # a mistake of ours must not end all batches
                self._log.error("batches_failed", exception=frames_of(problem))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()

    async def _turn(self, now: float) -> None:
        if now >= self._beat_at:
            if not await self._storage(self._store.beat, self._worker):
                for held in tuple(self._held.values()):  # taken for dead: what we hold may be another's by now
                    self._drop(held)
            self._beat_at = time.monotonic() + BEAT_EVERY_S
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            await self._look()
            if now >= self._states_at:
                self._states_at = now + STATES_EVERY_S
                self._states = await self._storage(self._census)
        for model in tuple(self._models.values()):
            await self._claim(model)
            self.lanes.fill(model)

    async def _look(self) -> None:
        """What there is to do now; and what is held and shall not be done any more is let go."""
        known = await self._storage(self._store.active)
        self._known = {progress.batch.id: progress for progress in known}
        works = [work_of(progress) for progress in known]
        now, wall = time.monotonic(), time.time()
        self.rates.look(works, wall)
        self._works = dict(by_model(works))
        for name in self._works:
            if name not in self._models:
                self._models[name] = ModelLanes(name)
        for held in tuple(self._held.values()):
            if held.window.batch_id in self._known:
                held.leaving_at = None
            else:
                await self._let_go(held, now)
        await self._check_keys()
        self._set_paces(now)
        self._tell(wall)
        self.looks += 1

    def _set_paces(self, now: float) -> None:
        local = datetime.now().astimezone()
        second = (local.hour * 60 + local.minute) * 60 + local.second
        share = share_at(self._hours, local.weekday(), second, only_in_hours=self._section.only_in_hours)
        self.lanes.look_around(
            now
        )  # while there is no batch, too: whoever asked long before the first one is no company
        for name, model in self._models.items():
            self.lanes.look_around(now, model)
            seats = self._control.seats(name)
            if seats == 0:
                model.cold, model.cold_at = True, now
            elif model.cold:
                model.cold = False
                model.pace.go_on()
            ceiling = ceiling_of(
                self._section.max_in_flight,
                share,
                seats,
                processes=self._processes,
                beside_others=self.lanes.courtesy.beside_others(now),
                others=model.others.number,
            )
            model.pace.set_ceiling(ceiling, known=bool(seats))
        self._share = share

    def _tell(self, wall: float) -> None:
        """What the launcher is to know."""
        works = self._works if self._share else {}
        in_flight = {name: model.in_flight for name, model in self._models.items()}
        self._control.tell_batches(asked_for(works, in_flight, self.rates, self._control.endpoints(), wall))

    async def _check_keys(self) -> None:
        """The keys of batches, as they are now; a batch whose key is no longer valid is given up."""
        for progress in tuple(self._known.values()):
            batch = progress.batch
            principal = self._principal_of(batch.key_id)
            running = self._batches.get(batch.id)
            if principal is not None:
                self._keyless.pop(batch.id, None)
            elif time.monotonic() - self._keyless.setdefault(batch.id, time.monotonic()) >= KEY_GONE_S:
                del self._keyless[batch.id]
                await self._storage(self._steps.abandon, batch.id, REVOKED)
                self._step_wake.set()
            if running is not None and principal is not None and running.asker.principal is not principal:
                running.asker = Asker(batch.id, batch.endpoint, principal)

    # -- windows ------------------------------------------------------------------------------------------------------

    async def _claim(self, model: ModelLanes) -> None:
        """Windows for a model, until it has enough."""
        while not self._stopping and model.pace.limit:
            now, wall = time.monotonic(), time.time()
            resting = model.resting(now)
            busy = sum(not held.rests(now) for held in model.held)
            if busy >= MOST_WINDOWS or not model.wants_more(now):
                return
            works = [work for work in self._works.get(model.name, ()) if work.batch_id not in resting]
            rate = self.rates.tokens_per_s(model.name)
            work = model.turns.next(works, rate, wall)
            if work is None:
                return
            window = await self._storage(self._store.claim_window, self._worker, work.batch_id, model.name)
            if window is None:  # the others have what is left of it
                self._works[model.name].remove(work)
                continue
            model.turns.took(work, rate, wall)
            await self._take(model, window)
            self.lanes.fill(model)

    async def _take(self, model: ModelLanes, window: Window) -> None:
        batch = self._batches.get(window.batch_id) or await self._open(window)
        if batch is None:
            return
        batch.windows += 1
        held = Held(window, batch)
        self._held[window.batch_id, window.window_no] = held
        model.held.append(held)
        if not held.left:
            await self._let_go(held, time.monotonic())

    async def _open(self, window: Window) -> Batch | None:
        """The batch of a window, its input open. None where it cannot be run: then the window is given back."""
        known = self._known.get(window.batch_id)
        principal = self._principal_of(known.batch.key_id) if known is not None else None
        not_before = 0.0
        if known is not None and principal is not None:
            try:
                file = await self._storage.once(self._steps.open_input, known.batch)
            except FileNotFoundError:  # then the batch has been ended
                self.wake()
            except (OSError, SQLAlchemyError) as error:
                self._log.error("batch_input_not_read", batch=window.batch_id, reason=type(error).__name__)
                not_before = time.time() + UNREADABLE_S
            else:
                asker = Asker(window.batch_id, known.batch.endpoint, principal)
                batch = self._batches[window.batch_id] = Batch(asker, known.batch.key_id, file)
                return batch
        await self._storage(self._store.give_back, window, not_before)
        return None

    async def _let_go(self, held: Held, now: float) -> None:
        """Its batch is paused, cancelled, over: begin nothing more; it is given back when nothing of it runs."""
        if held.leaving_at is None:
            held.leaving_at = now
        if not held.idle:
            if now - held.leaving_at >= LEAVING_S:
                for lane in tuple(held.lanes):
                    lane.cancel()
            return
        self._forget(held)
        await self._storage(self._store.give_back, held.window, 0.0, held.attempts)

    def _drop(self, held: Held) -> None:
        """It is another's."""
        held.dropped = True
        for lane in tuple(held.lanes):
            lane.cancel()
        self._forget(held)

    def _forget(self, held: Held) -> None:
        self._held.pop((held.window.batch_id, held.window.window_no), None)
        model = self._models[held.window.model]
        if held in model.held:
            model.held.remove(held)
        if held.batch.leave():
            self._batches.pop(held.window.batch_id, None)

    def _committed(self, group: Sequence[Done], committed: Committed) -> None:
        """Results are in the database, but those of windows that are another's by now."""
        models = set()
        for done in group:
            held = self._held.get((done.batch_id, done.window_no))
            if held is None or held.window.epoch != done.epoch:
                continue
            held.left -= 1
            held.pending -= 1
            models.add(held.window.model)
            if (done.batch_id, done.window_no) in committed.lost:
                self._drop(held)
            elif held.left == 0:
                self._forget(held)
                self._wake.set()
        if committed.answered:
            self._step_wake.set()
        for name in models:
            self.lanes.fill(self._models[name])

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _take_steps(self) -> None:
        while True:
            self._step_wake.clear()
            step = await self._storage(self._store.claim_step, self._worker)
            if step is not None:
                try:
                    await self._step_storage(self._steps.run, step)
                except Exception as problem:  # a mistake of ours must not end all batches
                    exception = frames_of(problem)
                    self._log.error("batch_step_failed", batch=step.batch.id, step=step.kind.value, exception=exception)
                else:
                    self._look_at = 0.0
                    self._wake.set()
                    continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEPS_EVERY_S):
                    await self._step_wake.wait()
