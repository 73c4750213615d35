"""The part of the published description that is about batches.

OPERATIONS has keyword arguments of `openapi.Operation`, SCHEMAS what they refer to.
"""

from __future__ import annotations

from typing import Any

from .batch import asked
from .batch.service import MOST_RESULTS
from .files.batch_lines import ENDPOINTS
from .files.values import KEEP_LEAST_S, KEEP_MOST_S
from .routes import batches

Json = dict[str, Any]
JSON = "application/json"

_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_TIME: Json = {"type": "integer", "description": "seconds since the epoch"}
_TIME_OR_NULL: Json = {"type": ["integer", "null"]}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_METADATA: Json = {
    "type": ["object", "null"],
    "maxProperties": asked.METADATA_PAIRS,
    "propertyNames": {"maxLength": asked.METADATA_KEY},
    "additionalProperties": {"type": "string", "maxLength": asked.METADATA_VALUE},
}
_WINDOW: Json = {"type": "string", "description": "hours or days from `1h` to `7d`"}


def _object(properties: Json, optional: Json | None = None) -> Json:
    return {"type": "object", "required": [*properties], "properties": {**properties, **(optional or {})}}


_MISTAKE = _object({"code": _STRING, "message": _STRING, "param": _TEXT_OR_NULL, "line": _TIME_OR_NULL})
_USAGE = _object(
    {
        "input_tokens": _INTEGER,
        "input_tokens_details": _object({"cached_tokens": _INTEGER}),
        "output_tokens": _INTEGER,
        "output_tokens_details": _object({"reasoning_tokens": _INTEGER}),
        "total_tokens": _INTEGER,
    }
)
_TIMES = (
    *("in_progress_at", "finalizing_at", "completed_at", "failed_at"),
    *("expired_at", "cancelling_at", "cancelled_at"),
)
_STATUSES = (
    *("validating", "failed", "in_progress", "finalizing"),
    *("completed", "expired", "cancelling", "cancelled"),
)

SCHEMAS: dict[str, Json] = {
    "Batch": _object(
        {
            "id": _STRING,
            "object": {"type": "string", "const": "batch"},
            "endpoint": _STRING,
            "model": _TEXT_OR_NULL,
            "errors": {
                "anyOf": [
                    _object(
                        {
                            "object": {"type": "string", "const": "list"},
                            "data": {"type": "array", "items": _MISTAKE},
                        }
                    ),
                    {"type": "null"},
                ]
            },
            "input_file_id": _STRING,
            "completion_window": _WINDOW,
            "status": {"type": "string", "enum": [*_STATUSES]},
            "output_file_id": _TEXT_OR_NULL,
            "error_file_id": _TEXT_OR_NULL,
            "created_at": _TIME,
            "expires_at": _TIME,
            **dict.fromkeys(_TIMES, _TIME_OR_NULL),
            "request_counts": _object({"total": _INTEGER, "completed": _INTEGER, "failed": _INTEGER}),
            "usage": {"anyOf": [_USAGE, {"type": "null"}]},
            "metadata": _METADATA,
        },
        {
            "paused_at": {**_TIME_OR_NULL, "description": "since when no more lines are begun"},
            "estimated_completion_at": {**_TIME_OR_NULL, "description": "as it goes now; null where nobody can tell"},
            "webhook_secret": {
                **_STRING,
                "description": "in the answer to a creation with `webhook`: what signs your project's webhooks",
            },
        },
    ),
    "BatchList": {
        "type": "object",
        "required": ["object", "data", "first_id", "last_id", "has_more"],
        "properties": {
            "object": {"type": "string", "const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Batch"}},
            "first_id": _TEXT_OR_NULL,
            "last_id": _TEXT_OR_NULL,
            "has_more": {"type": "boolean"},
        },
    },
}

_BODY: Json = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": {
        "input_file_id": {**_STRING, "description": "a file of yours with purpose `batch`"},
        "endpoint": {"type": "string", "enum": [*ENDPOINTS]},
        "completion_window": _WINDOW,
        "metadata": _METADATA,
        "output_expires_after": {
            "type": ["object", "null"],
            "required": ["anchor", "seconds"],
            "properties": {
                "anchor": {"type": "string", "const": "created_at"},
                "seconds": {"type": "integer", "minimum": KEEP_LEAST_S, "maximum": KEEP_MOST_S},
            },
            "additionalProperties": False,
        },
        "mixed_models": {"type": ["boolean", "null"], "description": "lines may ask several models"},
        "webhook": {
            "type": ["string", "null"],
            "description": "told of the end, where this gateway's operator has allowed its host",
        },
    },
    "additionalProperties": False,
}

_SHOWING = (401, 404, 503)
_CONFLICT = {409: ("The batch is in another state, or the idempotency key was used for another one.", "Error")}


def _operation(method: str, path: str, summary: str, answer: str | None, errors: tuple[int, ...], **more: Any) -> Json:
    answers = {JSON: answer} if answer else {"application/jsonl": None}
    return {
        "method": method,
        "path": path,
        "tag": "Batches",
        "summary": summary,
        "answers": answers,
        "errors": errors,
        **more,
    }


OPERATIONS: tuple[Json, ...] = (
    _operation(
        "post",
        batches.AllBatches.path,
        "Have the requests of a file run; with the header `Idempotency-Key` once, however often it is asked",
        "Batch",
        (400, 401, 408, 413, 415, 503),
        body=_BODY,
        statuses=_CONFLICT,
    ),
    _operation(
        "get",
        batches.AllBatches.path,
        "List the batches of the project",
        "BatchList",
        (400, 401, 503),
        query={"limit": {"type": "integer", "minimum": 1, "maximum": batches.MOST}, "after": _STRING},
    ),
    _operation("get", batches.OneBatch.path, "Show a batch", "Batch", _SHOWING),
    _operation("post", batches.CANCEL, "End a batch; what is done is kept", "Batch", _SHOWING, statuses=_CONFLICT),
    _operation("post", batches.PAUSE, "Begin no more lines of a batch", "Batch", _SHOWING, statuses=_CONFLICT),
    _operation("post", batches.RESUME, "Let a paused batch go on", "Batch", _SHOWING, statuses=_CONFLICT),
    _operation(
        "get",
        batches.BatchResults.path,
        "What is done by now, also while it runs; `x-slurmgate-next-line` is the next `after_line`, "
        "`x-slurmgate-over` says whether there will be more",
        None,
        (400, *_SHOWING),
        statuses={410: ("The batch ended long ago: its results are in its files.", "Error")},
        query={
            "after_line": {"type": "integer", "minimum": 0, "maximum": batches.MOST_LINE},
            "limit": {"type": "integer", "minimum": 1, "maximum": MOST_RESULTS},
        },
    ),
)
