"""Rounds of critique and refinement.

Critique   each critic sees all candidates but its own, under labels and in an order that are its alone
Refine     candidates of which several critics name an error are written anew; the original stays
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .ballots import BadBallot, Ballot, labelled, named_errors, parse_opinions, shuffled
from .case import CLOSED, Candidate, Case
from .children import Job
from .moves import Degraded, Failed, Message, Phase, Replied
from .profile import Critic
from .prompts import without_thoughts
from .trace import BallotTrace

BALLOT_SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "ballot",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "candidates": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "label": {"type": "string"},
                            "fatal_errors": {"type": "array", "items": {"type": "string"}},
                            "evidence": {"type": "string"},
                            "score": {"type": "number"},
                        },
                        "required": ["label", "fatal_errors", "evidence", "score"],
                        "additionalProperties": False,
                    },
                }
            },
            "required": ["candidates"],
            "additionalProperties": False,
        },
    },
}


@dataclass(slots=True, eq=False)
class _Review:
    """One critic's work. `labels`: what it was shown."""

    critic: Critic
    labels: dict[str, int]
    messages: Sequence[Message]
    repaired: bool = False


class Critique:
    phase = Phase.CRITIQUE

    def __init__(self, case: Case, round_: int) -> None:
        self._case = case
        self.round = round_
        self._until_s = case.deadlines.of(self.phase, round_)
        self._running = 0
        self.ballots: list[Ballot] = []
        self.done = False
        self.why = ""

    def begin(self, now_s: float) -> None:
        reviews = self._reviews()
        self._case.tell(f"Round {self.round + 1}: {len(reviews)} critics look at {len(self._case.candidates)} answers.")
        for review in reviews:
            if self._ask(review, now_s):
                self._running += 1
            elif now_s < self._until_s:
                self._case.degrade(Degraded.BUDGET)
        self._look(now_s)

    def _reviews(self) -> list[_Review]:
        """Who reviews what: nobody its own. Members review one another where the profile names no critics."""
        case = self._case
        found = []
        if case.profile.critics:
            pairs = [(c, [k for k in case.candidates if k.seat.member.model != c.model]) for c in case.profile.critics]
        else:
            seats = {candidate.seat.label: candidate.seat for candidate in case.drafts}
            pairs = [
                (
                    Critic(label, seat.member.model, seat.member.weight),
                    [k for k in case.candidates if k.seat.label != label],
                )
                for label, seat in seats.items()
            ]
        for critic, others in pairs:
            if not others:
                continue
            labels = labelled([k.id for k in others], case.seed, self.phase, self.round, critic.name)
            texts = {label: case.candidates[number - 1].text for label, number in labels.items()}
            found.append(_Review(critic, labels, case.prompts.critique(texts, critic.system)))
        return found

    def _ask(self, review: _Review, now_s: float) -> bool:
        case, critic = self._case, review.critic
        params = case.params(
            seed=(self.phase, self.round, critic.name, review.repaired),
            max_tokens=critic.max_tokens or case.profile.critique_max_tokens,
            answering=False,
            temperature=critic.temperature,
            response_format=BALLOT_SCHEMA if case.profile.guided_json else None,
        )
        label = f"critic:{critic.name}"
        job = Job(self.phase, label, critic.model, review.messages, params, self._until_s, review)
        return case.children.begin(job, now_s)

    def replied(self, job: Job, event: Replied, now_s: float) -> None:
        review: _Review = job.about
        try:
            opinions = parse_opinions(event.text, list(review.labels))
        except BadBallot as problem:
            self._case.children.unusable(event.ask_id, "bad_ballot")
            if not review.repaired:
                review.repaired = True
                review.messages = self._case.prompts.repair(
                    review.messages, without_thoughts(event.text), str(problem), review.labels
                )
                if self._ask(review, now_s):
                    return
            self._lost(review, now_s)
            return
        self._running -= 1
        by_id = {review.labels[label]: opinion for label, opinion in opinions.items()}
        ballot = Ballot(review.critic.name, review.critic.weight, by_id)
        self.ballots.append(ballot)
        self._case.ballots.append(ballot)
        self._case.trace.ballots.append(
            BallotTrace(
                self.round,
                review.critic.name,
                review.labels,
                {number: opinion.score for number, opinion in by_id.items()},
                {number: opinion.fatal_errors for number, opinion in by_id.items() if opinion.fatal_errors},
                {number: opinion.evidence for number, opinion in by_id.items() if opinion.evidence},
                review.repaired,
            )
        )
        self._look(now_s)

    def failed(self, job: Job, event: Failed, now_s: float) -> None:
        self._lost(job.about, now_s)

    def _lost(self, review: _Review, now_s: float) -> None:
        self._running -= 1
        self._case.trace.ballots.append(
            BallotTrace(self.round, review.critic.name, review.labels, repaired=review.repaired, usable=False)
        )
        self._look(now_s)

    def time(self, now_s: float) -> None:
        self._look(now_s)

    @property
    def next_at(self) -> float | None:
        return None  # each of its children has the stage's own end

    def _look(self, now_s: float) -> None:
        if self.done or self._running:
            return
        self.done = True
        self.why = f"{len(self.ballots)} ballots"
        if not self._case.ballots:
            self._case.degrade(Degraded.DEADLINE if now_s >= self._until_s else Degraded.NO_CRITIC)


