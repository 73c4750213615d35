"""The order in which those who wait get a place. Pure.

    interactive   owner A: 1 2 3   owner B: 1   ...     everybody here before anybody below
    batch         owner A: 4 5     owner C: 1   ...

Inside a class owners take turns by deficit round robin (Shreedhar and Varghese 1995), counted in tokens: each visit
gives an owner `QUANTUM` tokens of credit, and what is served is paid from it. So somebody with many or with large
requests gets the same share of the engine as somebody with few or small ones. An owner's own requests keep their
order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .places import Priority

QUANTUM = 1024


class Entry(Protocol):
    @property
    def owner(self) -> str: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def tokens(self) -> int: ...


E = TypeVar("E", bound=Entry)


@dataclass(slots=True, eq=False)
class _Owner(Generic[E]):
    """Somebody who waits, with a credit that ends with the last request."""

    entries: deque[E] = field(default_factory=deque)
    credit: int = 0


class WaitingLine(Generic[E]):
    """Entries are told apart by identity."""

    def __init__(self) -> None:
        self._classes: dict[Priority, dict[str, _Owner[E]]] = {priority: {} for priority in Priority}
        self._lengths = dict.fromkeys(Priority, 0)
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[E]:
        for owners in self._classes.values():
            for owner in owners.values():
                yield from owner.entries

    def length(self, priority: Priority) -> int:
        return self._lengths[priority]

    def before(self, priority: Priority) -> int:
        """How many are served before a newcomer of this class, or as soon as it."""
        return sum(self._lengths[other] for other in Priority if other <= priority)

    def add(self, entry: E, *, first: bool = False) -> None:
        """`first`: before its owner's others, since it has waited already."""
        owners = self._classes[entry.priority]
        owner = owners.get(entry.owner)
        if owner is None:
            owner = owners[entry.owner] = _Owner()
        if first:
            owner.entries.appendleft(entry)
        else:
            owner.entries.append(entry)
        self._lengths[entry.priority] += 1
        self.count += 1

    def remove(self, entry: E) -> None:
        """Raises `KeyError` or `ValueError` for one that is not in line."""
        owners = self._classes[entry.priority]
        owner = owners[entry.owner]
        owner.entries.remove(entry)
        self._lengths[entry.priority] -= 1
        self.count -= 1
        if not owner.entries:
            del owners[entry.owner]

    def charge(self, name: str, priority: Priority, tokens: int) -> None:
        """A request has used so many more than it was taken for (fewer: negative). Forgotten if its owner waits for
        nothing more."""
        owner = self._classes[priority].get(name)
        if owner is not None:
            owner.credit -= tokens

    def pop(self, can: Callable[[E], bool]) -> E | None:
        """Take the next one that `can` be served now out of the line; None if none can."""
        for owners in self._classes.values():
            if owners and (entry := self._next(owners, can)) is not None:
                return entry
        return None

    def _next(self, owners: dict[str, _Owner[E]], can: Callable[[E], bool]) -> E | None:
        """One class. The dict's order is that of the visits: who is visited in vain goes to its end.

        All rounds that it would take until somebody's credit suffices are done at once.
        """
        visited: list[tuple[str, _Owner[E], E]] = []
        fewest, place = 0, -1
        for name, owner in owners.items():
            entry = _first(owner, can)
            if entry is None:
                continue
            rounds = max(0, math.ceil((entry.tokens - owner.credit) / QUANTUM))
            if place < 0 or rounds < fewest:
                fewest, place = rounds, len(visited)
            visited.append((name, owner, entry))
            if not rounds:
                break
        if place < 0:
            return None
        for number, (name, owner, _) in enumerate(visited):
            owner.credit += QUANTUM * (fewest + (number < place))
            if number < place:
                owners[name] = owners.pop(name)
        _, owner, entry = visited[place]
        owner.credit -= entry.tokens
        self.remove(entry)
        return entry


def _first(owner: _Owner[E], can: Callable[[E], bool]) -> E | None:
    return next((entry for entry in owner.entries if can(entry)), None)
