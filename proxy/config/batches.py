"""`[batches]`: how much of the engines batches may have, and when."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .notation import Days, Section, TimeOfDay

Share = Annotated[float, Field(ge=0, le=1)]


class BatchHours(Section):
    """Hours of the week and the share of the engines that batches may have in them, in the local time of the gateway's
    machine."""

    days: Days = frozenset(range(7))
    start: TimeOfDay
    end: TimeOfDay
    """Not later than `start`: on the next day."""
    share: Share = 1.0
    """0: no line is started."""


class BatchesSection(Section):
    max_in_flight: int = Field(256, ge=1, le=100_000)
    """Lines of one model that one process asks at once, at most."""
    attempts: int = Field(5, ge=1, le=100)
    """How often a line is asked that an engine answers with a 5xx, 408 or 409. Waiting, rate limits, cold starts, and
    engines that end do not count."""
    hours: tuple[BatchHours, ...] = Field((), strict=False)
    """The first entry that covers the moment counts."""
    only_in_hours: bool = False
    """Outside of every entry of `hours` nothing runs; otherwise everything may."""
    webhook_urls: tuple[str, ...] = Field((), strict=False)
    """Told of every batch that ends."""
    webhook_hosts: tuple[str, ...] = Field((), strict=False)
    """Where a batch's own `webhook` may lead: a host, then by https, or an origin such as `http://10.0.0.5:8080`."""
    webhook_private_addresses: bool = False
    """Whether those may have private addresses."""
    webhook_secret_env: str | None = None
    """The environment variable that holds the secret, `whsec_...`, which messages are signed with; several, separated
    by blanks, while one takes another's place. Required where there are webhooks."""
