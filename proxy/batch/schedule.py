"""Whose lines run next, and how much of the engines batches may have now. Pure.

    works (what is left of each batch, by model) --Turns.next--> the one to take a window of
    the table of hours                           --share_at--->  the share of the engines that batches may have
    works, what one replica does a second        --replicas_for-> how many replicas would be in time

Between projects: who has had the least goes first, in tokens (fair queueing by virtual time, as deficit round robin
gives it in the long run). Inside a project: the batch with the least slack. A project with a batch that is nearly late
counts as half of what it has had from then on, so it gets up to twice its share; it never shuts the others out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NEARLY_LATE = 0.1
"""Slack below this share of the whole window."""

IN_TIME = 0.8
"""Replicas are asked for as if this share of the time were left: engines start late, and rates are estimates."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of one batch for one model.

    owner       the project that it counts for
    created_at, deadline   seconds since the epoch
    lines, tokens   that have no result yet; tokens are an estimate of prompts and answers together
    window_tokens   of one of its windows, about
    """

    batch_id: str
    model: str
    owner: str
    created_at: float
    deadline: float
    lines: int
    tokens: int
    window_tokens: int = 1

    def slack_s(self, tokens_per_s: float | None, now: float) -> float:
        """How long it could rest and be in time if it then had the model for itself. None: nothing was measured yet."""
        left = self.deadline - now
        return left if not tokens_per_s else left - self.tokens / tokens_per_s

    def nearly_late(self, tokens_per_s: float | None, now: float) -> bool:
        return self.slack_s(tokens_per_s, now) < NEARLY_LATE * (self.deadline - self.created_at)


class Turns:
    """Of one model: remembers what each project has had."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}

    def next(self, works: Sequence[Work], tokens_per_s: float | None, now: float) -> Work | None:
        """The work to take a window of. `took` says that one was taken."""
        if not works:
            return None
        self._admit({work.owner for work in works})
        return min(works, key=lambda work: (self._had[work.owner], work.slack_s(tokens_per_s, now), work.batch_id))

    def took(self, work: Work, tokens_per_s: float | None, now: float) -> None:
        """A window of it."""
        weight = 2 if work.nearly_late(tokens_per_s, now) else 1
        self._had[work.owner] = self._had.get(work.owner, 0.0) + max(1, work.window_tokens) / weight

    def _admit(self, owners: set[str]) -> None:
        """A newcomer begins with those who have had the least, and who has nothing to do is forgotten: nobody saves
        up by being away."""
        had = {owner: self._had[owner] for owner in owners if owner in self._had}
        least = min(had.values(), default=0.0)
        self._had = {owner: had.get(owner, least) - least for owner in owners}


# -- hours -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of the week, local time of the gateway's machine.

    days        0 is Monday
    from_s, to_s   seconds since midnight; a `to_s` that is not later than `from_s` is on the next day
    share       of the engines, 0 to 1
    """

    days: frozenset[int]
    from_s: int
    to_s: int
    share: float

    def covers(self, weekday: int, second: int) -> bool:
        if self.from_s < self.to_s:
            return weekday in self.days and self.from_s <= second < self.to_s
        return (weekday in self.days and second >= self.from_s) or (
            (weekday - 1) % 7 in self.days and second < self.to_s
        )


def share_at(hours: Sequence[Hours], weekday: int, second: int, *, only_in_hours: bool) -> float:
    """The first that covers the moment counts; where none does, everything or nothing."""
    for entry in hours:
        if entry.covers(weekday, second):
            return entry.share
    return 0.0 if only_in_hours else 1.0


# -- replicas --------------------------------------------------------------------------------------------------------


def replicas_for(works: Iterable[Work], tokens_per_s: float | None, now: float) -> int:
    """How many replicas of a model it takes for every batch to be in time, the most urgent first; at least one where
    there is work. `tokens_per_s` is what one replica does; None: unknown, so one is tried first."""
    most, due = 0, 0
    for work in sorted(works, key=lambda work: work.deadline):
        if work.lines <= 0:
            continue
        most = max(most, 1)
        due += work.tokens
        if tokens_per_s:
            left = max(1.0, (work.deadline - now) * IN_TIME)
            most = max(most, math.ceil(due / (tokens_per_s * left)))
    return most


def by_model(works: Iterable[Work]) -> Mapping[str, list[Work]]:
    found: dict[str, list[Work]] = {}
    for work in works:
        found.setdefault(work.model, []).append(work)
    return found
