"""Numbers as values that can be sent to another process, and added up there.

A state is a JSON object: a family's name -> its samples, each a list of label values and a number. A histogram's number
is a list: how many fell into each bucket (not cumulative, the last one is beyond every bound), then their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from .families import FAMILIES, Kind, Merge

Number = float | list[float]
Sample = tuple[Sequence[str], Number]
State = dict[str, list[Sample]]

_BY_NAME: Final = {family.name: family for family in FAMILIES}


def merged(states: Iterable[State]) -> State:
    """One state of many: each as one process gave it. What is no family of this version is left out."""
    totals: dict[str, dict[tuple[str, ...], Number]] = {}
    for state in states:
        for name, samples in state.items():
            family = _BY_NAME.get(name)
            if family is None:
                continue
            total = totals.setdefault(name, {})
            for labels, number in samples:
                key = tuple(labels)
                before = total.get(key)
                total[key] = number if before is None else _together(before, number, family.merge)
    return {name: [(list(labels), number) for labels, number in total.items()] for name, total in totals.items()}


def counted(state: State) -> State:
    """What stays true of a process that has ended: its counters and histograms. So sums never go back."""
    return {
        name: samples
        for name, samples in state.items()
        if (family := _BY_NAME.get(name)) is not None and family.kind is not Kind.GAUGE
    }


def counts_of(state: State, name: str, model: str) -> list[int]:
    """How much of a model, over all endpoints, has fallen into each bucket of a histogram; [] for nothing yet."""
    total: list[int] = []
    for labels, number in state.get(name, ()):
        if labels[0] == model and isinstance(number, list):
            counts = [int(count) for count in number[:-1]]
            total = [a + b for a, b in zip(total, counts, strict=True)] if total else counts
    return total


def _together(one: Number, other: Number, merge: Merge) -> Number:
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    if isinstance(one, list) or isinstance(other, list):
        raise ValueError("expected numbers of the same kind")
    match merge:
        case Merge.SUM:
            return one + other
        case Merge.LEAST:
            return min(one, other)
        case Merge.GREATEST:
            return max(one, other)


def empty(name: str) -> Number:
    """What a family without labels has before anything was counted."""
    family = _BY_NAME[name]
    return [0] * (len(family.bounds) + 2) if family.kind is Kind.HISTOGRAM else 0
