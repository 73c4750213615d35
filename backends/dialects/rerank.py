"""Reranking in the shape of Cohere and Jina, and the engines' own bare list. Pure.

{"model", "query", "documents", "top_n"?, "return_documents"?}
  -> {"id", "model", "results": [{"index", "relevance_score", "document"?}], "usage"}
"""

from __future__ import annotations

from typing import Any

from backends.base import Call

from .seam import Json


def from_scores(call: Call, scores: Any) -> Json:
    """TEI and SGLang: `[{"index", "score", ...}]`, best first. TEI does not tell the tokens."""
    results = [{"index": item["index"], "relevance_score": item["score"]} for item in scores]
    tokens = sum((item.get("meta_info") or {}).get("prompt_tokens", 0) for item in scores)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": f"rerank-{call.id.removeprefix('req_')}", "model": call.model, "results": results, "usage": usage}
