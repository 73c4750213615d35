"""Main's side of the workers: starts them, puts others in the place of those that die, ends them.

A worker gets its listening socket, the operators' socket and its end of the link as open files; everything else,
secrets among it, comes over the link. It is in a session of its own, so that a terminal's Ctrl-C reaches main alone,
which then ends the workers in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from structlog.typing import FilteringBoundLogger

from backends.errors import GatewayError
from proxy.config import Config
from proxy.metrics import State

from .desk import Deciders, Desk, Principals
from .link import Link, LinkLost
from .messages import Models, Start, config_to, models_to, start_to
from .restarts import AT_MOST, Restarts
from .tally import Tally

# `-m` would look for us in the working directory first; so only where this process was started from its sources there
_NOT_FROM_HERE = () if os.getcwd() in sys.path or "" in sys.path else ("-P",)
COMMAND = (sys.executable, *_NOT_FROM_HERE, "-m", "proxy.workers")
ANSWER_S = 2.0
"""A worker that has not told its numbers by then counts with those it told last."""

CONFIGURE_S = 30.0
PING_EVERY_S = 5.0
PONG_S = 30.0
"""Beyond the longest that something may stand in the loop's way, such as a first import of litellm."""

LOOK_S = 0.2
"""Between two looks at what is new about the models."""

SLACK_S = 5.0
"""Beyond the grace, for writing usage and log; then a worker that has not ended is killed."""


class WorkersKeepDying(Exception):
    """Starting one more would not help. The message is for the operator."""


class Worker:
    """One worker's place: its socket stays, the processes on it come and go.

    pid     of the process there now, 0 for none
    ready   it serves
    link    None while there is no process
    missed  pings in a row that it did not answer
    """

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.restarts = Restarts()
        self.ready = asyncio.Event()
        self.missed = 0
        self.link: Link | None = None
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0


