"""Votes, counted in code: what critics reply -> ballots -> tallies; who is shown what, in which order.

A ballot moves nothing but its own weight: scores outside 0 to 10, a label that was not shown, one that is missing or
comes twice make the whole ballot unusable, and it is asked for once more. Nothing that a candidate says about labels
or votes is ever parsed: only critics' and judges' own replies are.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from .profile import Tally
from .prompts import without_thoughts

MOST_ERRORS = 8
LONGEST_ERROR = 400
LONGEST_REPLY = 100_000

T = TypeVar("T")


# -- what the seed decides ------------------------------------------------------------------------


def derived(seed: int, *parts: object) -> int:
    """A number of 31 bits from the seed and what it is for: the same for the same, else unrelated."""
    text = "\0".join(map(str, (seed, *parts))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 33


def shuffled(items: Sequence[T], seed: int, *parts: object) -> list[T]:
    order = list(items)
    random.Random(derived(seed, "shuffle", *parts)).shuffle(order)  # noqa: S311  # an order, not a secret
    return order


def labelled(ids: Sequence[int], seed: int, *parts: object) -> dict[str, int]:
    """`C1`, `C2`, ... -> candidates in an order of their own: neither name nor place tells who wrote which.

    No bare letters: a candidate's answer may be one.
    """
    return {f"C{n}": candidate for n, candidate in enumerate(shuffled(ids, seed, *parts), 1)}


# -- a critic's reply -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a critic says of one candidate. `score` is 0 to 10."""

    score: float
    fatal_errors: tuple[str, ...] = ()
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One critic's opinions by candidate id."""

    critic: str
    weight: float
    opinions: Mapping[int, Opinion]


class BadBallot(ValueError):
    """What is wrong with a critic's reply, in words of our own: it quotes nothing but known labels."""


def parse_opinions(text: str, labels: Sequence[str]) -> dict[str, Opinion]:
    """`{"candidates": [{"label", "fatal_errors", "evidence", "score"}, ...]}`, or the list alone. Raises
    `BadBallot`."""
    if len(text) > LONGEST_REPLY:
        raise BadBallot("it is too long")
    try:
        value = orjson.loads(_inside_fence(without_thoughts(text).strip()))
    except orjson.JSONDecodeError:
        raise BadBallot("it is not JSON") from None
    if isinstance(value, dict):
        value = value.get("candidates")
    if not isinstance(value, list):
        raise BadBallot('there is no list "candidates"')
    found: dict[str, Opinion] = {}
    for entry in value:
        if not isinstance(entry, dict):
            raise BadBallot("an entry is no object")
        label = entry.get("label")
        if not isinstance(label, str) or label not in labels:
            raise BadBallot("a label is none of those that were shown")
        if label in found:
            raise BadBallot(f"{label} comes twice")
        found[label] = _opinion(label, entry)
    missing = [label for label in labels if label not in found]
    if missing:
        raise BadBallot(f"there is no entry for {', '.join(missing)}")
    return found


def _opinion(label: str, entry: Mapping[str, Any]) -> Opinion:
    score = entry.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 10:
        raise BadBallot(f'"score" of {label} is no number from 0 to 10')
    errors = entry.get("fatal_errors")
    if not isinstance(errors, list) or not all(isinstance(error, str) for error in errors):
        raise BadBallot(f'"fatal_errors" of {label} is no list of texts')
    evidence = entry.get("evidence")
    if not isinstance(evidence, str):
        raise BadBallot(f'"evidence" of {label} is no text')
    said = tuple(error.strip()[:LONGEST_ERROR] for error in errors if error.strip())
    return Opinion(float(score), said[:MOST_ERRORS], evidence[:LONGEST_ERROR])


def _inside_fence(text: str) -> str:
    """The one code block that the whole text is, as models like to write it."""
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        return text[text.index("\n") : -3]
    return text


_WORD = re.compile(r"[\s\"'`*(\[]*(C\d{1,3})[\s\"'`*)\].]*")


