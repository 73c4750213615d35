"""The children of one deliberation: who runs, until when, and which of them run twice.

A `Job` is one thing to be done: a seat's draft, a critic's ballot. It runs as one child, or, when that takes longer
than 95 % of its model's replies did, as two: the first to answer counts, the other is dropped. A job ends once: with
a reply, with the failure of its last child, or because its time is up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .budget import Budget, estimate_tokens
from .moves import Action, Ask, Drop, Failed, Message, Phase, Replied, Usage
from .trace import KEPT_CHARS, CallTrace, Trace

OUT_OF_TIME = "tribunal_out_of_time"

FREE = frozenset((400, 401, 403, 404, 413, 422, 429, 503))
"""Statuses of children that were refused before they cost anything."""

LEAST_S = 0.05
"""With less time than this nothing is asked any more."""


@dataclass(slots=True, eq=False)
class Job:
    """What is to be done. `about` is whatever the stage that wants it needs to know it by.

    until_s   when it has failed; infinite once its stream has begun
    hedge_at  when a second child is started; None: never
    """

    phase: Phase
    label: str
    model: str
    messages: Sequence[Message]
    params: Mapping[str, Any]
    until_s: float
    about: Any
    stream: bool = False
    index: int = 0
    hedge_at: float | None = None
    asks: list[int] = field(default_factory=list)
    began: bool = False


class Children:
    """Every change is an action in `actions`, an entry in the trace and a word to the budget."""

    __slots__ = ("_budget", "_calls", "_hedging", "_jobs", "_number", "_p95_s", "_t0", "actions", "trace")

    def __init__(
        self,
        budget: Budget,
        trace: Trace,
        now_s: float,
        *,
        hedging: bool,
        p95_s: Callable[[str], float | None],
    ) -> None:
        self._budget = budget
        self._hedging = hedging
        self._p95_s = p95_s
        self._jobs: dict[int, Job] = {}
        self._calls: dict[int, CallTrace] = {}
        self._number = 0
        self._t0 = now_s
        self.trace = trace
        self.actions: list[Action] = []

    @property
    def running(self) -> list[Job]:
        """Each once, in the order in which they began."""
        return list(dict.fromkeys(self._jobs.values()))

    def begin(self, job: Job, now_s: float) -> bool:
        """Start a job; False, and nothing happens, if the budget or the time does not allow it."""
        tokens = self._cost(job)
        if job.until_s - now_s < LEAST_S or not self._budget.affords(job.phase, tokens):
            return False
        if self._hedging and not job.stream:
            usual_s = self._p95_s(job.model)
            job.hedge_at = now_s + usual_s if usual_s is not None and usual_s > 0 else None
        self._ask(job, tokens, now_s, None)
        return True

    def hedge(self, now_s: float) -> None:
        """Start second children of the jobs that take too long."""
        for job in self.running:
            if job.hedge_at is None or now_s < job.hedge_at:
                continue
            job.hedge_at = None
            tokens = self._cost(job)
            # what the verdict needs is set aside; a hedge may take the rest
            if len(job.asks) == 1 and job.until_s - now_s >= LEAST_S and self._budget.affords(job.phase, tokens):
                self._ask(job, tokens, now_s, job.asks[0])

    def _cost(self, job: Job) -> int:
        return estimate_tokens(job.messages) + int(job.params.get("max_tokens") or 0)

    def _ask(self, job: Job, tokens: int, now_s: float, hedge_of: int | None) -> None:
        self._number += 1
        number = self._number
        self._budget.take(number, job.phase, tokens)
        job.asks.append(number)
        self._jobs[number] = job
        call = CallTrace(number, job.phase.value, job.label, job.model, now_s - self._t0, hedge_of)
        self._calls[number] = call
        self.trace.calls.append(call)
        self.actions.append(
            Ask(
                ask_id=number,
                phase=job.phase,
                model=job.model,
                messages=job.messages,
                params=job.params,
                stream=job.stream,
                timeout_s=job.until_s - now_s,
                label=job.label,
                hedge_of=hedge_of,
                index=job.index,
            )
        )

    # -- how a child ends -------------------------------------------------------------------------

    def replied(self, event: Replied, now_s: float) -> Job | None:
        """The job that is done with it; None for a child that nobody waits for any more."""
        job = self._ended(event.ask_id, event.usage, now_s)
        call = self._calls.get(event.ask_id)
        if job is None or call is None:
            return None
        call.outcome, call.finish_reason, call.served_by = "replied", event.finish_reason, event.served_by
        call.text = event.text[:KEPT_CHARS]
        self._drop_asks(job.asks, now_s)
        job.asks.clear()
        return job

    def failed(self, event: Failed, now_s: float) -> Job | None:
        """The job that has failed with it; None if another child of it still runs, or nobody waits for it."""
        usage = Usage() if event.usage is None and event.status in FREE else event.usage
        job = self._ended(event.ask_id, usage, now_s)
        call = self._calls.get(event.ask_id)
        if job is None or call is None:
            return None
        call.outcome, call.reason = "failed", event.code
        return None if job.asks else job

    def began(self, ask_id: int) -> Job | None:
        """Its stream has begun: from now on it may take as long as it likes."""
        job = self._jobs.get(ask_id)
        if job is not None and job.stream:
            job.began = True
            job.until_s = float("inf")
            return job
        return None

    def overdue(self, now_s: float) -> list[Job]:
        """Jobs whose time is up; they are dropped."""
        late = [job for job in self.running if now_s >= job.until_s]
        for job in late:
            for ask_id in job.asks:
                self._calls[ask_id].reason = OUT_OF_TIME
        self.drop(late, now_s)
        return late

    def drop(self, jobs: Iterable[Job], now_s: float) -> None:
        dropped = list(jobs)
        self._drop_asks([ask_id for job in dropped for ask_id in job.asks], now_s)
        for job in dropped:
            job.asks.clear()

    def unusable(self, ask_id: int, reason: str) -> None:
        """A reply that is of no use after all."""
        call = self._calls[ask_id]
        call.outcome, call.reason = "unusable", reason

    def next_at(self) -> float | None:
        """When something is to be done about a child that does nothing."""
        times = [t for job in self.running for t in (job.until_s, job.hedge_at) if t is not None and t != float("inf")]
        return min(times, default=None)

    def _ended(self, ask_id: int, usage: Usage | None, now_s: float) -> Job | None:
        call = self._calls.get(ask_id)
        if call is None:
            raise ValueError(f"there is no child {ask_id}")
        if usage is not None and call.usage is None:  # also of one that was dropped: it was paid for
            call.usage = usage
            self.trace.usage = self.trace.usage + usage
        job = self._jobs.pop(ask_id, None)
        if job is None:
            return None
        call.elapsed_s = now_s - self._t0 - call.started_s
        self._budget.settle(ask_id, usage)
        job.asks.remove(ask_id)
        return job

    def _drop_asks(self, ask_ids: Sequence[int], now_s: float) -> None:
        if not ask_ids:
            return
        for ask_id in ask_ids:
            del self._jobs[ask_id]
            self._budget.settle(ask_id, None)
            call = self._calls[ask_id]
            call.outcome, call.elapsed_s = "dropped", now_s - self._t0 - call.started_s
        self.actions.append(Drop(tuple(ask_ids)))
