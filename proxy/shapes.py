"""The shape of requests: pure checks with OpenAI's messages.

Only what every engine needs or what would break the gateway is checked here; the rest is the engine's to judge, and new
parameters pass without a change here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.errors import InvalidRequest

from .bodies import kind_of


@dataclass(frozen=True, slots=True)
class Kind:
    """A type in words, the test for it, and the same as JSON Schema for the published description (openapi.py)."""

    words: str
    fits: Callable[[Any], bool]
    schema: Mapping[str, Any] = field(default_factory=dict)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


STRING = Kind("a string", lambda value: isinstance(value, str), {"type": "string"})
BOOLEAN = Kind("a boolean", lambda value: isinstance(value, bool), {"type": "boolean"})
INTEGER = Kind("an integer", _is_integer, {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1})
NUMBER = Kind("a number", _is_number, {"type": "number"})
OBJECT = Kind("an object", lambda value: isinstance(value, dict), {"type": "object"})
ARRAY = Kind("an array", lambda value: isinstance(value, list), {"type": "array"})
STRING_OR_ARRAY = Kind(
    "a string or an array", lambda value: isinstance(value, str | list), {"type": ["string", "array"]}
)

Fields = Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a body must and may hold. Optional fields may be null."""

    required: Fields
    optional: Fields

    def check(self, body: dict[str, Any]) -> None:
        """Raises `InvalidRequest` for the first field that does not fit."""
        for name, kind in self.required.items():
            if name not in body:
                raise InvalidRequest(
                    f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
                )
            if not kind.fits(body[name]):
                raise wrong_type(name, kind, body[name])
        for name, value in body.items():
            expected = self.optional.get(name)
            if expected is not None and value is not None and not expected.fits(value):
                raise wrong_type(name, expected, value)


def wrong_type(name: str, kind: Kind, value: Any) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{name}': expected {kind.words}, but got {kind_of(value)} instead.",
        param=name,
        code="invalid_type",
    )


def not_empty(name: str, value: list[Any]) -> None:
    if not value:
        raise InvalidRequest(
            f"Invalid '{name}': empty array. Expected an array with minimum length 1.", param=name, code="empty_array"
        )


SAMPLING: Fields = {
    "stream": BOOLEAN,
    "stream_options": OBJECT,
    "max_tokens": INTEGER,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "n": INTEGER,
    "stop": STRING_OR_ARRAY,
    "seed": INTEGER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "logit_bias": OBJECT,
    "user": STRING,
}
"""What chat and completions share."""
