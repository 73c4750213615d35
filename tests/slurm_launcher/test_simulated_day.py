"""Hours of a site in a second: nothing is leaked and nothing is stuck, whatever goes wrong."""

from __future__ import annotations

import pytest

from bench.simulated_day import START, Rates, Simulation


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hours_with_faults_of_every_kind_leave_no_job_and_no_model_behind(seed: int) -> None:
    simulation = Simulation(models=20, nodes=40, seed=seed)
    day = simulation.run(3.0)
    assert day.leaked == 0
    assert simulation.stuck(START) == []
    assert day.availability > 0.97  # cold starts of the first hour included
    assert day.longest_gap_s < 1800


def test_on_a_site_without_faults_everything_is_answered() -> None:
    calm = Rates(0.0, 0.0, 0.0, 0.0, 0.0, queue_wait_s=30.0)
    day = Simulation(models=10, nodes=40, seed=1, rates=calm).run(6.0)  # past a wall time: successors take over
    assert day.lost == 0
    assert day.leaked == 0
