"""What the commands about keys, projects and usage share: options, what their texts mean, how limits are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import Mistake, say, when

if TYPE_CHECKING:
    from .keys import Key
    from .principals import Allowance
    from .projects import Project

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="A key's id or name.")]
ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="A project's id or name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
ProjectOption = Annotated[
    str | None, typer.Option("--project", metavar="PROJECT|none", help="The project that it belongs to.")
]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", metavar="MODEL", help="A model that may be used; several times for more.")
]
AllModelsOption = Annotated[bool, typer.Option("--all-models", help="Every model may be used.")]
AccountOption = Annotated[
    str | None, typer.Option("--account", help="The Slurm account of jobs that are started for it alone.")
]
RequestsOption = Annotated[str | None, typer.Option("--rpm", metavar="N|none", help="Requests per minute.")]
TokensOption = Annotated[str | None, typer.Option("--tpm", metavar="N|none", help="Tokens per minute.")]
ConcurrentOption = Annotated[str | None, typer.Option("--concurrent", metavar="N|none", help="Requests at once.")]
DayOption = Annotated[str | None, typer.Option("--tokens-per-day", metavar="N|none", help="Tokens each day (UTC).")]
MonthOption = Annotated[
    str | None, typer.Option("--tokens-per-month", metavar="N|none", help="Tokens each month (UTC).")
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="30d|DATE|never", help="After so long, or at the beginning of a day (UTC)."),
]


class Class(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


ClassOption = Annotated[Class | None, typer.Option("--class", help="Interactive requests go before those of a batch.")]
AdminOption = Annotated[bool | None, typer.Option("--admin/--no-admin", help="Whether it may use /admin.")]

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def moment(option: str, text: str) -> datetime:
    """`2026-12-31`, or with a time; UTC where it names no other zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Mistake(f"{option}: found {text!r}, expected a time such as 30d, 12h or 2026-12-31") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def span(text: str) -> timedelta | None:
    """`30d`, `12h`, `2w`."""
    match = re.fullmatch(r"(\d{1,5})([hdw])", text)
    return int(match[1]) * _UNITS[match[2]] if match else None


def expiry(text: str) -> int | None:
    """Seconds since the epoch; None for never."""
    if text == "never":
        return None
    length = span(text)
    return int((datetime.now(UTC) + length if length is not None else moment("--expires", text)).timestamp())


def day_of(option: str, text: str) -> str:
    """A day; `7d` is the first of seven, today being the last."""
    length = span(text)
    if length is not None:
        return (datetime.now(UTC) - length + timedelta(days=1)).date().isoformat()
    return moment(option, text).date().isoformat()


_OPTIONS = {
    "requests_per_minute": "--rpm",
    "tokens_per_minute": "--tpm",
    "concurrent_requests": "--concurrent",
    "tokens_per_day": "--tokens-per-day",
    "tokens_per_month": "--tokens-per-month",
}


def limit_changes(**given: str | None) -> dict[str, int | None]:
    """Of the options that were given, by the field of `Limits`."""
    changes: dict[str, int | None] = {}
    for name, text in given.items():
        if text is None:
            continue
        if text != "none" and not re.fullmatch(r"\d{1,18}", text):
            raise Mistake(f"{_OPTIONS[name]}: found {text!r}, expected a whole number, or none")
        changes[name] = None if text == "none" else int(text)
    return changes


def model_changes(models: Sequence[str] | None, every: bool) -> dict[str, Any]:
    if models and every:
        raise Mistake("--model and --all-models contradict each other")
    return {"models": None} if every else {"models": list(models)} if models else {}


# -- showing ---------------------------------------------------------------------------------------------------------


def print_one(found: Key | Project, as_json: bool) -> None:
    card = found.card()
    if as_json:
        say(json.dumps(card))
        return
    card["limits"] = limits_in_words(found.limits)
    card["models"] = ", ".join(found.models) if found.models is not None else "all"
    for name, value in card.items():
        if name == "object":
            continue
        shown = when(value) if name.endswith("_at") and value is not None else value
        if isinstance(shown, bool):
            shown = "yes" if shown else "no"
        say(f"{name.replace('_', ' '):14}{shown or '-'}")


def limits_in_words(limits: Allowance) -> str:
    words = (
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrent_requests, "at once"),
        (limits.tokens_per_day, "tokens/day"),
        (limits.tokens_per_month, "tokens/month"),
    )
    return ", ".join(f"{number} {word}" for number, word in words if number is not None) or "none"
