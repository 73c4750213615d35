"""What operators may ask and tell while the gateway runs: how things stand, how many replicas, which to let go."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from backends.errors import InvalidRequest, NotFound, Unavailable
from slurm_launcher.loop import Launcher
from slurm_launcher.states import Replica, Status
from slurm_launcher.store import CannotSave

MOST_REPLICAS = 1000

Json = dict[str, Any]


class Source(Protocol):
    """Where a model's engines come from."""

    def outlook(self, model: str) -> tuple[str, float | None]:
        """Why nothing is ready, and when to try again."""


class Operations:
    """The verbs of `/admin` about models and replicas, each a method that takes and gives JSON.

    sources    where each model's engines come from
    in_flight  requests on a replica
    waiting    requests that wait for a place at a model
    """

    def __init__(
        self,
        launcher: Launcher,
        sources: Callable[[], Mapping[str, Source]],
        *,
        state_of: Callable[[str], str],
        in_flight: Callable[[str], int],
        waiting: Callable[[str], int],
    ) -> None:
        self._launcher = launcher
        self._sources = sources
        self._state_of = state_of
        self._in_flight = in_flight
        self._waiting = waiting
        self._verbs: Mapping[str, Callable[[Json], Awaitable[Json]]] = {
            "overview": self.overview,
            "scale": self.scale,
            "restart": self.restart,
            "drain": self.drain,
        }

    async def __call__(self, verb: str, arguments: Json) -> Json:
        """Raises `NotFound`, `InvalidRequest`."""
        return await self._verbs[verb](arguments)

    async def overview(self, _: Json) -> Json:
        """Every model, and every replica that is known, ended ones too."""
        now = time.time()
        replicas = sorted(self._launcher.replicas(), key=lambda r: (r.model, r.created_at))
        return {
            "object": "overview",
            "troubles": self._launcher.troubles(),
            "models": [self._model(name, replicas) for name in self._sources()],
            "replicas": [replica_card(r, now, self._in_flight(r.id)) for r in replicas],
        }

    def _model(self, name: str, replicas: list[Replica]) -> Json:
        launched = name in self._launcher.models
        state = self._state_of(name)
        why = "" if state == "ready" else self._sources()[name].outlook(name)[0]
        mine = [r for r in replicas if r.model == name]
        return {
            "model": name,
            "state": state,
            "wanted": self._launcher.count_of(name) if launched else None,
            "ready": sum(r.status is Status.READY for r in mine) if launched else None,
            "waiting": self._waiting(name),
            "why": why,
        }

    async def scale(self, arguments: Json) -> Json:
        """`{"id", "replicas"}`: a number that holds until `null` gives it back to the configuration."""
        model, replicas = self._launched(arguments), arguments.get("replicas")
        if replicas is not None and (not isinstance(replicas, int) or not 0 <= replicas <= MOST_REPLICAS):
            raise InvalidRequest(
                f"Invalid value for 'replicas': expected null, or a whole number from 0 to {MOST_REPLICAS}.",
                param="replicas",
                code="invalid_value",
            )
        try:
            await self._launcher.scale(model, replicas)
        except CannotSave as error:
            raise Unavailable(f"The database cannot be written, so nothing has changed: {error}.") from None
        return {"object": "model", "model": model, "wanted": self._launcher.count_of(model)}

    async def restart(self, arguments: Json) -> Json:
        """`{"id"}`: forget its failures, and replace its replicas one after the other."""
        model = self._launched(arguments)
        self._launcher.restart(model)
        return {"object": "model", "model": model, "wanted": self._launcher.count_of(model)}

    async def drain(self, arguments: Json) -> Json:
        """`{"id"}`: it finishes what it has and ends; another one takes its place."""
        replica_id = arguments["id"]
        if not self._launcher.drain(replica_id):
            raise NotFound(f"No replica '{replica_id[:128]}' runs.", param="replica", code="replica_not_found")
        return {"object": "replica", "replica": replica_id, "state": "draining"}

    def _launched(self, arguments: Json) -> str:
        model = str(arguments["id"])
        if model not in self._launcher.models:
            raise NotFound(f"No model '{model[:200]}' is launched here.", param="model", code="model_not_found")
        return model


def replica_card(replica: Replica, now: float, in_flight: int = 0) -> Json:
    """A replica as operators see it. Times are seconds since the epoch."""
    failure = replica.failure
    return {
        "model": replica.model,
        "replica": replica.id,
        "state": replica.word,
        "cluster": replica.cluster,
        "job": replica.job_id,
        "placement": replica.placement,
        "node": replica.node or None,
        "created_at": replica.created_at,
        "ready_at": replica.ready_at,
        "time_left_s": replica.time_left_s(now),
        "in_flight": in_flight,
        "note": replica.note,
        "failure": None
        if failure is None
        else {"kind": failure.kind, "message": failure.message, "tail": list(failure.tail)},
    }
