"""Models that are at zero, as their clients see them: what starts one, what is said meanwhile, and back to zero.

On a real Slurm with a real engine. A cluster that somebody else has filled makes the wait as long as a test likes.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.acceptance.test_on_slurm import EMBEDDED
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SERVICE = "cold"
PATIENT, HASTY = "guide/patient", "guide/hasty"
HASTY_WAIT_S = 4.0
IDLE_S = 6.0

CONFIG = f"""
[server]
shutdown_grace_s = 2.0
[launcher]
service = "{SERVICE}"
python = "{sys.executable}"
heartbeat_s = 0.5
poll_busy_s = 1.0
poll_calm_s = 2.0
[defaults]
engine = "llamacpp"
source = "{EMBEDDED}/guide.gguf"
command = ["{sys.executable}", "-m", "slurm_launcher.xllamacpp_server"]
context_length = 8192
drain_timeout_s = 5.0
environment = {{ PYTHONPATH = "{EMBEDDED.parents[1]}" }}
slurm = {{ time = "00:30:00", cpus = 1, gpus = 4 }}
scaling = {{ min = 0, max = 1, idle_s = {IDLE_S}, hold_up_s = 0, hold_down_s = 0 }}
[models."{PATIENT}"]
timeouts = {{ replica_wait_s = 120 }}
[models."{HASTY}"]
timeouts = {{ replica_wait_s = {HASTY_WAIT_S} }}
"""

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is slurmgate?"}], "max_tokens": 24}


class Site:
    def __init__(self, gateway: GatewayProcess, lab: SlurmLab) -> None:
        self.gateway = gateway
        self.lab = lab
        self.key = gateway.key()

    def http(self, key: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=f"{self.gateway.url}/v1", headers=headers, timeout=150)

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.key, max_retries=0, timeout=150)

    def jobs(self) -> dict[str, str]:
        """Of this gateway, ended ones aside: id -> Slurm's state."""
        found = self.lab.run("squeue", "-h", f"--name=slurmgate-{SERVICE}", "-t", "PD,CF,R,CG,S", "-o", "%i %T")
        return dict(line.split() for line in found.splitlines())

    def state_of(self, model: str) -> str:
        """As any client sees it."""
        with self.http() as http:
            return str(http.get(f"/models/{model}").json()["state"])

    def submissions(self) -> list[str]:
        """Models whose replicas were submitted so far."""
        return [str(event["model"]) for event in self.gateway.events("replica_submitted")]

    def at_zero(self) -> bool:
        return not self.jobs() and self.state_of(PATIENT) == self.state_of(HASTY) == "idle"

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Every node is somebody else's."""
        asked = ("--exclusive", f"--nodes={len(self.lab.nodes)}", "--time=10", "--job-name=somebody", "-o", "/dev/null")
        job = self.lab.run("sbatch", "--parsable", *asked, stdin="#!/bin/sh\nsleep 600\n").strip()
        until_sync(lambda: self.lab.state(job) == "RUNNING")
        try:
            yield
        finally:
            self.lab.run("scancel", job)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_slurm()
    lab = SlurmLab.start(nodes=2)
    gateway = GatewayProcess(tmp_path_factory.mktemp("cold"), CONFIG, lab.env())
    try:
        gateway.start()
        yield Site(gateway, lab)
    finally:
        gateway.stop()
        lab.cancel_all()
        lab.stop()


@pytest.fixture
def site(started: Site) -> Site:
    """With nothing running."""
    until_sync(started.at_zero, 60)
    return started


class Stream(threading.Thread):
    """One streamed chat, read as it comes by a client that knows no SDK: lines, with the seconds since the request."""

    def __init__(self, site: Site, model: str) -> None:
        super().__init__(name=f"stream of {model}")
        self.status: int | None = None
        self.headers: httpx.Headers | None = None
        self.lines: list[str] = []
        self._site = site
        self._body = {**QUESTION, "model": model, "stream": True}

    def run(self) -> None:
        with self._site.http() as http, http.stream("POST", "/chat/completions", json=self._body) as answer:
            self.headers = answer.headers
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line:
                    self.lines.append(line)

    @property
    def comments(self) -> list[str]:
        return [line for line in self.lines if line.startswith(":")]

    @property
    def text(self) -> str:
        chunks = [json.loads(line[6:]) for line in self.lines if line.startswith("data: {")]
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))


def test_a_stream_gets_its_status_then_signs_of_life_then_tokens(site: Site) -> None:
    stream = Stream(site, PATIENT)
    with site.filled():
        stream.start()
        until_sync(lambda: list(site.jobs().values()) == ["PENDING"])
        until_sync(lambda: site.state_of(PATIENT) == "starting")
        until_sync(lambda: stream.comments, 40)
        assert stream.status == 200, "the status line is out while the job still waits"
        assert stream.headers is not None
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert list(site.jobs().values()) == ["PENDING"]
        assert stream.text == ""
    until_sync(lambda: stream.text, 60)
    assert site.state_of(PATIENT) == "ready"
    stream.join(60)
    assert not stream.is_alive()
    assert "slurm" in stream.text.lower()
    assert stream.lines[-1] == "data: [DONE]"
    assert not any('"error"' in line for line in stream.lines)
    first_token = next(n for n, line in enumerate(stream.lines) if line.startswith("data: "))
    assert all(line.startswith(":") for line in stream.lines[:first_token]), "signs of life first, then tokens"
    until_sync(site.at_zero, 60)


