"""A finished request is freed at once: circles would wait for the collector, which then stops everything."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import httpx

from tests.fakes.chat_engine import Answers
from tests.in_process import serving

OURS = (
    "Record",
    "Call",
    "Reply",
    "Exchange",
    "EventReply",
    "EngineStream",
    "EventFilter",
    "Answer",
)


async def test_requests_leave_nothing_to_collect(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    async with Answers() as engine:
        text = f'[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]'
        async with serving(text, tmp_path) as served, httpx.AsyncClient(headers=served.headers) as http:

            async def ask(number: int) -> None:
                for n in range(number):
                    asked = {**body, "stream": n % 2 == 1}
                    assert (await http.post(served.url + "/v1/chat/completions", json=asked)).status_code == 200

            await ask(10)
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                await ask(50)
                gc.collect()
                left = Counter(type(thing).__name__ for thing in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
    assert {name: left[name] for name in OURS if left[name] > 2} == {}
