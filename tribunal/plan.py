"""The deliberation as a pure state machine: events in, actions out. No clock, no I/O, no randomness but the seed.

    Drafting --agreed, or only one----------------------------------------> Deliver
       |                                                                       ^
       +--> Critique --> Refine --something changed, rounds left--> Critique   |
       |       |            |                                                  |
       +-------+------------+--two are close--> Judging -----------------------+
       |                                                                       |
       `--no usable draft--> Fail                                       Answer, Close

Every stage is left when its work is done or its time is over, and children that still run then are dropped. No stage is
necessary but the first: whatever fails later, there is a candidate to answer with.
"""

from __future__ import annotations

from collections.abc import Callable

from .case import Case, Stage
from .children import OUT_OF_TIME
from .deciding import Deliver, Judging, judged_way, way_of
from .drafting import Drafting
from .moves import (
    Action,
    Answer,
    Ask,
    Began,
    Close,
    Degraded,
    Drop,
    Event,
    Fail,
    Failed,
    Phase,
    Question,
    Replied,
    Tell,
    Time,
    Usage,
    Wake,
)
from .profile import BelowQuorum, Profile, Verdict
from .reviewing import Critique, Refine
from .trace import Trace

__all__ = [
    "Action",
    "Answer",
    "Ask",
    "Began",
    "Close",
    "Degraded",
    "Drop",
    "Event",
    "Fail",
    "Failed",
    "Phase",
    "Plan",
    "Question",
    "Replied",
    "Tell",
    "Time",
    "Trace",
    "Usage",
    "Wake",
]


