"""The first stage: members draft, side by side, until enough is known.

It is over when all seats have answered or failed, when enough of them agree, when a quorum was there and stragglers had
their grace, or when its share of the time is over; then stragglers are dropped. Without any usable draft it goes on
until the deadline: one late answer is worth more than none.
"""

from __future__ import annotations

from .ballots import agreed
from .case import Case
from .children import LEAST_S, Job
from .moves import Degraded, Failed, Phase, Replied
from .profile import Seat


class Drafting:
    phase = Phase.DRAFT

    def __init__(self, case: Case) -> None:
        self._case = case
        self._waiting = list(case.seats)
        """Seats that were not asked yet."""
        self._quorum_at: float | None = None
        self.agreed: str | None = None
        self.done = False
        self.why = ""

    def begin(self, now_s: float) -> None:
        profile = self._case.profile
        first = profile.first_wave if profile.first_wave and profile.early_exit else len(self._waiting)
        self._case.tell(f"Asking {min(first, len(self._waiting))} models.")
        for _ in range(first):
            self._ask_next(now_s)
        self._look(now_s)

    def _ask_all(self, now_s: float) -> None:
        while self._waiting:
            self._ask_next(now_s)

    def _ask_next(self, now_s: float) -> None:
        if not self._waiting:
            return
        case, seat = self._case, self._waiting.pop(0)
        member = seat.member
        params = case.params(
            seed=(Phase.DRAFT, seat.label),
            max_tokens=case.draft_tokens(seat),
            answering=True,
            temperature=member.temperature,
            top_p=member.top_p,
        )
        messages = case.prompts.draft(member.system)
        job = Job(Phase.DRAFT, seat.label, member.model, messages, params, case.deadlines.ends_at, seat)
        if not case.children.begin(job, now_s) and case.deadlines.ends_at - now_s >= LEAST_S:
            case.degrade(Degraded.BUDGET)

    def replied(self, job: Job, event: Replied, now_s: float) -> None:
        seat: Seat = job.about
        case = self._case
        if case.admit(event, seat) is None:
            case.failures.append(Failed(event.ask_id, "tribunal_no_usable_answer"))
            self._ask_next(now_s)
        else:
            case.tell(f"{len(case.candidates)} of {len(case.seats)} have answered.")
        self._look(now_s)

    def failed(self, job: Job, event: Failed, now_s: float) -> None:
        self._case.failures.append(event)
        self._ask_next(now_s)  # of those held back by `first_wave`, if there are any
        self._look(now_s)

    def time(self, now_s: float) -> None:
        self._look(now_s)

    @property
    def next_at(self) -> float | None:
        if self.done:
            return None
        times = [self._case.deadlines.of(Phase.DRAFT)] if self._case.candidates else []
        if self._quorum_at is not None:
            times.append(self._quorum_at + self._case.profile.grace_s)
        return min(times, default=None)

    def _look(self, now_s: float) -> None:
        case, profile = self._case, self._case.profile
        usable = len(case.candidates)
        self.agreed = self._agreement()
        if self.agreed is not None:
            return self._end("agreed")
        running = bool(case.children.running)
        if self._waiting and not running:
            # the first ones do not agree, or cannot
            self._ask_all(now_s)
            running = bool(case.children.running)
        if not running:
            return self._end("all")
        if usable >= profile.quorum and self._quorum_at is None:
            self._quorum_at = now_s
        if self._quorum_at is not None and now_s >= self._quorum_at + profile.grace_s:
            if not self._waiting:
                return self._end("quorum")
            # stragglers of the first ones hold nobody up; who is asked now has its grace, too
            self._ask_all(now_s)
            self._quorum_at = now_s
        if usable and now_s >= case.deadlines.of(Phase.DRAFT):
            return self._end("time")
        return None

    def _agreement(self) -> str | None:
        case, profile = self._case, self._case.profile
        if not profile.early_exit or case.question.tools or len(case.seats) < 2:
            return None
        if len(case.candidates) < min(case.question.n, len(case.seats)):
            return None  # every choice shall have a draft of its own
        return agreed(case.votes, total=case.total_weight, least=profile.agree, share=profile.agree_share)

    def _end(self, why: str) -> None:
        self.done = True
        self.why = why
