"""How many requests may be sent a second time: a share of the requests there are, so that retries never double an
overload. Pure.

A token bucket (as in Finagle's and Envoy's retry budgets): each request puts a share of a token in, each retry takes a
whole one out. A little flows in by time alone, so that a quiet model may retry, too.
"""

from __future__ import annotations


class RetryBudget:
    """share       of the requests that may be retried, in the long run
    floor_per_s   retries a second that are allowed beside that
    most          that may be saved up: the largest burst, as when a replica with many requests dies
    """

    __slots__ = ("_floor_per_s", "_most", "_seen", "_share", "tokens")

    def __init__(self, share: float = 0.2, floor_per_s: float = 0.5, most: float = 100.0) -> None:
        self._share = share
        self._floor_per_s = floor_per_s
        self._most = most
        self._seen: float | None = None
        self.tokens = most

    def request(self) -> None:
        """One was made."""
        if self.tokens < self._most:
            self.tokens = min(self._most, self.tokens + self._share)

    def retry(self, now: float) -> bool:
        """Whether one may be sent again at `now`, in seconds; if so, it is counted."""
        if self._seen is not None:
            self.tokens = min(self._most, self.tokens + max(0.0, now - self._seen) * self._floor_per_s)
        self._seen = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
