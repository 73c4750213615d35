"""What is wrong with a configuration, in sentences: the key's path as one would write it, and what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError


class ConfigError(Exception):
    """The configuration cannot be used. `mistakes` has a line for each, with the key's path."""

    def __init__(self, source: str, mistakes: list[str]) -> None:
        self.source = source
        self.mistakes = mistakes
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {mistake}" for mistake in mistakes)]))


_SAYABLE = (str, int, float, bool, list)
_EXPECTED = {
    "missing": "is missing",
    "string_type": "expected a text",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "tuple_type": "expected a list",
    "too_short": "expected at least one",
}


def mistakes_of(
    error: ValidationError, section: type[BaseModel], defaults: Mapping[str, Any], models: Any
) -> Iterator[str]:
    """A sentence for each. `section` is what was read, `models` and `defaults` as they stood in the file."""
    for item in error.errors(include_url=False, include_context=True):
        location = [str(part) for part in item["loc"]]
        path = _path(location, defaults, models)
        found, kind = item["input"], item["type"]
        if kind == "extra_forbidden":
            yield f"{path}: unknown key{_suggestion(section, location)}"
            continue
        if kind == "missing":
            yield f"{path}: is missing"
            continue
        expected = _EXPECTED.get(kind) or item["msg"].removeprefix("Value error, ")
        expected = expected.replace("Input should be", "expected").replace("String should", "expected to")
        secret = "environment" in location or "key" in (location[-1] if location else "")
        shown = f"found {found!r}, " if isinstance(found, _SAYABLE) and not secret else ""
        yield f"{path}: {shown}{expected}"


def _path(location: list[str], defaults: Mapping[str, Any], models: Any) -> str:
    """The key as one would write it in TOML; under `defaults` where it was written there."""
    if len(location) > 2 and location[0] == "models":
        given: Any = models.get(location[1]) if isinstance(models, dict) else None
        inherited: Any = defaults
        for part in location[2:]:
            given = given.get(part) if isinstance(given, dict) else None
            inherited = inherited.get(part) if isinstance(inherited, dict) else None
        if given is None and inherited is not None:
            location = ["defaults", *location[2:]]
    return path_of(*location) or "configuration"


def path_of(*keys: str) -> str:
    """A key as one would write it in TOML."""
    return ".".join(key if re.fullmatch(r"[\w-]+", key) else f'"{key}"' for key in keys)


def _suggestion(section: type[BaseModel], location: list[str]) -> str:
    names = list(_section_at(section, location[:-1]).model_fields)
    if len(location) == 1:
        names.append("defaults")
    close = difflib.get_close_matches(location[-1], names, n=1)
    return f", did you mean {close[0]!r}?" if close else f"; known are: {', '.join(names)}"


def _section_at(section: type[BaseModel], location: list[str]) -> type[BaseModel]:
    """The innermost section on the way."""
    named = False
    for part in location:
        field = section.model_fields.get(part)
        if field is not None and not named:
            section = next(_sections_in(field.annotation), section)
            named = get_origin(field.annotation) is dict  # the next part is a name of the user's
        else:
            named = False
    return section


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field holds, whatever is around them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)
