"""How a refused request is told so: OpenAI's words for limits, and when another try makes sense. Pure.

Messages as OpenAI's API gives them ("Rate limit reached for ... on tokens per min (TPM): Limit ..., Used ...,
Requested .... Please try again in ..."), with the key or the project whose limit it is.
"""

from __future__ import annotations

import calendar
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from backends.errors import QuotaExceeded, RateLimited

from .buckets import Bucket, Budget

PATIENCE_S = 120.0
"""As long as the official SDK waits. It is told not to try again where this would not do."""

_NAMES = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One limit that stands against a request.

    kind     OpenAI's type: "requests", "tokens", "insufficient_quota"
    limit_name  as messages have it      owner   whose limit it is
    wait_s   until it would not; infinite for never
    """

    kind: str
    limit_name: str
    owner: str
    limit: int
    used: int
    requested: int
    wait_s: float

    @classmethod
    def of_bucket(cls, kind: str, owner: str, bucket: Bucket, requested: int) -> Refusal:
        used = math.ceil(bucket.used)
        return cls(kind, _NAMES[kind], owner, bucket.limit, used, requested, bucket.wait_s(requested))

    @classmethod
    def of_concurrency(cls, owner: str, limit: int, in_flight: int, wait_s: float) -> Refusal:
        return cls("requests", "concurrent requests", owner, limit, in_flight, 1, wait_s)

    @classmethod
    def of_budget(cls, owner: str, budget: Budget, requested: int, wall: float, next_end_s: float) -> Refusal:
        """Used up; or only kept for requests that run, which may give back some of it."""
        name = "tokens per day (TPD)" if budget.daily else "tokens per month"
        used = budget.used + budget.reserved
        if budget.used + requested <= budget.limit:
            return cls("tokens", name, owner, budget.limit, used, requested, next_end_s)
        wait_s = ends_in_s(wall, daily=budget.daily)
        return cls("insufficient_quota", name, owner, budget.limit, budget.used, requested, wait_s)

    def error(self, model: str) -> RateLimited:
        numbers = f"Limit {self.limit}, Used {self.used}, Requested {self.requested}."
        if self.kind == "insufficient_quota":
            return QuotaExceeded(
                f"You exceeded your current quota: the budget of {self.owner} on {self.limit_name} does not cover the "
                f"request for {model}: {numbers} It begins anew in {duration(self.wait_s).decode()}, by UTC.",
                retry_after_s=self.wait_s,
            )
        if math.isinf(self.wait_s):
            return RateLimited(
                f"Request too large for {model} in {self.owner} on {self.limit_name}: Limit {self.limit}, Requested "
                f"{self.requested}. The input or output tokens must be reduced in order to run successfully.",
                kind=self.kind,
            )
        return RateLimited(
            f"Rate limit reached for {model} in {self.owner} on {self.limit_name}: {numbers} "
            f"Please try again in {duration(self.wait_s).decode()}.",
            kind=self.kind,
            retry_after_s=self.wait_s,
        )


def refused(refusals: Sequence[Refusal], model: str, headers: Sequence[tuple[bytes, bytes]]) -> RateLimited:
    """The error for the one of them that will stand the longest: trying again before that would be in vain."""
    longest = max(refusals, key=lambda refusal: refusal.wait_s)
    error = longest.error(model)
    told = dict(headers)
    if longest.wait_s > PATIENCE_S:
        told[b"x-should-retry"] = b"false"
    error.headers = MappingProxyType(told)
    return error


def duration(seconds: float) -> bytes:
    """As Go writes a duration, and OpenAI these headers: `12ms`, `1.5s`, `6m0s`, `26h3m0.25s`. Rounded up to a ms."""
    ms = math.ceil(seconds * 1000 - 1e-3)
    if ms < 1000:
        return b"%dms" % ms if ms > 0 else b"0s"
    whole, ms = divmod(ms, 1000)
    fraction = (b".%03d" % ms).rstrip(b"0") if ms else b""
    if whole < 60:
        return b"%d%bs" % (whole, fraction)
    minutes, whole = divmod(whole, 60)
    if minutes < 60:
        return b"%dm%d%bs" % (minutes, whole, fraction)
    return b"%dh%dm%d%bs" % (minutes // 60, minutes % 60, whole, fraction)


def ends_in_s(wall: float, *, daily: bool) -> float:
    """From a time (seconds since the epoch) to the end of its day, or its month, in UTC."""
    if daily:
        return 86400 - wall % 86400
    today = time.gmtime(wall)
    year, month = divmod(today.tm_year * 12 + today.tm_mon, 12)  # tm_mon counts from 1: this is the next month
    return calendar.timegm((year, month + 1, 1, 0, 0, 0)) - wall
