"""Prometheus metrics: plain numbers while requests run, text when somebody looks.

families.py     every metric there is, as a table          counting.py    what finished requests add up to
state.py        numbers of several processes, added up     coldstarts.py  what the lives of replicas add up to
batches.py      lines that are run, batches by state
deliberations.py  what tribunals did
models.py       queues, places, replicas: what is now      process.py     CPU, memory, the event loop
text.py         a state -> text

`Metrics` joins them for one process. With several, each gives its `state()`, and who is asked shows all of them:
`exposition(merged(states), accept)`.
"""

from __future__ import annotations

from collections.abc import Callable

from .batches import BatchLines, BatchNumbers, state_of_batches
from .counting import Counts
from .deliberations import Deliberations
from .models import Lives, Loads, ModelLoad, ReplicaLoad, Replicas, load_of, state_of_models
from .process import state_of_process, watch_loop
from .state import State, counted, merged

__all__ = [
    "BatchLines",
    "BatchNumbers",
    "Metrics",
    "ModelLoad",
    "ReplicaLoad",
    "State",
    "counted",
    "exposition",
    "load_of",
    "merged",
]


def exposition(state: State, accept: str = "") -> tuple[bytes, str]:
    """The text and its content type (text.py). `accept` is that header of who asks."""
    from .text import rendered  # noqa: PLC0415  # with prometheus_client: no start has to wait for it

    return rendered(state, accept)


class Metrics(Counts):
    """Everything that `/metrics` shows.

    replicas   gives (model, state) for each replica
    loads      gives each model's places and queue
    lives      gives all that the launcher knows of replicas

    Only in the process that knows them: states are added up.

    batches    gives what is known of batches here
    """

    def __init__(self, replicas: Replicas = tuple, loads: Loads = tuple, lives: Lives = tuple) -> None:
        super().__init__()
        self._replicas = replicas
        self._loads = loads
        self._lives = lives
        self.batches: Callable[[], BatchNumbers] = BatchNumbers
        self.deliberations = Deliberations()

    def state(self) -> State:
        """All numbers of this process, as JSON."""
        now = state_of_models(self._replicas(), self._loads()) | state_of_batches(self.batches())
        return super().state() | now | self.deliberations.state() | state_of_process()

    def render(self) -> bytes:
        """This process alone, in Prometheus' text format."""
        text, _ = exposition(self.state())
        return text

    async def watch(self) -> None:
        """A task for as long as the process serves: how late its event loop is, and what becomes of replicas."""
        await watch_loop(self.lag, lambda: self.look_at(self._lives()))
