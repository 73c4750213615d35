"""POST /v1/completions: the shape of a completion request."""

from __future__ import annotations

from typing import Any

from proxy.shapes import SAMPLING, STRING, STRING_OR_ARRAY, Shape, not_empty

PATH = "/v1/completions"
QUIET_CHOICE = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}

_SHAPE = Shape(required={"model": STRING, "prompt": STRING_OR_ARRAY}, optional=SAMPLING)


def check(body: dict[str, Any]) -> None:
    _SHAPE.check(body)
    if isinstance(body["prompt"], list):
        not_empty("prompt", body["prompt"])
