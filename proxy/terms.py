"""What may be said of a key or a project, by `/admin` and by the command line: shapes, and their mistakes in our words.

NewKey, KeyChanges, NewProject, ProjectChanges   what is given; in changes only what is named counts, null takes away
KeyList, ProjectList, UsageAsked                 the queries of lists
parsed                                           checks a JSON object, or a query, against one of these
with_limits                                      limits after a change, when they do not contradict each other
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from backends.errors import InvalidRequest
from backends.places import Priority

from .bodies import kind_of
from .config import Limits
from .principals import Allowance

NAME_LENGTH = 200
HIGHEST_LIMIT = 10**15
"""More than any cluster makes in a year, and every JSON parser takes it as it is."""

LAST_SECOND = 253402300799
"""Of the year 9999."""

Dimension = Literal["key", "project", "model", "day"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
PRIORITIES: dict[str, Priority] = {priority.name.lower(): priority for priority in Priority}


# -- values ----------------------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    if not name.strip() or len(name) > NAME_LENGTH or not name.isprintable():
        raise ValueError(f"expected 1 to {NAME_LENGTH} printable characters")
    return name.strip()


def check_account(account: str) -> str:
    if not re.fullmatch(r"[\w.@-]{0,80}", account, re.ASCII):
        raise ValueError("expected the name of a Slurm account, or an empty string for none")
    return account


def check_models(models: list[str]) -> list[str]:
    for name in models:
        if not re.fullmatch(r"[^\s|\0]{1,200}", name):
            raise ValueError("expected names of models")
    if not models:
        raise ValueError("expected at least one model, or null for all of them")
    return sorted(set(models))


def check_expiry(at: int) -> int:
    if not time.time() < at <= LAST_SECOND:
        raise ValueError("expected a time in the future, in seconds since 1970")
    return at


def check_day(day: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
        raise ValueError("expected a day such as 2026-11-22")
    try:
        return date.fromisoformat(day).isoformat()
    except ValueError:
        raise ValueError("expected a day such as 2026-11-22") from None


def split(given: Any) -> Any:
    """`key,model` -> a list."""
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else given


def check_distinct(given: list[Dimension]) -> list[Dimension]:
    if len(set(given)) < len(given):
        raise ValueError("expected each of them once")
    return given


Name = Annotated[str, AfterValidator(check_name)]
Account = Annotated[str, AfterValidator(check_account)]
Models = Annotated[list[str], AfterValidator(check_models)]
Expiry = Annotated[int, AfterValidator(check_expiry)]
Day = Annotated[str, AfterValidator(check_day)]
Limit = Annotated[int, Field(ge=1, le=HIGHEST_LIMIT)]


# -- what is given ---------------------------------------------------------------------------------------------------


class Given(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LimitChanges(Given):
    """The fields of `Limits`; null for none."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_requests: Limit | None = None
    tokens_per_day: Limit | None = None
    tokens_per_month: Limit | None = None


class NewKey(Given):
    name: Name
    project_id: str | None = None
    models: Models | None = None
    """Public names; null for all of them."""
    priority: Literal["interactive", "batch"] = "interactive"
    limits: LimitChanges | None = None
    admin: bool = False
    """May use `/admin`."""
    expires_at: Expiry | None = None


class KeyChanges(Given):
    name: Name = ""
    project_id: str | None = None
    models: Models | None = None
    priority: Literal["interactive", "batch"] = "interactive"
    limits: LimitChanges | None = None
    admin: bool = False
    expires_at: Expiry | None = None
    disabled: bool = False


class NewProject(Given):
    name: Name
    account: Account = ""
    """The Slurm account of jobs that are started for it alone."""
    models: Models | None = None
    limits: LimitChanges | None = None


class ProjectChanges(Given):
    name: Name = ""
    account: Account = ""
    models: Models | None = None
    limits: LimitChanges | None = None
    disabled: bool = False


class Query(BaseModel):
    """Of a URL: everything comes as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(Query):
    limit: int = Field(20, ge=1, le=100)
    after: str | None = None
    """The last id of the page before."""


class KeyList(Page):
    project_id: str | None = None
    include_revoked: bool = False


class ProjectList(Page):
    include_archived: bool = False


class UsageAsked(Query):
    """Both days belong to it."""

    start_date: Day | None = None
    end_date: Day | None = None
    group_by: Annotated[list[Dimension], BeforeValidator(split), AfterValidator(check_distinct)] = ["day"]
    key_id: str | None = None
    project_id: str | None = None
    model: str | None = None
    limit: int = Field(100, ge=1, le=1000)
    page: int = Field(0, ge=0, le=2**31)
    """`next_page` of the page before."""


# -- checking --------------------------------------------------------------------------------------------------------

T = TypeVar("T", bound=BaseModel)


def parsed(kind: type[T], given: Mapping[str, Any]) -> T:
    """Raises `InvalidRequest` for the first mistake, whose message tells them all."""
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        wrong = list(_mistakes(error, kind))
    messages = dict.fromkeys(message for message, _, _ in wrong)
    raise InvalidRequest(" ".join(messages), param=wrong[0][1], code=wrong[0][2])


def with_limits(before: Allowance, changes: LimitChanges | None) -> Allowance:
    """`changes` over `before`; None takes every limit away. Raises `InvalidRequest` for limits that contradict each
    other, by the rules of the configuration's `[limits]`."""
    if changes is None:
        return Allowance()
    values = asdict(before) | {name: getattr(changes, name) for name in changes.model_fields_set}
    try:
        Limits(**values)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"Invalid value for 'limits': {why}.", param="limits", code="invalid_value") from None
    return Allowance(**values)


_KINDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "model_type": "an object",
    "dict_type": "an object",
}
_EXPECTED = {
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "literal_error": "expected one of {expected}",
    "int_parsing_size": f"expected at most {HIGHEST_LIMIT}",
}


def _mistakes(error: ValidationError, kind: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Message, path and OpenAI's code of each. Values are not repeated: somebody may have pasted a key."""
    for item in error.errors(include_url=False):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in item["loc"]).lstrip(".")
        what = item["type"]
        if what == "missing":
            yield f"Missing required parameter: '{path}'.", path, "missing_required_parameter"
        elif what == "extra_forbidden":
            yield f"Unknown parameter: '{path}'.{_suggestion(item['loc'], kind)}", path, "unknown_parameter"
        elif what in _KINDS:
            got = "" if issubclass(kind, Query) else f", but got {kind_of(item['input'])} instead"
            yield f"Invalid type for '{path}': expected {_KINDS[what]}{got}.", path, "invalid_type"
        else:
            told = _EXPECTED.get(what, "").format(**item.get("ctx", {})) or item["msg"].removeprefix("Value error, ")
            yield f"Invalid value for '{path}': {told}.", path, "invalid_value"


def _suggestion(location: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    fields = LimitChanges.model_fields if location[0] == "limits" and len(location) > 1 else kind.model_fields
    close = difflib.get_close_matches(str(location[-1]), fields, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" Known are: {', '.join(fields)}."
