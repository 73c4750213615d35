"""Why a model is not ready, in one sentence for the user, and when another try makes sense. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter

from .failing import failures, retry_at
from .spec import ModelSpec
from .states import Replica, Status, Target

LATER_S = 120.0
"""For what no waiting mends: the longest that the official clients wait before they try again."""


def outlook(
    spec: ModelSpec,
    replicas: Sequence[Replica],
    now: float,
    silence: str = "",
    *,
    wanted: int | None = None,
    set_by_operator: bool = False,
    job: str = "Slurm job",
) -> tuple[str, float | None]:
    """The sentence, and seconds until another try makes sense: None while something is coming, so that waiting helps.

    replicas   all that is known of the model, ended ones too
    silence    why its scheduler does not answer, "" while it does
    wanted     how many replicas it shall have now; None where nobody has decided yet
    set_by_operator   ... because an operator says so, whatever its demand
    job        what its cluster calls a job
    """
    name = spec.name
    if (coming := _coming(name, replicas, silence, job)) is not None:
        return coming, None
    if wanted == 0 and set_by_operator:
        return f"{name} has been switched off by an operator.", LATER_S
    if silence:
        return f"{name} is not running, and the scheduler does not answer: {silence}", 15.0
    if (failed := _failed(spec, replicas)) is not None:
        why, at = failed
        if math.isinf(at):
            return f"{name} cannot start: {why} It is not tried again until an operator has seen to it.", LATER_S
        return f"{name} cannot start: {why}", max(1.0, at - now)
    return _nothing_yet(spec, wanted)


def _failed(spec: ModelSpec, replicas: Iterable[Replica]) -> tuple[str, float] | None:
    """Why no replica has come, and when it is tried again, of the kind that is tried soonest; None while there is a
    kind that has not failed. Batches' own kinds do not count: nobody else gets a replica there."""
    ended = [r for r in replicas if r.ended]
    found: list[tuple[float, str]] = []
    for kind, variant in zip(spec.kinds, spec.variants, strict=True):
        if kind.batch_only or kind.most == 0:
            continue
        mine = [r for r in ended if r.placement == kind.name]
        row = failures(mine, variant)
        if not row or row[-1].failure is None:
            return None
        found.append((retry_at(mine, variant), row[-1].failure.message))
    at, why = min(found, key=itemgetter(0), default=(0.0, ""))
    return (why, at) if found else None


def _nothing_yet(spec: ModelSpec, wanted: int | None) -> tuple[str, float | None]:
    """Of a model that has neither replicas nor failures."""
    if not wanted and spec.scaling.most == 0:
        return f"{spec.name} is switched off (replicas = 0).", LATER_S
    if not wanted and spec.scaling.least == 0:
        return f"{spec.name} is not running: its first request starts it.", None
    return f"{spec.name} is starting.", None


def _coming(name: str, replicas: Iterable[Replica], silence: str, job: str) -> str | None:
    """Of the replica that is nearest to being ready; None if none is on its way."""
    live = [r for r in replicas if not r.ended and r.target is Target.RUN]
    for replica in live:
        if replica.status is Status.STARTING:
            return f"{name} is starting: {job} {replica.job_id} runs on {replica.node}, the engine is loading."
    for replica in live:
        if replica.status is Status.PENDING and replica.running_since is not None:
            return f"{name} is starting: {job} {replica.job_id} runs on {replica.node or 'its node'}."
        if replica.status is Status.PENDING and (replica.job_id or not silence):
            start = f", expected to start at {clock_time(replica.starts_at)}" if replica.starts_at else ""
            return f"{name} is starting: {job} {replica.job_id or '(new)'} is {replica.note or 'new'}{start}"
    return None


def clock_time(text: str) -> str:
    """Slurm's `2026-11-22T14:05:00` -> `2026-11-22 14:05`."""
    day, _, time = text.partition("T")
    return f"{day} {time[:5]}" if time else text
