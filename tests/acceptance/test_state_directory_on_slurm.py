"""A state directory that is full, read-only or unseen by nodes, on a real Slurm: told clearly, and never a storm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_on_slurm import CHAT, config
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SERVICE = "disk"


class Disk:
    """A file system of its own, of some MB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(path))

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    def fill(self) -> None:
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                while True:
                    try:
                        file.write(b"x" * size)
                    except OSError:
                        break

    def empty(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def read_only(self) -> None:
        self._mount("-o", "remount,ro", str(self.path))

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Where `GatewayProcess` has its state."""
    require_slurm()
    disk = Disk(tmp_path / "state")
    yield disk
    disk.remove()


def text(more: str = "") -> str:
    """One model of one replica. `more`: of the section `launcher`."""
    whole = config(SERVICE)
    whole = whole[: whole.index('[models."')].replace("replicas = 2", "replicas = 1")
    return whole.replace("[defaults]\n", f"{more}\n[defaults]\n", 1)


def ask(gateway: GatewayProcess, key: str) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json={"model": CHAT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )


@pytest.mark.parametrize("first", [True, False], ids=["at the first start", "later"])
@pytest.mark.parametrize("fault", ["fill", "read_only"])
def test_a_start_on_a_disk_that_takes_nothing_is_refused_in_one_sentence(
    slurm_lab: SlurmLab, disk: Disk, tmp_path: Path, fault: str, first: bool
) -> None:
    gateway = GatewayProcess(tmp_path, text(), slurm_lab.env())
    if not first:
        gateway.key()
    getattr(disk, fault)()
    done = gateway.run("serve", "--port", str(gateway.port), check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("slurmgate: ")
    assert done.stderr.count("\n") == 1
    words = {"fill": ("No space left", "disk is full", "disk I/O error"), "read_only": ("Read-only", "readonly")}[fault]
    assert any(word in done.stderr for word in words), done.stderr
    assert str(disk.path) in done.stderr
    assert slurm_lab.run("squeue", "-h", f"--name=slurmgate-{SERVICE}") == ""
    if first:
        assert not (disk.path / "secret").exists(), "no secret that is cut off"


def test_a_disk_that_fills_up_stops_neither_requests_nor_replacements_nor_makes_a_storm(
    slurm_lab: SlurmLab, disk: Disk, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"  # what the nodes see: the small disk is the gateway's machine's alone
    shared.mkdir()
    gateway = GatewayProcess(tmp_path, text(f'shared_dir = "{shared}"'), slurm_lab.env())
    gateway.start()
    try:
        key = gateway.key()
        gateway.until_ready(**{CHAT: 1})
        disk.fill()
        assert ask(gateway, key).status_code == 200
        [replica] = [r for r in gateway.replicas() if r["state"] == "ready"]
        slurm_lab.run("scancel", replica["job"])
        until_sync(lambda: len(gateway.events("replica_submitted")) == 2)
        gateway.until_ready(**{CHAT: 1})
        assert ask(gateway, key).status_code == 200
        assert len(gateway.events("replica_submitted")) == 2, "one for one"
        assert "trouble: the database cannot be written: database or disk is full" in gateway.run("status").stdout
        refused = gateway.run("scale", CHAT, "2", check=False)
        assert refused.returncode == 1
        assert "The database cannot be written, so nothing has changed" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert len(gateway.events("replicas_not_saved")) == 1, "said once"
        assert not gateway.events("launcher_step_failed")
        disk.empty()
        gateway.run("scale", CHAT, "1")
        until_sync(lambda: "trouble" not in gateway.run("status").stdout)
        [job] = [r["job"] for r in gateway.replicas() if r["state"] == "ready"]
        assert gateway.stop() == 0
        gateway.start()
        gateway.until_ready(**{CHAT: 1})
        assert [r["job"] for r in gateway.replicas() if r["state"] == "ready"] == [job], "what was learnt was kept"
        assert os.stat(disk.path / "secret").st_size == 32
    finally:
        disk.empty()
        gateway.stop()
        slurm_lab.cancel_all()


def test_a_log_directory_that_nodes_do_not_see_is_named_and_jobs_are_not_submitted_in_a_storm(
    slurm_lab: SlurmLab, disk: Disk, tmp_path: Path
) -> None:
    gateway = GatewayProcess(
        tmp_path,
        text().replace("[models.guide]", "[defaults.timeouts]\nreplica_wait_s = 1\n[models.guide]"),
        slurm_lab.env(),
    )
    gateway.start()
    try:
        key = gateway.key()
        until_sync(lambda: any(r["state"] == "failed" for r in gateway.replicas()))
        words = "its log cannot be written from the node (launcher.shared_dir)"
        assert all(words in r["failure"]["message"] for r in gateway.replicas() if r["state"] == "failed")
        assert "its log cannot be written" in gateway.run("status").stdout
        until_sync(lambda: (answer := ask(gateway, key)).status_code == 503 and words in answer.text)
        assert len(gateway.events("replica_submitted")) <= 4, "5, 10, 20 s between them"
    finally:
        gateway.stop()
        slurm_lab.cancel_all()
