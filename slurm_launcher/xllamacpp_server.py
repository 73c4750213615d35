"""llama.cpp's server from a wheel: no compiler, no container, no GPU.

    python -m slurm_launcher.xllamacpp_server --model FILE.gguf --port 8080

It takes those of llama-server's flags that `engines.py` emits, so it can stand in for it (a model's `command`): the
engine of the embedded default, on laptops and in tests. The key is in LLAMA_API_KEY, as there.

It ends at once on TERM or INT, and when the process that started it has ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

POOLINGS = ("none", "mean", "cls", "last", "rank")
SLOTS = 4
PARENT_CHECK_S = 0.5
WARNINGS = 2  # llama-server's own default, 3, writes five lines for each request


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end. Returns the exit status; errors go to stderr as one sentence."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before any thread exists, so that it holds for all
    parent = os.getppid()
    options = parse(arguments)
    problem = problem_with(options)
    if problem is not None:
        print(f"xllamacpp_server: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    import xllamacpp  # noqa: PLC0415  # 50 ms that a wrong argument need not wait for

    try:
        server = xllamacpp.Server(parameters(xllamacpp, options))
    except RuntimeError as error:
        print(f"xllamacpp_server: cannot serve {options.model}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"serving {options.alias or options.model} at {server.listening_address}", flush=True)  # noqa: T201
    while signal.sigtimedwait(signals, PARENT_CHECK_S) is None:
        if os.getppid() != parent:
            break
    # not through the destructor, which waits for requests that are under way
    sys.stdout.flush()
    os._exit(0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="xllamacpp_server", allow_abbrev=False, description="llama.cpp's server")
    parser.add_argument("-m", "--model", required=True, help="a GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-a", "--alias", default="", help="the model's name in answers")
    parser.add_argument("-c", "--ctx-size", type=int, default=0, help="tokens of context; 0: as the model has")
    parser.add_argument("-np", "--parallel", type=int, default=SLOTS, help="requests answered at the same time")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1)
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--embeddings", "--embedding", action="store_true", help="serve embeddings only")
    parser.add_argument("--pooling", choices=POOLINGS, help="default: as the model says")
    parser.add_argument("--metrics", action="store_true")
    return parser.parse_args(arguments)


def problem_with(options: argparse.Namespace) -> str | None:
    """What the library would only call a failure to initialize."""
    model = Path(options.model)
    try:
        with model.open("rb") as file:
            if file.read(4) != b"GGUF":
                return f"{model} is not a GGUF file"
    except OSError as error:
        return f"{model}: {error.strerror}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            return f"{options.host}:{options.port}: {error.strerror}"
    return None


def parameters(xllamacpp: Any, options: argparse.Namespace) -> Any:
    """All slots share one context (`kv_unified`), so each request may be as long as the whole of it."""
    given = xllamacpp.CommonParams()
    given.model.path = options.model
    given.hostnames = [options.host]
    given.port = options.port
    given.n_ctx = options.ctx_size
    given.n_parallel = options.parallel
    given.kv_unified = True
    given.n_gpu_layers = options.n_gpu_layers
    given.endpoint_metrics = options.metrics
    given.embedding = options.embeddings
    given.ui = False
    given.verbosity = WARNINGS
    if options.threads:
        given.cpuparams.n_threads = options.threads
    if options.alias:
        given.model_alias = {options.alias}
    if options.pooling:
        given.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
    key = os.environ.get("LLAMA_API_KEY")
    if key:
        given.api_keys = [key]
    return given


if __name__ == "__main__":
    sys.exit(main())
