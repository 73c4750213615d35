"""`slurmgate doctor` as it is called: on this machine, on a real Slurm, from a node; with each mistake on purpose."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from proxy import checkup, cli_doctor
from slurm_launcher.doctor import Verdict
from tests.gateway_process import GatewayProcess, free_port
from tests.slurm_fixture import SlurmLab

EMBEDDED = Path(__file__).parents[2] / "proxy" / "embedded"

CONFIG = """
[server]
port = {port}
{server}
[launcher]
service = "doctor"
{launcher}
[defaults]
engine = "llamacpp"
command = ["{command}"]
[models.m]
source = "{source}"
{model}
[models.m.slurm]
{slurm}
"""
GOOD_SLURM = 'gpus = 1\ngpu_type = "h100"\ntime = "01:00:00"'


@dataclass
class Doctor:
    """The command, on a directory of its own. What a test leaves alone is right."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    def __call__(self, *options: str, **values: str) -> dict[str, tuple[str, str, str]]:
        """what -> (verdict, sentence, advice). The exit status is checked: 1 where something is wrong, else 0."""
        given = {
            "server": "", "launcher": "", "model": "", "command": "/bin/sh", "source": EMBEDDED / "guide.gguf",
            "slurm": GOOD_SLURM, "port": self.port,
        }  # fmt: skip
        path = self.directory / "c.toml"
        path.write_text(CONFIG.format(**(given | values)))
        arguments = ["--config", str(path), "--state-dir", str(self.directory / "state"), "--json", *options]
        done = CliRunner().invoke(app(), arguments, env=self.environment)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        worst = {f["verdict"] for f in findings}
        assert done.exit_code == (1 if "wrong" in worst else 0)
        assert all(bool(f["advice"]) == (f["verdict"] != "ok") for f in findings)
        found: dict[str, tuple[str, str, str]] = {}
        for f in findings:  # of several of one name the worst
            if found.get(f["what"], ("ok",))[0] == "ok" or f["verdict"] == "wrong":
                found[f["what"]] = (f["verdict"], f["sentence"], f["advice"])
        return found


def app() -> typer.Typer:
    app = typer.Typer()
    cli_doctor.mount(app)
    return app


@pytest.fixture
def local(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


def on_this_machine(doctor: Doctor, **values: str) -> dict[str, tuple[str, str, str]]:
    return doctor(**({"launcher": 'kind = "local"'} | values))


# -- this machine -----------------------------------------------------------------------------------------------------


def test_a_machine_where_all_is_well(local: Doctor) -> None:
    found = on_this_machine(local)
    assert {verdict for verdict, _, _ in found.values()} == {"ok"}
    assert found["gateway"][1] == f"it does not run; 127.0.0.1:{local.port} is free."


def test_a_list_for_people(tmp_path: Path) -> None:
    done = CliRunner().invoke(app(), ["--state-dir", str(tmp_path / "state")])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].split()[:3] == ["ok", "state", "directory"]
    assert done.stdout.splitlines()[-1] == "all is well"


def test_an_open_state_directory_and_an_open_secret(local: Doctor) -> None:
    on_this_machine(local)
    (local.directory / "state").chmod(0o755)
    assert "chmod 700" in on_this_machine(local)["state directory"][2]
    (local.directory / "state").chmod(0o700)
    secret = local.directory / "state" / "secret"
    secret.touch()
    secret.chmod(0o644)
    verdict, sentence, advice = on_this_machine(local)["state directory"]
    assert (verdict, advice) == ("wrong", f"chmod 600 {secret}")
    assert "others may read" in sentence


def test_a_state_directory_that_cannot_be(local: Doctor) -> None:
    (local.directory / "state").write_text("")
    assert on_this_machine(local)["state directory"][0] == "wrong"


def test_a_disk_that_takes_no_write_is_seen_by_writing() -> None:
    assert checkup.cannot_write(Path("/proc")) is not None


@pytest.mark.parametrize(("free", "verdict"), [(10**6, Verdict.WRONG), (10**9, Verdict.WARNING), (10**11, Verdict.OK)])
def test_space_that_runs_out(free: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert checkup.space_finding(Path("/")).verdict is verdict


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/data/x", "lustre"), ("/data", "lustre"), ("/database", "ext4"), ("/a b/c", "nfs4"), ("/over/x", "tmpfs")],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\n10.0.0.1@tcp:/d /data lustre rw 0 0\nsrv:/ab /a\\040b nfs4 rw 0 0\n"
        "/dev/sdb /over xfs rw 0 0\ntmpfs /over tmpfs rw 0 0\n"
    )
    assert checkup.filesystem_of(Path(path), mounts) == kind


def test_a_shared_file_system_is_no_place_for_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "filesystem_of", lambda path: "lustre")
    tmp_path.chmod(0o700)
    worst = [f for f in checkup.state_findings(tmp_path, sqlite=True) if f.verdict is Verdict.WRONG]
    assert "SQLite's locks" in worst[0].sentence
    assert not [f for f in checkup.state_findings(tmp_path, sqlite=False) if f.verdict is Verdict.WRONG]


