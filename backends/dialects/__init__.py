"""What each engine says differently: pure repair of requests and replies, one small file an engine.

    Call --prepare--> the engine's body --> engine --> reply --repair--> OpenAI's reply
                                                   --> chunks --one Repair per stream--> OpenAI's chunks

A part that is None costs nothing: the bytes go through as they are. Repair works on parsed JSON, so a dialect that has
some pays for parsing, and no other does. Nothing here does I/O or knows of replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backends.base import Call

Json = dict[str, Any]
ChunkRepair = Callable[[Json], Json | None]
"""One parsed event in, the event for the client out; None drops it. Made anew for each stream, so it may remember."""

EVERYWHERE = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """One engine's way to speak.

    paths            what the engine serves by itself; what is not among them is translated or refused with a 400
    prepare          (call, drop_unsupported) -> the call as the engine wants it. Raises `InvalidRequest` naming the
                     parameter that the engine cannot do, unless those are to be dropped
    repair_reply     (the client's call, the reply's JSON) -> OpenAI's
    repair_chunks    the client's call -> a ChunkRepair for its stream
    one_choice       the engine answers `n` > 1 with one choice: ask it n times
    max_inputs       most inputs of one embeddings (or rerank) request; None for no limit
    """

    name: str
    paths: frozenset[str] = EVERYWHERE
    prepare: Callable[[Call, bool], Call] | None = None
    repair_reply: Callable[[Call, Json], Json] | None = None
    repair_chunks: Callable[[Call], ChunkRepair] | None = None
    one_choice: bool = False
    max_inputs: int | None = None


PLAIN = Dialect("plain")
"""OpenAI's own."""
