"""The seam between the half that answers and the half that decides.

`serving.Serving` answers requests; there is one in each process that serves. What it has to ask of the one place that
knows everything (who runs where, what is allowed, in which state a model is) is `Control`: `local_control.LocalControl`
in a gateway of one process, a messenger to that one in a worker process (proxy/workers/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .limits.seam import Admission
from .reload import Changes


@dataclass(frozen=True, slots=True)
class BatchWork:
    """What batches ask of a model.

    replicas    that it takes for every batch to be in time; 0: its batches rest
    in_flight   lines that are asked now by one process
    """

    replicas: int
    in_flight: int


class Control(Protocol):
    @property
    def limits(self) -> Admission:
        """Who lets requests in, by what keys and projects may use."""

    def endpoints(self) -> Mapping[str, int]:
        """Replicas that take requests, by model. What runs elsewhere counts as one: nobody can tell before asking."""

    def state_of(self, model: str) -> str:
        """A model's state in one word, for `/v1/models`: ready, starting, unavailable."""

    def context_length(self, model: str) -> int | None:
        """In tokens, None where nobody knows."""

    def seats(self, model: str) -> int | None:
        """Requests that the model's replicas take at once, 0 where none is ready; None where nobody knows."""

    def tell_batches(self, work: Mapping[str, BatchWork], process: object = None) -> None:
        """The work of all batches, by model, as one process sees it; to be told again every few seconds."""

    def check_agent(self, replica_id: str, token: str) -> None:
        """Raises `NotAuthenticated` for a token that is not this replica's: before anything it sent is read."""

    async def report(self, replica_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """An agent's report -> the answer to it. Raises `InvalidRequest`."""

    async def reload(self) -> Changes:
        """Read the configuration again and go by it. Raises `ConfigError`, and then nothing has changed."""

    async def operate(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A verb of `operations.Operations`. Raises `NotFound`, `InvalidRequest`."""
