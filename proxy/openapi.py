"""What is served, as an OpenAPI 3.1 document, made from the values that check requests.

Operation    one method of one path, in a table below: to describe a new endpoint, add one
document     the operations of those routes that are there; tests/proxy/test_openapi.py misses none and finds no other

Request schemas come from each endpoint's `Shape`; `also` says what its `check` asks beyond that. Answers are mostly an
engine's, so their schemas say what every engine gives, and allow more.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import Route

from . import openapi_admin, openapi_batches, openapi_files
from .routes import audio, chat, completions, embeddings, rerank, responses, tokenize
from .routes.deliberations import ShowDeliberation
from .routes.health import Health, Ready, ShowMetrics
from .routes.internal import Reports
from .routes.messages import CountTokens, CreateMessage
from .routes.models import ListModels, ShowModel
from .shapes import Shape
from .translate import messages as anthropic
from .translate import responses as responding

Json = dict[str, Any]

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"


# -- JSON Schema, in short -------------------------------------------------------------------------------------------

STRING: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
BOOLEAN: Json = {"type": "boolean"}
OBJECT: Json = {"type": "object"}
TEXT_OR_NULL: Json = {"type": ["string", "null"]}
OBJECTS: Json = {"type": "array", "items": OBJECT}
SOME: Json = {"minItems": 1}


def const(value: str) -> Json:
    return {"type": "string", "const": value}


def many(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def obj(required: Json, optional: Json | None = None) -> Json:
    """An object; fields beyond these may be there."""
    return {"type": "object", "required": [*required], "properties": {**required, **(optional or {})}}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def shaped(shape: Shape, also: Mapping[str, Json]) -> Json:
    """The body that a `Shape` accepts. Fields that it does not name are the engine's to judge."""
    properties: Json = {}
    for name, kind in shape.required.items():
        properties[name] = {**kind.schema, **also.get(name, {})}
    for name, kind in shape.optional.items():
        kinds = kind.schema["type"]
        nullable = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
        properties[name] = {**kind.schema, "type": nullable, **also.get(name, {})}
    for name in also.keys() - properties.keys():
        properties[name] = also[name]
    return {"type": "object", "required": [*shape.required], "properties": properties}


# -- what is answered ------------------------------------------------------------------------------------------------

_USAGE = obj({"prompt_tokens": INTEGER, "total_tokens": INTEGER}, {"completion_tokens": INTEGER})
_TOOL_CALLS = many(obj({}, {"id": TEXT_OR_NULL, "type": TEXT_OR_NULL, "index": INTEGER, "function": OBJECT}))
_SAID: Json = {
    "role": TEXT_OR_NULL,
    "content": TEXT_OR_NULL,
    "refusal": TEXT_OR_NULL,
    "tool_calls": {"anyOf": [_TOOL_CALLS, {"type": "null"}]},
}
_FINISH: Json = {"finish_reason": TEXT_OR_NULL, "logprobs": {"type": ["object", "null"]}}
_MODEL = obj(
    {
        "id": STRING,
        "object": const("model"),
        "created": INTEGER,
        "owned_by": STRING,
        "max_model_len": {"type": ["integer", "null"]},
        "state": {"enum": ["ready", "starting", "idle", "unavailable"]},
    }
)