class Refine:
    phase = Phase.REFINE

    def __init__(self, case: Case, round_: int, ballots: Sequence[Ballot]) -> None:
        self._case = case
        self.round = round_
        self._ballots = ballots
        self._until_s = case.deadlines.of(self.phase, round_)
        self._running = 0
        self.changed = 0
        self.done = False
        self.why = ""

    def begin(self, now_s: float) -> None:
        case = self._case
        for candidate in self._latest():
            critics, errors = named_errors(self._ballots, candidate.id)
            if critics < case.profile.error_votes:
                continue
            # in an order of its own: who names which error is nobody's business
            told = shuffled(errors, case.seed, self.phase, self.round, candidate.seat.label)
            member = candidate.seat.member
            params = case.params(
                seed=(self.phase, self.round, candidate.seat.label),
                max_tokens=case.draft_tokens(candidate.seat),
                answering=True,
                temperature=member.temperature,
                top_p=member.top_p,
            )
            messages = case.prompts.refine(candidate.text, told, member.system)
            label = f"refine:{candidate.seat.label}"
            job = Job(self.phase, label, member.model, messages, params, self._until_s, candidate)
            if case.children.begin(job, now_s):
                self._running += 1
            elif now_s < self._until_s:
                case.degrade(Degraded.BUDGET)
        if self._running:
            case.tell(f"{self._running} answers are written anew.")
        self._look(now_s)

    def _latest(self) -> list[Candidate]:
        """The last version of each seat's answer."""
        return list({candidate.seat.label: candidate for candidate in self._case.candidates}.values())

    def replied(self, job: Job, event: Replied, now_s: float) -> None:
        self._running -= 1
        before: Candidate = job.about
        if self._says_the_same(event.text, before):
            self._case.children.unusable(event.ask_id, "unchanged")
        elif self._case.admit(event, before.seat, of=before) is not None:
            self.changed += 1
        self._look(now_s)

    def _says_the_same(self, text: str, before: Candidate) -> bool:
        if text.strip() == before.text.strip():
            return True
        key = self._case.key_of(text)
        return self._case.kind in CLOSED and key is not None and key == before.key

    def failed(self, job: Job, event: Failed, now_s: float) -> None:
        self._running -= 1
        self._look(now_s)

    def time(self, now_s: float) -> None:
        self._look(now_s)

    @property
    def next_at(self) -> float | None:
        return None

    def _look(self, now_s: float) -> None:
        if not self.done and not self._running:
            self.done = True
            self.why = f"{self.changed} changed"
