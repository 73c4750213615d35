"""What the stages of one deliberation share: the question, the candidates, the children, and what they may cost.

Candidate   one answer that may be the final one
Case        everything beside the stage that a deliberation is in
Stage       what a stage has to say for itself (plan.py leads from one to the next)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .answers import canonical, guess, supposed, usable
from .ballots import Ballot, Vote, derived, support, tallied
from .budget import Budget, Deadlines, estimate_tokens
from .children import Children, Job
from .moves import Answer, Degraded, Fail, Failed, Message, Phase, Question, Replied, Tell
from .profile import Kind, Profile, Seat, Verdict
from .prompts import Prompts, clean
from .trace import KEPT_CHARS, CandidateTrace, Trace

CLOSED = frozenset((Kind.CHOICE, Kind.NUMBER, Kind.JSON))
"""Kinds whose answers can be voted on."""

_NOT_PARAMS = frozenset(
    (
        *("model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "seed"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"),
        *("logprobs", "top_logprobs", "tribunal"),
    )
)
"""What the plan says itself, or what only the final call has."""


@dataclass(slots=True, eq=False)
class Candidate:
    """One answer. `of` is the candidate that it refines; `key` its canonical form, None for none."""

    id: int
    ask_id: int
    seat: Seat
    text: str
    finish_reason: str
    of: Candidate | None = None
    key: str | None = None
    message: Message | None = None


class Stage(Protocol):
    """One part of a deliberation. It is over as soon as it says `done`; what still runs then is dropped."""

    phase: Phase
    done: bool
    why: str
    """... for what reason, for the trace."""

    def begin(self, now_s: float) -> None: ...

    def replied(self, job: Job, event: Replied, now_s: float) -> None: ...

    def failed(self, job: Job, event: Failed, now_s: float) -> None: ...

    def time(self, now_s: float) -> None:
        """Look at the clock."""

    @property
    def next_at(self) -> float | None:
        """When `time` matters to it; None for never."""


class Case:
    """Mutable, and of one deliberation only."""

    def __init__(
        self,
        profile: Profile,
        question: Question,
        *,
        seed: int,
        now_s: float,
        nonce: str,
        p95_s: Callable[[str], float | None],
    ) -> None:
        self.profile = profile
        self.question = question
        self.seed = seed
        self.began_at = now_s
        self.seats = profile.seats
        self.total_weight = sum(seat.member.weight for seat in self.seats)
        self.prompts = Prompts(profile, question.messages, nonce)
        self.deadlines = Deadlines(profile, now_s)
        self.trace = Trace(profile.model_name, seed)
        self.budget = self._budget()
        self.children = Children(self.budget, self.trace, now_s, hedging=profile.hedge, p95_s=p95_s)
        self.candidates: list[Candidate] = []
        self.ballots: list[Ballot] = []
        self.failures: list[Failed] = []
        self.degraded: Degraded | None = None
        self.failure: Fail | None = None
        self.ranking: list[Candidate] = []
        self.tallies: dict[int, float] = {}
        self.answered: set[int] = set()
        given = question.kind if question.kind is not Kind.AUTO else profile.kind
        self._given_kind = given
        self._supposed = (
            supposed(question.messages, question.response_format is not None) if given is Kind.AUTO else given
        )
        self._keys: dict[int, tuple[str | None, str | None]] = {}
        self.kind = self._supposed

    def _budget(self) -> Budget:
        profile, question = self.profile, self.question
        prompt = estimate_tokens(question.messages)
        writes = profile.verdict is not Verdict.SELECT or bool(question.tools) or question.n > len(self.seats)
        shown = len(self.seats) * min(profile.candidate_max_chars / 3.5, self.draft_tokens(self.seats[0]))
        one = int(prompt + shown + 500 + self.verdict_tokens) if writes else 0
        aside = one * question.n
        if profile.max_tokens is not None:  # at least one draft must be possible
            aside = min(aside, max(0, profile.max_tokens - prompt - self.draft_tokens(self.seats[0]) - 8))
        calls = min(question.n, profile.max_calls - 1) if writes else 0
        return Budget(profile.max_calls, profile.max_tokens, verdict_calls=calls, verdict_tokens=aside)

    # -- what children are sent -------------------------------------------------------------------

    def draft_tokens(self, seat: Seat) -> int:
        """Any draft may become the answer, so it keeps to the client's `max_tokens`."""
        cap = seat.member.max_tokens or self.profile.draft_max_tokens
        return min(cap, self.question.max_tokens or cap)

    @property
    def verdict_tokens(self) -> int:
        cap = self.profile.verdict_max_tokens
        return min(cap, self.question.max_tokens or cap)

    def params(self, *, seed: tuple[object, ...], max_tokens: int, answering: bool, **own: Any) -> Mapping[str, Any]:
        """Of a child. One that is `answering` the client's question has the client's own parameters, too."""
        asked = self.question.params if answering else {}
        params = {name: value for name, value in asked.items() if name not in _NOT_PARAMS}
        if answering and self.question.response_format is not None:
            params["response_format"] = self.question.response_format
        params.update((name, value) for name, value in own.items() if value is not None)
        params["max_tokens"] = max_tokens
        params["seed"] = derived(self.seed, *seed)
        return params

    # -- candidates -------------------------------------------------------------------------------

    def admit(self, event: Replied, seat: Seat, of: Candidate | None = None) -> Candidate | None:
        """The candidate that a reply is; None, and a note in the trace, if it is not usable."""
        reason = usable(event.text, self.profile.answer_max_chars)
        if reason is None and not self.valid(event.text):
            reason = "invalid_format"
        if reason is not None:
            self.children.unusable(event.ask_id, reason)
            return None
        number = len(self.candidates) + 1
        candidate = Candidate(
            number, event.ask_id, seat, clean(event.text), event.finish_reason, of, None, event.message
        )
        closed = canonical(candidate.text, self._supposed, self.question.messages)
        self._keys[number] = (closed, canonical(candidate.text, Kind.TEXT))
        self.candidates.append(candidate)
        self.settle_kind()
        return candidate

    def valid(self, text: str) -> bool:
        return self.question.valid is None or self.question.valid(text)

    def key_of(self, text: str) -> str | None:
        return canonical(text, self.kind, self.question.messages)

    def settle_kind(self) -> None:
        """The kind, and with it all keys. What was only supposed holds while more than half of the answers bear it
        out."""
        kind = self._supposed
        if self._given_kind is Kind.AUTO:
            drafts = [c for c in self.candidates if c.of is None]
            kind = guess(self._supposed, [self._keys[c.id][0] for c in drafts])
        self.kind = kind
        plain = kind is Kind.TEXT
        for candidate in self.candidates:
            candidate.key = self._keys[candidate.id][plain]

    @property
    def drafts(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.of is None]

    @property
    def votes(self) -> list[Vote]:
        """One of each draft. A refinement is no new vote: it has seen what others think."""
        return [Vote(c.id, c.key, c.seat.member.weight) for c in self.drafts]

    def rank(self) -> None:
        """Tallies from votes and ballots. Closed answers: half and half; others: the ballots where there are any.

        A refinement that no critic has seen has its original's tally, but at least the middle: its errors were looked
        at. It is supported by the drafts that say what it says.
        """
        supported = support(self.votes)
        by_key: dict[str | None, float] = {c.key: supported[c.id] for c in self.drafts if c.key is not None}
        judged = tallied(self.ballots, self.profile.tally)
        for c in self.candidates:
            for_it = supported[c.id] if c.of is None else by_key.get(c.key, 0.0)
            inherited = max(0.5, judged[c.of.id]) if c.of is not None and c.of.id in judged else None
            marks = judged.get(c.id, inherited)
            if marks is None:
                self.tallies[c.id] = for_it
            else:
                self.tallies[c.id] = (for_it + marks) / 2 if self.kind in CLOSED else marks
        self.ranking = sorted(
            self.candidates, key=lambda c: (-self.tallies[c.id], c.of is not None, -c.seat.member.weight, c.id)
        )
        self._note_candidates(supported)

    def _note_candidates(self, supported: Mapping[int, float]) -> None:
        self.trace.kind = self.kind.value
        self.trace.candidates = [
            CandidateTrace(
                id=c.id,
                ask_id=c.ask_id,
                seat=c.seat.label,
                key=c.key,
                of=c.of.id if c.of else None,
                support=supported.get(c.id, 0.0),
                tally=self.tallies[c.id],
                text=c.text[:KEPT_CHARS],
            )
            for c in self.candidates
        ]
        self.trace.ranking = [c.id for c in self.ranking]

    # -- words ------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        self.children.actions.append(Tell(text))

    def degrade(self, reason: Degraded) -> None:
        """The first reason is the one that is told."""
        if self.degraded is None:
            self.degraded = reason
            self.trace.degraded = reason.value

    def answer(self, answer: Answer) -> None:
        if answer.index in self.answered:
            raise ValueError(f"choice {answer.index} is answered already")
        self.answered.add(answer.index)
        self.children.actions.append(answer)

    def exit(self, phase: Phase, reason: str, now_s: float) -> None:
        self.trace.exits.append((phase.value, reason, round(now_s - self.began_at, 6)))
