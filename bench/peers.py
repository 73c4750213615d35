"""What is compared, each in front of the same mock engine, each on a free port of loopback.

A peer that is not installed is named with how to install it; the comparison goes on without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from .mock_engine import MODEL
from .processes import DidNotStart, Process, free_port
from .targets import NotInstalled, Target, find, running

_LITELLM_VENV = Path(".venv-bench-litellm") / "bin"
"""Of its own: it pins what others need in other versions. Ours has a litellm too, but not its proxy."""

_NGINX = """\
daemon off;
worker_processes 1;
pid {room}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {room}/body;
    proxy_temp_path {room}/proxy;
    fastcgi_temp_path {room}/fastcgi;
    uwsgi_temp_path {room}/uwsgi;
    scgi_temp_path {room}/scgi;
    keepalive_requests 1000000;
    client_max_body_size 64m;
    client_body_buffer_size 64k;
    upstream engine {{
        server 127.0.0.1:{engine};
        keepalive 512;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""

_SLURMGATE = """\
[server]
workers = {workers}

[launcher]
kind = "local"

[models.{model}]
engine = "vllm"
urls = [{urls}]
max_in_flight = {max_in_flight}

[models.{model}.timeouts]
connect_s = {connect_s}
first_byte_s = {first_byte_s}
"""

_LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{engine}/v1
      api_key: sk-none
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
"""


@contextlib.contextmanager
def direct(room: Path, engine_port: int) -> Iterator[Target]:
    """No proxy at all: what the engine and the load generator take by themselves."""
    yield Target("direct", engine_port)


@contextlib.contextmanager
def slurmgate(room: Path, engine_port: int) -> Iterator[Target]:
    """As in production: a key is checked, usage is stored, metrics are kept, every request has its log line."""
    with slurmgate_for(room, [engine_port]) as target:
        yield target


@contextlib.contextmanager
def slurmgate_2(room: Path, engine_port: int) -> Iterator[Target]:
    """The same with two workers, and main beside them: more CPU for each request, on more cores."""
    with slurmgate_for(room, [engine_port], name="slurmgate-2", workers=2) as target:
        yield target


@contextlib.contextmanager
def slurmgate_for(
    room: Path,
    engine_ports: Sequence[int],
    *,
    name: str = "slurmgate",
    workers: int = 1,
    connect_s: float = 5.0,
    first_byte_s: float = 600.0,
    max_in_flight: int = 4096,
) -> Iterator[Target]:
    """slurmgate before several replicas of the one model, each of which takes `max_in_flight` requests at once."""
    program = find("slurmgate")
    if program is None:
        raise NotInstalled("slurmgate: not in this environment; pip install --editable .")
    config, state, port = room / "slurmgate.toml", room / "state", free_port()
    urls = ", ".join(f'"http://127.0.0.1:{engine}"' for engine in engine_ports)
    timeouts = {"connect_s": connect_s, "first_byte_s": first_byte_s}
    text = _SLURMGATE.format(workers=workers, model=MODEL, urls=urls, max_in_flight=max_in_flight, **timeouts)
    config.write_text(text)
    made = subprocess.run(
        [program, "keys", "create", "bench", "--state-dir", str(state)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise DidNotStart(f"slurmgate keys create ended with status {made.returncode}:\n{made.stderr}")
    command = [program, "serve", "--config", str(config), "--state-dir", str(state), "--port", str(port)]
    with Process(name, command, port, room / "slurmgate.log") as process:
        yield running(process, made.stdout.strip())


@contextlib.contextmanager
def nginx(room: Path, engine_port: int) -> Iterator[Target]:
    """One worker, connections to the engine kept, nothing buffered, no log."""
    program = find("nginx")
    if program is None:
        raise NotInstalled("nginx: apt-get install nginx-light, or bench/install_peers.sh as root")
    port = free_port()
    config = room / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""  # the room is ours alone
    config.write_text(user + _NGINX.format(room=room, engine=engine_port, port=port))
    command = [program, "-p", str(room), "-e", "stderr", "-c", str(config)]
    with Process("nginx", command, port, room / "nginx.log") as process:
        yield running(process)


@contextlib.contextmanager
def vllm_router(room: Path, engine_port: int) -> Iterator[Target]:
    """vLLM's own router, as it comes: round robin over one engine."""
    program = find("vllm-router", "VLLM_ROUTER")
    if program is None:
        raise NotInstalled("vllm-router: bench/install_peers.sh, or VLLM_ROUTER=its path")
    port = free_port()
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", f"http://127.0.0.1:{engine_port}"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    with Process("vllm-router", command, port, room / "vllm-router.log") as process:
        yield running(process)


@contextlib.contextmanager
def sglang_router(room: Path, engine_port: int) -> Iterator[Target]:
    """SGLang's router, as it comes: round robin over one engine, a log line at each end of a request."""
    program = find("sglang-router", "SGLANG_ROUTER")
    if program is None:
        raise NotInstalled("sglang-router: bench/install_peers.sh, or SGLANG_ROUTER=its path")
    port = free_port()
    command = [program, "launch", "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", f"http://127.0.0.1:{engine_port}"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    with Process("sglang-router", command, port, room / "sglang-router.log") as process:
        yield running(process)


@contextlib.contextmanager
def litellm(room: Path, engine_port: int) -> Iterator[Target]:
    """LiteLLM's proxy: one worker, a master key, no database. It gets a small part of the load: see `Target.share`."""
    program = os.environ.get("LITELLM_PROXY") or shutil.which("litellm", path=str(_LITELLM_VENV))
    if program is None:
        raise NotInstalled("litellm: bench/install_peers.sh, or LITELLM_PROXY=its path")
    config, port, key = room / "litellm.yaml", free_port(), "sk-bench"
    config.write_text(_LITELLM.format(model=MODEL, engine=engine_port, key=key))
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1", "--telemetry", "False"]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # or it asks the network for a list of prices first
    with Process("litellm", command, port, room / "litellm.log", environment=environment, patience_s=120) as process:
        yield running(process, key, share=0.01, at_once=0.1)


Starter = Callable[[Path, int], AbstractContextManager[Target]]

STARTERS: dict[str, Starter] = {
    "slurmgate": slurmgate,
    "slurmgate-2": slurmgate_2,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "nginx": nginx,
    "direct": direct,
    "litellm": litellm,
}


def start_all(
    stack: contextlib.ExitStack, names: Sequence[str], room: Path, engine_port: int
) -> tuple[list[Target], list[str]]:
    """Start what can be started. Returns the targets, and what is to be said about the others."""
    targets: list[Target] = []
    missing: list[str] = []
    for name in names:
        place = room / name
        place.mkdir(mode=0o755)
        try:
            targets.append(stack.enter_context(STARTERS[name](place, engine_port)))
        except (NotInstalled, DidNotStart) as error:
            missing.append(str(error))
    return targets, missing
