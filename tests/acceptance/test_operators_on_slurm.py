"""The operators' commands as they are typed, on a real Slurm: what they print, their exit status, and every mistake."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_on_slurm import CHAT, EMBEDDED, config
from tests.gateway_process import SLURMGATE, GatewayProcess
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SERVICE = "operators"
NEVER = "org/refused"
URLS = "elsewhere"


def text() -> str:
    """One model of two replicas, one that Slurm refuses, one whose engine runs elsewhere."""
    chat = config(SERVICE)
    chat = chat[: chat.index('[models."')]
    return f"""{chat}
[models."{NEVER}"]
source = "{EMBEDDED}/guide.gguf"
slurm = {{ partition = "nosuch" }}
[models.{URLS}]
engine = "vllm"
urls = ["http://127.0.0.1:9"]
"""


class Site:
    def __init__(self, gateway: GatewayProcess, lab: SlurmLab, directory: Path) -> None:
        self.gateway = gateway
        self.lab = lab
        self.config = directory / "config.toml"
        self.run = gateway.run

    def mistake(self, *arguments: str) -> str:
        """The one sentence that a command leaves on standard error, exit status 1."""
        done = self.run(*arguments, check=False)
        assert (done.returncode, done.stdout) == (1, ""), (done.stdout, done.stderr)
        assert done.stderr.startswith("slurmgate: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr.removeprefix("slurmgate: ").rstrip("\n")

    def ready(self) -> list[str]:
        return [r["replica"] for r in self.gateway.replicas() if r["model"] == CHAT and r["state"] == "ready"]

    def until_ready(self, count: int) -> list[str]:
        until_sync(lambda: len(self.ready()) == count, 60)
        return self.ready()

    def begin(self, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """A command that goes on until it is interrupted."""
        return subprocess.Popen(
            [*SLURMGATE, *arguments, "--config", str(self.config), "--state-dir", str(self.gateway.state_dir)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**self.lab.env(), "TERM": "xterm", "COLUMNS": "200", "LINES": "40"},
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_slurm()
    lab = SlurmLab.start(nodes=4)
    directory = tmp_path_factory.mktemp("operators")
    gateway = GatewayProcess(directory, text(), lab.env())
    try:
        gateway.start()
        gateway.until_ready(**{CHAT: 2})
        yield Site(gateway, lab, directory)
    finally:
        gateway.stop()
        lab.cancel_all()
        lab.stop()


def interrupted(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Ctrl-C."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, (out or b"").decode(), err.decode()


# -- looking ---------------------------------------------------------------------------------------------------------


def test_status_shows_models_replicas_and_why(site: Site) -> None:
    until_sync(lambda: "Invalid partition name" in site.run("status").stdout)
    shown = site.run("status").stdout
    lines = shown.splitlines()
    assert lines[0].startswith("gateway: running, process ")
    [chat] = [line for line in lines if line.startswith(CHAT) and "2 of 2" in line]
    assert chat.split()[1] == "ready"
    for replica in site.gateway.replicas():
        [line] = [line for line in lines if replica["replica"] in line]
        if replica["state"] == "ready":
            assert replica["job"] in line
            assert replica["node"] in line
            assert " min" in line, "time left, from Slurm"
    [why] = [line for line in lines if line.startswith(NEVER) and "cannot start" in line]
    assert "Slurm refused the job: Invalid partition name specified" in why
    assert [line for line in lines if line.startswith(URLS)]


def test_status_for_programs(site: Site) -> None:
    seen = json.loads(site.run("status", "--json").stdout)
    assert seen["gateway"]["running"] is True
    assert site.gateway.process is not None
    assert seen["gateway"]["pid"] == site.gateway.process.pid
    by_name = {model["model"]: model for model in seen["models"]}
    assert (by_name[CHAT]["wanted"], by_name[CHAT]["ready"], by_name[CHAT]["why"]) == (2, 2, "")
    assert by_name[NEVER]["state"] == "unavailable"
    assert by_name[URLS]["wanted"] is None
    [job, other] = [r["job"] for r in seen["replicas"] if r["state"] == "ready"]
    assert site.lab.state(job) == site.lab.state(other) == "RUNNING"
    assert all(0 < r["time_left_s"] <= 1800 for r in seen["replicas"] if r["state"] == "ready")


def test_status_that_is_watched_ends_cleanly(site: Site) -> None:
    ours, terminal = pty.openpty()
    process = site.begin("status", "--watch", stdout=terminal)
    os.close(terminal)
    try:
        seen = b""
        while seen.count(b"2 of 2") < 2:
            readable, _, _ = select.select([ours], [], [], 30.0)
            assert readable, seen
            seen += os.read(ours, 65536)
        code, _, err = interrupted(process)
        assert (code, err) == (0, "")
        assert b"tokens/s" in seen, "from the second look on"
        with contextlib.suppress(OSError):  # nobody has the terminal any more
            while True:
                seen += os.read(ours, 65536)
        assert seen.rfind(b"\x1b[?1049l") > seen.rfind(b"\x1b[?1049h"), "the screen is as it was"
        assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l"), "with its cursor"
    finally:
        os.close(ours)


def test_a_replicas_log_by_its_id_and_by_its_model(site: Site) -> None:
    replica, _ = site.until_ready(2)
    log = site.run("logs", replica).stdout
    assert "ready" in log
    assert len(site.run("logs", replica, "--lines", "1").stdout.splitlines()) == 1
    assert site.run("logs", CHAT, "--lines", "0").stdout, "the newest one's"


def test_a_log_is_followed_as_it_grows(site: Site) -> None:
    replica, _ = site.until_ready(2)
    path = site.gateway.state_dir / "logs" / f"{replica}.log"
    process = site.begin("logs", replica, "-f", "--lines", "1")
    assert process.stdout is not None
    assert process.stdout.readline(), "what is there"
    with path.open("a") as log:
        log.write("a line of now\n")
    while process.stdout.readline() != b"a line of now\n":
        assert process.poll() is None
    code, _, err = interrupted(process)
    assert (code, err) == (0, "")


def test_what_there_is_no_log_of(site: Site) -> None:
    message = site.mistake("logs", "nosuch")
    assert message.startswith("no replica 'nosuch'; known: ")
    assert site.ready()[0] in message
    refused = next(r["replica"] for r in site.gateway.replicas() if r["model"] == NEVER)
    assert f"replica {refused} has no log yet" in site.mistake("logs", refused), "it has never run"


# -- telling ---------------------------------------------------------------------------------------------------------


def test_a_model_is_scaled_and_given_back(site: Site) -> None:
    site.until_ready(2)
    assert site.run("scale", CHAT, "1").stdout == f"{CHAT} shall have 1 replica\n"
    site.until_ready(1)
    assert site.run("scale", CHAT, "auto").stdout == f"{CHAT} shall have 2 replicas\n"
    site.until_ready(2)


def test_a_drained_replica_ends_and_another_comes(site: Site) -> None:
    first, second = site.until_ready(2)
    assert site.run("drain", first).stdout == f"{first} is draining\n"
    until_sync(lambda: first not in site.ready(), 20)
    assert second in site.until_ready(2)
    until_sync(lambda: next(r for r in site.gateway.replicas() if r["replica"] == first)["state"] == "stopped")
    assert site.mistake("drain", first) == f"No replica '{first}' runs."


def test_a_restarted_model_has_other_replicas_in_the_end(site: Site) -> None:
    before = set(site.until_ready(2))
    assert site.run("restart", CHAT).stdout == f"{CHAT} is started anew, one replica after the other\n"
    until_sync(lambda: len(now := site.ready()) == 2 and not before & set(now), 90)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scale", "nosuch", "1"), "No model 'nosuch' is launched here."),
        (("scale", URLS, "1"), f"No model '{URLS}' is launched here."),
        (("scale", CHAT, "many"), "expected a number or 'auto', found 'many'"),
        (("scale", CHAT, "100000"), "expected null, or a whole number from 0 to 1000"),
        (("restart", "nosuch"), "No model 'nosuch' is launched here."),
        (("drain", "nosuch"), "No replica 'nosuch' runs."),
        (("render", "nosuch"), f"no model 'nosuch' to launch in the configuration; there are: {CHAT}, {NEVER}"),
        (("render", URLS), f"no model '{URLS}' to launch"),
        (("doctor", "--model", "nosuch"), "no model 'nosuch' to launch in the configuration"),
        (("fit", "nosuch"), f"no model 'nosuch'; known: {CHAT}, {NEVER}, {URLS}"),
        (("fit", URLS), f"{URLS} is not launched here: it has no `source`"),
        (("fit", CHAT, "--gpu-type", "abacus"), "nothing is known of a GPU 'abacus'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_a_mistake_is_one_sentence(site: Site, arguments: tuple[str, ...], message: str) -> None:
    if arguments[0] == "fit":  # it needs no gateway, so it takes no state directory
        done = subprocess.run(
            [*SLURMGATE, *arguments, "--config", str(site.config)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
    else:
        assert message in site.mistake(*arguments)


@pytest.mark.parametrize("arguments", [("scale", CHAT), ("scale", CHAT, "1", "2"), ("drain",), ("status", "--wacth")])
def test_a_command_that_is_not_whole_says_how_it_is_used(site: Site, arguments: tuple[str, ...]) -> None:
    done = site.run(*arguments, check=False)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr


# -- before and after: render, fit, doctor --------------------------------------------------------------------------


def test_render_prints_what_sbatch_takes(site: Site, tmp_path: Path) -> None:
    script = site.run("render", CHAT).stdout
    assert "#SBATCH --time=0-00:30:00\n" in script
    assert "<redacted>" in script
    tested = subprocess.run(
        ["sbatch", "--test-only"], input=script, capture_output=True, text=True, env=site.lab.env(), check=False
    )
    assert tested.returncode == 0, tested.stderr
    assert "to start at" in tested.stderr


def test_fit_says_whether_it_does(site: Site) -> None:
    done = subprocess.run(
        [*SLURMGATE, "fit", CHAT, "--config", str(site.config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fits" in done.stdout


def test_doctor_names_what_is_wrong_and_what_to_do(site: Site) -> None:
    done = site.run("doctor", check=False)
    assert done.returncode == 1, "one model cannot start"
    assert done.stderr == ""
    wrong = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert wrong
    assert all(NEVER in line for line in wrong), "and nothing else"
    assert any("partition" in line and "nosuch" in line for line in wrong)
    assert "-> " in done.stdout, "advice"


def test_doctor_of_one_model_for_programs(site: Site) -> None:
    done = site.run("doctor", "--model", CHAT, "--json", check=False)
    findings = json.loads(done.stdout)["findings"]
    assert {f["verdict"] for f in findings} <= {"ok", "warning"}, findings
    assert done.returncode == 0
    assert all(f["advice"] for f in findings if f["verdict"] != "ok")


def test_doctor_looks_from_a_node(site: Site) -> None:
    site.run("scale", CHAT, "1")
    try:
        site.until_ready(1)
        done = site.run("doctor", "--model", CHAT, "--from-node", "--wait", "60", "--json", check=False)
        findings = json.loads(done.stdout)["findings"]
        assert not [f for f in findings if f["verdict"] == "wrong"], findings
        assert done.returncode == 0
        assert any("node" in f["what"] or "node" in f["sentence"] for f in findings)
        until_sync(lambda: len(site.lab.run("squeue", "-h", "-t", "PD,R,CF,CG", "-o", "%i").split()) == 1)
    finally:
        site.run("scale", CHAT, "auto")


# -- while no gateway runs -------------------------------------------------------------------------------------------


def test_while_no_gateway_runs_what_it_left_is_shown_and_nothing_is_told(site: Site) -> None:
    replica = site.until_ready(2)[0]
    assert site.gateway.stop() == 0
    try:
        shown = site.run("status").stdout
        assert shown.startswith("gateway: not running (")
        assert replica in shown
        seen = json.loads(site.run("status", "--json").stdout)
        assert (seen["gateway"]["running"], seen["gateway"]["pid"], seen["models"]) == (False, None, [])
        assert site.run("logs", replica).stdout
        where = f"no gateway runs on {site.gateway.state_dir}"
        for arguments in (("scale", CHAT, "1"), ("restart", CHAT), ("drain", replica), ("reload",), ("stop",)):
            assert where in site.mistake(*arguments)
        assert site.run("render", CHAT).stdout.startswith("#!/bin/bash\n")
        assert site.run("doctor", "--model", CHAT, check=False).returncode == 0
    finally:
        site.gateway.start()
    assert replica in site.until_ready(2), "the same replicas"


def test_the_commands_are_all_in_the_help(site: Site) -> None:
    shown = subprocess.run([*SLURMGATE, "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("status", "logs", "scale", "drain", "restart", "reload", "doctor", "render", "fit", "stop"):
        assert f" {command} " in shown
    assert sys.executable not in shown
