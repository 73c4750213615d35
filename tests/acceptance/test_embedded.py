"""`slurmgate serve` without a configuration: what a newcomer does first."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.gateway_process import GatewayProcess
from tests.waiting import until_sync

CHAT, EMBED = "slurmgate-guide", "slurmgate-embed"
READY = {CHAT: 1, EMBED: 1}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(tmp_path_factory.mktemp("embedded"), None)
    gateway.start()
    gateway.until_ready(**READY)
    yield gateway
    processes = engines(gateway)
    assert processes, "the engines are told apart by their state directory"
    assert gateway.stop() == 0
    until_sync(lambda: not engines(gateway), 20)


def engines(gateway: GatewayProcess) -> list[str]:
    """Processes of this gateway's replicas."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace")
            if "xllamacpp_server" in words and str(gateway.state_dir) in (path / "environ").read_bytes().decode():
                found.append(path.name)
        except OSError:
            continue
    return found


def banner(gateway: GatewayProcess) -> str:
    return gateway.out_path.read_text()


def printed_key(gateway: GatewayProcess) -> str:
    return re.search(r"API key +(sk-\S+)", banner(gateway))[1]  # type: ignore[index]


def test_it_prints_a_url_a_key_and_its_progress(gateway: GatewayProcess) -> None:
    until_sync(lambda: "Stop with Ctrl-C" in banner(gateway))
    text = banner(gateway)
    assert f"{gateway.url}/v1" in text
    assert f"{CHAT} is ready after" in text


def test_the_curl_line_works_when_pasted(gateway: GatewayProcess) -> None:
    line = re.search(r"^  (curl .*?\n(?:    .*\n)+)", banner(gateway), re.M)[1]  # type: ignore[index]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert "Slurm" in json.loads(done.stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is slurmgate?", ("gateway", "Slurm")),
        ("What happens at the wall time?", ("replica",)),
        ("what is slurm", ("cluster",)),
        ("How do I create an API key?", ("slurmgate keys create",)),
        ("Who are you?", ("slurmgate",)),
    ],
)
def test_first_questions_get_right_answers(gateway: GatewayProcess, question: str, words: tuple[str, ...]) -> None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=printed_key(gateway)) as client:
        answer = client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": question}])
    content = answer.choices[0].message.content or ""
    assert answer.choices[0].finish_reason == "stop"
    assert all(word.lower() in content.lower() for word in words), content


def test_embeddings_put_like_to_like(gateway: GatewayProcess) -> None:
    texts = ["What is slurmgate?", "Tell me what slurmgate is", "How do I cancel a job?"]
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=printed_key(gateway)) as client:
        one, same, other = (d.embedding for d in client.embeddings.create(model=EMBED, input=texts).data)

    def likeness(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(one, same) > likeness(one, other)


def test_the_same_key_after_a_restart_and_none_but_it(gateway: GatewayProcess) -> None:
    key = printed_key(gateway)
    assert gateway.stop() == 0
    gateway.start()
    gateway.until_ready(**READY)
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key) as client:
        assert {model.id for model in client.models.list()} == {CHAT, EMBED}


def test_status_shows_both_engines(gateway: GatewayProcess) -> None:
    text = gateway.run("status").stdout
    assert f"running, process {gateway.process.pid}" in text  # type: ignore[union-attr]
    assert len([r for r in gateway.replicas() if r["state"] == "ready"]) == 2


def test_killed_without_warning_it_finds_its_engines_again(gateway: GatewayProcess) -> None:
    before = sorted(r["job"] for r in gateway.replicas() if r["state"] == "ready")
    gateway.stop(9)
    gateway.start()
    gateway.until_ready(**READY)
    assert sorted(r["job"] for r in gateway.replicas() if r["state"] == "ready") == before
