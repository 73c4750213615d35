"""One model's whole backend: its replicas, and around them what the engine's dialect needs for some endpoints.

    Call --> Composed --/v1/embeddings--> Embeddings --+
                 |------/v1/rerank------> Rerank ------|
                 |------/tokenize-------> Tokenize ----|
                 |------chat, completions-> Fanout ----|
                 `------ the rest ---------------------+--> ReplicaBackend

Which of them stand there is decided once, when the model is made. A call then costs one look into a table more than
without any.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from .base import Backend, Call, EventStream, Reply
from .dialects import DIALECTS, PLAIN
from .dialects.seam import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, TOKENIZE, Dialect
from .embeddings import Embeddings
from .fanout import Fanout
from .places import Places
from .replicas import ReplicaBackend
from .rerank import Rerank
from .tokenize import Tokenize
from .transport import Limits, Timeouts


@dataclass(frozen=True, slots=True)
class Options:
    """What the configuration says of a model beside its engine.

    drop_unsupported   leave out parameters that the engine cannot do, instead of refusing the request
    matryoshka         the model's vectors may be cut to `dimensions`
    own_vocabulary     token ids to embed are of the engine's own vocabulary, not of OpenAI's cl100k_base
    native             endpoints that this engine has beside those that every release of it has
    max_inputs         texts that the engine takes at once to embed or rank, where it is not the engine's default
    """

    drop_unsupported: bool = False
    matryoshka: bool = False
    own_vocabulary: bool = False
    max_inputs: int | None = None
    native: frozenset[str] = frozenset()


def serves(engine: str, path: str) -> bool:
    """Whether an engine can be asked for an endpoint, by itself or by what stands around it here."""
    return path in DIALECTS.get(engine, PLAIN).paths


class Composed:
    """A Backend that sends each endpoint its way."""

    def __init__(self, replicas: ReplicaBackend, ways: dict[str, Backend]) -> None:
        self._replicas = replicas
        self._ways = ways

    def run(self, call: Call) -> Coroutine[Any, Any, Reply | EventStream]:
        return self._ways.get(call.path, self._replicas).run(call)

    def in_flight(self, replica_id: str) -> int:
        return self._replicas.in_flight(replica_id)

    async def aclose(self) -> None:
        await self._replicas.aclose()


def backend_for(
    model: str,
    places: Places,
    engine: str,
    *,
    options: Options | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
) -> Backend:
    """The backend of a model. `engine` is a name of `DIALECTS`; any other one is taken to speak as OpenAI does."""
    options = options or Options()
    dialect = DIALECTS.get(engine, PLAIN)
    if options.native:
        dialect = replace(dialect, paths=dialect.paths | options.native)
    replicas = ReplicaBackend(
        model,
        places,
        dialect=dialect,
        drop_unsupported=options.drop_unsupported,
        timeouts=timeouts,
        limits=limits,
    )
    return Composed(replicas, _ways(replicas, dialect, options))


def _ways(replicas: Backend, dialect: Dialect, options: Options) -> dict[str, Backend]:
    ways: dict[str, Backend] = {}
    if dialect.one_choice:
        ways[CHAT] = ways[COMPLETIONS] = Fanout(replicas)
    if dialect is PLAIN:
        return ways
    if EMBEDDINGS in dialect.paths:
        ways[EMBEDDINGS] = Embeddings(
            replicas,
            dialect,
            matryoshka=options.matryoshka,
            own_vocabulary=options.own_vocabulary,
            max_inputs=options.max_inputs,
            drop_unsupported=options.drop_unsupported,
        )
    if RERANK in dialect.paths:
        ways[RERANK] = Rerank(replicas, max_inputs=options.max_inputs or dialect.max_inputs)
    if TOKENIZE in dialect.paths and dialect.template_path is not None:
        ways[TOKENIZE] = Tokenize(replicas, dialect.template_path)
    return ways
