"""Why a model is not ready, as its users read it."""

from __future__ import annotations

from typing import Any

import pytest

from slurm_launcher.autoscale import Scaling
from slurm_launcher.outlook import LATER_S, outlook
from slurm_launcher.spec import ModelSpec
from slurm_launcher.states import Replica, Status

FIXED = ModelSpec("m", "llamacpp", "/m.gguf")
AT_ZERO = ModelSpec("m", "llamacpp", "/m.gguf", scaling=Scaling(least=0, most=2))
OFF = ModelSpec("m", "llamacpp", "/m.gguf", scaling=Scaling(least=0, most=0))


@pytest.mark.parametrize(
    ("spec", "known", "sentence", "retry_after_s"),
    [
        (FIXED, {}, "m is starting.", None),
        (FIXED, {"wanted": 1}, "m is starting.", None),
        (FIXED, {"wanted": 0, "set_by_operator": True}, "m has been switched off by an operator.", LATER_S),
        (AT_ZERO, {"wanted": 0}, "m is not running: its first request starts it.", None),
        (AT_ZERO, {"wanted": 1}, "m is starting.", None),
        (OFF, {"wanted": 0}, "m is switched off (replicas = 0).", LATER_S),
        (OFF, {"wanted": 1, "set_by_operator": True}, "m is starting.", None),
        (FIXED, {"silence": "no answer"}, "m is not running, and the scheduler does not answer: no answer", 15.0),
    ],
)
def test_while_nothing_is_there(
    spec: ModelSpec, known: dict[str, Any], sentence: str, retry_after_s: float | None
) -> None:
    assert outlook(spec, [], 0.0, **known) == (sentence, retry_after_s)


@pytest.mark.parametrize("job", ["Slurm job", "local job"])
def test_what_is_coming_is_called_by_its_clusters_name(job: str) -> None:
    waits = Replica("r", "m", "c", 0.0, job_id="7", note="PENDING (Resources)", starts_at="2026-11-22T14:05:00")
    loads = Replica("r", "m", "c", 0.0, job_id="7", node="n1", status=Status.STARTING)
    told = [outlook(FIXED, [replica], 0.0, job=job)[0] for replica in (waits, loads)]
    assert told == [
        f"m is starting: {job} 7 is PENDING (Resources), expected to start at 2026-11-22 14:05",
        f"m is starting: {job} 7 runs on n1, the engine is loading.",
    ]
