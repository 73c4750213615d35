"""`slurmgate doctor`'s verdicts on a cluster and a node, and the program that looks at a node."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from slurm_launcher.cluster import CouldNotAsk, Job, Refused
from slurm_launcher.doctor import Finding, Seen, Verdict, cluster_findings, model_findings
from slurm_launcher.facilities import Node, Partition, Reservation
from slurm_launcher.node_visit import (
    NODE_CHECK,
    Asked,
    asks,
    node_findings,
    node_script,
    read_node_report,
    silent_findings,
)
from slurm_launcher.spec import ModelSpec, Resources
from slurm_launcher.versions import Version

GPU = Partition("gpu", "UP", default=True, nodes=("n1", "n2"), max_time_s=7200.0, max_nodes=None)
NODES = [Node(n, "gpu", n, "idle", {"h100": 4}, 16, 64000) for n in GPU.nodes]
SEEN = Seen(
    now=1000.0,
    controllers={"c1": True},
    version=Version(24, 11, 5),
    configuration={"SLURM_VERSION": "24.11.5", "AccountingStorageType": "accounting_storage/slurmdbd"},
    partitions=[GPU, replace(GPU, name="other", default=False)],
    nodes=NODES,
    tests={"m": "Job 3 to start at 2026-11-22T21:49:13 using 1 processors on nodes n1 in partition gpu"},
)
SPEC = ModelSpec(
    "m", "llamacpp", "/m.gguf", resources=Resources(gpus=2, gpu_type="h100", time_limit_s=7200), start_timeout_s=600.0
)


def of(findings: Iterator[Finding], what: str) -> Finding:
    return next(f for f in findings if f.what.endswith(what))


def on_model(what: str, *, seen: Seen = SEEN, **resources: Any) -> Finding:
    spec = replace(SPEC, resources=replace(SPEC.resources, **resources))
    return of(model_findings(spec, seen), what)


def test_where_all_is_well_nothing_else_is_said() -> None:
    findings = [*cluster_findings("", SEEN), *model_findings(SPEC, SEEN)]
    assert {f.verdict for f in findings} == {Verdict.OK}
    assert [f.advice for f in findings] == [""] * len(findings)
    assert "start it at 2026-11-22T21:49:13" in findings[-1].sentence


def test_every_other_verdict_says_what_to_do() -> None:
    closed = replace(SEEN, partitions=[replace(GPU, state="DOWN")], tests={"m": Refused("Slurm refused the job: No.")})
    bad = replace(SPEC, resources=replace(SPEC.resources, gpus=9, time_limit_s=9999))
    for finding in [*cluster_findings("x", closed), *model_findings(bad, closed)]:
        assert bool(finding.advice) == (finding.verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"controllers": {"c1": True, "c2": False}}, Verdict.WARNING, "c1 answers, c2 does not"),
        ({"controllers": {"c1": True}}, Verdict.OK, "slurmctld at c1 answers"),
    ],
)
def test_controllers(changes: dict[str, Any], verdict: Verdict, words: str) -> None:
    found = of(cluster_findings("", replace(SEEN, **changes)), "controller")
    assert found.verdict is verdict
    assert words in found.sentence


@pytest.mark.parametrize(
    ("version", "controller", "verdict"),
    [
        (Version(22, 5, 8), "22.05.8", Verdict.OK),
        (Version(26, 5, 3), "26.05.3", Verdict.OK),
        (Version(22, 5, 8), "24.11.1", Verdict.WARNING),
        (Version(19, 5, 1), "19.05.1", Verdict.WARNING),
        (None, "24.11.1", Verdict.WARNING),
    ],
)
def test_versions(version: Version | None, controller: str, verdict: Verdict) -> None:
    seen = replace(SEEN, version=version, configuration={"SLURM_VERSION": controller})
    assert of(cluster_findings("", seen), "version").verdict is verdict


@pytest.mark.parametrize(
    ("seen", "resources", "verdict", "words"),
    [
        (SEEN, {"partition": "nope"}, Verdict.WRONG, "there is no partition nope; there are: gpu, other"),
        (SEEN, {"partition": "gpu,nope"}, Verdict.WRONG, "there is no partition nope"),
        (replace(SEEN, partitions=[replace(GPU, default=False)]), {}, Verdict.WRONG, "no partition is the default one"),
        (replace(SEEN, partitions=[replace(GPU, state="DRAIN")]), {}, Verdict.WRONG, "gpu is DRAIN"),
        (
            replace(SEEN, nodes=[replace(n, state="down*") for n in NODES]),
            {},
            Verdict.WRONG,
            "none of the 2 nodes of gpu can run jobs now",
        ),
        (
            replace(SEEN, nodes=[NODES[0], replace(NODES[1], state="drained")]),
            {},
            Verdict.OK,
            "1 of 2 nodes can run jobs",
        ),
    ],
)
def test_partitions(seen: Seen, resources: dict[str, Any], verdict: Verdict, words: str) -> None:
    found = on_model("partition", seen=seen, **resources)
    assert found.verdict is verdict
    assert words in found.sentence


@pytest.mark.parametrize(
    ("seconds", "verdict", "words"),
    [
        (7201, Verdict.WRONG, "02:00:01 is asked for, and allowed is 02:00:00 in gpu"),
        (7200, Verdict.OK, "02:00:00; allowed is 02:00:00 in gpu"),
        (0, Verdict.WARNING, "slurm.time is not set"),
        (300, Verdict.WARNING, "is little beside start_timeout_s and lead_s"),
    ],
)
def test_time_limits(seconds: int, verdict: Verdict, words: str) -> None:
    found = on_model("time limit", time_limit_s=seconds)
    assert found.verdict is verdict
    assert words in found.sentence


@pytest.mark.parametrize(
    ("resources", "verdict", "words"),
    [
        ({"gpus": 4}, Verdict.OK, "2 nodes have them"),
        ({"gpus": 5}, Verdict.WRONG, "5 h100 on a node is asked for; the largest nodes there have 4 h100"),
        ({"gpu_type": "a100"}, Verdict.WRONG, "4 h100"),
        ({"gpu_type": None, "gpus": 4}, Verdict.OK, "4 GPUs: 2 nodes have them"),
        ({"nodes": 3}, Verdict.WRONG, "2 h100"),
    ],
)
def test_gpus(resources: dict[str, Any], verdict: Verdict, words: str) -> None:
    found = on_model("GPUs", **resources)
    assert found.verdict is verdict
    assert words in found.sentence


def test_accounts_that_a_partition_keeps_out_and_accounts_that_nobody_checks() -> None:
    picky = replace(SEEN, partitions=[replace(GPU, allowed_accounts=frozenset({"lab"}), denied_qos=frozenset({"x"}))])
    assert on_model(": account", seen=picky, account="mine").verdict is Verdict.WRONG
    assert on_model(": QOS", seen=picky, qos="x").verdict is Verdict.WRONG
    unchecked = replace(SEEN, configuration={"SLURM_VERSION": "24.11.5"})
    assert on_model(": QOS", seen=unchecked, qos="x").verdict is Verdict.WARNING


def test_a_maintenance_is_foretold() -> None:
    soon = Reservation("m", 2000.0, 9000.0, frozenset(GPU.nodes), frozenset({"MAINT"}))
    assert "go into maintenance at" in on_model("maintenance", seen=replace(SEEN, reservations=[soon])).sentence
    now = replace(soon, starts_at=10.0)
    assert "are in maintenance" in on_model("maintenance", seen=replace(SEEN, reservations=[now])).sentence


def test_what_slurm_says_of_the_script() -> None:
    refused = on_model("submission", seen=replace(SEEN, tests={"m": Refused("Slurm refused the job: No")}))
    assert (refused.verdict, refused.sentence) == (Verdict.WRONG, "Slurm refused the job: No.")
    silent = on_model("submission", seen=replace(SEEN, tests={"m": CouldNotAsk("sbatch: away")}))
    assert silent.verdict is Verdict.WARNING


# -- a node -----------------------------------------------------------------------------------------------------------

ASKED = Asked("http://login1:8000", "/health", "ok")
REPORT: dict[str, Any] = {
    "node": "n1",
    "python": [3, 9, 2],
    "at": 105.0,
    "network": {"failed_at": None, "why": "", "addresses": ["10.0.0.1"], "took_s": 0.001},
    "readable": {"/shared": True},
    "writable": {"/shared": True},
    "programs": {"apptainer": "/usr/bin/apptainer"},
    "options": [],
}


def on_node(sent_at: float = 100.0, seen_at: float = 110.0, **changes: Any) -> list[Finding]:
    return list(node_findings(REPORT | changes, ASKED, sent_at, seen_at))


def test_a_node_where_all_is_well() -> None:
    assert {f.verdict for f in on_node()} == {Verdict.OK}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"network": {"failed_at": "name", "why": "unknown"}},
            "cannot find the address of http://login1:8000: unknown",
        ),
        ({"network": {"failed_at": "connection", "why": "refused"}}, "cannot connect to http://login1:8000: refused"),
        ({"network": {"failed_at": "answer", "why": "timed out"}}, "gets no answer"),
        ({"network": {"failed_at": "identity", "why": "HTTP 404"}}, "something else answers there (HTTP 404)"),
        ({"python": [3, 5, 1]}, "n1 has Python 3.5.1; the agent needs 3.6"),
        ({"readable": {"/m.gguf": False}}, "cannot read /m.gguf"),
        ({"writable": {"/scratch": False}}, "cannot write in /scratch"),
        ({"programs": {"apptainer": ""}}, "n1 has no apptainer"),
        ({"options": [["srun", "--container-image", False]]}, "does not know --container-image"),
    ],
)
def test_each_fault_of_a_node_is_named_and_can_be_mended(changes: dict[str, Any], words: str) -> None:
    [found] = [f for f in on_node(**changes) if f.verdict is not Verdict.OK]
    assert found.verdict is Verdict.WRONG
    assert words in found.sentence
    assert found.advice


@pytest.mark.parametrize(("at", "words"), [(95.0, "agree"), (80.0, "20 s behind"), (140.0, "30 s ahead of")])
def test_clocks(at: float, words: str) -> None:
    assert words in of(iter(on_node(at=at)), "clock").sentence


def test_a_job_that_has_told_nothing() -> None:
    job = Job("7", "FAILED", reason="NonZeroExitCode", node="n1")
    [shell] = silent_findings(job, "bash: line 5: python3.99: command not found\n", "/s/x.log")
    assert "python3.99: command not found" in shell.sentence
    assert shell.what == "node: python"
    [unseen] = silent_findings(job, "", "/s/x.log")
    assert "/s/x.log is not to be seen here" in unseen.sentence


def test_half_a_line_is_no_report() -> None:
    line = "SLURMGATE-NODE-CHECK " + json.dumps(REPORT)
    assert read_node_report("Welcome\n" + line + "\n") == REPORT
    assert read_node_report(line[:-5]) is None
    assert read_node_report("") is None


@contextmanager
def a_server(text: str) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run_script(asked: Asked) -> dict[str, Any]:
    """The job's script, as bash runs it."""
    script = node_script(SPEC, asked, job_name="x", output="/dev/null", python=sys.executable)
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True, timeout=60)
    report = read_node_report(done.stdout)
    assert report is not None
    return report