def test_a_plain_request_is_held_and_answered_when_the_replica_is_there(site: Site) -> None:
    before = len(site.submissions())
    with site.client() as client:
        answer = client.chat.completions.create(model=PATIENT, **QUESTION)
    assert "slurm" in (answer.choices[0].message.content or "").lower()
    assert site.submissions()[before:] == [PATIENT], "one request, one job"
    until_sync(site.at_zero, 60)


def test_a_plain_request_is_held_so_long_and_then_told_what_slurm_says(site: Site) -> None:
    with site.filled(), site.client() as client:
        told = set()
        for _ in range(10):  # Slurm names the reason at once, and a start once its backfill has looked
            begun = time.monotonic()
            with pytest.raises(openai.InternalServerError) as refused:
                client.chat.completions.create(model=HASTY, **QUESTION)
            held_s = time.monotonic() - begun
            error = refused.value
            assert error.status_code == 503
            assert HASTY_WAIT_S - 0.2 <= held_s < HASTY_WAIT_S + 3.0
            assert 0 < int(error.response.headers["retry-after"]) <= 120
            [job] = site.jobs()
            assert re.search(rf"{HASTY} is starting: Slurm job {job} is PENDING \(\w+\)", error.message)
            told.add(error.message)
            if re.search(r"\(Resources\), expected to start at \d{4}-\d\d-\d\d \d\d:\d\d", error.message):
                break
        else:
            raise AssertionError(f"never with a reason and a start: {told}")
        assert site.submissions().count(HASTY) == 1, "one job, however often it is asked for"
        waits = Stream(site, HASTY)  # so that it is still wanted while we look
        waits.start()
        assert site.state_of(HASTY) == "starting"
        [model] = [m for m in status(site)["models"] if m["model"] == HASTY]
        assert (model["state"], model["wanted"], model["ready"]) == ("starting", 1, 0)
        assert "PENDING (Resources)" in model["why"]
        waits.join(30)
        assert waits.status == 503, "before the first sign of life it is an HTTP error for streams, too"
    until_sync(site.at_zero, 60)


def status(site: Site) -> Any:
    return json.loads(site.gateway.run("status", "--json").stdout)


def test_a_client_that_leaves_while_it_waits_leaves_no_job_wanted(site: Site) -> None:
    with site.filled():
        with site.http() as http, pytest.raises(httpx.ReadTimeout):
            http.post("/chat/completions", json={**QUESTION, "model": PATIENT}, timeout=2.0)
        assert "PENDING" in site.jobs().values(), "it was asked for"
        # the cluster is still full: that the job goes is because nobody wants it
        until_sync(site.at_zero, 60)
        [model] = [m for m in status(site)["models"] if m["model"] == PATIENT]
        assert (model["wanted"], model["waiting"]) == (0, 0)
        assert model["why"] == f"{PATIENT} is not running: its first request starts it."


def test_what_could_not_be_answered_anyway_starts_nothing(site: Site) -> None:
    other = site.gateway.key("other", "--model", HASTY)
    poor = site.gateway.key("poor", "--tpm", "1")
    before = len(site.submissions())
    refusals: list[tuple[str, dict[str, Any], int, str]] = [
        ("", {**QUESTION, "model": PATIENT, "messages": "hello"}, 400, "invalid_type"),
        ("", {**QUESTION, "model": PATIENT, "messages": []}, 400, "empty_array"),
        ("", {"model": PATIENT}, 400, "missing_required_parameter"),
        ("", {**QUESTION, "model": "gpt-9"}, 404, "model_not_found"),
        ("sk-nobody", {**QUESTION, "model": PATIENT}, 401, "invalid_api_key"),
        (other, {**QUESTION, "model": PATIENT}, 404, "model_not_found"),
        (poor, {**QUESTION, "model": PATIENT}, 429, "rate_limit_exceeded"),
    ]
    for stream in (False, True):
        for key, body, code, name in refusals:
            with site.http(key) as http:
                answer = http.post("/chat/completions", json={**body, "stream": stream})
            assert answer.status_code == code, answer.text
            assert name in (answer.json()["error"]["code"] or ""), answer.text
    assert site.at_zero()
    with site.client() as client:  # the launcher has looked since: it submits for this one, and for nothing before it
        client.chat.completions.create(model=HASTY, **QUESTION)
    assert site.submissions()[before:] == [HASTY]


def test_a_model_that_an_operator_has_switched_off_is_told_of_at_once(site: Site) -> None:
    site.gateway.run("scale", PATIENT, "0")
    try:
        begun = time.monotonic()
        with site.client() as client, pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model=PATIENT, **QUESTION)
        assert time.monotonic() - begun < 5.0
        assert f"{PATIENT} has been switched off by an operator." in refused.value.message
        assert site.state_of(PATIENT) == "unavailable"
        assert site.jobs() == {}
    finally:
        site.gateway.run("scale", PATIENT, "auto")