def parse_choice(text: str, labels: Sequence[str]) -> str | None:
    """A judge's reply: the label and nothing else, or `{"label": "C1"}`. None for everything else."""
    text = without_thoughts(text).strip()
    if len(text) > 200:
        return None
    label: Any = None
    if match := _WORD.fullmatch(text):
        label = match[1]
    else:
        try:
            value = orjson.loads(_inside_fence(text))
        except orjson.JSONDecodeError:
            return None
        if isinstance(value, dict) and len(value) == 1:
            label = next(iter(value.values()))
    return label if isinstance(label, str) and label in labels else None


# -- counting -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vote:
    """A candidate's answer as a vote. `key` None: it is no closed answer, and agrees with nothing."""

    candidate: int
    key: str | None
    weight: float


def agreed(votes: Sequence[Vote], *, total: float, least: int, share: float) -> str | None:
    """The answer that at least `least` votes and more than `share` of the total weight stand for.

    With a share of 0.5 or more no vote that is still to come can win against it. `total` counts all seats, so those
    that have failed or not answered yet count as against it.
    """
    groups = _groups(votes)
    # half of three times 0.1 is not what three times 0.1 makes
    enough = {
        key: weight for key, (count, weight) in groups.items() if count >= least and weight > share * total * (1 + 1e-9)
    }
    return max(enough, key=lambda key: (enough[key], key), default=None)


def _groups(votes: Sequence[Vote]) -> dict[str, tuple[int, float]]:
    groups: dict[str, tuple[int, float]] = {}
    for vote in votes:
        if vote.key is not None:
            count, weight = groups.get(vote.key, (0, 0.0))
            groups[vote.key] = (count + 1, weight + vote.weight)
    return groups


def support(votes: Sequence[Vote]) -> dict[int, float]:
    """The share of all weights that gave the same answer as each candidate."""
    groups = _groups(votes)
    total = sum(vote.weight for vote in votes)
    return {vote.candidate: (groups[vote.key][1] if vote.key is not None else vote.weight) / total for vote in votes}


def tallied(ballots: Sequence[Ballot], method: Tally) -> dict[int, float]:
    """What critics make of each candidate, 0 to 1, weighted; candidates that nobody was shown are left out."""
    shares: dict[int, list[tuple[float, float]]] = {}
    for ballot in ballots:
        marks = _borda(ballot) if method is Tally.BORDA else {i: o.score / 10 for i, o in ballot.opinions.items()}
        for candidate, mark in marks.items():
            shares.setdefault(candidate, []).append((mark, ballot.weight))
    count = _mean if method is Tally.BORDA else _median
    return {candidate: count(marks) for candidate, marks in shares.items()}


def _borda(ballot: Ballot) -> dict[int, float]:
    """The share of the others that stand below, half for those that stand beside; a fatal error goes below all
    without."""
    grades = {i: (not opinion.fatal_errors, opinion.score) for i, opinion in ballot.opinions.items()}
    others = len(grades) - 1
    if others < 1:
        return {i: opinion.score / 10 for i, opinion in ballot.opinions.items()}
    return {
        i: sum(1.0 if other < grade else 0.5 for j, other in grades.items() if j != i and other <= grade) / others
        for i, grade in grades.items()
    }


def _mean(marks: Sequence[tuple[float, float]]) -> float:
    return sum(mark * weight for mark, weight in marks) / sum(weight for _, weight in marks)


def _median(marks: Sequence[tuple[float, float]]) -> float:
    """The weighted one; between two that split the weights evenly, their middle."""
    ordered = sorted(marks)
    half = sum(weight for _, weight in marks) / 2
    passed = 0.0
    for n, (mark, weight) in enumerate(ordered):
        passed += weight
        if abs(passed - half) < 1e-9 and n + 1 < len(ordered):
            return (mark + ordered[n + 1][0]) / 2
        if passed > half:
            return mark
    return ordered[-1][0]


def named_errors(ballots: Sequence[Ballot], candidate: int) -> tuple[int, tuple[str, ...]]:
    """How many critics name an error of a candidate, and which, in the critics' order."""
    said = [ballot.opinions[candidate].fatal_errors for ballot in ballots if candidate in ballot.opinions]
    return sum(bool(errors) for errors in said), tuple(error for errors in said for error in errors)