def test_what_runs_on_the_node_is_python_3_6_and_ascii() -> None:
    ast.parse(NODE_CHECK, feature_version=(3, 6))
    assert NODE_CHECK.isascii()


def test_the_job_finds_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    odd = str(tmp_path / 'it\'s "odd" \\n é')
    asked = replace(
        ASKED,
        readable=(str(tmp_path), odd),
        writable=(str(tmp_path), "/nonexistent"),
        programs=("sh", "nosuch-program"),
        options=(("sh", "--bogus-option"), ("nosuch-program", "--x")),
    )
    with a_server('{"status":"ok"}') as url:
        report = run_script(replace(asked, url=url))
    assert report["network"]["failed_at"] is None
    assert report["network"]["addresses"] == ["127.0.0.1"]
    assert report["readable"] == {str(tmp_path): True, odd: False}
    assert report["writable"] == {str(tmp_path): True, "/nonexistent": False}
    assert report["programs"]["sh"].endswith("/sh")
    assert report["programs"]["nosuch-program"] == ""
    assert [there for _, _, there in report["options"]] == [False, False]
    assert report["python"][:2] == list(sys.version_info[:2])


def test_the_job_tells_the_kinds_of_network_faults_apart() -> None:
    assert run_script(replace(ASKED, url="http://no-such-host.invalid:1"))["network"]["failed_at"] == "name"
    assert run_script(replace(ASKED, url="http://127.0.0.1:1"))["network"]["failed_at"] == "connection"
    with a_server("It works!") as url:
        assert run_script(replace(ASKED, url=url, expect="nonce"))["network"]["failed_at"] == "identity"


def test_what_models_need_on_a_node() -> None:
    one = replace(SPEC, runtime="apptainer", image="/images/x.sif", local_copy="/scratch", source="org/model")
    asked = asks([one, SPEC], Path("/shared"), url="http://x:1", path="/", expect="y")
    assert asked.readable == ("/shared", "/images/x.sif", "/m.gguf")
    assert asked.writable == ("/shared", "/scratch")
    assert asked.programs[0] == "apptainer"
