"""The part of the published description that is about files and uploads.

OPERATIONS has keyword arguments of `openapi.Operation`, SCHEMAS what they refer to.
"""

from __future__ import annotations

from typing import Any

from .files import values
from .routes import files, uploads

Json = dict[str, Any]
JSON = "application/json"

_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_NUMBER_OR_NULL: Json = {"type": ["integer", "null"]}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_PURPOSE: Json = {"type": "string", "enum": [*values.PURPOSES]}
_SECONDS: Json = {"type": "integer", "minimum": values.KEEP_LEAST_S, "maximum": values.KEEP_MOST_S}
_BYTES: Json = {"type": "string", "contentMediaType": "application/octet-stream"}
_EXPIRES_AFTER: Json = {
    "type": "object",
    "required": ["anchor", "seconds"],
    "properties": {"anchor": {"type": "string", "const": "created_at"}, "seconds": _SECONDS},
    "additionalProperties": False,
}


def _object(name: str, **properties: Json) -> Json:
    properties = {"id": _STRING, "object": {"type": "string", "const": name}, **properties}
    return {"type": "object", "required": [*properties], "properties": properties}


def _body(required: Json, optional: Json) -> Json:
    return {
        "type": "object",
        "required": [*required],
        "properties": {**required, **optional},
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Json] = {
    "File": _object(
        "file",
        bytes=_INTEGER,
        created_at=_INTEGER,
        expires_at=_NUMBER_OR_NULL,
        filename=_STRING,
        purpose={"type": "string", "enum": [*values.PURPOSES, values.BATCH_OUTPUT]},
        status={"type": "string", "enum": ["uploaded", "processed", "error"], "deprecated": True},
        status_details=_TEXT_OR_NULL,
    ),
    "FileList": {
        "type": "object",
        "required": ["object", "data", "first_id", "last_id", "has_more"],
        "properties": {
            "object": {"type": "string", "const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/File"}},
            "first_id": _TEXT_OR_NULL,
            "last_id": _TEXT_OR_NULL,
            "has_more": {"type": "boolean"},
        },
    },
    "FileDeleted": _object("file", deleted={"const": True}),
    "Upload": _object(
        "upload",
        bytes=_INTEGER,
        created_at=_INTEGER,
        expires_at=_INTEGER,
        filename=_STRING,
        purpose=_STRING,
        status={"type": "string", "enum": ["pending", "completed", "cancelled", "expired"]},
        file={"anyOf": [{"$ref": "#/components/schemas/File"}, {"type": "null"}]},
    ),
    "UploadPart": _object("upload.part", created_at=_INTEGER, upload_id=_STRING),
}

_FULL = {507: ("The disk, or what this gateway may use of it, is full.", "Error")}
_SHOWING = (401, 404, 503)
_SENDING = (400, 401, 408, 413, 503)


def _operation(method: str, path: str, summary: str, answer: str | None, errors: tuple[int, ...], **more: Any) -> Json:
    tag = "Uploads" if path.startswith(uploads.CreateUpload.path) else "Files"
    answers = {JSON: answer} if answer else {"application/octet-stream": None}
    return {
        "method": method,
        "path": path,
        "tag": tag,
        "summary": summary,
        "answers": answers,
        "errors": errors,
        **more,
    }


_FILE_FORM: Json = {
    **_body(
        {"file": _BYTES, "purpose": _PURPOSE},
        {"expires_after[anchor]": {"type": "string", "const": "created_at"}, "expires_after[seconds]": _SECONDS},
    ),
    "description": "The file of a batch is called *.jsonl and has at most 200 MB; others have at most 512 MB.",
}
_PART_FORM: Json = {**_body({"data": _BYTES}, {}), "description": "At most 64 MB."}
_UPLOAD: Json = _body(
    {
        "filename": {**_STRING, "minLength": 1},
        "purpose": _PURPOSE,
        "bytes": {"type": "integer", "minimum": 0, "maximum": values.UPLOAD_BYTES},
        "mime_type": {**_STRING, "minLength": 1},
    },
    {"expires_after": _EXPIRES_AFTER},
)
_COMPLETION: Json = _body(
    {"part_ids": {"type": "array", "items": _STRING, "uniqueItems": True}},
    {"md5": {"type": ["string", "null"], "pattern": "^[0-9a-fA-F]{32}$"}},
)

OPERATIONS: tuple[Json, ...] = (
    _operation("post", files.AllFiles.path, "Keep a file", "File", _SENDING, form=_FILE_FORM, statuses=_FULL),
    _operation(
        "get",
        files.AllFiles.path,
        "List the files of the project",
        "FileList",
        (400, 401, 503),
        query={
            "purpose": _STRING,
            "limit": {"type": "integer", "minimum": 1, "maximum": files.MOST},
            "order": {"type": "string", "enum": ["asc", "desc"]},
            "after": _STRING,
        },
    ),
    _operation("get", files.OneFile.path, "Show a file", "File", _SHOWING),
    _operation(
        "delete",
        files.OneFile.path,
        "Delete a file",
        "FileDeleted",
        _SHOWING,
        statuses={409: ("A batch that has not ended reads it.", "Error")},
    ),
    _operation(
        "get",
        files.FileContent.path,
        "A file's bytes, or with `Range` some of them",
        None,
        _SHOWING,
        statuses={416: ("The file has no bytes in this range.", "Error")},
    ),
    _operation(
        "post",
        uploads.CreateUpload.path,
        "Begin a file that comes in parts",
        "Upload",
        (*_SENDING, 415),
        body=_UPLOAD,
        statuses=_FULL,
    ),
    _operation(
        "post", uploads.AddPart.path, "Send a part", "UploadPart", (*_SENDING, 404), form=_PART_FORM, statuses=_FULL
    ),
    _operation(
        "post",
        uploads.CompleteUpload.path,
        "Make the parts, in this order, a file",
        "Upload",
        (*_SENDING, 404, 415),
        body=_COMPLETION,
        statuses=_FULL,
    ),
    _operation("post", uploads.CancelUpload.path, "Give an upload up", "Upload", (400, *_SHOWING)),
)
