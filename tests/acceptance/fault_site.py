"""A gateway on a real Slurm under constant load, and what is done to it: shared by the tests of faults.

Site     the gateway, its cluster, its jobs
Relay    the way from the nodes to the gateway, which can be cut
Usurper  a web server of somebody else's on a port that an engine had
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxy.operator_socket import ask as ask_socket
from tests.acceptance.constant_load import Load
from tests.acceptance.test_on_slurm import jobs
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab, require_slurm
from tests.waiting import until_sync

ON_ONE = 5
"""People who ask: the most that one replica can have had at the moment it was lost."""


class Site:
    """`service`: what its jobs are called after. `model`: the one that is asked."""

    def __init__(self, gateway: GatewayProcess, lab: SlurmLab, key: str, service: str, model: str) -> None:
        self.gateway = gateway
        self.lab = lab
        self.key = key
        self.service = service
        self.model = model

    def load(self) -> Load:
        return Load(self.gateway.url, self.key, self.model)

    def cards(self) -> list[dict[str, Any]]:
        """As `slurmgate status --json` has them, without a process for each look."""
        seen = ask_socket(self.gateway.state_dir / "control.sock", "GET", "/admin/overview")
        return [r for r in seen["replicas"] if r["model"] == self.model]

    def ready(self) -> list[dict[str, Any]]:
        return [r for r in self.cards() if r["state"] == "ready"]

    def jobs(self) -> dict[str, str]:
        return jobs(self.lab, self.service)

    def whole_again(self, load: Load, *, without: str = "", count: int = 2) -> None:
        """So many replicas serve, none by the job `without`, there are as many jobs, and requests go through."""
        until_sync(lambda: sum(r["job"] != without for r in self.ready()) == count, 90, 0.2)
        until_sync(lambda: len(self.jobs()) == count, 60, 0.2)
        goes_on(load)


@contextmanager
def running_site(directory: Path, text: str, service: str, model: str, port: int | None = None) -> Iterator[Site]:
    """A cluster of its own and a gateway with that configuration."""
    require_slurm()
    lab = SlurmLab.start()
    gateway = GatewayProcess(directory, text, lab.env())
    gateway.port = port or gateway.port
    gateway.url = f"http://127.0.0.1:{gateway.port}"
    try:
        gateway.start()
        yield Site(gateway, lab, gateway.key(), service, model)
    finally:
        gateway.stop()
        lab.cancel_all()
        lab.stop()


def goes_on(load: Load, count: int = 10) -> None:
    """So many more requests are answered."""
    seen = load.whole
    until_sync(lambda: load.whole >= seen + count, 60)


# -- processes of jobs ------------------------------------------------------------------------------------------------


def processes(variable: str, value: str) -> dict[int, list[str]]:
    """Processes that have this in their environment, with their command lines."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            if f"{variable}={value}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return found


def engine_of(job: str, lab: SlurmLab, program: str = "xllamacpp_server") -> int:
    """The engine's process, found by its job in its environment."""
    return engine_and_command(job, lab, program)[0]


def engine_and_command(job: str, lab: SlurmLab, program: str) -> tuple[int, list[str]]:
    of_job = processes("SLURM_JOB_ID", job)
    here = processes("SLURM_CONF", str(lab.conf))  # other clusters on this machine have the same job ids
    for process, command in of_job.items():
        if process in here and any(program in word for word in command):
            return process, command
    raise AssertionError(f"job {job} has no engine: {of_job}")


def agent_of(engine: int) -> int:
    """The engine's parent."""
    status = Path(f"/proc/{engine}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def address_of(command: list[str]) -> tuple[str, int]:
    """Where an engine listens, by its arguments."""
    return command[command.index("--host") + 1], int(command[command.index("--port") + 1])


@contextmanager
def frozen(*victims: int) -> Iterator[None]:
    """Stopped, and let go on at the end, if they are still there."""
    for victim in victims:
        os.kill(victim, signal.SIGSTOP)
    try:
        yield
    finally:
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)


@contextmanager
def frozen_node(lab: SlurmLab, node: str) -> Iterator[None]:
    """Its daemon and all of its jobs stand still. Their kernel goes on taking connections."""
    lab.node_freeze(node)
    here = processes("SLURM_CONF", str(lab.conf))
    try:
        with frozen(*(process for process in processes("SLURMD_NODENAME", node) if process in here)):
            yield
    finally:
        lab.node_thaw(node)


# -- the network ------------------------------------------------------------------------------------------------------


class Relay:
    """Passes connections on to a port of this machine. While it is cut they are taken and nothing comes of them.

    passed, held   connections so far that were, and that were not
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._cut = threading.Event()
        self._held: list[socket.socket] = []
        self.passed = self.held = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self._let_go()

    @contextmanager
    def cut(self) -> Iterator[None]:
        self._cut.set()
        try:
            yield
        finally:
            self._cut.clear()
            self._let_go()

    def _let_go(self) -> None:
        while self._held:
            self._held.pop().close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                if self._cut.is_set():
                    self._held.append(client)
                    self.held += 1
                else:
                    self.passed += 1
                    threading.Thread(target=self._pass, args=(client,), name="relayed", daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._target), 5) as gateway:
            back = threading.Thread(target=pump, args=(gateway, client), name="relayed back", daemon=True)
            back.start()
            pump(client, gateway)
            back.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Usurper:
    """`with Usurper(address, kind): ...` Somebody else's server where an engine was.

    another engine   healthy, and refuses a key that is not its own
    a web server     has a page for everything

    posts   how often each request came, by its id
    """

    def __init__(self, address: tuple[str, int], kind: str) -> None:
        self.posts: Counter[str] = Counter()
        self.asked: list[str] = []
        usurper = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                usurper.asked.append(self.path)
                self.reply(200 if self.path == "/health" else 401)

            def do_POST(self) -> None:
                usurper.posts[self.headers["x-request-id"]] += 1
                self.rfile.read(int(self.headers["content-length"]))
                self.reply(401)

            def reply(self, status: int) -> None:
                page = kind == "a web server"
                data = b"<html><body>Jupyter</body></html>" if page else b'{"error":"Unauthorized"}'
                self.send_response(200 if page else status)
                self.send_header("content-type", "text/html" if page else "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(address, Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="usurper", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
