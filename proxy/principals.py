"""Who asks, and what they may: frozen values, made from the database, passed along with the request."""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.places import Priority


@dataclass(frozen=True, slots=True)
class Allowance:
    """Limits; None stands for none. Of a key, of a project, or of everybody: the smallest one counts.

    Tokens are prompt and completion together. Days and months are those of UTC.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None

    @property
    def unlimited(self) -> bool:
        return self == _UNLIMITED


_UNLIMITED = Allowance()


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose request it is.

    key_id      "" where no key is needed
    project_id  "" for a key of no project
    models      public names it may use; None: all of them
    priority    the class of its requests
    admin       may use `/admin`
    expires_at  seconds since the epoch, None for never
    account     the Slurm account of the project, for jobs that are started for it alone; "" for none
    limited     whether anything must be counted for it before it may go on: worked out once, it is looked at each time
    """

    key_id: str = ""
    project_id: str = ""
    models: frozenset[str] | None = None
    priority: Priority = Priority.INTERACTIVE
    admin: bool = False
    expires_at: int | None = None
    key_limits: Allowance = _UNLIMITED
    project_limits: Allowance = _UNLIMITED
    account: str = ""
    limited: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limited", not (self.key_limits.unlimited and self.project_limits.unlimited))


ANYBODY = Principal()
"""Where no key is needed."""