SCHEMAS: dict[str, Json] = {
    "Error": obj(
        {
            "error": obj(
                {"message": STRING, "type": STRING, "param": TEXT_OR_NULL, "code": TEXT_OR_NULL},
            )
        }
    ),
    "AnthropicError": obj({"type": const("error"), "error": obj({"type": STRING, "message": STRING})}),
    "ChatCompletion": obj(
        {
            "id": STRING,
            "object": const("chat.completion"),
            "created": INTEGER,
            "model": STRING,
            "choices": many(obj({"index": INTEGER, "message": obj({}, _SAID)}, _FINISH)),
        },
        {"usage": {"anyOf": [_USAGE, {"type": "null"}]}},
    ),
    "ChatCompletionChunk": obj(
        {
            "id": STRING,
            "object": const("chat.completion.chunk"),
            "created": INTEGER,
            "model": STRING,
            "choices": many(obj({"index": INTEGER, "delta": obj({}, _SAID)}, _FINISH)),
        },
        {"usage": {"anyOf": [_USAGE, {"type": "null"}]}},
    ),
    "Completion": obj(
        {
            "id": STRING,
            "object": const("text_completion"),
            "created": INTEGER,
            "model": STRING,
            "choices": many(obj({"index": INTEGER, "text": STRING}, _FINISH)),
        },
        {"usage": {"anyOf": [_USAGE, {"type": "null"}]}},
    ),
    "EmbeddingList": obj(
        {
            "object": const("list"),
            "data": many(
                obj(
                    {
                        "object": const("embedding"),
                        "index": INTEGER,
                        "embedding": {
                            "description": "numbers, or with `encoding_format: base64` little-endian 32 bit floats",
                            "anyOf": [many(NUMBER), STRING],
                        },
                    }
                )
            ),
            "model": STRING,
        },
        {"usage": _USAGE},
    ),
    "Model": _MODEL,
    "ModelList": obj({"object": const("list"), "data": many(ref("Model"))}),
    "Response": obj(
        {
            "id": STRING,
            "object": const("response"),
            "created_at": NUMBER,
            "model": STRING,
            "status": STRING,
            "output": OBJECTS,
        },
        {"error": {"type": ["object", "null"]}, "usage": {"type": ["object", "null"]}},
    ),
    "ResponseEvent": obj({"type": STRING}, {"sequence_number": INTEGER, "response": ref("Response")}),
    "ResponseDeleted": obj({"id": STRING, "object": const("response"), "deleted": {"const": True}}),
    "ItemList": obj(
        {
            "object": const("list"),
            "data": OBJECTS,
            "first_id": TEXT_OR_NULL,
            "last_id": TEXT_OR_NULL,
            "has_more": BOOLEAN,
        }
    ),
    "Message": obj(
        {
            "id": STRING,
            "type": const("message"),
            "role": const("assistant"),
            "model": STRING,
            "content": OBJECTS,
            "stop_reason": TEXT_OR_NULL,
            "usage": OBJECT,
        },
        {"stop_sequence": TEXT_OR_NULL},
    ),
    "MessageEvent": obj({"type": STRING}),
    "TokenCount": obj({"input_tokens": INTEGER}),
    "Ranking": obj(
        {"results": many(obj({"index": INTEGER, "relevance_score": NUMBER}, {"document": {}}))},
        {"id": STRING, "model": STRING, "usage": OBJECT},
    ),
    "Tokens": obj({}, {"count": INTEGER, "max_model_len": {"type": ["integer", "null"]}, "tokens": {"type": "array"}}),
    "Transcription": obj({}, {"text": STRING}),
    "Deliberation": obj(
        {
            "id": STRING,
            "object": const("tribunal.deliberation"),
            "created_at": INTEGER,
            "expires_at": INTEGER,
            "request_id": STRING,
            "model": STRING,
            "redacted": BOOLEAN,
            "outcome": STRING,
            "verdict": STRING,
            "degraded": TEXT_OR_NULL,
            "elapsed_s": NUMBER,
            "calls": OBJECTS,
            "candidates": OBJECTS,
            "ballots": OBJECTS,
            "judgements": OBJECTS,
        },
        {"profile": STRING, "seed": INTEGER, "usage": OBJECT},
    ),
    "Health": obj({"status": const("ok")}),
    "Readiness": obj(
        {
            "status": {"type": "string", "enum": ["ready", "starting"]},
            "models": {"type": "object", "additionalProperties": INTEGER, "description": "replicas by model"},
        }
    ),
    "ReplicaOrder": obj({"command": {"type": "string", "enum": ["run", "drain", "stop"]}, "in_flight": INTEGER}),
    **openapi_files.SCHEMAS,
    **openapi_batches.SCHEMAS,
    **openapi_admin.SCHEMAS,
}

ERRORS = {
    400: "Something in the request is wrong; `param` names it.",
    401: "No key, or a wrong one.",
    403: "The key is none of an administrator's.",
    404: "No such model, or nothing under this id.",
    408: "The request did not arrive in time.",
    413: "The body is larger than this gateway takes.",
    415: "The body is compressed, or not JSON in UTF-8.",
    429: "The engine is overloaded: try again after `retry-after`.",
    500: "A mistake of the gateway or of the engine.",
    502: "The engine could not be reached, or broke off.",
    503: "No replica is ready; the message says why, `retry-after` when to try again.",
    504: "The engine did not answer in time.",
}
"""Every operation has those that can happen to it, and `default`: an engine may say something else, in this shape."""

_ASKING = (400, 401, 404, 408, 413, 415, 429, 500, 502, 503, 504)
_LOOKING = (401, 404)


