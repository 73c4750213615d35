"""What is known of a model only by asking its engine."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from proxy import engine_limits
from tests.fakes.dialect_engines import SpeaksTGI
from tests.in_process import Served, serving
from tests.waiting import until


async def length(served: Served) -> int | None:
    async with httpx.AsyncClient(headers=served.headers) as http:
        known: int | None = (await http.get(served.url + "/v1/models/m")).json()["max_model_len"]
        return known


@pytest.mark.parametrize(("told", "expected"), [("", None), ("context_length = 77", 77)])
async def test_a_tgi_says_its_context_length_where_the_configuration_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, expected: int | None
) -> None:
    monkeypatch.setattr(engine_limits, "ASK_S", 0.01)
    async with SpeaksTGI() as engine:
        text = f'[models.m]\nengine = "tgi"\nurls = ["http://{engine.host}:{engine.port}"]\n{told}'
        async with serving(text, tmp_path) as served:
            if expected is None:
                expected = engine.info()["max_total_tokens"]
                await until(lambda: served.gateway.control.context_length("m"))
            assert await length(served) == expected


async def test_an_engine_that_does_not_answer_is_asked_again_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_limits, "ASK_S", 0.01)
    engine = SpeaksTGI()
    async with engine:
        port = engine.port
    text = f'[models.m]\nengine = "tgi"\nurls = ["http://127.0.0.1:{port}"]\n'
    async with serving(text, tmp_path) as served:
        assert await length(served) is None
        engine.port = port
        async with engine:
            await until(lambda: served.gateway.control.context_length("m"))
            assert await length(served) == engine.info()["max_total_tokens"]
