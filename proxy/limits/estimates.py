"""How many tokens a request will take, and has taken, where nobody has counted them. Pure.

Limits need a number before the engine has seen the request, and tokens are owed for answers whose end, with the
engine's count in it, was never reached. Four bytes of text are taken for a token, as OpenAI's guide to tokens says of
English; too much is given back as soon as the engine has told the true number (limits.py).
"""

from __future__ import annotations

from typing import Any

from backends.base import Call, Usage

BYTES_PER_TOKEN = 4
COMPLETION_TOKENS = 256
"""Of an answer whose length the request does not limit."""
MEDIA_TOKENS = 768
"""Of an image or a piece of sound: what OpenAI's models take for an image of 1024 x 1024 in high detail."""
EVENT_BYTES = 180
"""Of a streamed token, until a stream of the same model has shown how many it takes."""

_LOOKED_THROUGH_BYTES = 8192
"""A smaller body cannot hide an image that matters, so it is not looked through."""
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
_COUNTING = frozenset({"/tokenize", "/v1/messages/count_tokens"})
_MEDIA = ("image_url", "input_audio", "file", "source", "file_data")


def requested_tokens(call: Call) -> int:
    """Prompt and completion together, before anybody has counted."""
    if call.path not in _GENERATING:
        return prompt_tokens(call)
    body = call.body
    limit = next((count for name in _LIMITS if (count := _count(body.get(name)))), COMPLETION_TOKENS)
    limit *= _count(body.get("n")) or 1
    prompts = body.get("prompt")
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        limit *= len(prompts)
    return prompt_tokens(call) + limit


def prompt_tokens(call: Call) -> int:
    """Of the request's text, the token ids, images and sound in it. To be told a number of tokens costs none."""
    if call.path in _COUNTING:
        return 0
    if call.content_type != b"application/json":  # an upload: its bytes are no text
        return MEDIA_TOKENS
    body = call.body
    given = body.get("input", body.get("prompt"))
    if isinstance(given, list) and given and (ids := _token_ids(given)):
        return ids
    size = len(call.raw)
    if size <= _LOOKED_THROUGH_BYTES:
        return size // BYTES_PER_TOKEN + 1
    count, media_bytes = _media(body.get("messages")) if "messages" in body else _media(given)
    return max(0, size - media_bytes) // BYTES_PER_TOKEN + 1 + count * MEDIA_TOKENS


def whole_answer(call: Call, answer_bytes: int) -> Usage | None:
    """What a whole answer took whose engine does not say; None for one that takes no model."""
    if call.path in _COUNTING:
        return None
    completion = answer_bytes // BYTES_PER_TOKEN if call.path in _GENERATING else 0
    return Usage(prompt_tokens(call), completion)


def streamed_answer(call: Call, passed_bytes: int, bytes_per_token: float) -> Usage | None:
    """What a stream took of which so many bytes were passed on; None for none."""
    if passed_bytes <= 0:
        return None
    return Usage(prompt_tokens(call), max(1, round(passed_bytes / bytes_per_token)))


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _token_ids(given: list[Any]) -> int:
    """The ids in a list of them, or in a list of such lists; 0 where it has texts."""
    first = given[0]
    if isinstance(first, int):
        return len(given)
    if isinstance(first, list) and first and isinstance(first[0], int):
        return sum(len(ids) for ids in given if isinstance(ids, list))
    return 0


def _media(messages: object) -> tuple[int, int]:
    """Images and pieces of sound in the messages, and the bytes they are written with."""
    count = size = 0
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict):
                continue
            for name in _MEDIA:
                if (value := part.get(name)) is not None:
                    count += 1
                    size += _written(value)
    return count, size


def _written(value: object) -> int:
    """Bytes of the texts in a value that is a text, or an object of texts."""
    if isinstance(value, dict):
        return sum(len(text) for text in value.values() if isinstance(text, str))
    return len(value) if isinstance(value, str) else 0
