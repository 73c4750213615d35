"""Chats as the GenAI conventions write them into spans: JSON texts of messages with parts. Pure.

Only what the operator chose to see gets here. Both ways are bounded: a text that was cut gives what is whole of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

CHARS = 32 * 1024

Json = dict[str, Any]


def input_messages(body: Json) -> str:
    """`gen_ai.input.messages` of a chat's or completion's body, "" for another one."""
    messages = body.get("messages")
    if isinstance(messages, list):
        told = [_message(message) for message in messages if isinstance(message, dict)]
    elif isinstance(prompt := body.get("prompt"), str):
        told = [{"role": "user", "parts": [_text(prompt)]}]
    else:
        return ""
    return orjson.dumps(told).decode()


def output_messages(response: str) -> str:
    """`gen_ai.output.messages` of an answer: one for each choice. `response` is a JSON text or server-sent events."""
    told: dict[int, Json] = {}
    for chunk in _chunks(response):
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or not isinstance(index := choice.get("index", 0), int):
                continue
            message = told.setdefault(index, {"role": "assistant", "content": "", "finish": "stop"})
            said = choice.get("message") or choice.get("delta") or {}
            content = said.get("content") if isinstance(said, dict) and said else choice.get("text")
            message["content"] += content if isinstance(content, str) else ""
            message["finish"] = choice.get("finish_reason") or message["finish"]
    if not told:
        return ""
    return orjson.dumps(
        [
            {"role": message["role"], "parts": [_text(message["content"])], "finish_reason": message["finish"]}
            for message in told.values()
        ]
    ).decode()


def _chunks(response: str) -> Iterator[Json]:
    texts = (
        [response]
        if response.startswith("{")
        else (line.removeprefix("data:") for line in response.split("\n") if line.startswith("data:"))
    )
    for text in texts:
        try:
            chunk = orjson.loads(text)
        except orjson.JSONDecodeError:  # "[DONE]", or where the text was cut
            continue
        if isinstance(chunk, dict):
            yield chunk


def _message(message: Json) -> Json:
    content = message.get("content")
    if isinstance(content, str):
        parts = [_text(content)]
    else:
        pieces = content if isinstance(content, list) else []
        parts = [_part(piece) for piece in pieces if isinstance(piece, dict)]
    return {"role": str(message.get("role", "")), "parts": parts}


def _part(piece: Json) -> Json:
    """Texts as they are; of pictures and sounds only that they were there."""
    return _text(str(piece["text"])) if "text" in piece else {"type": str(piece.get("type", ""))}


def _text(content: str) -> Json:
    return {"type": "text", "content": content if len(content) <= CHARS else f"{content[:CHARS]}..."}