def test_a_port_that_is_taken(local: Doctor) -> None:
    with socket.create_server(("127.0.0.1", local.port)):
        verdict, sentence, _ = on_this_machine(local)["gateway"]
    assert verdict == "wrong"
    assert "Address already in use" in sentence


def test_a_url_that_nobody_can_find(local: Doctor) -> None:
    found = on_this_machine(local, server='advertise_url = "http://no-such-host.invalid:8000"')
    assert found["gateway's URL"][0] == "wrong"
    assert "no-such-host.invalid" in found["gateway's URL"][1]


def test_an_address_for_others_without_a_key(local: Doctor) -> None:
    verdict, _, advice = on_this_machine(local, server='host = "0.0.0.0"')["API keys"]
    assert (verdict, advice) == ("warning", "slurmgate keys create NAME")


def test_weights_that_are_not_there(local: Doctor) -> None:
    assert "No such file" in on_this_machine(local, source="/nonexistent/x.gguf")["m: weights"][1]
    empty = local.directory / "empty.gguf"
    empty.touch()
    assert "is empty" in on_this_machine(local, source=str(empty))["m: weights"][1]


def test_an_image_that_is_not_there(local: Doctor) -> None:
    found = on_this_machine(local, model='runtime = "apptainer"\nimage = "/nonexistent/x.sif"')
    assert "No such file" in found["m: image"][1]


def test_a_database_that_does_not_answer(local: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", "postgresql://ada:hunter2@127.0.0.1:1/x")
    found = on_this_machine(local, launcher='kind = "local"\n[database]\nurl_env = "DB_URL"')
    assert found["database"][0] == "wrong"
    assert "hunter2" not in json.dumps(found)


def test_a_configuration_that_others_can_read(local: Doctor) -> None:
    verdict, _, advice = on_this_machine(local, model='environment = { HF_TOKEN = "hf_secret" }')["configuration"]
    assert verdict == "warning"
    assert advice.startswith("chmod 600")


# -- a real Slurm -----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_slurm(slurm_lab: SlurmLab, tmp_path: Path) -> Doctor:
    lab = slurm_lab.env()
    return Doctor(tmp_path, {"SLURM_CONF": lab["SLURM_CONF"], "PATH": lab["PATH"]})


@contextmanager
def hidden_on(lab: SlurmLab, node: str, path: Path) -> Iterator[None]:
    """On that node, which has its own mounts, another directory lies over this one."""
    pid = (lab.directory / "run" / f"slurmd.{node}.pid").read_text().strip()
    inside = ["nsenter", "--target", pid, "--mount"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "umount", "--lazy", str(path)], check=True)


ABOUT_ONE_MACHINE = {"gateway's URL", "launcher.shared_dir"}
"""Warnings that are right here, where the nodes are this machine."""


