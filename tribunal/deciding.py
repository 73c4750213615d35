"""The last stages: which candidate is best, and the answer itself.

Judging   two candidates that are close: the judge sees them in both orders, and counts only if it says the same twice
Verdict   the best candidate word for word, or a synthesis; whatever fails, there is a candidate to fall back on
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .ballots import parse_choice, shuffled
from .case import Candidate, Case
from .children import LEAST_S, Job
from .moves import Answer, Degraded, Fail, Failed, Phase, Replied
from .profile import Judge, Kind
from .profile import Verdict as Way
from .trace import JudgementTrace


def rivals(case: Case) -> tuple[Candidate, Candidate] | None:
    """The top two that say different things, if their tallies are close."""
    if not case.ranking:
        return None
    top = case.ranking[0]
    for other in case.ranking[1:]:
        if other.text.strip() == top.text.strip() or (top.key is not None and other.key == top.key):
            continue
        near = case.tallies[top.id] - case.tallies[other.id] <= case.profile.close + 1e-9
        return (top, other) if near else None
    return None


def errors_of(case: Case, shown: dict[str, Candidate]) -> Iterable[tuple[str, list[str]]]:
    """What critics say of those that are shown, a lone critic's errors too."""
    for label, candidate in shown.items():
        said = [ballot.opinions.get(candidate.id) for ballot in case.ballots]
        yield label, [error for opinion in said if opinion for error in opinion.fatal_errors]


@dataclass(slots=True, eq=False)
class _Hearing:
    """One order of the two. `judges` is who is still to be asked."""

    order: dict[str, Candidate]
    judges: list[Judge]


class Judging:
    """Changes the ranking only if the judge names the same one in both orders: a third of judges go by the order."""

    phase = Phase.JUDGE

    def __init__(self, case: Case, two: tuple[Candidate, Candidate]) -> None:
        self._case = case
        self._two = two
        self._until_s = case.deadlines.of(self.phase)
        self._running = 0
        self._winners: list[Candidate] = []
        self._judges = [judge for judge in (case.profile.judge, case.profile.alternate) if judge is not None]
        self.done = False
        self.why = ""

    def begin(self, now_s: float) -> None:
        first, second = shuffled(self._two, self._case.seed, self.phase)
        self._case.tell("Two answers are close: a judge compares them.")
        for one, two in ((first, second), (second, first)):
            hearing = _Hearing({"C1": one, "C2": two}, list(self._judges))
            self._running += 1
            self._ask(hearing, now_s)

    def _ask(self, hearing: _Hearing, now_s: float) -> None:
        """Ask the next judge; without one, or without means, this order stays without a word."""
        case = self._case
        while hearing.judges:
            judge = hearing.judges.pop(0)
            params = case.params(
                seed=(self.phase, *(c.id for c in hearing.order.values())),
                max_tokens=case.profile.judge_max_tokens,
                answering=False,
                temperature=judge.temperature,
            )
            texts = {label: candidate.text for label, candidate in hearing.order.items()}
            messages = case.prompts.judge(texts, errors_of(case, hearing.order), judge.system)
            # a judge that hangs leaves time for the other
            until_s = now_s + (self._until_s - now_s) * 0.6 if hearing.judges else self._until_s
            job = Job(self.phase, f"judge:{judge.model}", judge.model, messages, params, until_s, hearing)
            if case.children.begin(job, now_s):
                return
        self._running -= 1
        self._look(now_s)

    def replied(self, job: Job, event: Replied, now_s: float) -> None:
        hearing: _Hearing = job.about
        label = parse_choice(event.text, list(hearing.order))
        ids = [candidate.id for candidate in hearing.order.values()]
        winner = hearing.order[label] if label is not None else None
        self._case.trace.judgements.append(JudgementTrace(job.model, (ids[0], ids[1]), winner.id if winner else None))
        if winner is None:
            self._case.children.unusable(event.ask_id, "bad_judgement")
            self._ask(hearing, now_s)
            return
        self._winners.append(winner)
        self._running -= 1
        self._look(now_s)

    def failed(self, job: Job, event: Failed, now_s: float) -> None:
        self._ask(job.about, now_s)

    def time(self, now_s: float) -> None:
        self._look(now_s)

    @property
    def next_at(self) -> float | None:
        return None

    def _look(self, now_s: float) -> None:
        if self.done or self._running:
            return
        self.done = True
        case = self._case
        if len(self._winners) < 2:
            self.why = "no word"
            case.degrade(Degraded.DEADLINE if now_s >= self._until_s else Degraded.JUDGE_FAILED)
        elif self._winners[0] is not self._winners[1]:
            self.why = "goes by the order"
        else:
            self.why = "both orders"
            winner = self._winners[0]
            case.ranking = [winner, *(c for c in case.ranking if c is not winner)]
            case.trace.ranking = [c.id for c in case.ranking]


def way_of(case: Case) -> Way:
    """`select` or `synthesise`, for this question."""
    if case.question.tools:
        return Way.SYNTHESISE
    if case.profile.verdict is not Way.AUTO:
        return case.profile.verdict
    return Way.SYNTHESISE if case.kind in (Kind.TEXT, Kind.CODE) else Way.SELECT


@dataclass(slots=True, eq=False)
class _Choice:
    """One of the client's choices that is being written. `writers` is who is still to be asked."""

    index: int
    writers: list[Judge]


