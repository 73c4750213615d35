"""The configuration as jobs."""

from __future__ import annotations

import pytest

from proxy.launching import SIGNAL_LEAD_S, signal_lead_s
from slurm_launcher.spec import ModelSpec, Resources
from slurm_launcher.wanting import LEAD_SHARE

EARLY_S = 60
"""By so much the signal may come too early."""


def spec(lead_s: float, time_limit_s: int) -> ModelSpec:
    return ModelSpec("m", "tgi", "org/m", lead_s=lead_s, resources=Resources(time_limit_s=time_limit_s))


def test_slurm_signals_two_minutes_before_a_wall_time_of_hours() -> None:
    assert signal_lead_s(spec(300.0, 86400)) == SIGNAL_LEAD_S


@pytest.mark.parametrize("time_limit_s", [0, 120, 300, 480, 600, 3600, 86400])
@pytest.mark.parametrize("lead_s", [0.0, 60.0, 200.0, 300.0, 600.0])
def test_the_signal_never_comes_before_the_successor_has_had_two_minutes(lead_s: float, time_limit_s: int) -> None:
    """It makes the agent drain, whoever else there is: two replicas that began together would both be gone."""
    model = spec(lead_s, time_limit_s)
    successor_s = min(lead_s, LEAD_SHARE * time_limit_s) if time_limit_s else lead_s
    lead = signal_lead_s(model)
    assert lead == 0 or lead + EARLY_S + 120 <= successor_s


def test_a_job_of_a_few_minutes_is_not_signalled() -> None:
    assert signal_lead_s(spec(300.0, 120)) == 0
    assert signal_lead_s(spec(60.0, 86400)) == 0
