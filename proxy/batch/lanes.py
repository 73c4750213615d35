"""The lanes: tasks that ask one line after the other, of what was claimed, as many as the pace allows.

A lane lives as long as there is work for it, so a line costs neither a task nor a future of its own. What becomes of a
line goes to `Results`; what is to be asked again, back to its window.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from backends.errors import GatewayError
from proxy.tracebacks import frames_of

from .held import Held, read
from .line import DEATHS, FIRST_WAIT_S, Again, Answered, Asking, Waits, backoff_s, given_up
from .model_lanes import ModelLanes
from .pace import Courtesy
from .storage import Results, Storage
from .values import Done, LineRef

IN_FLIGHT_BYTES = 6 * 1024 * 1024
"""Of lines that are asked, in all; one is always asked."""

UNREADABLE_S = 30.0
MOST_REST_S = 300.0
"""A budget may be raised before it begins anew."""


class Traffic(Protocol):
    """Requests that somebody waits for: `proxy.dispatch.Dispatcher`."""

    @property
    def interactive(self) -> int: ...
    @property
    def interactive_now(self) -> int: ...
    @property
    def interactive_at(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """Of a line that was asked at `began` (of time.monotonic()), beside so many others."""

    line: LineRef
    data: bytes
    again: Again
    began: float
    in_flight: int


class Lanes:
    """attempts   that a line has, at most"""

    def __init__(
        self, asking: Asking, storage: Storage, results: Results, traffic: Traffic, log: FilteringBoundLogger
    ) -> None:
        self.attempts = 1
        self.courtesy = Courtesy()
        self._asking = asking
        self._storage = storage
        self._results = results
        self._traffic = traffic
        self._log = log
        self._bytes = 0
        self._stopping = False
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="batch input")
        self._reading: set[asyncio.Task[None]] = set()

    def look_around(self, now: float, model: ModelLanes | None = None) -> None:
        """Whether somebody else asks, now or since the last look, and how many ask this model."""
        traffic = self._traffic
        others = -time.monotonic_ns() if traffic.interactive_now else traffic.interactive
        self.courtesy.look(others, now)
        if model is not None:
            model.others.look(traffic.interactive_at.get(model.name, 0), now)

    def fill(self, model: ModelLanes) -> None:
        """Read what is needed next, and start lanes for what is ready."""
        now = time.monotonic()
        for held in model.held:
            held.wake(now)
            self._read_ahead(model, held)
        missing = min(model.pace.limit - len(model.lanes), model.ready(now))
        while missing > 0 and self._may_start(model, now):
            missing -= 1
            lane = asyncio.create_task(self._lane(model), name="batch lane")
            model.lanes.add(lane)
            lane.add_done_callback(model.lanes.discard)

    async def stop(self, models: Iterable[ModelLanes], grace_s: float) -> None:
        """Start nothing more; what runs may end within the grace."""
        self._stopping = True
        lanes = [lane for model in models for lane in model.lanes]
        if lanes:
            _, late = await asyncio.wait(lanes, timeout=grace_s)
            await cancelled(late)
        await cancelled(self._reading)
        self._readers.shutdown(wait=False)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_ahead(self, model: ModelLanes, held: Held) -> None:
        if held.reading or not held.hungry or self._stopping:
            return
        lines = held.to_read()
        if lines:
            reading = asyncio.create_task(self._read(model, held, lines), name="batch input")
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)

    async def _read(self, model: ModelLanes, held: Held, lines: Sequence[LineRef]) -> None:
        batch = held.batch
        batch.windows += 1  # its file stays open
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._readers, read, batch.file, lines)
        except OSError as error:
            held.not_read(lines)
            batch.rests_until = time.monotonic() + UNREADABLE_S
            self._log.error("batch_input_not_read", batch=batch.asker.batch_id, reason=str(error))
        else:
            held.have_read(lines, data)
            self.fill(model)
        finally:
            batch.leave()

    # -- asking -------------------------------------------------------------------------------------------------------

    def _may_start(self, model: ModelLanes, now: float) -> bool:
        return (
            not self._stopping
            and self._storage.well
            and not self._results.full
            and model.in_flight < model.pace.limit
            and not model.pace.rests_s(now)
            and self._bytes < IN_FLIGHT_BYTES
        )

    async def _lane(self, model: ModelLanes) -> None:
        """Asks one line after the other, while there are any and none too many are asked."""
        lane = asyncio.current_task()
        assert lane is not None  # noqa: S101  # told to the type checker
        now = time.monotonic()
        while self._may_start(model, now) and (found := model.next(now)) is not None:
            held, line, data = found
            if held.hungry:
                self._read_ahead(model, held)
            await self._ask(lane, model, held, line, data)
            now = time.monotonic()

    async def _ask(self, lane: asyncio.Task[None], model: ModelLanes, held: Held, line: LineRef, data: bytes) -> None:
        held.lanes.add(lane)
        model.in_flight += 1
        self._bytes += len(data)
        try:
            began = time.monotonic()
            self.look_around(began, model)
            if (wait_s := self.courtesy.wait_s(began)) > 0:
                await asyncio.sleep(wait_s)
                began = time.monotonic()
            outcome = await self._asking.ask(held.batch.asker, line.line_no, data)
        except asyncio.CancelledError:
            held.put_back(line, data)
            raise
        except Exception as problem:  # a mistake of ours is this line's failure, and not the others'
            self._log.error("unexpected_error", endpoint=held.batch.asker.endpoint, exception=frames_of(problem))
            error = GatewayError("The gateway made a mistake; its log has the details.", code="internal_error")
            outcome = Again(error, Waits.LINE, FIRST_WAIT_S, counts=True)
        finally:
            held.lanes.discard(lane)
            in_flight = model.in_flight
            model.in_flight -= 1
            self._bytes -= len(data)
        if held.dropped:
            return
        if isinstance(outcome, Again):
            again = self._ask_again(model, held, Failure(line, data, outcome, began, in_flight))
            if again is None:
                return
            outcome = again
        elif outcome.waited and began > model.cold_at:
            model.pace.crowded(began, in_flight, time.monotonic())
        else:
            model.pace.served(in_flight)
        self._finish(model, held, line, outcome)

    def _ask_again(self, model: ModelLanes, held: Held, failure: Failure) -> Answered | None:
        """Remember when; or the line's last word, after too many attempts."""
        now = time.monotonic()
        line, data, again = failure.line, failure.data, failure.again
        match again.waits:
            case Waits.BATCH:
                held.put_back(line, data)
                held.batch.rests_until = max(held.batch.rests_until, now + rest_s(again.wait_s))
            case Waits.MODEL:
                held.put_back(line, data)
                if failure.began > model.cold_at:
                    model.pace.crowded(failure.began, failure.in_flight, now)
                model.pace.rest(now + rest_s(again.wait_s))
            case Waits.LINE:
                if again.died:
                    times, most = held.lost_engine(line), DEATHS
                else:
                    times, most = held.failed(line), self.attempts
                if times >= most:
                    return given_up(held.batch.asker.batch_id, line.line_no, data, again.error)
                held.again(line, now + backoff_s(again.wait_s, times))
        return None

    def _finish(self, model: ModelLanes, held: Held, line: LineRef, answer: Answered) -> None:
        if answer.ok:
            model.completed += 1
        else:
            model.failed += 1
        window = held.window
        held.pending += 1
        self._results.put(
            Done(
                window.batch_id,
                window.window_no,
                window.epoch,
                line.line_no,
                answer.ok,
                answer.data,
                answer.prompt_tokens,
                answer.cached_tokens,
                answer.completion_tokens,
                answer.reasoning_tokens,
            )
        )


def rest_s(asked_s: float) -> float:
    """As long as was asked, and a little more, so that not everybody comes back at once."""
    return min(asked_s, MOST_REST_S) * (1 + random.random() / 10)  # noqa: S311


async def cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks, and return when they have ended."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
