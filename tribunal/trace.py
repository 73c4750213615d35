"""What happened in a deliberation, as values; redaction; JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .moves import Usage

KEPT_CHARS = 20_000
"""Of any one text."""


@dataclass(slots=True)
class CallTrace:
    """One child.

    started_s   since the deliberation began
    outcome     "running", "replied", "failed", "dropped", "unusable"; `reason` has the code behind it
    text        what it said, cut; None once redacted
    """

    ask_id: int
    phase: str
    label: str
    model: str
    started_s: float
    hedge_of: int | None = None
    elapsed_s: float | None = None
    outcome: str = "running"
    reason: str = ""
    finish_reason: str = ""
    served_by: str = ""
    usage: Usage | None = None
    text: str | None = None


@dataclass(slots=True)
class CandidateTrace:
    """A candidate, called `id` throughout; `key` is its canonical answer, None for none.

    of      the candidate that it refines, None for a draft
    tally   0 to 1; `support` the share of all weights that gave the same answer
    """

    id: int
    ask_id: int
    seat: str
    key: str | None = None
    of: int | None = None
    support: float = 0.0
    tally: float = 0.0
    text: str | None = None


@dataclass(slots=True)
class BallotTrace:
    """One critic's ballot. `labels` is what it was shown: label -> candidate id; None scores: it was not usable."""

    round: int
    critic: str
    labels: Mapping[str, int]
    scores: Mapping[int, float] = field(default_factory=dict)
    fatal_errors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    evidence: Mapping[int, str] = field(default_factory=dict)
    repaired: bool = False
    usable: bool = True


@dataclass(slots=True)
class JudgementTrace:
    """The judge's word on two candidates, in the order in which it saw them; None: it gave none."""

    judge: str
    order: tuple[int, int]
    winner: int | None = None


@dataclass(slots=True)
class Trace:
    """All of a deliberation.

    exits      why each phase ended: (phase, reason, seconds since the beginning)
    outcome    "answered", or the code of the failure; "" while it runs
    verdict    "early_exit", "select", "synthesise" or "single"
    dissents   candidates whose answer is not the winner's
    """

    profile: str
    seed: int
    kind: str = ""
    verdict: str = ""
    outcome: str = ""
    degraded: str | None = None
    calls: list[CallTrace] = field(default_factory=list)
    candidates: list[CandidateTrace] = field(default_factory=list)
    ballots: list[BallotTrace] = field(default_factory=list)
    judgements: list[JudgementTrace] = field(default_factory=list)
    exits: list[tuple[str, str, float]] = field(default_factory=list)
    ranking: list[int] = field(default_factory=list)
    winner: int | None = None
    dissents: list[int] = field(default_factory=list)
    elapsed_s: float = 0.0
    usage: Usage = field(default_factory=Usage)

    def redacted(self) -> Trace:
        """The same without what any model has said: answers become `answer 1`, `answer 2`, ..., equal ones alike."""
        names: dict[str, str] = {}
        for candidate in self.candidates:
            if candidate.key is not None:
                names.setdefault(candidate.key, f"answer {len(names) + 1}")
        return replace(
            self,
            calls=[replace(call, text=None) for call in self.calls],
            candidates=[replace(c, text=None, key=names[c.key] if c.key else None) for c in self.candidates],
            ballots=[
                replace(
                    ballot,
                    fatal_errors={number: ("[redacted]",) * len(said) for number, said in ballot.fatal_errors.items()},
                    evidence={},
                )
                for ballot in self.ballots
            ],
        )

    def as_json(self) -> dict[str, Any]:
        """Ready for any JSON writer: keys are texts."""
        found: dict[str, Any] = _texts(asdict(self))
        return found


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return value
