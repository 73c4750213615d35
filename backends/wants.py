"""A call -> what it asks of the places of its model, as values. Pure."""

from __future__ import annotations

from typing import Any

from .affinity import affinity_of
from .base import Call
from .places import Priority, Want

CHARS_PER_TOKEN = 4
UNSAID_TOKENS = 256
"""What is taken for the length of an answer whose limit nobody has named."""


def want_of(call: Call, avoid: frozenset[str] = frozenset(), *, affinity: bool = True) -> Want:
    """`affinity`: look for a prefix that is worth the same replica."""
    return Want(
        call.key_id,
        class_of(call),
        tokens_of(call),
        affinity_of(call) if affinity else 0,
        avoid,
        call.deadline,
    )


def class_of(call: Call) -> Priority:
    return Priority.BATCH if call.priority > 0 else Priority.INTERACTIVE


def tokens_of(call: Call) -> int:
    """An estimate of prompt and completion together; for fairness only, so that the same kind of error hits all."""
    body: dict[str, Any] = call.body
    if "messages" not in body and "prompt" not in body:  # embeddings and the like have no completion
        return len(call.raw) // CHARS_PER_TOKEN + 1
    most = body.get("max_completion_tokens")
    if most is None:
        most = body.get("max_tokens")
    completion = most if isinstance(most, int) and most > 0 else UNSAID_TOKENS
    n = body.get("n")
    return len(call.raw) // CHARS_PER_TOKEN + completion * (n if isinstance(n, int) and n > 0 else 1)
