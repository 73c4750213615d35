"""Which kind of replica the missing ones of a model become, where it has several: pure.

- The model's own kind is filled first, then its placements in their order, each up to its own most. One that has been
  refused, that has failed too lately, or whose nodes are about to go away has no room for now: the next one takes it.
- What batches ask for beyond everybody else's demand goes to `batch_only` placements first, and to the others where
  those have no room. Nothing else goes there.
- **A replica is placed when it is submitted, and not moved.** One that runs in a batch_only placement serves everybody,
  so it counts for everybody's demand, and stays as long as the whole demand wants it. One that still waits there does
  not count: interactive requests shall not wait for a cheap partition. It gives way to one submitted for them, where
  both would be more than is wanted.
- When less is wanted the least useful goes (`wanting.usefulness`): among those equally far on, batch_only first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .spec import ModelSpec, Placement
from .states import Replica, Status
from .wanting import Staff, missing, order_of, usefulness


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one model now.

    submits   replicas to submit, by placement
    yielding  replicas that wait in a batch_only placement, and give way to those
    """

    submits: Mapping[str, int]
    yielding: tuple[Replica, ...] = ()


def plan(spec: ModelSpec, there: Staff, count: int, floor: int, closed: Callable[[str], bool]) -> Plan:
    """How the missing replicas are placed.

    count    replicas that the model shall have now
    floor    ... and that it should have without what batches ask for; more than `count` is as much as `count`
    closed   whether nothing can be submitted to a placement now; asked only where something is to be
    """
    regular = [kind for kind in spec.kinds if not kind.batch_only]
    cheap = [kind for kind in spec.kinds if kind.batch_only]
    names = {kind.name for kind in cheap}
    waiting = [r for r in there.lasting if r.placement in names and r.status is Status.PENDING]
    number = missing(there, count)
    short = max(0, min(floor, count) - (len(there.lasting) - len(waiting)))
    if there.leaving:  # they serve on until they are replaced, one at a time
        short = min(short, number)
    if not number and not short:
        return Plan({})
    room = {name: 0 if closed(name) else left for name, left in room_of(spec, there.lasting).items()}
    submits = Counter(_filled(regular, short, room))
    excess = len(there.lasting) + submits.total() - count
    waiting.sort(key=lambda r: usefulness(r, {}, order_of(spec)))
    submits.update(_filled([*cheap, *regular], number - short, room))
    return Plan(submits, tuple(waiting[: max(0, excess)]))


def room_of(spec: ModelSpec, lasting: Iterable[Replica]) -> dict[str, float]:
    """How many more each placement may have. One that is on its way out has its successor beside it for a while."""
    taken = Counter(replica.placement for replica in lasting)
    return {kind.name: (math.inf if kind.most is None else kind.most - taken[kind.name]) for kind in spec.kinds}


def _filled(kinds: Iterable[Placement], number: int, room: dict[str, float]) -> dict[str, int]:
    """So many in the first kinds that have room; takes it from `room`."""
    given: dict[str, int] = {}
    for kind in kinds:
        here = int(max(0, min(number, room[kind.name])))
        if here:
            given[kind.name] = here
            room[kind.name] -= here
            number -= here
    return given