class Plan:
    """One deliberation. `start` once, then `on` for every event, until `closed`.

    nonce   of the delimiters around candidates: what no member can guess, [0-9a-f]{16} or so
    p95_s   how long 95 % of a model's replies take, None where nobody knows: later children are hedged
    """

    def __init__(
        self,
        profile: Profile,
        question: Question,
        *,
        seed: int,
        now_s: float,
        nonce: str,
        p95_s: Callable[[str], float | None] = lambda model: None,
    ) -> None:
        if question.n < 1:
            raise ValueError("expected at least one choice")
        self._case = Case(profile, question, seed=seed, now_s=now_s, nonce=nonce, p95_s=p95_s)
        self._stage: Stage = Drafting(self._case)
        self._now_s = now_s
        self._wake_at: float | None = None
        self.closed = False
        """`Close` was given: events change nothing any more, but late usage still counts in the trace."""

    @property
    def trace(self) -> Trace:
        """What has happened so far; whole once the plan is closed."""
        return self._case.trace

    def start(self) -> list[Action]:
        """The first actions, at `now_s`."""
        self._stage.begin(self._now_s)
        return self._settled(self._now_s)

    def on(self, event: Event, now_s: float) -> list[Action]:
        """What to do about it. Of children that were dropped nothing counts but their usage. Time never runs
        backwards."""
        now_s = self._now_s = max(now_s, self._now_s)
        children = self._case.children
        match event:
            case Replied():
                if (job := children.replied(event, now_s)) is not None:
                    self._stage.replied(job, event, now_s)
            case Failed():
                if (job := children.failed(event, now_s)) is not None:
                    self._stage.failed(job, event, now_s)
            case Began():
                children.began(event.ask_id)
            case Time():
                self._wake_at = None
        return self._settled(now_s)

    def cancel(self, now_s: float) -> list[Action]:
        """Nobody waits for the answer any more: everything is dropped, and there is neither Answer nor Fail."""
        if not self.closed:
            self._close("cancelled", max(now_s, self._now_s))
        return self._taken()

    # -- from stage to stage ----------------------------------------------------------------------

    def _settled(self, now_s: float) -> list[Action]:
        """Whatever follows from the time and from what has just been heard."""
        children = self._case.children
        if not self.closed:
            for job in children.overdue(now_s):
                self._stage.failed(job, Failed(0, OUT_OF_TIME, 504), now_s)
            self._stage.time(now_s)
        while not self.closed and self._stage.done:
            self._leave(now_s)
        if not self.closed:
            children.hedge(now_s)
            self._wake()
        return self._taken()

    def _taken(self) -> list[Action]:
        children = self._case.children
        actions, children.actions = children.actions, []
        return actions

    def _wake(self) -> None:
        times = [t for t in (self._case.children.next_at(), self._stage.next_at) if t is not None]
        if times and (at_s := min(times)) != self._wake_at:
            self._wake_at = at_s
            self._case.children.actions.append(Wake(at_s))

    def _leave(self, now_s: float) -> None:
        case, stage = self._case, self._stage
        case.exit(stage.phase, stage.why, now_s)
        case.children.drop(case.children.running, now_s)
        if case.candidates and not isinstance(stage, Judging | Deliver):
            case.rank()
        following = self._after(stage, now_s)
        if following is None:
            self._end(now_s)
        else:
            self._stage = following
            following.begin(now_s)

    def _after(self, stage: Stage, now_s: float) -> Stage | None:
        """The next stage; None: it is over."""
        match stage:
            case Drafting():
                return self._after_drafts(stage, now_s)
            case Critique():
                return Refine(self._case, stage.round, stage.ballots) if stage.ballots else self._verdict(now_s)
            case Refine():
                again = stage.round + 1 < self._case.profile.rounds and stage.changed > 0
                return self._critique(stage.round + 1, now_s) if again else self._verdict(now_s)
            case Judging():
                return Deliver(self._case, Verdict.SELECT, "select")
            case _:
                return None

    def _after_drafts(self, stage: Drafting, now_s: float) -> Stage | None:
        case, profile = self._case, self._case.profile
        usable = len(case.candidates)
        if not usable:
            case.failure = self._no_answer()
            return None
        if stage.agreed is not None:
            case.budget.release()
            return Deliver(case, Verdict.SELECT, "early_exit")
        if usable < profile.quorum:
            if profile.below_quorum is BelowQuorum.FAIL:
                case.failure = Fail(
                    503, "tribunal_below_quorum", f"{usable} of {profile.quorum} wanted models gave a usable answer."
                )
                return None
            case.degrade(Degraded.ONE_ANSWER if usable == 1 else Degraded.BELOW_QUORUM)
            if usable == 1:
                alone = Verdict.SYNTHESISE if case.question.tools else Verdict.SELECT
                return Deliver(case, alone, "single")
        return self._critique(0, now_s)

    def _critique(self, round_: int, now_s: float) -> Stage | None:
        case = self._case
        possible = case.profile.critics or len(case.drafts) > 1
        if round_ >= case.profile.rounds or not possible:
            return self._verdict(now_s)
        if now_s >= case.deadlines.of(Phase.CRITIQUE, round_):
            case.degrade(Degraded.DEADLINE)
            return self._verdict(now_s)
        return Critique(case, round_)

    def _verdict(self, now_s: float) -> Stage | None:
        case = self._case
        way = way_of(case)
        if way is Verdict.SYNTHESISE:
            return Deliver(case, way, "synthesise")
        case.budget.release()
        two = judged_way(case)
        if two is None:
            return Deliver(case, way, "select")
        if now_s >= case.deadlines.of(Phase.JUDGE):
            case.degrade(Degraded.DEADLINE)
            return Deliver(case, way, "select")
        return Judging(case, two)

    # -- the end ----------------------------------------------------------------------------------

    def _no_answer(self) -> Fail:
        """Why nobody has answered, as an error of what is behind us."""
        failures = self._case.failures
        kinds = {(failure.status, failure.code) for failure in failures}
        if not failures:
            if self._case.degraded is Degraded.BUDGET:
                return Fail(503, "tribunal_budget", "The budget allows not even one draft.")
            return Fail(504, OUT_OF_TIME, "There was no time for even one draft.")
        if len(kinds) == 1 and failures[0].status in (400, 413, 422):
            # all of them refuse the request itself: to try again would change nothing
            status, code = kinds.pop()
            return Fail(status, code, failures[0].message or "Every model refused the request.")
        statuses = {failure.status for failure in failures}
        if statuses == {504}:
            return Fail(504, OUT_OF_TIME, "No model answered in time.")
        if statuses <= {503, 429}:
            return Fail(503, "model_unavailable", "No model can take the request now.")
        return Fail(502, "tribunal_no_answer", "No model gave a usable answer.")

    def _end(self, now_s: float) -> None:
        failure = self._case.failure
        if failure is None:
            return self._close("answered", now_s)
        self._case.children.actions.append(failure)
        return self._close(failure.code, now_s)

    def _close(self, outcome: str, now_s: float) -> None:
        case = self._case
        case.children.drop(case.children.running, now_s)
        trace = case.trace
        trace.outcome = outcome
        trace.elapsed_s = now_s - case.began_at
        self.closed = True
        case.children.actions.append(Close(outcome, trace.usage, trace.degraded))
