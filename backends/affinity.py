"""Which requests would profit from the same replica: those that share a long prefix. Pure.

An engine with a prefix cache computes a system prompt or a document once for all requests that begin with it. Only the
first `PREFIX_CHARS` characters count: requests that share them share a hash, whatever follows. Shorter prompts have no
hash: there is little to win, and they are better spread.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

from .base import Call

PREFIX_CHARS = 512


def affinity_of(call: Call) -> int:
    """The hash of the call's long prefix, the same in every process; 0 for none, or where it shall go elsewhere."""
    if len(call.raw) < PREFIX_CHARS or call.spread:
        return 0
    body = call.body
    messages = body.get("messages")
    if isinstance(messages, list):
        prefix = _of_messages(messages)
    else:
        prompt = body.get("prompt")
        prefix = prompt[:PREFIX_CHARS] if isinstance(prompt, str) else ""
    if len(prefix) < PREFIX_CHARS:
        return 0
    return crc32(prefix.encode()) or 1  # 0 means none


def _of_messages(messages: list[Any]) -> str:
    """The first characters of a conversation: roles and texts, as far as they are text."""
    pieces: list[str] = []
    missing = PREFIX_CHARS
    for message in messages:
        if not isinstance(message, dict):
            return ""
        role, content = message.get("role"), message.get("content")
        text = content if isinstance(content, str) else _of_parts(content)
        if not pieces and len(text) >= PREFIX_CHARS:  # the usual case: one long system prompt
            return f"\x1e{role}\x1f{text}"[:PREFIX_CHARS]
        piece = f"\x1e{role}\x1f{text[:missing]}"
        pieces.append(piece)
        missing -= len(piece)
        if missing <= 0:
            return "".join(pieces)[:PREFIX_CHARS]
    return ""


def _of_parts(content: object) -> str:
    """Of content in parts; an image is not looked at, so that two of them are the same."""
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\x1d".join(text if isinstance(text, str) else "" for text in texts)
