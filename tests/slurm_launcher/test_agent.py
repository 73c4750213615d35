"""The agent as it runs in a job: the rendered script under bash, a fake gateway, engines with faults.

They run under the oldest Python that is found, since nodes have what they have, and a whole life under each.
"""

from __future__ import annotations

import ast
import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_launcher import agent, on_node
from slurm_launcher.script import AGENT, assemble, manifest
from slurm_launcher.spec import ModelSpec, Site
from tests.fakes import engines as fakes
from tests.fakes.gateway import FakeGateway
from tests.slurm_launcher.conftest import LAUNCH

HASTE = {"KILL_AFTER_S = 5.0": "KILL_AFTER_S = 0.4", "LAST_REPORT_S = 10.0": "LAST_REPORT_S = 1.0"}


def pythons() -> list[str]:
    """Interpreters from 3.6 on, the oldest first: those of pyenv, those on PATH, and at least this one."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for minor in range(6, 20):
        if minor == sys.version_info.minor:
            found.append(sys.executable)
            continue
        for path in [*sorted(versions.glob(f"3.{minor}.*/bin/python3")), shutil.which(f"python3.{minor}")]:
            # a shim may be on PATH for a version that is not there
            if (
                path
                and subprocess.run([str(path), "-I", "-S", "-c", "0"], capture_output=True, check=False).returncode == 0
            ):
                found.append(str(path))
                break
    return found


PYTHONS = pythons()


class Job:
    """A script that runs as in a job: bash, few variables, the log in a file."""

    def __init__(self, script: str, directory: Path, environment: dict[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self.log_path = directory / "log"
        path = directory / "script"
        path.write_text(script)
        base = {"PATH": os.environ["PATH"], "HOME": str(directory), "SLURM_JOB_ID": "77", "TEST_MARK": self.mark}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                ["/bin/bash", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**base, **environment},
                cwd=directory,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 15.0) -> int:
        return self.process.wait(timeout_s)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for_line(self, text: str, timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def processes(self) -> dict[int, str]:
        """Living processes of this job, with their command lines."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if f"TEST_MARK={self.mark}\0".encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found[int(name)] = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def wait_until_nothing_is_left(self, timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.processes():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.01)

    def end(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(5)


Run = Callable[..., Job]


@pytest.fixture
def run(gateway: FakeGateway, tmp_path: Path) -> Iterator[Run]:
    """run(engine, variables=..., python=..., **changes of the manifest) -> the job."""
    jobs: list[Job] = []

    def start(
        kind: type[fakes.Engine],
        *,
        variables: dict[str, str] | None = None,
        python: str = PYTHONS[0],
        **changes: Any,
    ) -> Job:
        spec = ModelSpec(
            "tiny/model",
            "vllm",
            "org/tiny",
            command=(sys.executable, fakes.__file__, kind.__name__),
            environment=(("HF_TOKEN", "hf_a_token_of_the_user"), ("PORT_TAKEN_ONCE", str(tmp_path / "taken"))),
        )
        site = Site("test", gateway.url, str(tmp_path / "url"), tmp_path, python=python, heartbeat_s=0.1)
        told = manifest(spec, LAUNCH, site, host="127.0.0.1") | changes
        script = assemble(told, python=site.python)
        for constant, shorter in HASTE.items():
            assert constant in script
            script = script.replace(constant, shorter)
        job = Job(script, tmp_path, variables or {})
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.end()


def get(report: dict[str, Any], path: str) -> int:
    """The engine's status for a GET; 0 where it does not answer."""
    connection = http.client.HTTPConnection(report["host"], report["port"], timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@pytest.mark.parametrize("python", PYTHONS)
def test_it_lives_a_whole_life_under_any_python(run: Run, gateway: FakeGateway, python: str) -> None:
    job = run(fakes.Engine, python=python)
    gateway.wait_for_state("ready")
    job.signal(signal.SIGTERM)
    assert job.wait() == 0
    assert gateway.states() == ["starting", "ready", "draining", "stopped"]
    job.wait_until_nothing_is_left()


# -- starting ---------------------------------------------------------------------------------------------------------


def test_it_reports_starting_then_ready_with_an_address_that_answers(run: Run, gateway: FakeGateway) -> None:
    run(fakes.Engine)
    ready = gateway.wait_for_state("ready")
    assert get(ready, "/health") == 200
    assert gateway.states() == ["starting", "ready"]
    assert gateway.paths == {"/internal/replicas/tiny-0001"}
    expected = {"version": 1, "replica": "tiny-0001", "model": "tiny/model", "cluster": "", "job": "77", "life": 0}
    assert expected.items() <= ready.items()
    assert ready["host"] == "127.0.0.1"
    assert ready["node"] == socket.gethostname()
    assert ready["failure"] is None
    assert ready["time_left_s"] is None
    assert ready["gpus"] == []


def test_it_goes_on_reporting_at_each_heartbeat(run: Run, gateway: FakeGateway) -> None:
    run(fakes.Engine)
    gateway.wait_for_state("ready")
    gateway.wait_for_more(3)


def test_an_engine_that_dies_at_start_is_reported_with_its_last_lines(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatDiesAtStart)
    failure = gateway.wait_for_state("failed")["failure"]
    assert failure["kind"] == "engine_exited"
    assert failure["message"] == "The engine exited with status 3 while starting."
    assert failure["tail"][-1] == "CUDA error: out of memory"
    assert len(failure["tail"]) == 40
    assert job.wait() == 1
    assert "line 0\n" in job.log


def test_health_without_a_token_is_not_ready(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatAnswersHealthButNoToken, probe_timeout_s=0.3)
    failure = gateway.wait_for_state("failed")["failure"]
    assert failure["kind"] == "engine_unproven"
    assert "an empty answer" in failure["message"]
    assert "ready" not in gateway.states()
    assert job.wait() == 1
    job.wait_until_nothing_is_left()


def test_an_engine_that_refuses_its_own_key_is_given_up_after_three_refusals(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatRefusesItsKey, probe_timeout_s=60.0)
    failure = gateway.wait_for_state("failed")["failure"]
    assert failure["kind"] == "engine_unproven"
    assert "status 401" in failure["message"]
    assert job.wait() == 1


def test_an_engine_that_never_gets_healthy_fails_after_its_start_timeout(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatNeverGetsHealthy, start_timeout_s=0.8)
    failure = gateway.wait_for_state("failed")["failure"]
    assert failure["kind"] == "start_timeout"
    assert failure["tail"][-1].startswith("listening at")
    assert job.wait() == 1
    job.wait_until_nothing_is_left()


def test_a_taken_port_means_another_try_on_another_one(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    run(fakes.EngineWhosePortIsTaken)
    ready = gateway.wait_for_state("ready")
    assert ready["port"] != int((tmp_path / "taken").read_text())
    assert gateway.states() == ["starting", "ready"]


def test_it_gives_up_after_five_taken_ports(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineWhosePortIsAlwaysTaken)
    assert gateway.wait_for_state("failed")["failure"]["kind"] == "engine_exited"
    assert job.wait() == 1
    assert job.log.count("engine started") == 5


def test_a_program_that_is_not_there_is_named(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine, engine={**plan(), "argv": ["no-such-engine", "{port}"]})
    failure = gateway.wait_for_state("failed")["failure"]
    assert failure["kind"] == "launch"
    assert "no-such-engine: No such file or directory" in failure["message"]
    assert job.wait() == 1


def plan() -> dict[str, Any]:
    """The manifest's `engine` for a model that does not matter."""
    spec = ModelSpec("m", "vllm", "org/m")
    engine: dict[str, Any] = manifest(spec, LAUNCH, Site("test", "http://127.0.0.1:1", "", Path("/nowhere")))["engine"]
    return engine


def test_a_private_directory_is_made_for_engines_that_ask_and_removed_with_them(
    run: Run, gateway: FakeGateway, tmp_path: Path
) -> None:
    engine = plan()
    argv = [sys.executable, fakes.__file__, "Engine", *engine["argv"][1:], "--sockets", "{tmp}/shard"]
    job = run(fakes.Engine, engine={**engine, "argv": argv})
    gateway.wait_for_state("ready")
    line = next(line for line in job.processes().values() if "--sockets" in line)
    made = Path(line.split()[-1]).parent
    assert made.stat().st_mode & 0o777 == 0o700
    gateway.command = "stop"
    assert job.wait() == 0
    assert not made.exists()


def test_the_engine_reads_nothing_from_the_script(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatReadsItsStdin)
    gateway.wait_for_state("ready")
    assert "stdin: ''" in job.log


# -- serving ----------------------------------------------------------------------------------------------------------


def test_an_engine_that_dies_later_is_reported_at_once(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine, heartbeat_s=60.0)
    ready = gateway.wait_for_state("ready")
    get(ready, "/die")
    failed = gateway.wait_for_state("failed", timeout_s=10)
    assert failed["failure"]["kind"] == "engine_exited"
    assert failed["failure"]["message"] == "The engine exited with status 9 while serving."
    assert job.wait() == 1


def test_the_signal_that_killed_an_engine_is_named(run: Run, gateway: FakeGateway) -> None:
    run(fakes.Engine)
    get(gateway.wait_for_state("ready"), "/kill")
    assert "SIGKILL" in gateway.wait_for_state("failed")["failure"]["message"]


def test_what_an_engine_leaves_behind_ends_with_the_job(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatLeavesAnOrphan)
    ready = gateway.wait_for_state("ready")
    assert any("sleep 600" in line for line in job.processes().values())
    get(ready, "/die")
    assert job.wait() == 1
    job.wait_until_nothing_is_left()


def test_an_engine_that_takes_any_key_gets_a_warning_in_the_log(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatAcceptsAnyKey)
    gateway.wait_for_state("ready")
    assert "warning: 127.0.0.1:" in job.log
    assert "accepts a wrong key" in job.log


def test_no_secret_is_on_a_command_line_or_in_the_log(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatPrintsItsKey)
    gateway.wait_for_state("ready")
    lines = job.processes()
    assert len(lines) == 2  # the agent, which was bash, and the engine
    secrets = [LAUNCH.token, LAUNCH.engine_key, "hf_a_token_of_the_user"]
    for secret in secrets:
        assert not any(secret in line for line in lines.values())
        assert secret not in job.log
    assert 'api_key: Some("<redacted>"), token: <redacted>' in job.log


def test_a_proxy_in_the_environment_is_for_others(run: Run, gateway: FakeGateway) -> None:
    nowhere = "http://127.0.0.1:9"
    run(fakes.Engine, variables={"http_proxy": nowhere, "HTTP_PROXY": nowhere, "ALL_PROXY": nowhere})
    gateway.wait_for_state("ready")


def test_slurm_says_which_job_this_is_and_how_long_it_may_run(run: Run, gateway: FakeGateway) -> None:
    end = str(int(time.time()) + 3600)
    slurm = {"SLURM_RESTART_COUNT": "2", "SLURM_JOB_END_TIME": end, "SLURMD_NODENAME": "n7"}
    run(fakes.Engine, variables=slurm)
    report = gateway.wait_for_state("ready")
    assert (report["job"], report["life"], report["node"]) == ("77", 2, "n7")
    assert 3500 < report["time_left_s"] <= 3600


def test_only_the_jobs_own_gpus_are_reported(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(
        "#!/bin/sh\n"
        "echo '0, NVIDIA H100 80GB HBM3, 11, 81559, 0, GPU-aaa'\n"
        "echo '1, NVIDIA H100 80GB HBM3, 70000, 81559, 93, GPU-bbb'\n"
    )
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    run(fakes.Engine, gpus=1, variables={"PATH": path, "CUDA_VISIBLE_DEVICES": "1"})
    report = gateway.wait_for(lambda report: bool(report["gpus"]))
    name = "NVIDIA H100 80GB HBM3"
    figures = {"memory_used_mb": 70000, "memory_total_mb": 81559, "utilization_percent": 93}
    assert report["gpus"] == [{"index": 1, "name": name, **figures}]


# -- draining and ending ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_drains_at_once_and_the_end_waits_for_what_is_in_flight(
    run: Run, gateway: FakeGateway, number: int
) -> None:
    job = run(fakes.Engine, heartbeat_s=60.0)
    ready = gateway.wait_for_state("ready")
    gateway.in_flight = 1
    job.signal(number)
    gateway.wait_for_state("draining", timeout_s=10)
    gateway.wait_for_more(1, timeout_s=10)  # sooner than its heartbeat
    assert get(ready, "/health") == 200
    gateway.in_flight = 0
    stopped = gateway.wait_for_state("stopped")
    assert stopped["failure"] is None
    assert job.wait() == 0
    job.wait_until_nothing_is_left()


def test_zero_in_flight_counts_only_in_the_answer_to_draining(run: Run, gateway: FakeGateway) -> None:
    run(fakes.Engine)
    gateway.wait_for_state("ready")
    gateway.wait_for_more(2)
    gateway.command = "drain"
    gateway.wait_for_state("stopped")
    assert gateway.states() == ["starting", "ready", "draining", "stopped"]


def test_the_grace_ends_a_drain_that_does_not_end(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine, drain_grace_s=0.5)
    gateway.wait_for_state("ready")
    gateway.in_flight = 1
    gateway.command = "drain"
    gateway.wait_for_state("stopped")
    assert job.wait() == 0


def test_a_second_term_ends_at_once(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    gateway.in_flight = 1
    job.signal(signal.SIGTERM)
    gateway.wait_for_state("draining")
    job.signal(signal.SIGTERM)
    assert job.wait(6) == 0
    job.wait_until_nothing_is_left()


def test_nothing_can_be_in_flight_while_starting(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatNeverGetsHealthy)
    gateway.wait_for(lambda report: bool(report["port"]))
    gateway.in_flight = 1
    job.signal(signal.SIGTERM)
    assert job.wait(6) == 0
    assert gateway.states()[-1] == "stopped"


def test_the_gateway_can_say_stop(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    gateway.in_flight = 1
    gateway.command = "stop"
    assert job.wait(6) == 0


def test_a_replica_that_is_not_wanted_stops(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    gateway.status = 410
    assert job.wait(6) == 0


def test_an_engine_that_ends_while_draining_has_stopped(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine)
    ready = gateway.wait_for_state("ready")
    gateway.in_flight = 1
    job.signal(signal.SIGUSR1)
    gateway.wait_for_state("draining")
    get(ready, "/die")
    assert gateway.wait_for_state("stopped")["failure"] is None
    assert job.wait() == 0


def test_a_signal_to_the_whole_job_is_no_failure_of_the_engine(run: Run, gateway: FakeGateway) -> None:
    """As scancel sends it: the engine may be gone before the agent knows why."""
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    engine = max(job.processes())
    os.kill(engine, signal.SIGTERM)
    job.signal(signal.SIGTERM)
    assert job.wait() == 0
    assert gateway.states()[-1] == "stopped"


def test_an_engine_that_ends_quietly_on_its_own_has_failed(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    os.kill(max(job.processes()), signal.SIGTERM)
    assert "SIGTERM" in gateway.wait_for_state("failed")["failure"]["message"]
    assert job.wait() == 1


def test_an_engine_that_ignores_term_is_killed_with_its_whole_family(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.EngineThatIgnoresTerm)
    gateway.wait_for_state("ready")
    assert len(job.processes()) == 3
    gateway.command = "stop"
    assert job.wait(6) == 0
    job.wait_until_nothing_is_left()


def test_a_killed_agent_leaves_no_engine(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    job.signal(signal.SIGKILL)
    job.wait()
    job.wait_until_nothing_is_left()


# -- a gateway that is not there --------------------------------------------------------------------------------------


def test_it_serves_on_without_a_gateway_and_finds_the_next(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    run(fakes.Engine)
    ready = gateway.wait_for_state("ready")
    gateway.close()
    successor = FakeGateway(LAUNCH.token)
    try:
        (tmp_path / "url").write_text(successor.url + "\n")
        again = successor.wait_for_state("ready")
        assert (again["host"], again["port"]) == (ready["host"], ready["port"])
        assert get(ready, "/health") == 200
    finally:
        successor.close()


def test_a_rendezvous_that_anybody_could_write_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("http://127.0.0.1:1\n")
    path.chmod(0o644)
    assert agent.rendezvous_url(str(path)) == "http://127.0.0.1:1"
    path.chmod(0o666)
    assert agent.rendezvous_url(str(path)) is None
    assert agent.rendezvous_url(str(tmp_path / "none")) is None


def test_a_gateway_that_does_not_know_the_token_is_none(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine, token="of another gateway", orphan_timeout_s=1.0)
    assert job.wait() == 0
    assert "status 401 (wrong token)" in job.log
    assert "ending: orphaned" in job.log


def test_an_orphan_ends_itself(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine, orphan_timeout_s=1.5)
    gateway.wait_for_state("ready")
    gateway.close()
    assert job.wait(6) == 0
    assert "ending: orphaned" in job.log
    job.wait_until_nothing_is_left()


def test_a_drain_ends_when_the_gateway_has_gone(run: Run, gateway: FakeGateway) -> None:
    """As at the end of a gateway that takes its replicas with it: nobody is left to say that nothing is in flight."""
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    gateway.close()
    job.signal(signal.SIGTERM)
    assert job.wait(6) == 0


def test_a_gateway_that_hangs_holds_nothing_up(run: Run, gateway: FakeGateway) -> None:
    job = run(fakes.Engine)
    gateway.wait_for_state("ready")
    gateway.may_answer.clear()
    gateway.wait_for_more(1)
    job.signal(signal.SIGTERM)
    job.wait_for_line("draining: SIGTERM")
    job.signal(signal.SIGTERM)
    assert job.wait(6) == 0
    job.wait_until_nothing_is_left()


# -- the parts --------------------------------------------------------------------------------------------------------


def test_it_is_ascii_and_python_3_6() -> None:
    ast.parse(AGENT, feature_version=(3, 6))
    assert AGENT.isascii()


def test_the_address_of_a_node_is_that_of_its_slurm_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"n1": "10.0.0.1", "this": "127.0.1.1", "gate": "10.0.0.9"}
    monkeypatch.setattr(agent, "resolve", known.get)
    monkeypatch.setattr(socket, "gethostname", lambda: "this")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert agent.own_address({"gateway_url": "http://gate:8000"}) == "10.0.0.1"


def test_a_node_that_knows_itself_as_loopback_takes_the_address_it_sends_from(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sender(socket.socket):
        def connect(self, address: Any) -> None:
            assert address == ("10.0.0.9", 8000)

        def getsockname(self) -> Any:
            return ("10.0.0.5", 40000)

    monkeypatch.setattr(agent, "resolve", {"this": "127.0.1.1", "gate": "10.0.0.9"}.get)
    monkeypatch.setattr(socket, "gethostname", lambda: "this")
    monkeypatch.setattr(socket, "socket", Sender)
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert agent.own_address({"gateway_url": "http://gate:8000"}) == "10.0.0.5"


def test_loopback_will_do_where_the_gateway_is_on_loopback_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "resolve", {"n1": "127.71.0.1", "127.0.0.1": "127.0.0.1"}.get)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert agent.own_address({"gateway_url": "http://127.0.0.1:8000"}) == "127.71.0.1"


def test_free_ports_are_free_and_different() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        ports = agent.free_ports(3, (taken - 3, taken + 20))
    assert len(set(ports)) == 3
    assert taken not in ports


def test_placeholders_leave_json_arguments_alone() -> None:
    assert on_node.fill('{"a":{"b":{port}}} {host}', {"port": 5, "host": "h"}) == '{"a":{"b":5}} h'


def test_gpus_are_found_by_uuid_too_and_unknown_figures_are_none() -> None:
    text = "0, NVIDIA A100, 1, 2, [N/A], GPU-aaa\nunparsable\n1, NVIDIA A100, 1, 2, 3, GPU-bbb\n"
    assert [gpu["utilization_percent"] for gpu in agent.parse_gpus(text, "GPU-aa")] == [None]
    assert [gpu["index"] for gpu in agent.parse_gpus(text, None)] == [0, 1]
    assert agent.parse_gpus(text, "NoDevFiles") == []


def test_a_progress_bar_is_one_line_of_the_tail() -> None:
    reading, writing = os.pipe()
    log = agent.Log([])
    log.write = lambda text: None  # type: ignore[method-assign]
    relay = agent.Relay(os.fdopen(reading, "rb"), log)
    with relay._source, os.fdopen(writing, "wb") as sink:
        relay.start()
        sink.write(b"begin\n" + b"".join(b"%d%%\r" % n for n in range(100)) + b"\n\x1b[31mend\x1b[0m")
        sink.close()
        relay.join(5)
    assert list(relay.tail) == ["begin", "99%", "end"]
