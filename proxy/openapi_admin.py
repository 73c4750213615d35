"""The part of the published description that is about /admin, made from the values that check its requests.

OPERATIONS has keyword arguments of `openapi.Operation`, SCHEMAS what they refer to.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from . import database as db
from .operations import MOST_REPLICAS
from .routes import operations
from .routes.admin_keys import AdminKey, AdminKeys
from .routes.admin_projects import AdminProject, AdminProjects
from .routes.admin_usage import AdminUsage
from .terms import KeyChanges, KeyList, LimitChanges, NewKey, NewProject, ProjectChanges, ProjectList, UsageAsked

Json = dict[str, Any]
JSON = "application/json"


# -- what is asked ---------------------------------------------------------------------------------------------------


def fields_of(kind: type[BaseModel]) -> dict[str, Json]:
    """JSON Schema of each field."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {name: _plain(field) for name, field in schema["properties"].items()}


def body_of(kind: type[BaseModel]) -> Json:
    """Of an object that has no other fields than these."""
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    return {"type": "object", "required": required, "properties": fields_of(kind), "additionalProperties": False}


def query_of(kind: type[BaseModel]) -> dict[str, Json]:
    """Parameters that may be left out; lists are written with commas."""
    fields = {name: _plain(_not_null(field)) for name, field in fields_of(kind).items()}
    return {name: {"type": "string"} if field.get("type") == "array" else field for name, field in fields.items()}


def _plain(field: Json) -> Json:
    """Without what only a form would show, and `null` as one of the types where there is just one other."""
    field = {key: value for key, value in field.items() if key not in ("title", "default", "description")}
    kinds = field.get("anyOf", [])
    if len(kinds) == 2 and kinds[1] == {"type": "null"} and "type" in kinds[0]:
        return {**kinds[0], "type": [kinds[0]["type"], "null"]}
    return field


def _not_null(field: Json) -> Json:
    kinds = field.get("type")
    return {**field, "type": kinds[0]} if isinstance(kinds, list) else field


# -- what is answered ------------------------------------------------------------------------------------------------

_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_BOOLEAN: Json = {"type": "boolean"}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_NUMBER_OR_NULL: Json = {"type": ["integer", "null"]}
_NAMES_OR_NULL: Json = {"type": ["array", "null"], "items": _STRING}
_NAMES: Json = {"type": "array", "items": _STRING}
_LIMITS: Json = {"$ref": "#/components/schemas/Limits"}


def _answer(**properties: Json) -> Json:
    return {"type": "object", "required": [*properties], "properties": properties}