class Supervisor:
    """All workers.

    listeners      one for each (sockets.py)
    operators      the operators' socket, which all of them accept from; None for none
    start          the first message to a worker that starts now
    deciders       what answers their questions
    own_metrics    this process' own numbers
    models         what there is to say of the models now
    grace_s        how long streams may go on after `end`
    command        starts a worker; gets the open files as further arguments
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        operators: socket.socket | None,
        *,
        start: Callable[[], Start],
        deciders: Callable[[Supervisor], Deciders],
        own_metrics: Callable[[], State],
        models: Callable[[], Models],
        grace_s: float,
        log: FilteringBoundLogger,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.workers = [Worker(number, listener) for number, listener in enumerate(listeners, 1)]
        self._operators = operators
        self._start = start
        self._deciders = deciders(self)
        self._own_metrics = own_metrics
        self._models = models
        self._grace_s = grace_s
        self._log = log
        self._command = tuple(command)
        self._principals = Principals()
        self._tally = Tally()
        self._shown: Models = {}
        self._ends = 0
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Until `end`, and all workers have ended. Raises `WorkersKeepDying`, after having ended the others."""
        beside = [
            asyncio.create_task(self._look_at_models(), name="models for the workers"),
            asyncio.create_task(self._watch(), name="watch over the workers"),
        ]
        keeping = [asyncio.create_task(self._keep(worker), name=f"worker {worker.number}") for worker in self.workers]
        try:
            await asyncio.wait(keeping, return_when=asyncio.FIRST_EXCEPTION)
            if not self._ends:
                self.end()
            await asyncio.wait(keeping)
            for task in keeping:
                task.result()
        finally:
            for task in (*beside, *keeping):
                task.cancel()
            await asyncio.gather(*beside, *keeping, return_exceptions=True)
            self._close_sockets()

    async def all_ready(self) -> None:
        """Return when each place has a worker that serves."""
        for worker in self.workers:
            await worker.ready.wait()

    def end(self) -> None:
        """Accept nothing more, stop when the last answer is whole; told twice, do not wait for that."""
        self._ends += 1
        self._ending.set()
        if self._ends > 1:
            self._hurry.set()
        self._close_sockets()
        self._tell("stop")

    def _close_sockets(self) -> None:
        """Ours; each worker closes its own. What waits in them unaccepted is refused, as with one process."""
        for listener in (*(worker.listener for worker in self.workers), self._operators):
            if listener is not None:
                listener.close()

    # -- one worker's place -------------------------------------------------------------------------------------------

    async def _keep(self, worker: Worker) -> None:
        while not self._ending.is_set():
            begun = time.monotonic()
            status: int | str
            try:
                status = await self._live(worker)
            except OSError as error:  # no process, no descriptor: perhaps there will be, later
                status = f"not started: {error.strerror}"
            if self._ending.is_set():
                return
            lived_s = time.monotonic() - begun
            rest_s = worker.restarts.died(lived_s)
            self._log.error(
                "worker_died", worker=worker.number, status=status, lived_s=round(lived_s, 3), again_in_s=rest_s
            )
            if rest_s is None:
                raise WorkersKeepDying(
                    f"worker processes end as soon as they have started: {AT_MOST} in a row, the last one with status "
                    f"{status}. What they said of it is in the log."
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._ending.wait()

    async def _live(self, worker: Worker) -> int:
        """One process, from its start to its end. Returns its exit status, negative for a signal."""
        ours, theirs = socket.socketpair()
        files = [worker.listener, *([self._operators] if self._operators is not None else [])]
        arguments = ["--link", str(theirs.fileno()), "--listen", *(str(file.fileno()) for file in files)]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *(file.fileno() for file in files)],
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker.process = process
        lost = asyncio.Event()
        desk = Desk(self._deciders, self._principals, self._log)

        def lose() -> None:
            lost.set()
            desk.gone()

        link = Link(desk.asked(), {**desk.told(), "ready": worker.ready.set}, lose)
        desk.open(link)
        try:
            await link.open(ours)
            worker.link = link
            link.tell("start", start_to(self._start()))
            if self._ends:
                link.tell("stop")
            try:
                return await self._ended(process, lost)
            finally:
                link.close()
                await lost.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._tally.died(worker.number)
            worker.ready.clear()
            worker.link = worker.process = None

    async def _ended(self, process: asyncio.subprocess.Process, lost: asyncio.Event) -> int:
        """Wait for the end of a worker: by itself, after the grace, or because it cannot be spoken with any more."""
        waiting = asyncio.create_task(process.wait(), name="a worker's end")
        cut = asyncio.create_task(lost.wait(), name="a worker's silence")
        ending = asyncio.create_task(self._until_over(), name="a worker's grace")
        try:
            await asyncio.wait((waiting, cut, ending), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and not ending.done():
                await asyncio.wait((waiting,), timeout=SLACK_S)  # it has closed the link: it is on its way out
            if not waiting.done():
                process.kill()
            return await waiting
        finally:
            for task in (waiting, cut, ending):
                task.cancel()
            await asyncio.gather(waiting, cut, ending, return_exceptions=True)

    async def _until_over(self) -> None:
        """Until a worker has had all the time that it gets for ending."""
        await self._ending.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s):
                await self._hurry.wait()
        await asyncio.sleep(SLACK_S)

    # -- telling all --------------------------------------------------------------------------------------------------

    def _tell(self, verb: str, *values: Any) -> None:
        for worker in self.workers:
            if worker.link is not None:
                worker.link.tell(verb, *values)

    async def broadcast(self, verb: str, *values: Any, timeout_s: float) -> dict[int, Any]:
        """Ask all workers at once: their answers, by the worker's number. Those that die meanwhile, fail at it, or do
        not answer in time, are not among them."""
        asked = {
            worker.number: asyncio.create_task(worker.link.ask(verb, *values), name=f"{verb} of worker {worker.number}")
            for worker in self.workers
            if worker.link is not None
        }
        if asked:
            await asyncio.wait(asked.values(), timeout=timeout_s)
        answers: dict[int, Any] = {}
        for number, task in asked.items():
            if not task.done():
                task.cancel()
                self._log.error("worker_silent", worker=number, question=verb, timeout_s=timeout_s)
                continue
            try:
                answers[number] = task.result()
            except LinkLost:
                pass
            except GatewayError as error:
                self._log.error("worker_failed", worker=number, question=verb, error=error.message)
        return answers

    async def configure(self, config: Config) -> None:
        """Have all workers go by another configuration, which has been checked. Returns when they do.

        Those that start from now on get it from `start`, so that one has to give it by then. Who does not answer, or
        fails at it, is ended, and the next one in its place starts with it.
        """
        asked = [(worker, worker.process) for worker in self.workers if worker.link is not None]
        self._show_models()
        answers = await self.broadcast("configure", config_to(config), timeout_s=CONFIGURE_S)
        for worker, process in asked:
            if worker.number not in answers and process is not None and process is worker.process:
                process.kill()

    async def metrics(self) -> State:
        """Of all processes together."""
        for number, state in (await self.broadcast("metrics", timeout_s=ANSWER_S)).items():
            self._tally.heard(number, state)
        return self._tally.total(self._own_metrics())

    async def _watch(self) -> None:
        """A worker that hangs keeps its share of the connections: it is ended, and another one takes its place."""
        while True:
            await asyncio.sleep(PING_EVERY_S)
            asked = [(worker, worker.process) for worker in self.workers if worker.ready.is_set()]
            answers = await self.broadcast("ping", timeout_s=PONG_S)
            for worker, process in asked:
                if worker.number in answers or process is not worker.process or process is None:
                    worker.missed = 0
                    continue
                worker.missed += 1  # once is nothing: it may be us who were stopped
                if worker.missed > 1:
                    process.kill()

    async def _look_at_models(self) -> None:
        while True:
            self._show_models()
            await asyncio.sleep(LOOK_S)

    def _show_models(self) -> None:
        models = self._models()
        if models != self._shown:
            self._shown = models
            self._tell("models", models_to(models))
