"""What each engine is started with. The flags themselves were checked against the engines' sources (see engines.py)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_launcher.engines import ENGINES
from slurm_launcher.on_node import fill_all
from slurm_launcher.spec import ModelSpec, Resources
from slurm_launcher.xllamacpp_server import parse

KEY = "the-key-of-one-replica"


def model(engine: str, **fields: object) -> ModelSpec:
    base = ModelSpec("org/Model-7B", engine, "/models/m", context_length=4096, resources=Resources(gpus=2))
    return replace(base, **fields)  # type: ignore[arg-type]


def line(spec: ModelSpec) -> str:
    return " ".join(ENGINES[spec.engine].argv(spec))


def test_tgi_gets_ports_and_sockets_that_do_not_collide_on_a_shared_node() -> None:
    assert line(model("tgi")) == (
        "text-generation-launcher --model-id /models/m --hostname {host} --port {port} --master-port {port2} "
        "--shard-uds-path {tmp}/shard --num-shard 2 --max-total-tokens 4096"
    )
    assert ENGINES["tgi"].env(model("tgi"), KEY)["PROMETHEUS_PORT"] == "{port3}"


def test_vllm_serves_under_the_public_name() -> None:
    assert line(model("vllm")) == (
        "vllm serve /models/m --host {host} --port {port} --served-model-name org/Model-7B "
        "--tensor-parallel-size 2 --max-model-len 4096"
    )


def test_llamacpp_loads_a_file_or_asks_the_hub() -> None:
    rest = "--host {host} --port {port} --alias org/Model-7B --metrics --ctx-size 4096 --n-gpu-layers 999"
    assert line(model("llamacpp", source="/m/x.gguf")) == f"llama-server --model /m/x.gguf {rest}"
    assert line(model("llamacpp", source="org/x-GGUF:Q8_0")) == f"llama-server --hf-repo org/x-GGUF:Q8_0 {rest}"
    assert line(model("llamacpp", task="embed")).endswith("--embeddings")


@pytest.mark.parametrize("name", ENGINES)
def test_what_a_model_does_not_say_is_left_to_the_engine(name: str) -> None:
    text = line(model(name, context_length=None, resources=Resources()))
    for flag in ("--num-shard", "--tensor-parallel-size", "--n-gpu-layers", "4096", "None"):
        assert flag not in text


@pytest.mark.parametrize("name", ENGINES)
def test_a_models_own_command_and_arguments_come_first_and_last(name: str) -> None:
    argv = ENGINES[name].argv(model(name, command=("python", "-m", "server"), arguments=("--more", "1")))
    assert argv[:3] == ["python", "-m", "server"]
    assert argv[-2:] == ["--more", "1"]
    assert ENGINES[name].program[0] not in argv


@pytest.mark.parametrize("name", ENGINES)
def test_the_key_is_in_the_environment_only_and_no_model_can_change_it(name: str) -> None:
    engine = ENGINES[name]
    spec = model(name, environment=((engine.key_variable, "mine"), ("HF_TOKEN", "hf_x")))
    assert KEY not in " ".join(engine.argv(spec))
    environment = engine.env(spec, KEY)
    assert environment[engine.key_variable] == KEY
    assert environment["HF_TOKEN"] == "hf_x"


def test_a_model_can_change_what_an_engine_sets_for_itself() -> None:
    spec = model("tgi", environment=(("USAGE_STATS", "on"),))
    assert ENGINES["tgi"].env(spec, KEY)["USAGE_STATS"] == "on"


def test_the_proof_is_one_token_or_one_vector() -> None:
    generate = ENGINES["vllm"].probe(model("vllm"))
    assert (generate.method, generate.path, generate.reply_list) == ("POST", "/v1/completions", "choices")
    assert generate.body == {"model": "org/Model-7B", "prompt": "Hello", "max_tokens": 1}
    embed = ENGINES["vllm"].probe(model("vllm", task="embed"))
    assert (embed.path, embed.reply_list) == ("/v1/embeddings", "data")
    assert embed.body == {"model": "org/Model-7B", "input": "Hello"}


def test_tgi_is_asked_for_by_its_own_word_since_others_mean_adapters() -> None:
    assert ENGINES["tgi"].probe(model("tgi")).body["model"] == "tgi"
    assert not ENGINES["tgi"].embeds


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_the_server_from_the_wheel_takes_what_llamacpp_is_given(task: str) -> None:
    argv = ENGINES["llamacpp"].argv(model("llamacpp", source="/m/x.gguf", task=task, command=("server",)))
    options = parse([word.replace("{port}", "1234") for word in argv[1:]])
    assert (options.model, options.port, options.alias, options.ctx_size) == ("/m/x.gguf", 1234, "org/Model-7B", 4096)
    assert options.embeddings == (task == "embed")
    assert options.metrics


def test_sglang_serves_under_the_public_name() -> None:
    flags = "--model-path /models/m --host {host} --port {port} --nccl-port {port2} --served-model-name org/Model-7B"
    assert line(model("sglang")).endswith(f"{flags} --tp-size 2 --context-length 4096")
    assert line(model("sglang", task="embed")).endswith("--is-embedding")


def test_sglang_gets_its_key_as_an_argument_that_no_other_process_sees(tmp_path: Path) -> None:
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").write_text("")
    (tmp_path / "sglang" / "launch_server.py").write_text(
        "import multiprocessing, sys\n"
        "def child():\n"
        "    print('child', __name__)\n"
        "if __name__ == '__main__':\n"
        "    print(*sys.argv[1:], flush=True)\n"
        "    print(open('/proc/self/cmdline').read().replace('\\0', ' '), flush=True)\n"
        "    process = multiprocessing.get_context('spawn').Process(target=child)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    spec = model("sglang")
    engine = ENGINES["sglang"]
    argv = [sys.executable, *engine.argv(spec)[1:]]
    environment = {**engine.env(spec, KEY), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    arguments, cmdline, child = done.stdout.splitlines()
    assert arguments.endswith(f"--context-length 4096 --api-key {KEY}")
    assert KEY not in cmdline
    assert child == "child __mp_main__"


def test_tei_gets_a_port_and_a_socket_that_do_not_collide_on_a_shared_node() -> None:
    assert line(model("tei", task="embed")) == (
        "text-embeddings-router --model-id /models/m --hostname {host} --port {port} --prometheus-port {port2} "
        "--uds-path {tmp}/backend --served-model-name org/Model-7B"
    )


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_tei_is_proved_by_a_vector_whatever_its_task_is_called(task: str) -> None:
    assert ENGINES["tei"].probe(model("tei", task=task)).path == "/v1/embeddings"
    assert not ENGINES["tei"].generates


# -- over several nodes -----------------------------------------------------------------------------------------------


def wide(engine: str, **fields: object) -> ModelSpec:
    return model(engine, resources=Resources(gpus=4, nodes=2), **fields)


def test_vllm_splits_tensors_within_a_node_and_layers_over_the_nodes() -> None:
    spec = wide("vllm", arguments=("--quantization", "fp8"))
    alone = (
        "vllm serve /models/m --host {host} --port {port} --served-model-name org/Model-7B --tensor-parallel-size 4 "
        "--max-model-len 4096 --pipeline-parallel-size 2 --nnodes 2 --node-rank {rank} --master-addr {head} "
        "--master-port {port2}"
    )
    assert line(spec) == f"{alone} --quantization fp8"
    assert " ".join(ENGINES["vllm"].argv(spec, follower=True)) == f"{alone} --headless --quantization fp8"
    assert ENGINES["vllm"].env(spec, KEY)["VLLM_HOST_IP"] == "{node}"
    assert "VLLM_HOST_IP" not in ENGINES["vllm"].env(model("vllm"), KEY)


@pytest.mark.parametrize("asks", [("--distributed-executor-backend", "ray"), ("--distributed-executor-backend=ray",)])
def test_vllm_on_ray_starts_a_cluster_of_its_own_where_that_is_asked_for(asks: tuple[str, ...]) -> None:
    spec = wide("vllm", arguments=asks)
    shell, option, script, name, *rest = ENGINES["vllm"].argv(spec)
    assert (shell, option, name) == ("sh", "-c", "vllm")
    assert "ray start --head --port={port2} --include-dashboard=false --temp-dir={tmp}/ray" in script
    assert "--node-ip-address={node}" in script
    assert "--num-gpus=4" in script
    assert "export RAY_ADDRESS={head}:{port2}" in script
    assert script.index("< 2:") < script.index('exec "$@"'), "both nodes are there before vLLM counts the GPUs"
    assert " ".join(rest).endswith(
        f"--tensor-parallel-size 4 --max-model-len 4096 --pipeline-parallel-size 2 {' '.join(asks)}"
    )
    assert "--nnodes" not in rest

    _, _, joins = ENGINES["vllm"].argv(spec, follower=True)
    assert "exec ray start --block --address={head}:{port2} --node-ip-address={node}" in joins
    for text in (script, joins):
        assert subprocess.run(["sh", "-n", "-c", text], check=False).returncode == 0


def test_ray_workers_wait_for_their_head(tmp_path: Path) -> None:
    """The script as it is run, with the programs that it starts replaced."""
    (tmp_path / "ray").write_text('#!/bin/sh\necho joined "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    spec = wide("vllm", arguments=("--distributed-executor-backend", "ray"))
    with socket.create_server(("127.0.0.1", 0)) as head:
        places = {"head": "127.0.0.1", "port2": head.getsockname()[1], "node": "10.0.0.2"}
        argv = fill_all(ENGINES["vllm"].argv(spec, follower=True), places)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": path}, timeout=20, check=False)
    assert done.stdout.startswith(
        f"joined start --block --address=127.0.0.1:{places['port2']} --node-ip-address=10.0.0.2"
    )


def test_sglang_splits_tensors_over_all_gpus() -> None:
    spec = wide("sglang")
    text = line(spec)
    assert "--tp-size 8" in text
    assert text.endswith("--nnodes 2 --node-rank {rank} --dist-init-addr {head}:{port3}")
    assert " ".join(ENGINES["sglang"].argv(spec, follower=True)) == f"{text} --host 127.0.0.1"


@pytest.mark.parametrize("name", ["tgi", "llamacpp", "tei"])
def test_engines_that_run_on_one_node_only_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"slurm.nodes: {name} runs on one node only; expected 1"):
        ENGINES[name].argv(wide(name))
