"""The seam: a `Dialect` is one value that says how an engine differs from OpenAI. A part that is None costs nothing.

Repair works on parsed JSON, so a call that needs some pays for parsing, and no other does. That is why a dialect is
asked for its repair with each call: most calls to llama.cpp, say, need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.base import Call
from backends.errors import InvalidRequest

Json = dict[str, Any]
ReplyRepair = Callable[[Any], Json]
"""An engine's parsed reply in, OpenAI's out. May change what it is given."""
ChunkRepair = Callable[[Json], Sequence[Json]]
"""One parsed chunk in, the chunks for the client out: none drops it. Made anew for each stream, so it may remember."""

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
TOKENIZE = "/tokenize"
TRANSCRIPTIONS = "/v1/audio/transcriptions"

EVERYWHERE = frozenset({CHAT, COMPLETIONS, EMBEDDINGS})


@dataclass(frozen=True, slots=True)
class Dialect:
    """One engine's way to speak.

    paths                what can be asked of it; anything else is refused with a 400 before it is sent
    prepare              (call, drop_unsupported) -> the call as the engine wants it, the same object if it is right
                         already. Raises `InvalidRequest` naming the parameter that the engine cannot do, unless those
                         are to be dropped
    repair_reply         the client's call -> what repairs its reply, None for nothing
    repair_chunks        the client's call -> what repairs the chunks of its stream, None for nothing
    one_choice           the engine has no `n`, or a wrong one: ask it once for each choice and each prompt
    max_inputs           most inputs of one embeddings or rerank request; None for no limit
    judges_dimensions    the engine knows which vectors may be cut, and refuses `dimensions` for others
    empty_input          what is sent for an empty text to embed, which the engine refuses; None where it takes it
    template_path        the route that renders messages, where the engine's /tokenize takes text only
    """

    name: str
    paths: frozenset[str] = EVERYWHERE
    prepare: Callable[[Call, bool], Call] | None = None
    repair_reply: Callable[[Call], ReplyRepair | None] | None = None
    repair_chunks: Callable[[Call], ChunkRepair | None] | None = None
    one_choice: bool = False
    max_inputs: int | None = None
    judges_dimensions: bool = False
    empty_input: str | None = None
    template_path: str | None = None


PLAIN = Dialect("plain")
"""OpenAI's own."""


def unsupported(param: str, because: str = "The engine of this model does not have it.") -> InvalidRequest:
    """A parameter that the engine cannot do."""
    return InvalidRequest(f"Unsupported parameter: '{param}'. {because}", param=param, code="unsupported_parameter")


def unsupported_endpoint(path: str) -> InvalidRequest:
    return InvalidRequest(f"The engine of this model does not serve {path}.", code="unsupported_endpoint")


def without(body: Json, *names: str) -> Json:
    """A copy that lacks some fields."""
    return {name: value for name, value in body.items() if name not in names}
