"""What engines say of their own limits, in their own words."""

from __future__ import annotations

import pytest

from backends.engine_info import EngineInfo, ask, parse
from backends.errors import TransportError
from backends.fixed import FixedEndpoint
from tests.fakes.chat_engine import AnswersWith


@pytest.mark.parametrize(
    ("engine", "body", "told"),
    [
        ("tei", b'{"max_concurrent_requests":512,"max_input_length":8192}', EngineInfo(512, 8192)),
        ("llamacpp", b'{"total_slots":4,"default_generation_settings":{}}', EngineInfo(4)),
        ("sglang", b'{"max_running_requests":64,"model_path":"m"}', EngineInfo(64)),
        ("sglang", b'{"max_running_requests":null}', EngineInfo()),
        ("llamacpp", b'{"total_slots":true}', EngineInfo()),
        ("tei", b'{"max_concurrent_requests":-1}', EngineInfo()),
        ("another", b'{"total_slots":4}', EngineInfo()),
    ],
)
def test_what_it_says(engine: str, body: bytes, told: EngineInfo) -> None:
    assert parse(engine, 200, body) == told


def test_one_that_has_no_such_route_has_nothing_to_say() -> None:
    assert parse("llamacpp", 501, b"") == EngineInfo()


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"[]"), (503, b'{"error":"loading"}')])
def test_what_cannot_be_read_is_asked_again(status: int, body: bytes) -> None:
    with pytest.raises(TransportError):
        parse("llamacpp", status, body)


async def test_it_is_asked_over_http_with_its_key() -> None:
    async with AnswersWith(200, b'{"total_slots":6}') as engine:
        endpoint = FixedEndpoint("r", engine.host, engine.port, "key")
        assert await ask("llamacpp", endpoint) == EngineInfo(6)
        assert await ask("vllm", endpoint) == EngineInfo()
        assert [(question.path, question.headers["authorization"]) for question in engine.questions] == [
            ("/props", "Bearer key")
        ]
    with pytest.raises(TransportError):
        await ask("llamacpp", endpoint)
