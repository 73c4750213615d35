"""Weights that are not on the node, with a real engine on a real Slurm: said where people look, and not tried again.

Images that are not there are in test_runtimes_on_slurm.py; what Slurm itself refuses in test_on_slurm.py, and in
slurm_launcher/test_bad_input.py.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_on_slurm import CHAT, EMBEDDED, config, jobs
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SERVICE = "weightless"


def test_weights_that_are_not_there_are_named_once(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    whole = config(SERVICE)
    text = whole[: whole.index('[models."')].replace("replicas = 2", "replicas = 1")
    gateway = GatewayProcess(tmp_path, text.replace(f"{EMBEDDED}/guide.gguf", f"{tmp_path}/none.gguf"), slurm_lab.env())
    gateway.start()
    try:
        key = gateway.key()
        until_sync(lambda: any(r["state"] == "failed" for r in gateway.replicas()), 60)
        [replica] = gateway.replicas()
        assert replica["failure"]["kind"] == "weights_missing"
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"model": CHAT, "messages": [{"role": "user", "content": "hello"}]},
            headers={"authorization": f"Bearer {key}"},
            timeout=30,
        )
        assert answer.status_code == 503
        message = answer.json()["error"]["message"]
        assert replica["failure"]["message"] in message
        assert message.endswith("It is not tried again until an operator has seen to it.")
        assert 0 < int(answer.headers["retry-after"]) <= 120
        assert "cannot start" in gateway.run("status").stdout
        doctor = gateway.run("doctor", check=False).stdout
        assert f"{tmp_path}/none.gguf" in doctor
        until_sync(lambda: jobs(slurm_lab, SERVICE) == {})
        assert len(gateway.events("replica_submitted")) == 1
    finally:
        gateway.stop()
        slurm_lab.cancel_all()
