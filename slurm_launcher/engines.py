"""Inference engines: the argv, the key, the health route and the proof of each. Pure.

An engine is one `Engine` value in `ENGINES`. To add one: write a function `ModelSpec -> arguments`, say where the key
goes and which route says 200 when it is up, and add the value; the rest of slurmgate knows engines by this table alone.

Arguments and environment values may hold placeholders, filled by the agent in the job, where ports are chosen:

    {host}            the address to listen on
    {port}            the port to serve at; {port2}, {port3}: two more free ports
    {tmp}             a private directory on the node, removed afterwards
    {head}            over several nodes: the address of the first, and of each itself: {node}; its number: {rank}

The flags were read in the engines' sources: TGI v3.3.7 `launcher/src/main.rs` and `router/src/server.rs`; vLLM
`vllm/entrypoints/openai/cli_args.py` and `api_server.py`; llama.cpp `tools/server/README.md`; SGLang
`python/sglang/srt/server_args.py`; text-embeddings-inference `router/src/main.rs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from .spec import ModelSpec

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Probe:
    """The request that proves an engine: `reply_list` is the key of the JSON reply that must hold a non-empty list."""

    path: str
    body: Json
    reply_list: str
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Engine:
    """How to start an engine and how to know that it works.

    program        what precedes the arguments, unless the model's `command` replaces it
    arguments      the arguments for a model
    key_variable   the environment variable that sets the key clients must show; never an argument: argv is public
    health         GET it: 200 once the engine is up, without a key
    embeds         it can serve `task = "embed"`
    generates      it can serve `task = "generate"`
    guards_key     a wrong key is refused on the routes of the probe
    model_word     the name in requests' `model`, where the engine does not know the public one
    environment    the engine's own settings; a model's `environment` goes over it
    spread         over several nodes (`slurm.nodes`): (argv so far, spec, follower) -> the whole argv, for the first
                   node and for those that follow it. None: the engine runs on one node only
    spread_environment   goes with it
    """

    name: str
    program: tuple[str, ...]
    arguments: Callable[[ModelSpec], list[str]]
    key_variable: str
    health: str = "/health"
    embeds: bool = True
    generates: bool = True
    guards_key: bool = True
    model_word: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    spread: Callable[[list[str], ModelSpec, bool], list[str]] | None = None
    spread_environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def argv(self, spec: ModelSpec, *, follower: bool = False) -> list[str]:
        """The whole command line, with placeholders. Holds no secrets of ours.

        Raises `ValueError` for several nodes where the engine runs on one only.
        """
        argv = [*(spec.command or self.program), *self.arguments(spec)]
        if spec.resources.nodes == 1:
            return [*argv, *spec.arguments]
        if self.spread is None:
            raise ValueError(f"slurm.nodes: {self.name} runs on one node only; expected 1")
        return self.spread(argv, spec, follower)

    def env(self, spec: ModelSpec, key: str) -> dict[str, str]:
        """What is added to the environment: the engine's own, over it the model's, over that the key."""
        spread = self.spread_environment if spec.resources.nodes > 1 else {}
        return {**self.environment, **spread, **dict(spec.environment), self.key_variable: key}

    def probe(self, spec: ModelSpec) -> Probe:
        """One real token, or one real vector."""
        model = self.model_word or spec.name
        if spec.task == "embed" or not self.generates:
            return Probe("/v1/embeddings", {"model": model, "input": "Hello"}, reply_list="data")
        return Probe("/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 1}, reply_list="choices")


def _tgi(spec: ModelSpec) -> list[str]:
    """There is no `--served-model-name` in any release. On shared nodes three defaults collide: the port, torch's
    29500 (`--master-port`) and the shards' sockets in /tmp (`--shard-uds-path`); a fourth is in the environment below.
    """
    arguments = ["--model-id", spec.source, "--hostname", "{host}", "--port", "{port}"]
    arguments += ["--master-port", "{port2}", "--shard-uds-path", "{tmp}/shard"]
    if spec.resources.gpus:
        arguments += ["--num-shard", str(spec.resources.gpus)]
    if spec.context_length:
        arguments += ["--max-total-tokens", str(spec.context_length)]
    return arguments


def _vllm(spec: ModelSpec) -> list[str]:
    arguments = ["serve", spec.source, "--host", "{host}", "--port", "{port}", "--served-model-name", spec.name]
    if spec.resources.gpus:
        arguments += ["--tensor-parallel-size", str(spec.resources.gpus)]
    if spec.context_length:
        arguments += ["--max-model-len", str(spec.context_length)]
    return arguments


def _vllm_spread(argv: list[str], spec: ModelSpec, follower: bool) -> list[str]:
    """Tensors are split within a node, layers over the nodes. Two ways to do it:

    By itself (vLLM 0.12 and newer; pull request 23691, `docs/serving/parallelism_scaling.md`): the same command on each
    node, with its rank. The simplest, so it is what is done unless `arguments` ask for Ray, which older releases need.
    """
    nodes = str(spec.resources.nodes)
    argv = [*argv, "--pipeline-parallel-size", nodes]
    if _asks_for_ray(spec.arguments):
        return _vllm_on_ray([*argv, *spec.arguments], spec, follower)
    argv += ["--nnodes", nodes, "--node-rank", "{rank}", "--master-addr", "{head}", "--master-port", "{port2}"]
    return [*argv, *(["--headless"] if follower else []), *spec.arguments]


def _asks_for_ray(arguments: Sequence[str]) -> bool:
    return "--distributed-executor-backend ray" in " ".join(arguments).replace("=", " ")


def _vllm_on_ray(argv: list[str], spec: ModelSpec, follower: bool) -> list[str]:
    """A Ray cluster of its own, in the private directory and on ports of its own: users share nodes, and /tmp/ray.

    `ray start` (ray `python/ray/scripts/scripts.py`) gives up on a head that is not there yet, and vLLM looks at the
    cluster's GPUs as soon as it starts: so each side waits for the other.
    """
    common = ["--node-ip-address={node}", "--min-worker-port=20002", "--max-worker-port=29999", "--disable-usage-stats"]
    common += [f"--num-gpus={spec.resources.gpus}"] if spec.resources.gpus else []
    if follower:
        start = " ".join(["ray start --block --address={head}:{port2}", *common])
        return ["sh", "-c", f'python3 -c "{_WAIT_FOR_HEAD}" && exec {start}']
    own = ["--include-dashboard=false", "--temp-dir={tmp}/ray", "--ray-client-server-port={port3}"]
    start = " ".join(["ray start --head --port={port2}", *own, *common])
    wait = _WAIT_FOR_NODES.replace("{nodes}", str(spec.resources.nodes))
    return [
        "sh",
        "-c",
        f'export RAY_ADDRESS={{head}}:{{port2}}; {start} && python3 -c "{wait}" && exec "$@"',
        "vllm",
        *argv,
    ]


_WAIT_FOR_HEAD = """
import socket, time
while True:
    try:
        socket.create_connection(('{head}', {port2}), 5).close()
        break
    except OSError:
        time.sleep(1)
