"""Users without a network: the closed loop of `slurmgate bench` played on the engine model alone, in no time. Pure.

It says what a perfect measurement of the simulated engine would show, so what a real one shows beyond that is the
machine's: sockets, the load generator, and the gateway if there is one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from proxy.benchmark.figures import Sample
from proxy.benchmark.load import ERROR_PAUSE_S

from .engine_model import EngineModel, Job, QueueIsFull, Speeds

Lengths = Callable[[int, int], tuple[int, int]]
"""(user, index) -> (prompt tokens, output tokens)"""


@dataclass(slots=True)
class _Asked:
    user: int
    index: int
    begun: float
    times: list[float] = field(default_factory=list)


def closed_loop(speeds: Speeds, users: int, requests: int, lengths: Lengths) -> tuple[list[Sample], float]:
    """`users` at once, `requests` each. The samples, and the seconds that all of it took in the model's world."""
    engine = EngineModel(speeds)
    now = 0.0
    samples: list[Sample] = []
    asked: dict[int, _Asked] = {}
    coming = [(0.0, user, 0) for user in range(users)]  # (when, user, index)
    heapq.heapify(coming)

    def send_due() -> None:
        while coming and coming[0][0] <= now:
            _, user, index = heapq.heappop(coming)
            job = Job(user * requests + index, *lengths(user, index))
            try:
                engine.submit(job)
            except QueueIsFull:
                samples.append(Sample(e2e_s=0.0, error="429"))
                next_one(user, index, ERROR_PAUSE_S)
                continue
            asked[job.id] = _Asked(user, index, now)

    def next_one(user: int, index: int, pause_s: float = 0.0) -> None:
        if index + 1 < requests:
            heapq.heappush(coming, (now + pause_s, user, index + 1))

    while coming or asked:
        send_due()
        took = engine.begin()
        if took is None:  # everybody pauses
            now = coming[0][0]
            continue
        now += took
        for token in engine.finish():
            request = asked[token.job_id]
            request.times.append(now)
            if token.last:
                samples.append(_sample(request, now))
                del asked[token.job_id]
                next_one(request.user, request.index)
    return samples, now


def _sample(request: _Asked, ended: float) -> Sample:
    times = request.times
    return Sample(
        e2e_s=ended - request.begun,
        ttft_s=times[0] - request.begun,
        gaps_s=[later - earlier for earlier, later in pairwise(times)],
        events=len(times),
        output_tokens=len(times),
    )