# -- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    path      as the route has it
    body      the shape of a JSON body, or its schema
    also      what else is asked of its fields, as JSON Schema
    answers   media type -> the name of a schema, of the 200
    example   a body to try
    key       needs a key
    query     name -> schema
    error     the schema of errors
    statuses  other answers: status -> (what it means, the name of a schema)
    form      the schema of a multipart form
    """

    method: str
    path: str
    tag: str
    summary: str
    answers: Mapping[str, str | None]
    body: Shape | Json | None = None
    also: Mapping[str, Json] = field(default_factory=dict)
    example: Json | None = None
    errors: tuple[int, ...] = _ASKING
    key: bool = True
    query: Mapping[str, Json] = field(default_factory=dict)
    error: str = "Error"
    statuses: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    form: Json | None = None


_HELLO = [{"role": "user", "content": "Hello!"}]
_MESSAGES: Json = {**SOME, "items": obj({"role": STRING})}
_TURNS: Json = {
    **SOME,
    "items": obj({"role": {"enum": ["user", "assistant", "system"]}, "content": {"type": ["string", "array"]}}),
}
_NOT_STREAMED: Json = {"stream": {"const": False}}
_RANKED: Json = {
    "documents": {**SOME, "items": {"anyOf": [STRING, obj({"text": STRING})]}},
    "top_n": {"minimum": 1},
    **_NOT_STREAMED,
}
_FORM: Json = obj(
    {"file": {"type": "string", "contentMediaType": "application/octet-stream"}, "model": STRING},
    {
        "language": STRING,
        "prompt": STRING,
        "response_format": STRING,
        "temperature": NUMBER,
        "stream": BOOLEAN,
    },
)

OPERATIONS = (
    Operation(
        "post", chat.PATH, "Chat", "Answer a conversation",
        {JSON: "ChatCompletion", EVENTS: "ChatCompletionChunk"},
        chat._SHAPE, {"messages": _MESSAGES},
        {"model": "MODEL", "messages": _HELLO},
    ),
    Operation(
        "post", completions.PATH, "Chat", "Continue a text",
        {JSON: "Completion", EVENTS: "Completion"},
        completions._SHAPE, {"prompt": SOME},
        {"model": "MODEL", "prompt": "Once upon a time"},
    ),
    Operation(
        "post", embeddings.PATH, "Embeddings", "Turn texts into vectors",
        {JSON: "EmbeddingList"},
        embeddings._SHAPE, {"input": SOME, **_NOT_STREAMED},
        {"model": "MODEL", "input": "Hello!"},
    ),
    *(
        Operation(
            "post", path, "Embeddings", "Rank documents by a query, in Cohere's and Jina's shape",
            {JSON: "Ranking"},
            rerank._SHAPE, _RANKED,
            {"model": "MODEL", "query": "fruit", "documents": ["an apple", "a car"]},
        )
        for path in (rerank.PATH, *rerank.ALSO_AT)
    ),
    Operation(
        "post", responses.PATH, "Responses", "Answer, and keep the answer for later",
        {JSON: "Response", EVENTS: "ResponseEvent"},
        responding._SHAPE, {},
        {"model": "MODEL", "input": "Hello!"},
    ),
    Operation("get", responses.StoredResponse.path, "Responses", "Show a kept response", {JSON: "Response"},
              errors=(400, *_LOOKING), query={"stream": STRING}),
    Operation("delete", responses.StoredResponse.path, "Responses", "Forget a kept response",
              {JSON: "ResponseDeleted"}, errors=_LOOKING),
    Operation("post", responses.CancelResponse.path, "Responses", "Always refused: nothing is made in the background",
              {}, errors=(400, *_LOOKING)),
    Operation(
        "get", responses.InputItems.path, "Responses", "What a kept response was made from", {JSON: "ItemList"},
        errors=(400, *_LOOKING),
        query={
            "limit": {"type": "integer", "minimum": 1, "maximum": 100},
            "order": {"type": "string", "enum": ["asc", "desc"]},
            "after": STRING,
        },
    ),
    Operation(
        "post", CreateMessage.path, "Anthropic", "Answer a conversation, in Anthropic's shape",
        {JSON: "Message", EVENTS: "MessageEvent"},
        anthropic._SHAPE, {"messages": _TURNS, "max_tokens": {"minimum": 1}},
        {"model": "MODEL", "max_tokens": 100, "messages": _HELLO},
        error="AnthropicError",
    ),
    Operation(
        "post", CountTokens.path, "Anthropic", "Count a conversation's tokens, in Anthropic's shape",
        {JSON: "TokenCount"},
        anthropic._COUNT_SHAPE, {"messages": _TURNS},
        {"model": "MODEL", "messages": _HELLO},
        error="AnthropicError",
    ),
    Operation(
        "post", audio.PATH, "Audio", "Write down what is said",
        {JSON: "Transcription", TEXT: None, EVENTS: "Transcription"},
        form=_FORM,
    ),
    Operation(
        "post", tokenize.PATH, "Models", "Show a prompt's or a conversation's tokens, where the engine can",
        {JSON: "Tokens"},
        tokenize._SHAPE, {**_NOT_STREAMED},
        {"model": "MODEL", "prompt": "Hello!"},
    ),
    Operation("get", ShowDeliberation.path, "Chat", "What a tribunal did, by the id in its answer's header",
              {JSON: "Deliberation"}, errors=(401, 404, 503)),
    Operation("get", ListModels.path, "Models", "List the models", {JSON: "ModelList"}, errors=(401,)),
    Operation("get", ShowModel.path, "Models", "Show a model, whose id may hold slashes", {JSON: "Model"},
              errors=_LOOKING),
    Operation("get", Health.path, "Service", "Whether this process answers", {JSON: "Health"}, errors=(), key=False),
    Operation("get", Ready.path, "Service", "Whether a model can answer", {JSON: "Readiness"}, errors=(), key=False,
              statuses={503: ("None does yet.", "Readiness")}),
    Operation("get", ShowMetrics.path, "Service", "Metrics, in Prometheus' text format", {TEXT: None}, errors=(),
              key=False),
    Operation("get", "/openapi.json", "Service", "This description", {JSON: None}, errors=(), key=False),
    Operation("get", "/docs", "Service", "This description as a page", {"text/html": None}, errors=(), key=False),
    Operation("post", Reports.path, "Service", "Where replicas report, with tokens of their own",
              {JSON: "ReplicaOrder"}, OBJECT, errors=(400, 401, 408, 413, 415), key=False),
    *(
        Operation(**operation)
        for operation in (*openapi_files.OPERATIONS, *openapi_batches.OPERATIONS, *openapi_admin.OPERATIONS)
    ),
)  # fmt: skip


# -- the document ----------------------------------------------------------------------------------------------------


def document(routes: Iterable[Route]) -> Json:
    """OpenAPI 3.1 of these routes. HEAD, which goes with every GET, is not mentioned."""
    served = {(method.lower(), route.path) for route in routes for method in route.methods or ()}
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        if (operation.method, operation.path) in served:
            paths.setdefault(public_path(operation.path), {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "slurmgate",
            "version": importlib.metadata.version("slurmgate"),
            "summary": "An OpenAI-compatible gateway to the models of this cluster.",
            "description": (
                "Every answer has `x-request-id`, which the gateway's log has too. Errors have the body `Error`, "
                "`retry-after` where trying again makes sense. Parameters that are not named here reach the engine. "
                "A stream that fails after its first event ends in an event with an `Error`."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _needed(paths),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Not needed while the gateway has no keys and only this machine can reach it.",
                },
                "x-api-key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "As Anthropic has it.",
                },
            },
        },
    }


def public_path(path: str) -> str:
    """A route's path without Starlette's converters: `{id:path}` -> `{id}`."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def _described(operation: Operation) -> Json:
    path = public_path(operation.path)
    words = re.findall(r"\w+", path)
    described: Json = {"operationId": "_".join([operation.method, *words]), "summary": operation.summary}
    described["tags"] = [operation.tag]
    described["security"] = [{"key": []}, {"x-api-key": []}] if operation.key else []
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": STRING} for name in re.findall(r"{(\w+)}", path)
    ] + [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None or operation.form is not None:
        described["requestBody"] = {"required": True, "content": _asked(operation)}
    answered: Json = {}
    if operation.answers:
        answered["200"] = {"description": "The answer.", "content": _answered(operation)}
    for status, (meaning, schema) in operation.statuses.items():
        answered[str(status)] = {"description": meaning, "content": {JSON: {"schema": ref(schema)}}}
    failed = {"content": {JSON: {"schema": ref(operation.error)}}}
    for status in operation.errors:
        answered[str(status)] = {"description": ERRORS[status], **failed}
    answered["default"] = {"description": "Any other error.", **failed}
    described["responses"] = answered
    return described


def _asked(operation: Operation) -> Json:
    if not isinstance(operation.body, Shape):
        return (
            {JSON: {"schema": operation.body}}
            if operation.body
            else {"multipart/form-data": {"schema": operation.form}}
        )
    content: Json = {"schema": shaped(operation.body, operation.also)}
    if operation.example is not None:
        content["example"] = operation.example
    return {JSON: content}


def _answered(operation: Operation) -> Json:
    content: Json = {}
    for kind, name in operation.answers.items():
        if kind == EVENTS:
            text = f"with `stream: true`: `data: {{...}}` lines, each a {name}, a blank line after each event"
            content[kind] = {"schema": {"type": "string", "description": text, "contentSchema": ref(name or "")}}
        elif name is None:
            content[kind] = {"schema": OBJECT if kind == JSON else STRING}
        else:
            content[kind] = {"schema": ref(name)}
    return content


def _needed(paths: Json) -> Json:
    """The schemas that are referred to, in their order."""
    found: set[str] = set()
    new = _references(paths)
    while new:
        found |= new
        new = _references([SCHEMAS[name] for name in new]) - found
    return {name: schema for name, schema in SCHEMAS.items() if name in found}


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"].rsplit("/", 1)[1]} if "$ref" in value else set()
        return own.union(*map(_references, value.values()))
    if isinstance(value, list):
        return set().union(*map(_references, value))
    return set()
