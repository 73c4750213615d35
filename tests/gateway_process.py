"""`slurmgate serve` as a process of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .waiting import until_sync

SLURMGATE = [sys.executable, "-m", "proxy.cli"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class GatewayProcess:
    """One state directory, one port; started and stopped as often as a test likes.

    config   a TOML text, None for the embedded default
    """

    def __init__(self, directory: Path, config: str | None, environment: Mapping[str, str] | None = None) -> None:
        self.state_dir = directory / "state"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = directory / "gateway.log"
        self.out_path = directory / "gateway.out"
        self._environment = dict(environment if environment is not None else os.environ)
        self._config: list[str] = []
        if config is not None:
            path = directory / "config.toml"
            path.write_text(config)
            self._config = ["--config", str(path)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        with self.log_path.open("ab") as log, self.out_path.open("ab") as out:
            self.process = subprocess.Popen(
                [*SLURMGATE, "serve", *self._common(), "--port", str(self.port), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=self._environment,
            )
        until_sync(self._answers, 20)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"slurmgate ended with {self.process.returncode}: {self.log_path.read_text()[-2000:]}")
        try:
            return bool(self.get("/health"))
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 90.0) -> int:
        """Signal it and wait. Returns its exit status."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Another slurmgate command on the same state directory."""
        done = subprocess.run(
            [*SLURMGATE, *arguments, *self._common()],
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=100,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"slurmgate {' '.join(arguments)} -> {done.returncode}: {done.stderr}")
        return done

    def _common(self) -> list[str]:
        return [*self._config, "--state-dir", str(self.state_dir)]

    def key(self, name: str = "tests", *options: str) -> str:
        """A new key. Where the gateway runs it counts already, and nobody is let in without one any more."""
        key = self.run("keys", "create", name, *options).stdout.strip()
        if self.process is not None:
            until_sync(lambda: self._models_status("sk-nobodys") == 401 and self._models_status(key) == 200)
        return key

    def _models_status(self, key: str) -> int:
        request = urllib.request.Request(f"{self.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def ready(self) -> dict[str, int]:
        """Replicas that take requests, by model."""
        try:
            models: dict[str, int] = self.get("/ready")["models"]
        except urllib.error.HTTPError as error:
            with error:
                models = json.load(error)["models"]
        return models

    def until_ready(self, timeout_s: float = 60.0, **models: int) -> None:
        """Wait until each model has that many replicas ready."""
        try:
            until_sync(lambda: all(self.ready().get(name) == count for name, count in models.items()), timeout_s)
        except TimeoutError:
            raise AssertionError(f"{self.ready()}, not {models}\n{self.log_path.read_text()[-4000:]}") from None

    def replicas(self) -> list[dict[str, Any]]:
        """As `slurmgate status --json` shows them."""
        replicas: list[dict[str, Any]] = json.loads(self.run("status", "--json").stdout)["replicas"]
        return replicas

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log, by their event."""
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


def started_within(process: GatewayProcess) -> float:
    """Seconds from the command to a listening socket."""
    begun = time.monotonic()
    process.start()
    return time.monotonic() - begun
