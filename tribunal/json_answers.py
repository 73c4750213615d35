"""JSON texts -> one text for equal values. Equal as JSON Schema has it: the order of keys and 1 or 1.0 make no
difference.

Numbers are kept as decimal digits: a float would make two large integers one.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

DEEPEST = 64


def canonical_json(text: str) -> str | None:
    """None for what is no object, array or scalar in JSON, for keys that come twice, and for what is too deep."""
    try:
        value = json.loads(
            text.strip(), parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse, object_pairs_hook=_unique
        )
        return _written(value, 0)
    except (ValueError, RecursionError, InvalidOperation):
        return None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _written(value: Any, depth: int) -> str:
    if depth > DEEPEST:
        raise ValueError("too deep")
    if isinstance(value, dict):
        items = sorted((json.dumps(key), _written(item, depth + 1)) for key, item in value.items())
        return "{" + ",".join(f"{key}:{item}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(item, depth + 1) for item in value) + "]"
    if isinstance(value, Decimal):
        return decimal_digits(value)
    return json.dumps(value)


def decimal_digits(value: Decimal) -> str:
    """Sign, digits and exponent of ten, itself valid JSON: `12e-1` for 1.2 and 1.20. Exact, unlike `normalize`."""
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    short = text.rstrip("0")
    if not short:
        return "0"
    if not isinstance(exponent, int):
        raise ValueError("not a number")
    power = exponent + len(text) - len(short)
    return f"{'-' if sign else ''}{short}{f'e{power}' if power else ''}"
