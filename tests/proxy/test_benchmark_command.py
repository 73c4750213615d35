"""`slurmgate bench` as its user runs it: a gateway and a simulated engine as processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench.processes import Process, free_port
from proxy.benchmark import plot
from proxy.benchmark.command import bench
from proxy.terminal import Mistake
from tests.gateway_process import GatewayProcess
from tests.waiting import until_sync

APP = typer.Typer()
APP.command()(bench)
QUICK = ("--prompt-tokens", "40", "--output-tokens", "4:8", "--requests", "2")
RUN = "import typer; from proxy.benchmark.command import bench; a = typer.Typer(); a.command()(bench); a()"


@dataclass
class Stand:
    gateway: GatewayProcess
    engine: str
    key: str

    def bench(self, *arguments: str, model: str = "llama-1b", key: str | None = None) -> Any:
        """With the gateway's own configuration, as on the machine where it runs."""
        config = ["--config", str(self.gateway.state_dir.parent / "config.toml")]
        environment = {"OPENAI_API_KEY": self.key if key is None else key}
        return CliRunner().invoke(APP, [model, *config, "--url", self.gateway.url, *arguments], env=environment)

    def steps(self) -> int:
        with urllib.request.urlopen(self.engine + "/simulator", timeout=10) as answer:
            return int(json.load(answer)["steps"])


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    directory = tmp_path_factory.mktemp("bench")
    port = free_port()
    command = [sys.executable, "-m", "bench.engine_simulator", "--profile", "llama-1b"]
    command += ["--port", str(port), "--speed", "20"]
    with Process("engine_simulator", command, port, directory / "engine.log"):
        url = f"http://127.0.0.1:{port}"
        gone = f"http://127.0.0.1:{free_port()}"
        models = "".join(
            f'[models.{name}]\nengine = "vllm"\nurls = ["{engine}"]\n'
            for name, engine in (("llama-1b", url), ("gone", gone))
        )
        gateway = GatewayProcess(directory, models + "[models.gone.timeouts]\nconnect_s = 0.1\nreplica_wait_s = 0.2\n")
        key = gateway.key()
        gateway.start()
        try:
            yield Stand(gateway, url, key)
        finally:
            gateway.stop()


def test_both_are_measured_and_told_as_tables_json_and_plots(stand: Stand, tmp_path: Path) -> None:
    done = stand.bench("--users", "1,3", *QUICK, "--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"))
    assert done.exit_code == 0, done.output
    rows = [line.split()[:3] for line in done.stdout.splitlines()]
    for row in (["1", "direct", "2"], ["1", "gateway", "2"], ["3", "direct", "6"], ["3", "gateway", "6"]):
        assert row in rows
    assert "what the gateway adds" in done.stdout
    told = json.loads((tmp_path / "b.json").read_text())
    assert [target["urls"] for target in told["targets"]] == [[stand.engine], [stand.gateway.url]]
    assert told["prompt_tokens"] == {"low": 40, "high": 40, "exact": True}
    for level in told["levels"]:
        for figures in level["measured"].values():
            assert figures["errors"] == {}
            assert figures["by_usage"]
            assert figures["prompt_tokens_mean"] == pytest.approx(40, abs=1)
            assert 4 <= figures["output_tokens"] / figures["requests"] <= 8
        assert level["gateway_share"]["ttft"]["p99"]["ratio"] > 0
    # the same lengths for both
    both = told["levels"][1]["measured"]
    assert both["direct"]["output_tokens"] == both["gateway"]["output_tokens"]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "b.svg").read_text()
    assert "<svg" in drawn
    assert "llama-1b: TTFT, ms" in drawn
    assert stand.key not in done.output + (tmp_path / "b.json").read_text()


def test_one_of_the_two_may_be_left_out_and_answers_may_come_whole(stand: Stand) -> None:
    done = stand.bench("--users", "2", *QUICK, "--only", "gateway", "--no-stream")
    assert done.exit_code == 0, done.output
    assert "direct" not in done.stdout
    assert "whole" in done.stdout


def test_extra_fields_reach_the_engine_and_its_refusal_comes_before_any_measurement(stand: Stand) -> None:
    done = stand.bench("--users", "1", *QUICK, "--extra", '{"max_completion_tokens": -1}')
    assert isinstance(done.exception, Mistake)
    assert "answered 400: max_tokens must be at least 1." in str(done.exception)


def test_ctrl_c_shows_what_was_measured_so_far(stand: Stand, tmp_path: Path) -> None:
    before = stand.steps()
    file = tmp_path / "b.json"
    arguments = ["llama-1b", "--direct", stand.engine, "--only", "direct", "--users", "1,4", "--requests", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments, "--turns", "1", "--output-tokens", "4", "--json", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_sync(lambda: stand.steps() > before + 50)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "direct" in out
    assert "stopped" in errors
    assert "Traceback" not in errors
    told = json.loads(file.read_text())
    assert told["interrupted"]
    assert not told["levels"][0]["complete"]
    assert told["levels"][0]["measured"]["direct"]["requests"] > 0


@pytest.mark.parametrize(
    ("arguments", "model", "key", "expected"),
    [
        ((), "nope", None, "serves no model 'nope'; it serves: llama-1b"),
        (("--only", "gateway"), "nope", None, "serves no model 'nope'; it serves: llama-1b, gone"),
        (("--only", "gateway"), "llama-1b", "sk-wrong", "refused the key (401)"),
        (("--only", "gateway"), "llama-1b", "", "wants a key (401)"),
        ((), "gone", None, "nothing listens on http://127.0.0.1:"),
        (("--only", "both"), "llama-1b", None, "expected gateway or direct"),
        (("--users", "x"), "llama-1b", None, "--users: expected different numbers"),
        (("--output-tokens", "9:1"), "llama-1b", None, "the smaller number first"),
        (("--requests", "1", "--duration-s", "1"), "llama-1b", None, "not both"),
        (("--json", "/no/such/directory/b.json"), "llama-1b", None, "cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(
    stand: Stand, arguments: tuple[str, ...], model: str, key: str | None, expected: str
) -> None:
    if model == "nope" and not arguments:
        arguments = ("--direct", stand.engine)
    done = stand.bench(*arguments, model=model, key=key)
    assert isinstance(done.exception, Mistake), done.output
    assert expected in str(done.exception)
    assert "\n" not in str(done.exception)


def test_without_matplotlib_it_says_how_to_get_it(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "is_possible", lambda: False)
    done = stand.bench("--users", "1", "--plot", "x.png")
    assert isinstance(done.exception, Mistake)
    assert str(done.exception) == "plots need matplotlib: pip install 'slurmgate[plots]'"


def test_no_engine_to_measure_directly_is_said(stand: Stand) -> None:
    done = CliRunner().invoke(APP, ["llama-1b", "--only", "direct"], env={"SLURMGATE_CONFIG": ""})
    assert isinstance(done.exception, Mistake)
    assert "--direct URL" in str(done.exception)


def test_an_engine_that_never_ends_in_time_is_counted_and_ends_with_an_error(stand: Stand, tmp_path: Path) -> None:
    """The first answer is short; those that are measured take the simulated engine half a minute."""
    file = tmp_path / "b.json"
    done = stand.bench(
        *("--only", "direct", "--users", "2", "--requests", "1", "--timeout-s", "0.3"),
        *("--output-tokens", "100000", "--json", str(file)),
    )
    assert isinstance(done.exception, Mistake), done.output
    assert str(done.exception) == "no request was answered"
    (level,) = json.loads(file.read_text())["levels"]
    assert level["measured"]["direct"]["errors"] == {"timeout": 2}