@pytest.mark.slurm
class TestOnARealSlurm:
    def test_all_is_well(self, on_slurm: Doctor) -> None:
        found = on_slurm("--from-node")
        assert {what for what, (verdict, _, _) in found.items() if verdict != "ok"} == ABOUT_ONE_MACHINE
        for what in ("node: network", "node: clock", "node: python", "node: files", "node: programs"):
            assert found[what][0] == "ok"
        assert f"reaches the gateway at http://127.0.0.1:{on_slurm.port}" in found["node: network"][1]
        assert "Slurm would take it, and start it at" in found["m: submission"][1]

    def test_nothing_is_submitted_unless_asked_for_and_nothing_is_left(
        self, on_slurm: Doctor, slurm_lab: SlurmLab
    ) -> None:
        def ours() -> str:
            return slurm_lab.run(
                "squeue", "-h", "-t", "all", "-n", "slurmgate-doctor-doctor,slurmgate-doctor", "-o", "%i"
            )

        before = ours()
        on_slurm()
        assert ours() == before
        on_slurm("--from-node")
        assert len(ours().split()) == len(before.split()) + 1
        assert list((on_slurm.directory / "state" / "logs").iterdir()) == []

    @pytest.mark.parametrize(
        ("slurm", "what", "words"),
        [
            ('partition = "nope"\ntime = "01:00:00"', "m: partition", "there is no partition nope; there are: gpu"),
            ('partition = "short"\ntime = "01:00:00"', "m: time limit", "allowed is 00:02:00 in short"),
            ('gpus = 9\ntime = "01:00:00"', "m: GPUs", "the largest nodes there have 4 h100"),
            ('gpus = 1\ngpu_type = "a100"\ntime = "01:00:00"', "m: GPUs", "have 4 h100"),
            ('constraint = "nosuch"\ntime = "01:00:00"', "m: submission", "Invalid feature specification"),
            ('reservation = "nosuch"\ntime = "01:00:00"', "m: submission", "reservation is invalid"),
            ('memory = "999T"\ntime = "01:00:00"', "m: submission", "node configuration is not available"),
        ],
    )
    def test_what_is_asked_of_slurm_in_vain(self, on_slurm: Doctor, slurm: str, what: str, words: str) -> None:
        verdict, sentence, _ = on_slurm(slurm=slurm)[what]
        assert verdict == "wrong"
        assert words in sentence

    def test_what_cannot_stand_in_a_script(self, on_slurm: Doctor) -> None:
        verdict, sentence, _ = on_slurm("--from-node", slurm='partition = "a\\u0007b"')["m: configuration"]
        assert verdict == "wrong"
        assert "--partition" in sentence

    def test_a_controller_that_is_away(self, on_slurm: Doctor, slurm_lab: SlurmLab) -> None:
        with slurm_lab.controller_stopped():
            verdict, sentence, advice = on_slurm()["Slurm"]
        assert verdict == "wrong"
        assert "no slurmctld answers" in sentence
        assert "scontrol ping" in advice

    def test_no_slurm_at_all(self, local: Doctor) -> None:
        local.environment["PATH"] = str(local.directory)
        verdict, sentence, _ = local()["Slurm"]
        assert verdict == "wrong"
        assert "scontrol: command not found on PATH" in sentence

    def test_python_that_is_not_on_the_node(self, on_slurm: Doctor) -> None:
        verdict, sentence, _ = on_slurm("--from-node", launcher='python = "python3.99"')["node: python"]
        assert verdict == "wrong"
        assert "python3.99: not found" in sentence or "python3.99: command not found" in sentence

    def test_an_engine_that_is_not_on_the_node(self, on_slurm: Doctor) -> None:
        verdict, sentence, _ = on_slurm("--from-node", command="no-such-engine")["node: programs"]
        assert verdict == "wrong"
        assert "has no no-such-engine" in sentence

    def test_a_container_runtime_that_is_not_on_the_node(self, on_slurm: Doctor) -> None:
        image = on_slurm.directory / "x.sif"
        image.write_text("x")
        found = on_slurm("--from-node", model=f'runtime = "singularity"\nimage = "{image}"')
        assert "has no singularity" in found["node: programs"][1]

    def test_a_gateway_that_nodes_cannot_reach(self, on_slurm: Doctor) -> None:
        url = f"http://127.0.0.99:{on_slurm.port}"  # nothing listens at that address
        found = on_slurm("--from-node", server=f'advertise_url = "{url}"')
        verdict, sentence, advice = found["node: network"]
        assert verdict == "wrong"
        assert f"cannot connect to {url}" in sentence
        assert "Connection refused" in sentence
        assert "server.host" in advice

    def test_a_directory_that_cannot_be_written(self, on_slurm: Doctor) -> None:
        found = on_slurm("--from-node", launcher='shared_dir = "/proc/sys"')
        assert found["launcher.shared_dir"][0] == "wrong"
        assert found["node"][0] == "wrong"

    def test_a_directory_that_the_node_has_too_but_is_another_one(self, on_slurm: Doctor, slurm_lab: SlurmLab) -> None:
        with hidden_on(slurm_lab, "n1", on_slurm.directory):
            found = on_slurm("--from-node", "--wait", "4", slurm='partition = "short"\ntime = "00:02:00"')
        verdict, sentence, advice = found["node: files"]
        assert verdict == "wrong"
        assert "is not to be seen here" in sentence
        assert "launcher.shared_dir" in advice

    def test_a_busy_partition_is_waited_for_no_longer_than_asked(self, on_slurm: Doctor) -> None:
        later = GOOD_SLURM + '\nextra = ["--begin=now+1hour"]'
        verdict, sentence, _ = on_slurm("--from-node", "--wait", "1", slurm=later)["node"]
        assert verdict == "warning"
        assert "has told nothing within 1 s; it is PENDING (BeginTime)" in sentence

    def test_a_running_gateway_is_asked_itself(self, on_slurm: Doctor, slurm_lab: SlurmLab) -> None:
        config = CONFIG.format(
            port=0, server="", launcher="", model="replicas = 0", command="/bin/sh", source=EMBEDDED / "guide.gguf",
            slurm=GOOD_SLURM,
        )  # fmt: skip
        gateway = GatewayProcess(on_slurm.directory, config, {**os.environ, **slurm_lab.env()})
        gateway.start()
        try:
            found = on_slurm("--from-node")
        finally:
            gateway.stop()
        assert found["gateway"][1].startswith("it runs (process ")
        assert f"reaches the gateway at {gateway.url}" in found["node: network"][1]


@pytest.mark.slurm
class TestWithAccounting:
    @pytest.mark.parametrize(
        ("slurm", "words"),
        [
            ('account = "nosuch"\ntime = "01:00:00"', "Invalid account or account/partition combination specified"),
            ('qos = "nosuch"\ntime = "01:00:00"', "Invalid qos specification"),
        ],
    )
    def test_accounts_and_qos(self, slurm_accounting_lab: SlurmLab, tmp_path: Path, slurm: str, words: str) -> None:
        lab = slurm_accounting_lab.env()
        doctor = Doctor(tmp_path, {"SLURM_CONF": lab["SLURM_CONF"], "PATH": lab["PATH"]})
        verdict, sentence, advice = doctor(slurm=slurm)["m: submission"]
        assert verdict == "wrong"
        assert words in sentence
        assert "sacctmgr" in advice
        assert doctor()["m: submission"][0] == "ok"
