"""What samples come to: percentiles, tokens per second, errors by kind, and the gateway's share. Pure.

TTFT   time to first token: from sending the request to the first event with text in it; an event that only names the
       role does not count
ITL    inter-token latency: between two events with text. Events that arrive in one read have 0 between them
TPOT   time per output token: (end to end - TTFT) / (tokens - 1) of one request. Differs from ITL where an event holds
       several tokens
E2E    from sending the request to the end of the answer
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are seconds; None where there was nothing to measure.

    events          with text in them
    prompt_tokens, output_tokens   as the server counted them; None if it did not
    error           its kind, None for an answer that came whole
    """

    e2e_s: float
    ttft_s: float | None = None
    gaps_s: Sequence[float] = ()
    events: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Of the answer: the server's count, else that of the events."""
        return self.events if self.output_tokens is None else self.output_tokens


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one latency, in milliseconds; NaN where nothing was measured. `count` values lie behind it."""

    p50: float
    p95: float
    p99: float
    mean: float
    count: int

    def at(self, percentile: int) -> float:
        value: float = getattr(self, f"p{percentile}")
        return value


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one target at one number of users.

    wall_s       while requests were in flight, all turns together
    errors       by kind
    by_usage     tokens are the server's own count, not that of events
    prompt_tokens_mean   of the answers that came whole and said it; NaN if none did
    """

    requests: int
    wall_s: float
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread
    output_tokens: int
    output_tokens_per_s: float
    output_tokens_per_s_per_user: float
    requests_per_s: float
    prompt_tokens_mean: float
    by_usage: bool
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


@dataclass(frozen=True, slots=True)
class Share:
    """What the gateway adds to one percentile of one latency: gateway - direct, and gateway / direct."""

    difference_ms: float
    ratio: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of sorted values, by linear interpolation between neighbours (as numpy does by default); NaN of nothing."""
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(seconds: Iterable[float]) -> Spread:
    ordered = sorted(seconds)
    mean = math.fsum(ordered) / len(ordered) * 1e3 if ordered else math.nan
    p50, p95, p99 = (percentile(ordered, percent) * 1e3 for percent in PERCENTILES)
    return Spread(p50, p95, p99, mean, len(ordered))


def summary(samples: Sequence[Sample], users: int, wall_s: float) -> Figures:
    """Latencies are of the answers that came whole; a refusal is quick, and would flatter them."""
    good = [sample for sample in samples if sample.error is None]
    tokens = sum(sample.tokens for sample in good)
    counted = [sample.prompt_tokens for sample in good if sample.prompt_tokens is not None]
    per_s = tokens / wall_s if wall_s > 0 else math.nan
    return Figures(
        requests=len(samples),
        wall_s=wall_s,
        ttft_ms=spread(sample.ttft_s for sample in good if sample.ttft_s is not None),
        itl_ms=spread(gap for sample in good for gap in sample.gaps_s),
        tpot_ms=spread(
            (sample.e2e_s - sample.ttft_s) / (sample.tokens - 1)
            for sample in good
            if sample.ttft_s is not None and sample.tokens > 1
        ),
        e2e_ms=spread(sample.e2e_s for sample in good),
        output_tokens=tokens,
        output_tokens_per_s=per_s,
        output_tokens_per_s_per_user=per_s / users,
        requests_per_s=len(good) / wall_s if wall_s > 0 else math.nan,
        prompt_tokens_mean=math.fsum(counted) / len(counted) if counted else math.nan,
        by_usage=bool(good) and all(sample.output_tokens is not None for sample in good),
        errors=dict(Counter(sample.error for sample in samples if sample.error is not None).most_common()),
    )


def share(gateway: Spread, direct: Spread) -> dict[int, Share]:
    """By percentile."""
    shares = {}
    for percent in PERCENTILES:
        ours, theirs = gateway.at(percent), direct.at(percent)
        shares[percent] = Share(ours - theirs, ours / theirs if theirs > 0 else math.nan)
    return shares
