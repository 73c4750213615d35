"""Lines may ask a model by another of its names: its seats, rates and replicas are those of the model."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.batch_engines import Remembers
from tests.in_process import serving

from .running import Client, line


async def test_lines_that_use_an_alias_are_lines_of_the_model(tmp_path: Path) -> None:
    async with Remembers() as engine:
        config = (
            f'[launcher]\nkind = "local"\n[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]\naliases = ["other"]\n'
        )
        async with serving(config, tmp_path) as served, Client(served) as client:
            asked = [line(number, "m" if number % 2 else "other") for number in range(20)]
            output, errors = await client.results(await client.over(await client.submit(asked, mixed_models=True)))
            assert (len(output), len(errors)) == (20, 0)
            assert [model.name for model in served.gateway.serving.runner.models()] == ["m"]
            assert [model.completed for model in served.gateway.serving.runner.models()] == [20]
