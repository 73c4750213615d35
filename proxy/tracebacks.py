"""Where an exception came from, without what it says: messages quote what they were about, and that may be a prompt."""

from __future__ import annotations

import os
import re
import traceback

CHAIN = 10
"""Causes that are told."""

_QUOTED = re.compile(r"(exception=[\w.]+)\(.*", re.DOTALL)


def frames_of(problem: BaseException) -> str:
    """As Python prints a traceback, causes first; of each exception only its class, of system calls their error too."""
    parts: list[str] = []
    told: BaseException | None = problem
    while told is not None and len(parts) < CHAIN:
        parts.append(f"{''.join(traceback.format_tb(told.__traceback__))}{_name(told)}")
        told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
    return "\n\nwhich led to\n\n".join(reversed(parts))


def _name(problem: BaseException) -> str:
    name = f"{type(problem).__module__}.{type(problem).__qualname__}"
    if isinstance(problem, OSError) and problem.errno:
        name += f": {os.strerror(problem.errno)}"
    return name


def without_exceptions(message: str) -> str:
    """asyncio's message of a task that failed, which has its exception's text inside."""
    return _QUOTED.sub(r"\1", message)
