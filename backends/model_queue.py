"""Requests that wait for a place at one model: their order is the waiting line's, here are their clocks.

Each has a timer for when it has waited too long. While there is anybody, one task listens to the launcher, and one
timer waits for the next replica whose rest or cool-down ends; when there is nobody, there is nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .errors import GatewayError, NotTheEngine, QueueFull, Unavailable
from .places import Outcome, Priority, Seat, Want
from .replica_set import Replica, ReplicaSet
from .waiting_line import WaitingLine

OnWait = Callable[[str, Priority, float], None]
"""(model, class, seconds that a request has waited, with or without success)"""

COLD_RETRY_S = 10.0
"""When to try again where a replica is on its way: nobody can tell better."""

LAST_MOMENT_S = 0.1
"""A place that is had only this long before the deadline is of no use."""


class Waiter:
    """A request in line. `seat` is set when it is its turn, or when it is not to wait any longer."""

    __slots__ = ("joined", "owner", "priority", "seat", "timer", "tokens", "want")

    def __init__(self, want: Want, seat: asyncio.Future[Seat], joined: float) -> None:
        self.want = want
        self.owner = want.owner
        self.priority = want.priority
        self.tokens = want.tokens
        self.seat = seat
        self.joined = joined
        self.timer: asyncio.TimerHandle | None = None


class ModelQueue:
    """full, late   requests refused so far: because too many waited, because they had waited too long

    seated          makes the seat of a request at a replica
    on_shortage     called when a request begins to wait
    """

    def __init__(
        self,
        model: str,
        replicas: ReplicaSet,
        seated: Callable[[Replica, Want, float], Seat],
        *,
        on_shortage: Callable[[], None],
        on_wait: OnWait | None,
        clock: Callable[[], float],
    ) -> None:
        self.line: WaitingLine[Waiter] = WaitingLine()
        self.full = 0
        self.late = 0
        self._model = model
        self._replicas = replicas
        self._seated = seated
        self._on_shortage = on_shortage
        self._on_wait = on_wait
        self._clock = clock
        self._listener: asyncio.Task[None] | None = None
        self._cool: asyncio.TimerHandle | None = None

    async def seat(self, want: Want) -> Seat:
        """A seat, after a wait. Raises `QueueFull` and `Unavailable`, each with an honest retry-after."""
        replicas = self._replicas
        replicas.refresh()
        if replicas.is_cold(want.avoid):
            replicas.launcher.need(self._model)
            why, retry_after_s = replicas.launcher.outlook(self._model)
            replicas.ask_strangers(self._clock())
            if retry_after_s is not None:
                raise self._cold(why, retry_after_s)
        most = replicas.rules.queue_size + replicas.lent  # what is lent is called in for those in line
        if len(self.line) >= most and not want.avoid:
            # who has been let in once is not refused for that: it comes back from a replica that failed it
            now = self._clock()
            if not self.line and (replica := replicas.find_for(want, now)) is not None:
                return self._seated(replica, want, now)
            self.full += 1
            raise self._queue_full(want.priority)
        return await self._in_line(want)

    async def _in_line(self, want: Want) -> Seat:
        waiter = Waiter(want, asyncio.get_running_loop().create_future(), self._clock())
        self.line.add(waiter, first=bool(want.avoid))
        try:
            self.move_up()
            if not waiter.seat.done():
                self._on_shortage()
                self._listen()
                self._set_timer(waiter)
            return await waiter.seat
        except asyncio.CancelledError:
            if not waiter.seat.cancelled() and waiter.seat.done() and waiter.seat.exception() is None:
                waiter.seat.result().leave(Outcome.ABANDONED)  # its turn came in the very moment in which it left
            raise
        finally:
            if waiter.timer is not None:
                waiter.timer.cancel()
            if not waiter.seat.done() or waiter.seat.cancelled():
                self.line.remove(waiter)
            if self._on_wait is not None:
                self._on_wait(self._model, want.priority, self._clock() - waiter.joined)
            if not self.line:
                self._rest()

    def move_up(self) -> None:
        """Give what room there is to those whose turn it is."""
        replicas, now = self._replicas, self._clock()

        def can(waiter: Waiter) -> bool:
            return not waiter.seat.done() and replicas.find_for(waiter.want, now) is not None

        while self.line and replicas.has_room(now):
            waiter = self.line.pop(can)
            replica = replicas.find_for(waiter.want, now) if waiter is not None else None
            if waiter is None or replica is None:
                break
            waiter.seat.set_result(self._seated(replica, waiter.want, now))
        if self.line:
            self._look_again(now)

    def changed(self) -> None:
        """Replicas have come, gone, or come back to rotation: other clocks may run for those in line."""
        if not self.line:
            return
        self.move_up()
        if self._replicas.are_strangers():
            self._send_away()
        for waiter in tuple(self.line):
            self._set_timer(waiter)

    def refuse_all(self, why: str) -> None:
        for waiter in tuple(self.line):
            self._refuse(waiter, Unavailable(why, retry_after_s=5.0))
        self._rest()

    # -- what happens meanwhile ---------------------------------------------------------------------------------------

    def listen_anew(self) -> None:
        """To another launcher."""
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None
            self._listen()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listening(), name=f"queue of {self._model}")

    async def _listening(self) -> None:
        """Whenever the launcher has news, those included that came before this was begun."""
        replicas = self._replicas
        while True:
            replicas.refresh()
            self.move_up()
            self._send_away()
            await replicas.launcher.changed(self._model)

    def _send_away(self) -> None:
        """Those for whom there is no replica, where waiting does not help."""
        replicas = self._replicas
        cold = [waiter for waiter in self.line if replicas.is_cold(waiter.want.avoid)]
        if not cold:
            return
        why, retry_after_s = replicas.launcher.outlook(self._model)
        if retry_after_s is not None:
            for waiter in cold:
                self._refuse(waiter, self._cold(why, retry_after_s))

    def _look_again(self, now: float) -> None:
        """When time alone will have given a replica back: nothing else may happen until then."""
        self._replicas.ask_strangers(now)
        if self._cool is not None:
            self._cool.cancel()
            self._cool = None
        times = [at for replica in self._replicas.replicas if (at := replica.free_again_at(now)) is not None]
        if times:
            self._cool = asyncio.get_running_loop().call_later(min(times) - now + 1e-3, self.move_up)

    def _rest(self) -> None:
        """Nobody waits."""
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None
        if self._cool is not None:
            self._cool.cancel()
            self._cool = None

    # -- no place -----------------------------------------------------------------------------------------------------

    def _set_timer(self, waiter: Waiter) -> None:
        """Refuse a request that has waited for too long, or come back when it will have."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        if waiter.seat.done():
            return
        now, deadline, rules = self._clock(), waiter.want.deadline, self._replicas.rules
        cold = self._replicas.is_cold(waiter.want.avoid)
        if cold:
            end = waiter.joined + rules.replica_wait_s
        else:
            end = max(waiter.joined, self._replicas.since) + rules.queue_wait_s
        at = end if deadline is None else min(end, deadline - LAST_MOMENT_S)
        if now < at:
            waiter.timer = asyncio.get_running_loop().call_later(at - now, self._set_timer, waiter)
        else:
            self.late += 1
            self._refuse(waiter, self._too_late(waiter, now, cold=cold, deadline=at < end))

    def _cold(self, why: str, retry_after_s: float) -> GatewayError:
        if not self._replicas.are_strangers():
            return Unavailable(why, retry_after_s=retry_after_s)
        error = NotTheEngine(
            f"What answers for {self._model} is not its engine: it refused the gateway's own key, or is no engine.",
            code="engine_authentication_failed",
        )
        error.retry_after_s = retry_after_s
        return error

    def _refuse(self, waiter: Waiter, error: GatewayError) -> None:
        if not waiter.seat.done():
            self.line.remove(waiter)
            waiter.seat.set_exception(error)

    def _too_late(self, waiter: Waiter, now: float, *, cold: bool, deadline: bool) -> Unavailable:
        waited = f"{now - waiter.joined:.0f} s"
        code = "deadline_exceeded" if deadline else None if cold else "queue_timeout"
        if cold:
            why, _ = self._replicas.launcher.outlook(self._model)
            if deadline:
                why = f"{why} The client's deadline came first, after {waited}."
            return Unavailable(why, code=code, retry_after_s=COLD_RETRY_S)
        if deadline:
            why = f"{self._model} is busy: the client's deadline came before this request's turn, after {waited}."
        else:
            others = len(self.line) - 1
            why = f"{self._model} is busy: this request has waited {waited} without its turn, beside {others} others."
        return Unavailable(why, code=code, retry_after_s=self.wait_s(waiter.priority))

    def _queue_full(self, priority: Priority) -> QueueFull:
        count = len(self.line)
        wait_s = self.wait_s(priority)
        if self._replicas.replicas:
            why = f"{self._model} is busy: {count} requests wait already, and one more would for about {wait_s:.0f} s."
        else:
            why, _ = self._replicas.launcher.outlook(self._model)
            why = f"{why} {count} requests wait for it already."
            wait_s = COLD_RETRY_S
        return QueueFull(why, retry_after_s=wait_s)

    def wait_s(self, priority: Priority) -> float:
        """How long a newcomer of this class would wait, by what was measured."""
        return self._replicas.rate.wait_s(self.line.before(priority), self._replicas.in_flight)
