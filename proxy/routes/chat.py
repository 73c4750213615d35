"""POST /v1/chat/completions: the shape of a chat request."""

from __future__ import annotations

from typing import Any

from backends.errors import InvalidRequest
from proxy.shapes import ARRAY, INTEGER, OBJECT, SAMPLING, STRING, Shape, not_empty, wrong_type

PATH = "/v1/chat/completions"
QUIET_CHOICE = {"index": 0, "delta": {}, "finish_reason": None}

_SHAPE = Shape(
    required={"model": STRING, "messages": ARRAY},
    optional={**SAMPLING, "max_completion_tokens": INTEGER, "tools": ARRAY, "response_format": OBJECT},
)


def check(body: dict[str, Any]) -> None:
    _SHAPE.check(body)
    not_empty("messages", body["messages"])
    for index, message in enumerate(body["messages"]):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{index}]", OBJECT, message)
        if not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"Missing required parameter: 'messages[{index}].role'.",
                param=f"messages[{index}].role",
                code="missing_required_parameter",
            )
