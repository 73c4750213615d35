"""What is compared, each in front of the same mock engine, each on a free port of loopback.

A peer that is not installed is named with how to install it; the comparison goes on without it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from .load import chat_request
from .mock_engine import MODEL
from .processes import DidNotStart, Process, free_port, memory_mb

_VENV = Path(".venv-bench") / "bin"

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
[launcher]
kind = "local"

[models.{model}]
engine = "vllm"
urls = ["http://127.0.0.1:{engine}"]
"""


class NotInstalled(Exception):
    """The message says how to install it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that runs and answers.

    pid       None where no process stands between client and engine
    key       what clients send
    start_s   from the start of its command until it accepted a connection
    answer_s  until it had answered a first chat request
    rest_mb   resident memory after that one answer
    """

    name: str
    port: int
    pid: int | None = None
    key: str = "sk-none"
    start_s: float = float("nan")
    answer_s: float = float("nan")
    rest_mb: float = float("nan")


def find(program: str, variable: str | None = None) -> str | None:
    """A program's path: an environment variable, next to our Python, PATH, `.venv-bench`."""
    given = os.environ.get(variable) if variable else None
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"))
    return given or shutil.which(program, path=places) or shutil.which(program, path=str(_VENV))


def running(process: Process, key: str = "sk-none") -> Target:
    """The target in a process that listens. Raises `DidNotStart` when it gives no answer."""
    waited = first_answer(process, key)
    time.sleep(0.3)  # what it does right after its start shall not be taken for rest
    return Target(
        name=process.name,
        port=process.port,
        pid=process.pid,
        key=key,
        start_s=process.start_s,
        answer_s=process.start_s + waited,
        rest_mb=memory_mb(process.pids),
    )


def first_answer(process: Process, key: str) -> float:
    """Seconds until a chat request is answered: routers first look at their engines. Raises `DidNotStart`."""
    body = chat_request(MODEL, key, stream=False).partition(b"\r\n\r\n")[2]
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    begun = time.perf_counter()
    told = "nothing"
    while time.perf_counter() - begun < 30:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            told = f"{answer.status} {answer.read(300)!r}"
            if answer.status == 200:
                return time.perf_counter() - begun
        time.sleep(0.05)
    raise DidNotStart(f"{process.name} answers a chat request with {told}:\n{process.log_tail()}")


@contextlib.contextmanager
def engine(room: Path, chunks: int, interval_ms: float) -> Iterator[Process]:
    """The mock engine that all of them ask."""
    port = free_port()
    options = ["--chunks", str(chunks), "--interval-ms", str(interval_ms)]
    command = [sys.executable, "-m", "bench.mock_engine", str(port), *options]
    with Process("mock engine", command, port, room / "engine.log") as process:
        yield process


@contextlib.contextmanager
def direct(room: Path, engine_port: int) -> Iterator[Target]:
    """No proxy at all: what the engine and the load generator take by themselves."""
    yield Target("direct", engine_port)


@contextlib.contextmanager
def slurmgate(room: Path, engine_port: int) -> Iterator[Target]:
    """As in production: a key is checked, usage is stored, metrics are kept, every request has its log line."""
    program = find("slurmgate")
    if program is None:
        raise NotInstalled("slurmgate: not in this environment; pip install --editable .")
    config, state, port = room / "slurmgate.toml", room / "state", free_port()
    config.write_text(_SLURMGATE.format(model=MODEL, engine=engine_port))
    made = subprocess.run(
        [program, "keys", "create", "bench", "--state-dir", str(state)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise DidNotStart(f"slurmgate keys create ended with status {made.returncode}:\n{made.stderr}")
    command = [program, "serve", "--config", str(config), "--state-dir", str(state), "--port", str(port)]
    with Process("slurmgate", command, port, room / "slurmgate.log") as process:
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


Starter = Callable[[Path, int], AbstractContextManager[Target]]

STARTERS: dict[str, Starter] = {
    "slurmgate": slurmgate,
    "vllm-router": vllm_router,
    "nginx": nginx,
    "direct": direct,
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
