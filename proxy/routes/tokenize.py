"""POST /tokenize: the shape of a request to count and show tokens, vLLM's: a `prompt` or the `messages` of a chat."""

from __future__ import annotations

from typing import Any

from backends.errors import InvalidRequest
from proxy.shapes import ARRAY, BOOLEAN, OBJECT, STRING, Shape, not_empty, wrong_type

PATH = "/tokenize"

_SHAPE = Shape(
    required={"model": STRING},
    optional={
        "prompt": STRING,
        "messages": ARRAY,
        "tools": ARRAY,
        "add_special_tokens": BOOLEAN,
        "return_token_strs": BOOLEAN,
    },
)


def check(body: dict[str, Any]) -> None:
    _SHAPE.check(body)
    messages = body.get("messages")
    if (body.get("prompt") is None) == (messages is None):
        if messages is None:
            message, code = "Missing required parameter: 'prompt'.", "missing_required_parameter"
        else:
            message, code = "Expected either 'prompt' or 'messages', not both.", "invalid_value"
        raise InvalidRequest(message, param="prompt", code=code)
    if messages is not None:
        not_empty("messages", messages)
        for index, item in enumerate(messages):
            if not isinstance(item, dict):
                raise wrong_type(f"messages[{index}]", OBJECT, item)
    if body.get("stream"):
        raise InvalidRequest("Tokens are not streamed.", param="stream", code="unsupported_parameter")
