"""Whether an answer keeps to a request's `response_format`.

Schemas come from clients, so nothing they say may cost much: references are never fetched, patterns may go back over a
text only so often, and a schema may only be so large. (jsonschema-rs does the checking; it compiles a schema once.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jsonschema_rs
import orjson

from backends.errors import InvalidRequest

SCHEMA_BYTES = 128 * 1024
BACKTRACKS = 20_000
PATTERN_BYTES = 256 * 1024

Valid = Callable[[str], bool]


def format_of(given: Any) -> tuple[Mapping[str, Any] | None, Valid | None]:
    """A `response_format` as children shall have it, and the test for it; both None where any text will do.

    Raises `InvalidRequest` for what is no format, and for a schema that is none.
    """
    if given is None:
        return None, None
    if not isinstance(given, Mapping):
        raise refused("response_format", "expected an object")
    match given.get("type"):
        case "text":
            return None, None
        case "json_object":
            return given, is_object
        case "json_schema":
            return given, keeps_to(_schema_in(given))
    raise refused("response_format.type", "expected one of: text, json_object, json_schema")


def is_object(text: str) -> bool:
    """Whether a text is one JSON object and nothing else."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def keeps_to(schema: Any) -> Valid:
    """The test whether a text is JSON that a schema allows. Raises `InvalidRequest` for a schema that is none."""
    if len(orjson.dumps(schema)) > SCHEMA_BYTES:
        raise refused(_SCHEMA, f"expected at most {SCHEMA_BYTES} bytes")
    patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS, size_limit=PATTERN_BYTES)
    try:
        validator = jsonschema_rs.validator_for(schema, retriever=_never, pattern_options=patterns)
    except (ValueError, jsonschema_rs.ReferencingError):
        raise refused(_SCHEMA, "expected a JSON schema whose references are all inside of it") from None

    def valid(text: str) -> bool:
        try:
            return validator.is_valid(orjson.loads(text))
        except ValueError:  # no JSON, or a pattern that went back too often
            return False

    return valid


_SCHEMA = "response_format.json_schema.schema"


def _schema_in(given: Mapping[str, Any]) -> Any:
    named = given.get("json_schema")
    if not isinstance(named, Mapping):
        raise refused("response_format.json_schema", "expected an object")
    schema = named.get("schema", True)  # OpenAI has it optional: then any JSON will do
    if not isinstance(schema, dict | bool):
        raise refused(_SCHEMA, "expected an object")
    return schema


def refused(param: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {expected}.", param=param, code="invalid_value")


def _never(uri: str) -> Any:
    raise ValueError("references are not fetched")
