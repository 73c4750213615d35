"""SGLang 0.4.8 to today. Read in `python/sglang/srt/entrypoints/openai/`: `serving_embedding.py`, `serving_rerank.py`,
`serving_tokenize.py`, `protocol.py`.

Chat and completions are OpenAI's and go through as they are (flat errors are engine_errors.py's). Embeddings name the
path that the engine loaded, know no base64 and refuse texts that are empty or blank. Reranking answers a bare list.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from backends.base import Call

from .rerank import from_scores
from .seam import EMBEDDINGS, EVERYWHERE, RERANK, TOKENIZE, Dialect, Json, ReplyRepair, unsupported


def prepare(call: Call, drop_unsupported: bool) -> Call:
    if call.path == RERANK:
        # `top_n` and `return_documents` are of newer releases, so rerank.py does both itself
        return call.with_body({"query": call.body["query"], "documents": call.body["documents"]})
    if call.path == TOKENIZE and call.body.get("messages") is not None:
        raise unsupported("messages", "The engine of this model tokenizes text only: send 'prompt'.")
    return call


def repair_reply(call: Call) -> ReplyRepair | None:
    if call.path == RERANK:
        return partial(from_scores, call)
    return partial(_named, call) if call.path == EMBEDDINGS else None


def _named(call: Call, reply: Any) -> Json:
    return {**reply, "model": call.model}


SGLANG = Dialect(
    "sglang",
    paths=EVERYWHERE | {RERANK, TOKENIZE},
    prepare=prepare,
    repair_reply=repair_reply,
    empty_input="\u200b",  # no blank to Python's `strip`, and nothing to a reader
)
