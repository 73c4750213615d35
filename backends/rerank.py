"""/v1/rerank in the shape of Cohere and Jina, for engines that know a part of it.

Documents may be objects with a text, `return_documents` is done here, and more documents than the engine takes at once
are ranked in batches: a score depends on the query and one document only, so that the merged order is the whole's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from .base import Backend, Call, EventStream, Reply, Usage
from .dialects.seam import Json, without
from .errors import MalformedResponse
from .together import replies, served_by

AT_ONCE = 4


class Rerank:
    """A Backend around a Backend. `max_inputs`: documents that the engine takes at once."""

    def __init__(self, inner: Backend, *, max_inputs: int | None = None) -> None:
        self._inner = inner
        self._most = max_inputs

    async def run(self, call: Call) -> Reply | EventStream:
        documents = [text_of(document) for document in call.body["documents"]]
        most = self._most or len(documents)
        batches = [documents[start : start + most] for start in range(0, len(documents), most)]
        body = without(call.body, "return_documents")
        if len(batches) > 1:
            body.pop("top_n", None)  # of the whole
        calls = [call.with_body({**body, "documents": batch}) for batch in batches]
        answers = await replies(self._inner, calls, at_once=AT_ONCE)
        shown = documents if call.body.get("return_documents") is True else None
        return merged(call, answers, most, shown)

    def in_flight(self, replica_id: str) -> int:
        return self._inner.in_flight(replica_id)

    async def aclose(self) -> None:
        await self._inner.aclose()


def text_of(document: Any) -> Any:
    return document["text"] if isinstance(document, dict) else document


def merged(call: Call, answers: Sequence[Reply], batch: int, documents: Sequence[str] | None) -> Reply:
    """One ranking of many. `batch` is how many documents each answer was about; `documents` are to be shown."""
    results: list[Json] = []
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    first: Json | None = None
    for number, answer in enumerate(answers):
        try:
            body = orjson.loads(answer.body)
            for result in body["results"]:
                index = result["index"] + number * batch
                results.append({"index": index, "relevance_score": float(result["relevance_score"])})
            for name, tokens in (body.get("usage") or {}).items():
                if name in usage and isinstance(tokens, int):
                    usage[name] += tokens
        except (orjson.JSONDecodeError, AttributeError, LookupError, TypeError, ValueError):
            raise MalformedResponse("The engine's answer holds no ranking.") from None
        first = first or body
    results.sort(key=lambda result: -result["relevance_score"])
    if (top_n := call.body.get("top_n")) is not None:
        del results[max(0, top_n) :]
    if documents is not None:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    tokens = usage["prompt_tokens"] = usage["prompt_tokens"] or usage["total_tokens"]  # older vLLM: the latter alone
    name = (first or {}).get("id") or f"rerank-{call.id.removeprefix('req_')}"
    meta = {"tokens": {"input_tokens": tokens}}  # Cohere's word for it
    whole = {"id": name, "object": "list", "model": call.model, "results": results, "usage": usage, "meta": meta}
    return Reply(200, b"application/json", orjson.dumps(whole), Usage(tokens), served_by(answers))