"""
_WAIT_FOR_NODES = """
import ray, time
ray.init(logging_level='error')
while sum(node['Alive'] for node in ray.nodes()) < {nodes}:
    time.sleep(1)
"""


def _llamacpp(spec: ModelSpec) -> list[str]:
    """A source that ends in `.gguf` is a file, anything else a hub repository (`USER/MODEL[:QUANT]`).

    How vectors are pooled is the model's own business (it is in the file); `arguments = ["--pooling", "mean"]` is for
    files that do not say. `--n-gpu-layers 999` means all, also to releases that know no word for it.
    """
    where = ["--model", spec.source] if spec.source.endswith(".gguf") else ["--hf-repo", spec.source]
    arguments = [*where, "--host", "{host}", "--port", "{port}", "--alias", spec.name, "--metrics"]
    if spec.context_length:
        arguments += ["--ctx-size", str(spec.context_length)]
    if spec.resources.gpus:
        arguments += ["--n-gpu-layers", "999"]
    if spec.task == "embed":
        arguments += ["--embeddings"]
    return arguments


def _sglang(spec: ModelSpec) -> list[str]:
    """Its own processes find free ports, but for NCCL's, which older releases take at random without a look."""
    arguments = ["--model-path", spec.source, "--host", "{host}", "--port", "{port}", "--nccl-port", "{port2}"]
    arguments += ["--served-model-name", spec.name]
    if spec.resources.gpus:
        arguments += ["--tp-size", str(spec.resources.gpus * spec.resources.nodes)]
    if spec.context_length:
        arguments += ["--context-length", str(spec.context_length)]
    if spec.task == "embed":
        arguments += ["--is-embedding"]
    return arguments


