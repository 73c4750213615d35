"""Error bodies as engines send them, and what the client gets for them."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engine_errors import MESSAGE_CHARS, engine_error, is_no_engines
from backends.errors import EngineRefused, GatewayError, NotTheEngine, Unavailable

FACE = tuple[int, str, str, str | None, str | None]


def face(error: GatewayError) -> FACE:
    """What the client sees, and always all four keys of it."""
    body = error.body()["error"]
    assert list(body) == ["message", "type", "param", "code"]
    return error.status, body["message"], body["type"], body["param"], body["code"]


VLLM_TOO_LONG = (
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages, "
    "100 in the completion). Please reduce the length of the messages or completion."
)
BODIES: dict[str, tuple[int, object, FACE]] = {
    "OpenAI, with a word as code": (
        400,
        {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "unsupported_value"}},
        (400, "no", "invalid_request_error", "n", "unsupported_value"),
    ),
    "vLLM, with a number as code": (
        400,
        {"error": {"message": "top_p must be in (0, 1]", "type": "BadRequestError", "param": None, "code": 400}},
        (400, "top_p must be in (0, 1]", "invalid_request_error", None, None),
    ),
    "vLLM of old, flat": (
        400,
        {"object": "error", "message": VLLM_TOO_LONG, "type": "BadRequestError", "param": None, "code": 400},
        (400, VLLM_TOO_LONG, "invalid_request_error", None, "context_length_exceeded"),
    ),
    "vLLM, unknown model": (
        404,
        {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}},
        (404, "The model `x` does not exist.", "invalid_request_error", "model", None),
    ),
    "SGLang": (
        400,
        {
            "object": "error",
            "message": "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
            "type": "BadRequest",
            "param": None,
            "code": 400,
        },
        (
            400,
            "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
            "invalid_request_error",
            None,
            "context_length_exceeded",
        ),
    ),
    "TGI, validation": (
        422,
        {"error": "Input validation error: `temperature` must be strictly positive", "error_type": "validation"},
        (
            400,
            "Input validation error: `temperature` must be strictly positive",
            "invalid_request_error",
            "temperature",
            None,
        ),
    ),
    "TGI, too long": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
            "error_type": "validation",
        },
        (
            400,
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
            "invalid_request_error",
            None,
            "context_length_exceeded",
        ),
    ),
    "TGI, overloaded": (
        429,
        {"error": "Model is overloaded", "error_type": "overloaded"},
        (429, "Model is overloaded", "requests", None, "rate_limit_exceeded"),
    ),
    "TGI, generation": (
        424,
        {"error": "Request failed during generation: Server error: CUDA out of memory", "error_type": "generation"},
        (
            502,
            "Request failed during generation: Server error: CUDA out of memory",
            "server_error",
            None,
            "engine_error",
        ),
    ),
    "TGI, incomplete": (
        500,
        {"error": "Incomplete generation", "error_type": "incomplete_generation"},
        (500, "Incomplete generation", "server_error", None, "engine_error"),
    ),
    "llama.cpp, loading": (
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        (503, "Loading model", "server_error", None, "model_unavailable"),
    ),
    "llama.cpp, too long": (
        400,
        {
            "error": {
                "code": 400,
                "message": "request (9 tokens) exceeds the available context size (8 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 9,
                "n_ctx": 8,
            }
        },
        (
            400,
            "request (9 tokens) exceeds the available context size (8 tokens), try increasing it",
            "invalid_request_error",
            None,
            "context_length_exceeded",
        ),
    ),
    "llama.cpp, not for embeddings": (
        501,
        {"error": {"code": 501, "message": "This server does not support embeddings.", "type": "not_supported_error"}},
        (400, "This server does not support embeddings.", "invalid_request_error", None, "not_supported"),
    ),
    "TEI": (
        413,
        {
            "message": "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
            "code": 413,
            "type": "Validation",
        },
        (
            400,
            "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
            "invalid_request_error",
            None,
            "context_length_exceeded",
        ),
    ),
    "TEI, batch too large": (
        413,
        {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"},
        (413, "batch size 64 > maximum allowed batch size 32", "invalid_request_error", None, "request_too_large"),
    ),
    "FastAPI, one sentence": (
        400,
        {"detail": "messages is empty"},
        (400, "messages is empty", "invalid_request_error", None, None),
    ),
    "FastAPI, validation": (
        422,
        {
            "detail": [
                {"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required", "input": {}},
                {"type": "int_type", "loc": ["body", "n"], "msg": "Input should be a valid integer"},
            ]
        },
        (
            400,
            "messages.0.content: Field required; n: Input should be a valid integer",
            "invalid_request_error",
            "messages.0.content",
            None,
        ),
    ),
    "FastAPI, no such route": (
        404,
        {"detail": "Not Found"},
        (
            404,
            "The engine of this model does not have this endpoint.",
            "invalid_request_error",
            None,
            "endpoint_not_supported",
        ),
    ),
    "no such method": (
        405,
        b"",
        (
            404,
            "The engine of this model does not have this endpoint.",
            "invalid_request_error",
            None,
            "endpoint_not_supported",
        ),
    ),
    "plain text": (
        422,
        b"Failed to deserialize the JSON body into the target type: stop: invalid type",
        (
            400,
            "Failed to deserialize the JSON body into the target type: stop: invalid type",
            "invalid_request_error",
            None,
            None,
        ),
    ),
    "HTML": (
        502,
        b"<html><head><title>502 Bad Gateway</title></head></html>",
        (502, "The engine failed to answer.", "server_error", None, "engine_error"),
    ),
    "nothing": (500, b"", (500, "The engine failed to answer.", "server_error", None, "engine_error")),
    "a redirect": (307, b"", (500, "The engine failed to answer.", "server_error", None, "engine_error")),
    "an unusual 5xx": (529, b"", (502, "The engine failed to answer.", "server_error", None, "engine_error")),
    "409": (409, b"", (409, "The engine reports a conflict.", "invalid_request_error", None, None)),
    "408": (
        408,
        b"",
        (408, "The engine took too long to receive the request.", "invalid_request_error", None, "request_timeout"),
    ),
    "a word and a sentence": (
        400,
        {"error": "Bad Request", "message": "n is too large", "status": 400},
        (400, "n is too large", "invalid_request_error", None, None),
    ),
    "an error that says nothing": (
        400,
        {"error": {"message": None, "type": None, "param": "None", "code": "None"}},
        (400, "The engine refused the request.", "invalid_request_error", None, None),
    ),
}


def encoded(body: object) -> bytes:
    return body if isinstance(body, bytes) else orjson.dumps(body)


@pytest.mark.parametrize("name", BODIES)
def test_an_engines_error_gets_openais_face(name: str) -> None:
    status, body, expected = BODIES[name]
    assert face(engine_error(status, encoded(body))) == expected


@pytest.mark.parametrize("status", [401, 403])
def test_an_engine_that_refuses_our_key_does_not_blame_the_clients_key(status: int) -> None:
    error = engine_error(status, b'{"error":{"message":"Invalid API Key","type":"x","code":"invalid_api_key"}}')
    assert error.status == 502
    assert error.type == "server_error"
    assert "API Key" not in error.message
    assert isinstance(error, NotTheEngine), "a port of ours may be another's by now"


@pytest.mark.parametrize(
    ("status", "content_type", "strange"),
    [
        (302, b"", True),
        (200, b"text/html; charset=utf-8", True),
        (501, b"text/html;charset=utf-8", True),
        (405, b"text/html", True),
        (200, b"application/json", False),
        (200, b"text/plain", False),
        (502, b"text/html", False),
        (413, b"text/html", False),
        (405, b"application/json", False),
    ],
)
def test_a_web_servers_answer_is_not_taken_for_an_engines(status: int, content_type: bytes, strange: bool) -> None:
    assert is_no_engines(status, content_type) is strange


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        (None, 1.0),
        (b"7", 7.0),
        (b" 0.5 ", 0.5),
        (b"9999", 120.0),
        (b"Sun, 22 Nov 2026 18:00:00 GMT", 1.0),
        (b"-3", 1.0),
    ],
)
def test_an_overloaded_engine_says_when_to_come_back(retry_after: bytes | None, seconds: float) -> None:
    assert engine_error(429, b"", retry_after).retry_after_s == seconds


def test_an_engine_that_cannot_take_requests_now_is_unavailable() -> None:
    error = engine_error(503, b"", b"30")
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 30.0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"message": "overloaded", "http_status_code": 429}}, 429),
        ({"error": "Input validation error", "error_type": "validation"}, 400),
        ({"error": "Request failed during generation", "error_type": "generation"}, 502),
        ({"error": {"message": "x", "type": "BadRequestError", "code": 400}}, 400),
        ({"object": "error", "message": "x", "code": "400"}, 400),
        ({"code": 500, "message": "x", "type": "server_error"}, 500),
        ({"error": {"message": "x"}}, 500),
        ({"error": "x"}, 500),
    ],
)
def test_an_error_within_a_stream_has_the_status_that_its_body_claims(body: object, status: int) -> None:
    assert engine_error(200, encoded(body)).status == status


@pytest.mark.parametrize(
    "message",
    [
        'Boom\nTraceback (most recent call last):\n  File "/srv/engine.py", line 3, in run\nValueError: x',
        'Boom\n  File "/srv/engine.py", line 3',
        "Boom: None",
    ],
)
def test_a_message_has_no_stack_and_no_none(message: str) -> None:
    assert engine_error(500, orjson.dumps({"error": {"message": message}})).message == "Boom"


def test_a_body_that_is_only_a_stack_says_nothing() -> None:
    assert engine_error(500, b"Traceback (most recent call last):\n  File x").message == "The engine failed to answer."


def test_a_long_message_is_cut() -> None:
    error = engine_error(400, orjson.dumps({"error": {"message": "x" * 5000}}))
    assert len(error.message) == MESSAGE_CHARS
    assert error.message.endswith("...")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "type", "param", "code", "detail", "loc", "msg", "error_type"]), inner
        )
    ),
    max_leaves=15,
)


@given(status=st.integers(200, 599), body=JSON.map(orjson.dumps) | st.binary(max_size=60))
def test_whatever_an_engine_sends_the_client_gets_an_error_in_the_right_shape(status: int, body: bytes) -> None:
    error = engine_error(status, body)
    shown_status, message, type_, param, code = face(error)
    assert isinstance(error, EngineRefused | NotTheEngine | Unavailable)
    assert 400 <= shown_status <= 599
    assert shown_status not in (401, 403)
    assert message.strip()
    assert len(message) <= MESSAGE_CHARS
    assert type_ in ("invalid_request_error", "requests", "server_error")
    assert "None" not in (message, param, code)
    assert param is None or param
    orjson.dumps(error.body())
