"""A regular expression for any JSON object, for engines whose JSON mode wants a grammar.

JSON nests without end and a regular expression does not, so it ends: an object may hold arrays and objects, two levels
of them. It is the dialect of TGI's outlines-core: no look-around, and blanks at most one at a time, as that has them,
so that a model cannot fill its answer with them.
"""

from __future__ import annotations

DEPTH = 2

_BLANK = r"[ \n]?"
_STRING = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_SCALAR = rf"({_STRING}|{_NUMBER}|true|false|null)"


def _list_of(item: str, opens: str, closes: str) -> str:
    return rf"{opens}{_BLANK}({item}({_BLANK},{_BLANK}{item})*)?{_BLANK}{closes}"


def _object_of(value: str) -> str:
    return _list_of(rf"{_STRING}{_BLANK}:{_BLANK}{value}", r"\{", r"\}")


def _value(depth: int) -> str:
    if depth == 0:
        return _SCALAR
    inner = _value(depth - 1)
    array = _list_of(inner, r"\[", r"\]")
    return f"({_SCALAR}|{array}|{_object_of(inner)})"


ANY_OBJECT = _object_of(_value(DEPTH))
