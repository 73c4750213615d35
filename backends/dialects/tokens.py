"""Engines' replies to /tokenize in vLLM's shape. Pure.

{"tokens": [ids], "count": int, "max_model_len"?: int, "token_strs"?: [text]}
"""

from __future__ import annotations

from typing import Any

from .seam import Json


def from_pieces(reply: Any) -> Json:
    """TGI: `[{"id", "text", "start", "stop"}]`, in `tokenize_response` for a chat; TEI: a list of such lists."""
    pieces = reply["tokenize_response"] if isinstance(reply, dict) else reply
    if pieces and isinstance(pieces[0], list):
        pieces = pieces[0]
    ids = [piece["id"] for piece in pieces]
    return {"tokens": ids, "count": len(ids), "token_strs": [piece["text"] for piece in pieces]}


def from_ids(reply: Any) -> Json:
    """llama.cpp: `{"tokens": [ids]}`, or `{"id", "piece"}` where pieces were asked for (bytes if it is no UTF-8)."""
    tokens = reply["tokens"]
    if not tokens or isinstance(tokens[0], int):
        return {"tokens": tokens, "count": len(tokens)}
    ids = [token["id"] for token in tokens]
    return {"tokens": ids, "count": len(ids), "token_strs": [_text(token["piece"]) for token in tokens]}


def _text(piece: str | list[int]) -> str:
    return piece if isinstance(piece, str) else bytes(piece).decode("utf-8", "replace")
