"""What the experiment writes, from made-up measurements."""

from __future__ import annotations

import json

from bench import experiment
from bench.experiment import MODEL, SETUPS, Level, Measured, Setup, Step
from proxy.benchmark.figures import Sample
from proxy.benchmark.load import Plan
from proxy.benchmark.prompts import Prompts
from proxy.benchmark.targets import DIRECT, GATEWAY

SETUP = Setup("llama-8b", "Llama 3.1 8B, 1 x A100", (Step(2, 2, 1),), speed=4.0)


def measured(setup: Setup) -> Measured:
    samples = [Sample(0.25, 0.05, [0.01] * 20, 21, 256, 21)] * 4
    figures = {name: experiment.figures_of(samples, 2, 0.5, setup.speed) for name in (DIRECT, GATEWAY, MODEL)}
    engine = {"peak_waiting": 3, "peak_cache_tokens": 50, "cache_tokens": 200}
    return Measured(setup, [Level(2, figures, engine, gateway_cpu=0.12)])


def test_figures_are_in_the_simulated_worlds_own_time() -> None:
    figures = measured(SETUP).levels[0].figures[DIRECT]
    assert round(figures.ttft_ms.p50) == 200
    assert round(figures.itl_ms.p50) == 40
    assert round(figures.output_tokens_per_s) == 42


def test_the_tables_show_the_gateways_share_only_where_time_is_the_walls() -> None:
    scaled = experiment.markdown([measured(SETUP)])
    assert "ran 4 times as fast" in scaled
    assert "What the gateway adds" not in scaled
    plain = experiment.markdown([measured(Setup("llama-8b", "Llama", (Step(2),)))])
    assert "| 2 | +0.00 (1.000) |" in plain
    assert "| 12% |" in plain
    assert all(line.count("|") in (9, 18) for line in plain.splitlines() if line.startswith("|"))


def test_the_document_has_the_stated_speeds_of_each_engine() -> None:
    told = experiment.document([measured(SETUP)], 1.0)
    json.dumps(told, allow_nan=False)
    (setup,) = told["setups"]
    assert setup["speeds"]["cache_tokens"] == 411_525
    assert set(setup["levels"][0]["measured"]) == {DIRECT, GATEWAY, MODEL}


def test_the_model_is_asked_for_the_very_lengths_that_are_sent() -> None:
    prompts = Prompts(experiment.SEED, experiment.PROMPT, experiment.OUTPUT)
    step = Step(3, 4, 2)
    plan = Plan("llama-1b", prompts, (3,), requests=step.requests, turns=step.turns)
    figures = experiment.predicted(SETUPS[0], plan, step)
    assert figures.requests == 12
    assert 12 * 32 <= figures.output_tokens <= 12 * 96


def test_all_four_sizes_go_from_one_user_to_128() -> None:
    steps = {setup.profile: [step.users for step in setup.steps] for setup in SETUPS[:4]}
    assert list(steps) == ["llama-1b", "llama-3b", "llama-8b", "llama-70b"]
    assert all(users == [1, 2, 4, 8, 16, 32, 64, 128] for users in steps.values())