def _list_of(name: str) -> Json:
    return _answer(
        object={"type": "string", "const": "list"},
        data={"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}},
        first_id=_TEXT_OR_NULL,
        last_id=_TEXT_OR_NULL,
        has_more=_BOOLEAN,
    )


_KEY = _answer(
    id=_STRING,
    object={"type": "string", "const": "key"},
    name=_STRING,
    hint=_STRING,
    status={"type": "string", "enum": ["valid", "disabled", "expired", "revoked"]},
    project_id=_TEXT_OR_NULL,
    models=_NAMES_OR_NULL,
    priority={"type": "string", "enum": ["interactive", "batch"]},
    limits=_LIMITS,
    admin=_BOOLEAN,
    expires_at=_NUMBER_OR_NULL,
    created_at=_INTEGER,
    revoked_at=_NUMBER_OR_NULL,
    last_used_on=_TEXT_OR_NULL,
)

SCHEMAS: dict[str, Json] = {
    "LimitChanges": {
        "type": "object",
        "properties": fields_of(LimitChanges),
        "additionalProperties": False,
    },
    "Limits": _answer(**{name: {**_NUMBER_OR_NULL} for name in db.LIMITS}),
    "Key": _KEY,
    "NewKey": _answer(**_KEY["properties"], key={**_STRING, "description": "in clear, this once"}),
    "KeyList": _list_of("Key"),
    "KeyDeleted": _answer(id=_STRING, object={"type": "string", "const": "key.deleted"}, deleted={"const": True}),
    "Project": _answer(
        id=_STRING,
        object={"type": "string", "const": "project"},
        name=_STRING,
        status={"type": "string", "enum": ["active", "disabled", "archived"]},
        account=_STRING,
        models=_NAMES_OR_NULL,
        limits=_LIMITS,
        created_at=_INTEGER,
        archived_at=_NUMBER_OR_NULL,
    ),
    "ProjectList": _list_of("Project"),
    "Overview": _answer(
        object={"type": "string", "const": "overview"},
        troubles={"type": "array", "items": _STRING},
        models={
            "type": "array",
            "items": _answer(
                model=_STRING,
                state={"type": "string", "enum": ["ready", "starting", "idle", "unavailable"]},
                wanted=_NUMBER_OR_NULL,
                ready=_NUMBER_OR_NULL,
                waiting=_INTEGER,
                why=_STRING,
            ),
        },
        replicas={"type": "array", "items": {"type": "object"}},
    ),
    "ModelWanted": _answer(object={"type": "string", "const": "model"}, model=_STRING, wanted=_INTEGER),
    "ReplicaDraining": _answer(object={"type": "string", "const": "replica"}, replica=_STRING, state=_STRING),
    "Reloaded": _answer(
        object={"type": "string", "const": "reload"},
        summary=_STRING,
        limits=_BOOLEAN,
        **dict.fromkeys(("added", "removed", "changed", "restart"), _NAMES),
    ),
    "UsagePage": _answer(
        object={"type": "string", "const": "page"},
        data={
            "type": "array",
            "items": _answer(
                object={"type": "string", "const": "usage"},
                **dict.fromkeys(("day", "key_id", "key_name", "project_id", "project_name", "model"), _TEXT_OR_NULL),
                **{name: {**_INTEGER} for name in (*db.COUNTS, "total_tokens")},
            ),
        },
        has_more=_BOOLEAN,
        next_page=_TEXT_OR_NULL,
    ),
}


_SCALING: Json = {
    "type": "object",
    "required": ["replicas"],
    "properties": {"replicas": {"type": ["integer", "null"], "minimum": 0, "maximum": MOST_REPLICAS}},
    "additionalProperties": False,
}

# -- the operations --------------------------------------------------------------------------------------------------

_WRITING = (400, 401, 403, 408, 413, 415, 503)
_LOOKING = (400, 401, 403, 503)


def _operation(
    method: str, path: str, summary: str, answer: str, errors: tuple[int, ...] = _LOOKING, **more: Any
) -> Json:
    if "{id" in path:
        errors = tuple(sorted({*errors, 404}))
    return {
        "method": method,
        "path": path,
        "tag": "Administration",
        "summary": summary,
        "answers": {JSON: answer},
        "errors": errors,
        **more,
    }


OPERATIONS: tuple[Json, ...] = (
    _operation("get", AdminKeys.path, "List the keys", "KeyList", query=query_of(KeyList)),
    _operation("post", AdminKeys.path, "Make a key", "NewKey", _WRITING, body=body_of(NewKey)),
    _operation("get", AdminKey.path, "Show a key", "Key"),
    _operation("post", AdminKey.path, "Change what is named of a key", "Key", _WRITING, body=body_of(KeyChanges)),
    _operation("delete", AdminKey.path, "Revoke a key, for good", "KeyDeleted"),
    _operation("get", AdminProjects.path, "List the projects", "ProjectList", query=query_of(ProjectList)),
    _operation("post", AdminProjects.path, "Make a project", "Project", _WRITING, body=body_of(NewProject)),
    _operation("get", AdminProject.path, "Show a project", "Project"),
    _operation(
        "post",
        AdminProject.path,
        "Change what is named of a project",
        "Project",
        _WRITING,
        body=body_of(ProjectChanges),
    ),
    _operation("delete", AdminProject.path, "Archive a project, for good", "Project"),
    _operation("get", AdminUsage.path, "Sums of requests and tokens", "UsagePage", query=query_of(UsageAsked)),
    _operation("get", operations.OVERVIEW, "Models and replicas as they are now", "Overview"),
    _operation(
        "post", operations.SCALE, "Set how many replicas a model shall have", "ModelWanted", _WRITING, body=_SCALING
    ),
    _operation("post", operations.RESTART, "Forget a model's failures and replace its replicas", "ModelWanted"),
    _operation("post", operations.DRAIN, "Let a replica finish what it has and end", "ReplicaDraining"),
    _operation("post", operations.RELOAD, "Read the configuration again", "Reloaded", (400, *_LOOKING)),
)
