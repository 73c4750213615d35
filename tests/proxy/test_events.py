"""Signs of life in silence, and errors that come after a stream has begun."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, AsyncOpenAI

from proxy import events
from tests.fakes.chat_engine import Engine, Request, Write
from tests.in_process import serving

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


class ThinksUntilTold(Engine):
    """Says nothing until `go` is set, then `answers`."""

    def __init__(self, answers: bytes) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.answers = answers

    async def answer(self, request: Request, write: Write) -> bool:
        await self.go.wait()
        await write(self.answers)
        return False


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
CHUNK = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SILENCE_S", 0.02)


def config(engine: Engine) -> str:
    return f'[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]'


async def test_silence_before_the_first_event_is_filled_with_signs_that_clients_understand(tmp_path: Path) -> None:
    async with (
        ThinksUntilTold(STREAM + CHUNK + b"data: [DONE]\n\n") as engine,
        serving(config(engine), tmp_path) as served,
    ):
        async with httpx.AsyncClient(headers=served.headers) as http:
            async with http.stream("POST", served.url + "/v1/chat/completions", json=QUESTION) as response:
                assert response.status_code == 200
                text = ""
                async for piece in response.aiter_text():
                    text += piece
                    if text.count("data: ") == 2:
                        engine.go.set()
    assert text.startswith(": keep-alive\n\n" * 3 + "data: {")
    quiet = json.loads(text.split("\n\n")[3].removeprefix("data: "))
    assert quiet["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    assert text.endswith("data: [DONE]\n\n")


async def test_the_official_client_reads_over_the_signs(tmp_path: Path) -> None:
    async with (
        ThinksUntilTold(STREAM + CHUNK + b"data: [DONE]\n\n") as engine,
        serving(config(engine), tmp_path) as served,
    ):
        async with AsyncOpenAI(base_url=served.url + "/v1", api_key=served.key) as client:
            stream = await client.chat.completions.create(**QUESTION)
            engine.go.set()
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hi"


async def test_an_error_after_a_sign_is_an_event(tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 400 X\r\ncontent-length: 27\r\n\r\n" + b'{"error":{"message":"bad"}}'
    async with ThinksUntilTold(refusal) as engine, serving(config(engine), tmp_path) as served:
        async with AsyncOpenAI(base_url=served.url + "/v1", api_key=served.key) as client:
            stream = await client.chat.completions.create(**QUESTION)
            engine.go.set()
            with pytest.raises(APIError, match="bad"):
                async for _ in stream:
                    pass
    assert '"error":"invalid_request_error"' in served.log_text()


async def test_a_whole_reply_after_a_sign_is_an_error_and_before_it_is_passed_on(tmp_path: Path) -> None:
    whole = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    async with ThinksUntilTold(whole) as engine, serving(config(engine), tmp_path) as served:
        async with httpx.AsyncClient(headers=served.headers) as http:
            async with http.stream("POST", served.url + "/v1/chat/completions", json=QUESTION) as response:
                engine.go.set()
                assert "did not answer with a stream" in (await response.aread()).decode()
            assert (await http.post(served.url + "/v1/chat/completions", json=QUESTION)).json() == {}
