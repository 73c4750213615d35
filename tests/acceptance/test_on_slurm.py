"""The whole of it on a real Slurm: the official client, a real engine, two replicas on two nodes started by sbatch."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

EMBEDDED = Path(__file__).parents[2] / "proxy" / "embedded"
CHAT, EMBED = "guide", "org/embed"

CONFIG = """
[server]
shutdown_grace_s = 5.0
[launcher]
service = "{service}"
python = "{python}"
heartbeat_s = 0.5
poll_busy_s = 1.0
poll_calm_s = 2.0
[defaults]
engine = "llamacpp"
command = ["{python}", "-m", "slurm_launcher.xllamacpp_server"]
context_length = 8192
start_timeout_s = 60.0
drain_timeout_s = 5.0
environment = {{ PYTHONPATH = "{root}" }}
[defaults.slurm]
time = "00:30:00"
cpus = 1
[models.{chat}]
source = "{embedded}/guide.gguf"
replicas = 2
# a whole node's GPUs each: two replicas come to lie on two nodes
slurm = {{ gpus = 4, gpu_type = "h100" }}
[models."{embed}"]
source = "{embedded}/embed.gguf"
task = "embed"
{more}
"""


def config(service: str, more: str = "") -> str:
    return CONFIG.format(
        service=service, python=sys.executable, root=EMBEDDED.parents[1], chat=CHAT, embed=EMBED, embedded=EMBEDDED,
        more=more,
    )  # fmt: skip


@pytest.fixture
def gateway(slurm_lab: SlurmLab, tmp_path: Path) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(tmp_path, config("accept"), slurm_lab.env())
    yield gateway
    gateway.stop()
    slurm_lab.cancel_all()


def client(gateway: GatewayProcess, key: str) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=60)


def ask(openai_client: OpenAI, question: str = "What is slurmgate?") -> str:
    answer = openai_client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": question}], temperature=0
    )
    return answer.choices[0].message.content or ""


def jobs(lab: SlurmLab, service: str = "accept") -> dict[str, str]:
    """Live jobs of a service: id -> node."""
    lines = lab.run("squeue", "-h", f"--name=slurmgate-{service}", "-t", "PD,R,CF", "-o", "%i %N").splitlines()
    return {line.split()[0]: [*line.split(), ""][1] for line in lines}


def test_the_official_client_on_two_replicas_on_two_nodes(gateway: GatewayProcess, slurm_lab: SlurmLab) -> None:
    gateway.start()
    key = gateway.key()
    gateway.until_ready(**{CHAT: 2, EMBED: 1})
    with client(gateway, key) as openai_client:
        assert {model.id for model in openai_client.models.list()} == {CHAT, EMBED}
        assert openai_client.models.retrieve(EMBED).id == EMBED

        whole = ask(openai_client)
        assert "slurm" in whole.lower()
        assert len(whole.split()) >= 6

        stream = openai_client.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "What is slurmgate?"}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
        assert sum(len(c.choices) for c in chunks) > 5, "token by token, not one chunk at the end"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 5

        completion = openai_client.completions.create(model=CHAT, prompt="Slurm", max_tokens=4, temperature=0)
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 4

        vectors = openai_client.embeddings.create(model=EMBED, input=["What is slurmgate?", "A wall time is a limit."])
        assert len(vectors.data) == 2
        assert len(vectors.data[0].embedding) == len(vectors.data[1].embedding) >= 64

        with pytest.raises(openai.NotFoundError) as unknown:
            openai_client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as empty:
            openai_client.chat.completions.create(model=CHAT, messages=[])
        assert (empty.value.code, empty.value.param) == ("empty_array", "messages")
    with client(gateway, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()

    nodes = {r["node"] for r in gateway.replicas() if r["model"] == CHAT}
    assert len(nodes) == 2
    served_by = {line["replica"] for line in gateway.events("request") if line["model"] == CHAT and line["replica"]}
    assert len(served_by) == 2


def test_a_cancelled_job_is_survived_and_replaced(gateway: GatewayProcess, slurm_lab: SlurmLab) -> None:
    gateway.start()
    key = gateway.key()
    gateway.until_ready(**{CHAT: 2})
    before = {r["job"] for r in gateway.replicas() if r["model"] == CHAT}
    failed: list[Exception] = []
    answered = 0
    done = threading.Event()

    def keep_asking() -> None:
        nonlocal answered
        with client(gateway, key) as openai_client:
            while not done.is_set():
                try:
                    assert ask(openai_client)
                    answered += 1
                except Exception as error:
                    failed.append(error)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until_sync(lambda: answered > 10)
        victim = min(before)
        slurm_lab.run("scancel", victim)
        until_sync(lambda: victim not in jobs(slurm_lab))
        after_cancel = answered
        with client(gateway, key) as openai_client:
            assert ask(openai_client), "the next request succeeds on the other replica"
        gateway.until_ready(**{CHAT: 2})
        until_sync(lambda: answered > after_cancel + 10)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    now = {r["job"] for r in gateway.replicas() if r["model"] == CHAT and r["state"] == "ready"}
    assert len(now - before) == 1, "a successor"
    assert len(jobs(slurm_lab)) == 3, "two chat replicas and one for embeddings"
    # scancel signals the engine itself: only what was being answered on it at that moment may fail
    assert len(failed) <= 4, failed


def test_a_restarted_gateway_finds_its_replicas(gateway: GatewayProcess, slurm_lab: SlurmLab) -> None:
    gateway.start()
    key = gateway.key()
    gateway.until_ready(**{CHAT: 2, EMBED: 1})
    before = jobs(slurm_lab)
    assert gateway.stop() == 0
    assert jobs(slurm_lab) == before, "replicas outlive the gateway"
    gateway.start()
    gateway.until_ready(**{CHAT: 2, EMBED: 1})
    with client(gateway, key) as openai_client:
        assert ask(openai_client)
    assert jobs(slurm_lab) == before
    assert len(gateway.replicas()) == 3

    (gateway.state_dir / "slurmgate.db").rename(gateway.state_dir / "lost.db")
    assert gateway.stop() == 0
    for leftover in gateway.state_dir.glob("slurmgate.db*"):
        leftover.unlink()
    gateway.start()
    gateway.until_ready(**{CHAT: 2, EMBED: 1})
    assert jobs(slurm_lab) == before, "adopted from what agents and comments say"


def test_stop_replicas_leaves_no_job(gateway: GatewayProcess, slurm_lab: SlurmLab) -> None:
    gateway.start("--stop-replicas")
    gateway.until_ready(**{CHAT: 2, EMBED: 1})
    assert gateway.stop() == 0
    assert jobs(slurm_lab) == {}
    assert slurm_lab.run("squeue", "-h", "--name=slurmgate-accept", "-t", "R,CG,PD").strip() == ""


def test_the_stop_command_ends_the_gateway_and_its_jobs(gateway: GatewayProcess, slurm_lab: SlurmLab) -> None:
    gateway.start()
    gateway.until_ready(**{CHAT: 2})
    gateway.run("stop", "--stop-replicas")
    assert gateway.process is not None
    assert gateway.process.wait(10) == 0
    assert jobs(slurm_lab) == {}


def test_a_second_gateway_on_the_same_state_directory_is_refused(gateway: GatewayProcess, slurm_lab: SlurmLab) -> None:
    gateway.start()
    second = gateway.run("serve", "--port", "0", check=False)
    assert second.returncode == 1
    assert "another slurmgate (process" in second.stderr
    assert "Traceback" not in second.stderr


REFUSALS = {
    "no-partition": ('partition = "nosuch"', "Invalid partition name specified"),
    "too-many-gpus": ("gpus = 64", "Requested node configuration is not available"),
    "no-such-gpu": ('gpus = 1, gpu_type = "tpu"', "Requested node configuration is not available"),
    "no-constraint": ('constraint = "nosuch"', "Invalid feature specification"),
}


def test_what_sbatch_refuses_is_said_where_people_look(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    source = f'source = "{EMBEDDED}/guide.gguf"'
    more = "\n".join(f'[models."{name}"]\n{source}\nslurm = {{ {slurm} }}' for name, (slurm, _) in REFUSALS.items())
    text = config("refused", more).replace("replicas = 2", "replicas = 0")
    gateway = GatewayProcess(tmp_path, text, slurm_lab.env())
    gateway.start()
    try:
        key = gateway.key()
        until_sync(lambda: len([r for r in gateway.replicas() if r["state"] == "failed"]) == len(REFUSALS))
        by_model = {r["model"]: r for r in gateway.replicas() if r["state"] == "failed"}
        logged = json.dumps(gateway.events("replica_state"))
        with client(gateway, key) as openai_client:
            for name, (_, words) in REFUSALS.items():
                assert words in by_model[name]["failure"]["message"]
                assert words in logged
                assert words in gateway.run("status").stdout
                with pytest.raises(openai.InternalServerError) as refused:
                    openai_client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
                assert refused.value.status_code == 503
                assert words in refused.value.message
                assert 0 < int(refused.value.response.headers["retry-after"]) <= 120
        attempts = len([r for r in gateway.replicas() if r["model"] in REFUSALS])
        assert attempts == len(REFUSALS), "one submission each: no storm"
    finally:
        gateway.stop()
        slurm_lab.cancel_all()


def test_render_prints_the_script_that_is_submitted(gateway: GatewayProcess) -> None:
    script = gateway.run("render", CHAT).stdout
    assert script.startswith("#!/bin/bash\n")
    assert "#SBATCH --gres=gpu:h100:4" in script
    assert "#SBATCH --job-name=slurmgate-accept" in script
    assert "<redacted>" in script


def test_no_secret_is_seen_from_outside(gateway: GatewayProcess, slurm_lab: SlurmLab) -> None:
    gateway.start()
    gateway.until_ready(**{CHAT: 2})
    from slurm_launcher.spec import Secrets

    secrets = Secrets((gateway.state_dir / "secret").read_bytes())
    shown = [slurm_lab.run("scontrol", "show", "job"), slurm_lab.run("squeue", "-h", "-o", "%all")]
    shown += [content(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    shown += [gateway.log_path.read_text(), *(p.read_text() for p in (gateway.state_dir / "logs").iterdir())]
    for replica in gateway.replicas():
        for secret in (secrets.agent_token(replica["replica"]), secrets.engine_key(replica["replica"])):
            assert not any(secret in text for text in shown)


def content(path: Path) -> str:
    """A file's text; "" for that of a process that has just ended."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
