"""What each engine is started with. The flags themselves were checked against the engines' sources (see engines.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slurm_launcher.engines import ENGINES
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
