"""Values with a notation of their own: texts of the file -> seconds, bytes, days, addresses.

A parser returns what pydantic is to check further, or raises `ValueError` saying what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def parse_time_limit(text: Any) -> Any:
    """Slurm's `[days-]hours:minutes:seconds` -> seconds. Anything else is returned for pydantic to refuse."""
    if isinstance(text, str):
        match = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d\d):(\d\d)", text)
        if match is None:
            raise ValueError('expected Slurm\'s notation for a time, "HH:MM:SS" or "D-HH:MM:SS"')
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    raise ValueError('expected a text such as "24:00:00"')


def parse_memory(text: Any) -> Any:
    """`"64G"`, `"64000M"` -> MB."""
    match = re.fullmatch(r"(\d+)([MGT])", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('expected a text such as "64G" or "64000M"')
    return int(match[1]) * {"M": 1, "G": 1024, "T": 1024 * 1024}[match[2]]


def parse_bytes(given: Any) -> Any:
    """`"64G"`, or a whole number of bytes -> bytes."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    match = re.fullmatch(r"(\d{1,9})([KMGT])", given) if isinstance(given, str) else None
    if match is None:
        raise ValueError('expected a number of bytes, or a text such as "64G" or "500M"')
    return int(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)


def check_engine_url(url: str) -> str:
    """`http://HOST:PORT`, since requests keep their own path; a closing `/v1` is taken off."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme == "http" and parts.hostname and parts.port and not parts.query and not parts.username
    except ValueError:  # a port that is none
        usable = False
    if not usable or parts.path.rstrip("/") not in ("", "/v1"):
        raise ValueError("expected http://HOST:PORT")
    return url


def check_api_base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError("expected http://HOST... or https://HOST...")
    return url


def check_hosted(name: str) -> str:
    provider, _, model = name.partition("/")
    if not re.fullmatch(r"[a-z0-9_-]+", provider) or not model or re.search(r"\s", model):
        raise ValueError("expected PROVIDER/MODEL as litellm names them, such as 'openai/gpt-4o-mini'")
    return name


def parse_fallback(given: Any) -> Any:
    """A name alone means: for every reason."""
    return {"model": given} if isinstance(given, str) else given


def parse_engine_at(given: Any) -> Any:
    """An address alone is an engine like the others."""
    return {"url": check_engine_url(given)} if isinstance(given, str) else given


def one_of(names: Mapping[str, object]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"expected one of: {', '.join(sorted(names))}")
        return name

    return AfterValidator(check)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def parse_days(text: Any) -> Any:
    """`"mon-fri"`, `"sat,sun"`, `"daily"` -> numbers of weekdays, 0 for Monday."""
    if not isinstance(text, str):
        raise ValueError('expected a text such as "mon-fri" or "sat,sun"')
    if text == "daily":
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.lower().split(","):
        first, _, last = part.strip().partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError('expected days such as "mon-fri", "sat,sun" or "daily"')
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        days |= {(start + n) % 7 for n in range((end - start) % 7 + 1)}
    return frozenset(days)


def parse_time_of_day(text: Any) -> Any:
    """`"08:30"` -> seconds since midnight."""
    match = re.fullmatch(r"(\d\d):(\d\d)", text) if isinstance(text, str) else None
    if match is None or int(match[1]) * 60 + int(match[2]) > 24 * 60 or int(match[2]) > 59:
        raise ValueError('expected a time of day such as "08:30"')
    return (int(match[1]) * 60 + int(match[2])) * 60


Days = Annotated[frozenset[int], BeforeValidator(parse_days)]
TimeOfDay = Annotated[int, BeforeValidator(parse_time_of_day)]
TimeLimit = Annotated[int, BeforeValidator(parse_time_limit)]
Memory = Annotated[int, BeforeValidator(parse_memory)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
EngineUrl = Annotated[str, AfterValidator(check_engine_url)]
ApiBase = Annotated[str, AfterValidator(check_api_base)]
Hosted = Annotated[str, AfterValidator(check_hosted)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
