"""Whose limits they are, and which of them count for a principal.

Buckets and budgets belong to an owner, a key or a project: so the keys of a project share its own, and other limits
change nothing about what is used.
"""

from __future__ import annotations

from dataclasses import fields

from proxy.principals import Allowance, Principal

from .buckets import Bucket, Budget, Kind
from .refusals import Refusal, duration
from .seam import Headers

UNKNOWN_S = 1.0
"""How long a request takes, until one has ended."""
_SMOOTHING = 0.2


class Owner:
    """A key or a project with limits.

    id           its id, by which the database knows it; a key's may be "", where no key is needed
    in_flight    requests of its own that run
    concurrent   how many may, None for any number
    """

    __slots__ = ("_mean_s", "concurrent", "day", "id", "in_flight", "kind", "month", "requests", "tokens")

    def __init__(self, kind: Kind, id: str) -> None:
        self.kind = kind
        self.id = id
        self.in_flight = 0
        self.concurrent: int | None = None
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.day: Budget | None = None
        self.month: Budget | None = None
        self._mean_s = 0.0

    def configure(self, allowance: Allowance, now: float, day: str, month: str) -> None:
        """Go by these limits; what is used stays used."""
        self.concurrent = allowance.concurrent_requests
        self.requests = _bucket(self.requests, allowance.requests_per_minute, now)
        self.tokens = _bucket(self.tokens, allowance.tokens_per_minute, now)
        self.day = self._budget(self.day, allowance.tokens_per_day, day)
        self.month = self._budget(self.month, allowance.tokens_per_month, month)

    def _budget(self, old: Budget | None, limit: int | None, period: str) -> Budget | None:
        if limit is None:
            return None
        if old is None:
            return Budget(limit, self.kind, self.id, period)
        old.limit = limit
        return old

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.kind} {self.id}" if self.id else "this gateway"

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return tuple(budget for budget in (self.day, self.month) if budget is not None)

    def leave(self, elapsed_s: float) -> None:
        """A request has ended that took so long."""
        self.in_flight -= 1
        mean_s = self._mean_s
        self._mean_s = mean_s + _SMOOTHING * (elapsed_s - mean_s) if mean_s else elapsed_s

    def idle(self, now: float) -> bool:
        """Nothing would be lost by forgetting it."""
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.drain(now)
                if bucket.used:
                    return False
        return not self.in_flight and all(budget.idle for budget in self.budgets)

    def refusals(self, tokens: int, now: float, wall: float) -> list[Refusal]:
        """Everything of its own that stands against a request."""
        next_end_s = (self._mean_s or UNKNOWN_S) / max(1, self.in_flight)
        found = []
        if self.concurrent is not None and self.in_flight >= self.concurrent:
            found.append(Refusal.of_concurrency(self.label, self.concurrent, self.in_flight, next_end_s))
        if self.requests is not None and not self.requests.has_room(1, now):
            found.append(Refusal.of_bucket("requests", self.label, self.requests, 1))
        if self.tokens is not None and not self.tokens.has_room(tokens, now):
            found.append(Refusal.of_bucket("tokens", self.label, self.tokens, tokens))
        found += [
            Refusal.of_budget(self.label, budget, tokens, wall, next_end_s)
            for budget in self.budgets
            if not budget.has_room(tokens)
        ]
        return found


def _bucket(old: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    if old is None:
        return Bucket(limit, now)
    old.change(limit, now)
    return old


def effective(principal: Principal, defaults: Allowance) -> tuple[Allowance, Allowance]:
    """The limits of the key and of its project: a default counts for the key where neither says anything."""
    own = principal.key_limits
    project = principal.project_limits if principal.project_id else Allowance()
    filled = {}
    for field in fields(Allowance):
        value = getattr(own, field.name)
        if value is None and getattr(project, field.name) is None:
            value = getattr(defaults, field.name)
        filled[field.name] = value
    return Allowance(**filled), project


class Plan:
    """Everything that counts for a principal, laid out for going through it quickly.

    as_of   the day for which all its budgets are known, "" for none yet
    """

    __slots__ = ("as_of", "budgets", "owners", "principal", "requests", "tokens")

    def __init__(self, principal: Principal, owners: tuple[Owner, ...]) -> None:
        self.principal = principal
        self.owners = owners
        self.requests = tuple(owner.requests for owner in owners if owner.requests is not None)
        self.tokens = tuple(owner.tokens for owner in owners if owner.tokens is not None)
        self.budgets = tuple(budget for owner in owners for budget in owner.budgets)
        self.as_of = ""

    def bring_to(self, day: str, month: str) -> bool:
        """Its budgets count this day and month. False if what was used of one before is still to be learnt."""
        for budget in self.budgets:
            budget.turn_to(day if budget.daily else month)
        if known := all(budget.known for budget in self.budgets):
            self.as_of = day
        return known

    def fits(self, tokens: int, now: float) -> bool:
        """Whether nothing stands against a request."""
        for owner in self.owners:
            if owner.concurrent is not None and owner.in_flight >= owner.concurrent:
                return False
        for bucket in self.requests:
            if not bucket.has_room(1, now):
                return False
        for bucket in self.tokens:
            if not bucket.has_room(tokens, now):
                return False
        for budget in self.budgets:  # noqa: SIM110  # `all` of a generator takes twice the time
            if not budget.has_room(tokens):
                return False
        return True

    def take(self, tokens: int) -> None:
        for bucket in self.requests:
            bucket.used += 1
        for bucket in self.tokens:
            bucket.used += tokens
        for budget in self.budgets:
            budget.reserved += tokens
        for owner in self.owners:
            owner.in_flight += 1

    def settle(self, taken: int, used: int, now: float, elapsed_s: float) -> None:
        """A request is over: of the tokens `taken` for it, so many were `used`, or more than that."""
        for bucket in self.tokens:
            bucket.settle(taken, used, now)
        for budget in self.budgets:
            budget.reserved -= taken
            budget.used += used
        for owner in self.owners:
            owner.leave(elapsed_s)

    def headers(self) -> Headers:
        """`x-ratelimit-*` as OpenAI has them, of the bucket of each kind that has the least left."""
        headers: Headers = ()
        if self.requests:
            bucket = _tightest(self.requests)
            headers = (
                (b"x-ratelimit-limit-requests", bucket.limit_text),
                (b"x-ratelimit-remaining-requests", b"%d" % bucket.remaining),
                (b"x-ratelimit-reset-requests", duration(bucket.full_in_s)),
            )
        if self.tokens:
            bucket = _tightest(self.tokens)
            headers += (
                (b"x-ratelimit-limit-tokens", bucket.limit_text),
                (b"x-ratelimit-remaining-tokens", b"%d" % bucket.remaining),
                (b"x-ratelimit-reset-tokens", duration(bucket.full_in_s)),
            )
        return headers


def _tightest(buckets: tuple[Bucket, ...]) -> Bucket:
    least = buckets[0]
    for bucket in buckets:
        if bucket.limit - bucket.used < least.limit - least.used:
            least = bucket
    return least
