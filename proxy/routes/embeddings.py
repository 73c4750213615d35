"""POST /v1/embeddings: the shape of an embeddings request."""

from __future__ import annotations

from typing import Any

from backends.errors import InvalidRequest
from proxy.shapes import INTEGER, STRING, STRING_OR_ARRAY, Shape, not_empty

PATH = "/v1/embeddings"

_SHAPE = Shape(
    required={"model": STRING, "input": STRING_OR_ARRAY},
    optional={"encoding_format": STRING, "dimensions": INTEGER, "user": STRING},
)


def check(body: dict[str, Any]) -> None:
    _SHAPE.check(body)
    if isinstance(body["input"], list):
        not_empty("input", body["input"])
    if body.get("stream"):
        raise InvalidRequest("Embeddings are not streamed.", param="stream", code="unsupported_parameter")