class Deliver:
    """The answers, one for each choice: candidates in the order of the ranking, or syntheses."""

    phase = Phase.VERDICT

    def __init__(self, case: Case, way: Way, word: str) -> None:
        self._case = case
        self._way = way
        self._running = 0
        self.done = False
        self.why = word

    def begin(self, now_s: float) -> None:
        case = self._case
        selected = 0
        if self._way is Way.SELECT:
            selected = min(len(case.ranking), case.question.n)
            for index in range(selected):
                self._give(index, case.ranking[index], case.degraded)
        case.trace.verdict = self.why
        case.trace.dissents = [c.id for c in self._dissents()]
        if selected < case.question.n:
            case.tell("The answer is being written.")
        for index in range(selected, case.question.n):
            self._running += 1
            self._write(_Choice(index, self._writers()), now_s)
        self._look()

    def _writers(self) -> list[Judge]:
        """Judge and alternate; without a judge the members, heaviest first, two of them."""
        profile = self._case.profile
        judges = [judge for judge in (profile.judge, profile.alternate) if judge is not None]
        if judges:
            return judges
        members = sorted(profile.members, key=lambda member: -member.weight)
        return [Judge(member.model, system=member.system) for member in members[:2]]

    def _dissents(self) -> list[Candidate]:
        """Drafts that stand alone: their answer is none of the leading one's. Only closed answers can be told apart
        so."""
        case = self._case
        top = case.ranking[0]
        if top.key is None or case.kind is Kind.TEXT:
            return []
        keys = [candidate.key for candidate in case.drafts]
        leading = keys.count(top.key) > 1
        return [c for c in case.drafts if leading and c.key is not None and keys.count(c.key) == 1]

    def _write(self, choice: _Choice, now_s: float) -> None:
        """Ask the next writer; without one, or without means, the best candidate is given."""
        case = self._case
        why = Degraded.VERDICT_FAILED
        order = shuffled(case.ranking, case.seed, self.phase, choice.index)
        shown = {f"C{n}": candidate for n, candidate in enumerate(order, 1)}
        alone = set(self._dissents())
        dissents = [label for label, candidate in shown.items() if candidate in alone]
        texts = {label: candidate.text for label, candidate in shown.items()}
        while choice.writers:
            writer = choice.writers.pop(0)
            messages = case.prompts.synthesise(texts, errors_of(case, shown), dissents, writer.system)
            params = case.params(
                seed=(self.phase, choice.index),
                max_tokens=case.verdict_tokens,
                answering=True,
            )
            params = {**params, **case.question.tools}
            ends_at = case.deadlines.ends_at
            until_s = now_s + (ends_at - now_s) * 0.6 if choice.writers else ends_at
            stream = case.question.stream and case.question.response_format is None
            label = f"verdict:{writer.model}"
            job = Job(
                self.phase, label, writer.model, messages, params, until_s, choice, stream=stream, index=choice.index
            )
            if case.children.begin(job, now_s):
                return
            why = Degraded.DEADLINE if ends_at - now_s < LEAST_S else Degraded.BUDGET
        if now_s >= case.deadlines.ends_at - LEAST_S:
            why = Degraded.DEADLINE
        self._fall_back(choice, why)

    def _fall_back(self, choice: _Choice, why: Degraded) -> None:
        self._running -= 1
        ranking = self._case.ranking
        if self._way is Way.SELECT:  # all that there are were given
            why = Degraded.FEWER_CANDIDATES
        self._case.degrade(why)
        self._give(choice.index, ranking[choice.index % len(ranking)], self._case.degraded)
        self._look()

    def _give(self, index: int, candidate: Candidate, degraded: Degraded | None) -> None:
        reason = degraded.value if degraded else None
        if index == 0:
            self._case.trace.winner = candidate.id
        self._case.answer(
            Answer(index, candidate.text, candidate.ask_id, candidate.finish_reason, reason, message=candidate.message)
        )

    def replied(self, job: Job, event: Replied, now_s: float) -> None:
        case = self._case
        choice: _Choice = job.about
        # what has gone to the client is the answer, whatever it is
        empty = not event.text.strip() and not event.tool_calls
        if not job.began and (empty or not (event.tool_calls or case.valid(event.text))):
            case.children.unusable(event.ask_id, "empty" if empty else "invalid_format")
            self._write(choice, now_s)
            return
        self._running -= 1
        reason = case.degraded.value if case.degraded else None
        case.answer(
            Answer(choice.index, event.text, event.ask_id, event.finish_reason, reason, job.began, event.message)
        )
        self._look()

    def failed(self, job: Job, event: Failed, now_s: float) -> None:
        if job.began:
            status = event.status if event.status in (502, 503, 504) else 502
            self._case.failure = Fail(status, event.code, event.message or "The answer broke off.")
            self.done = True
            return
        self._write(job.about, now_s)

    def time(self, now_s: float) -> None:
        """Each of its children has its own end."""

    @property
    def next_at(self) -> float | None:
        return None

    def _look(self) -> None:
        self.done = self.done or not self._running


def judged_way(case: Case) -> tuple[Candidate, Candidate] | None:
    """Whom the judge is to compare, if it is: only where a candidate is given word for word."""
    if case.profile.judge is None or way_of(case) is not Way.SELECT:
        return None
    return rivals(case)
