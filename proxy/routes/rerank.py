"""POST /v1/rerank and /rerank: the shape of a request to rank documents, Cohere's and Jina's."""

from __future__ import annotations

from typing import Any

from backends.errors import InvalidRequest
from proxy.shapes import ARRAY, BOOLEAN, INTEGER, STRING, Kind, Shape, not_empty, wrong_type

PATH = "/v1/rerank"
ALSO_AT = ("/rerank",)

_SHAPE = Shape(
    required={"model": STRING, "query": STRING, "documents": ARRAY},
    optional={"top_n": INTEGER, "return_documents": BOOLEAN, "raw_scores": BOOLEAN, "truncate": BOOLEAN},
)
_DOCUMENT = Kind("a string or an object with a text", lambda value: isinstance(value, str | dict))


def check(body: dict[str, Any]) -> None:
    _SHAPE.check(body)
    not_empty("documents", body["documents"])
    for index, document in enumerate(body["documents"]):
        if not isinstance(document, str) and not (isinstance(document, dict) and isinstance(document.get("text"), str)):
            raise wrong_type(f"documents[{index}]", _DOCUMENT, document)
    if (top_n := body.get("top_n")) is not None and top_n < 1:
        raise InvalidRequest("Invalid 'top_n': expected an integer of at least 1.", param="top_n", code="invalid_value")
    if body.get("stream"):
        raise InvalidRequest("Rankings are not streamed.", param="stream", code="unsupported_parameter")