def _sglang_spread(argv: list[str], spec: ModelSpec, follower: bool) -> list[str]:
    """The same command on each node, with its rank. Followers answer their own health checks, so not at {host}."""
    argv = [*argv, "--nnodes", str(spec.resources.nodes), "--node-rank", "{rank}", "--dist-init-addr", "{head}:{port3}"]
    return [*argv, *(["--host", "127.0.0.1"] if follower else []), *spec.arguments]


_SGLANG_WITH_KEY = (
    "import os, runpy, sys; "
    "sys.argv[:] = ['sglang', *sys.argv[1:], '--api-key', os.environ['SGLANG_API_KEY']]; "
    "runpy.run_module('sglang.launch_server', run_name='__main__', alter_sys=True)"
)
"""SGLang takes its key as an argument only. So it is given there, but inside the process, where nobody else sees it.

`alter_sys` makes the module the main one, so that the processes it spawns find it as they do after `python -m`.
"""


def _tei(spec: ModelSpec) -> list[str]:
    """`--served-model-name` is there since 1.8. On shared nodes two defaults collide: the metrics' port, which has a
    listener of its own, and the backend's socket in /tmp. Texts that are too long are cut, unless told otherwise.
    """
    arguments = ["--model-id", spec.source, "--hostname", "{host}", "--port", "{port}"]
    arguments += ["--prometheus-port", "{port2}", "--uds-path", "{tmp}/backend", "--served-model-name", spec.name]
    return arguments


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        # The launcher prints its settings, key included, and hands the key to its router as an argument: the agent
        # blacks it out of the log, and it is this one replica's key only. PROMETHEUS_PORT (3.3.0 and newer; 9000
        # before) is bound at start, so a second TGI on a node needs another one.
        Engine(
            name="tgi",
            program=("text-generation-launcher",),
            arguments=_tgi,
            key_variable="API_KEY",
            embeds=False,
            model_word="tgi",  # any other name is taken for that of a LoRA adapter
            environment=MappingProxyType({"PROMETHEUS_PORT": "{port3}", "USAGE_STATS": "off"}),
        ),
        # --api-key (or the variable) guards /v1 only; /health and /metrics stay open, /invocations as well
        Engine(
            name="vllm",
            program=("vllm",),
            arguments=_vllm,
            key_variable="VLLM_API_KEY",
            environment=MappingProxyType({"VLLM_NO_USAGE_STATS": "1"}),
            spread=_vllm_spread,
            spread_environment=MappingProxyType({"VLLM_HOST_IP": "{node}"}),  # where nodes have several networks
        ),
        # /health says 503 while the model loads, and needs no key
        Engine(
            name="llamacpp",
            program=("llama-server",),
            arguments=_llamacpp,
            key_variable="LLAMA_API_KEY",
        ),
        # with a key, all but /health and /metrics asks for it; a model's own `command` reads the variable itself
        Engine(
            name="sglang",
            program=("python3", "-c", _SGLANG_WITH_KEY),
            arguments=_sglang,
            key_variable="SGLANG_API_KEY",
            spread=_sglang_spread,
        ),
        # /health asks the model for a vector; the settings it prints hold the key, as TGI's do
        Engine(
            name="tei",
            program=("text-embeddings-router",),
            arguments=_tei,
            key_variable="API_KEY",
            generates=False,
        ),
    )
}
