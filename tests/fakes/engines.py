"""Engines named after their faults. Run as a program, so that the agent has real processes to look after:

    python tests/fakes/engines.py EngineThatDiesAtStart serve MODEL --host H --port P ...

They take vLLM's arguments, and the key from VLLM_API_KEY, which they guard as vLLM does. Standard library only.
"""

# ruff: noqa: T201  # engines talk to the job's log

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Engine:
    """One without a fault. GET /die makes it exit with status 9, GET /kill ends it by SIGKILL."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.key = os.environ.get("VLLM_API_KEY", "")

    def start(self) -> None:
        """Before it listens."""

    def health(self) -> int:
        return 200

    def accepts(self, key: str) -> bool:
        return key == self.key

    def answer(self, path: str) -> tuple[int, Any]:
        if path == "/v1/embeddings":
            return 200, {"data": [{"embedding": [1.0]}]}
        return 200, {"choices": [{"text": "x"}]}

    def serve(self) -> None:
        self.start()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/die":
                    os._exit(9)
                if self.path == "/kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                self.reply(engine.health(), {})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                if engine.accepts(self.headers.get("authorization", "").removeprefix("Bearer ")):
                    self.reply(*engine.answer(self.path))
                else:
                    self.reply(401, {})

            def reply(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        print(f"listening at {self.host}:{self.port}", flush=True)
        ThreadingHTTPServer((self.host, self.port), Handler).serve_forever()


class EngineThatDiesAtStart(Engine):
    def start(self) -> None:
        print("\n".join(f"line {number}" for number in range(60)))
        print("CUDA error: out of memory", flush=True)
        sys.exit(3)


class EngineThatAnswersHealthButNoToken(Engine):
    def answer(self, path: str) -> tuple[int, Any]:
        return 200, {"choices": []}


class EngineThatRefusesItsKey(Engine):
    def accepts(self, key: str) -> bool:
        return False


class EngineThatNeverGetsHealthy(Engine):
    def health(self) -> int:
        return 503


class EngineThatAcceptsAnyKey(Engine):
    def accepts(self, key: str) -> bool:
        return True


class EngineThatPrintsItsKey(Engine):
    """As text-generation-launcher does."""

    def start(self) -> None:
        print(f'Args {{ api_key: Some("{self.key}"), token: {os.environ.get("HF_TOKEN")} }}', flush=True)


class EngineWhosePortIsTaken(Engine):
    """The first time. The file named by PORT_TAKEN_ONCE remembers."""

    def start(self) -> None:
        flag = Path(os.environ["PORT_TAKEN_ONCE"])
        if not flag.exists():
            flag.write_text(str(self.port))
            raise OSError(98, "Address already in use")


class EngineWhosePortIsAlwaysTaken(Engine):
    def start(self) -> None:
        raise OSError(98, "Address already in use")


class EngineThatIgnoresTerm(Engine):
    """And has a child that left its process group and session."""

    def start(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "600"], start_new_session=True)


class EngineThatLeavesAnOrphan(Engine):
    """Its child's own child is adopted by whoever collects orphans."""

    def start(self) -> None:
        subprocess.run(["sh", "-c", "sleep 600 & exit 0"], check=True, stdout=subprocess.DEVNULL)


class EngineThatNeedsAllItsNodes(Engine):
    """As vLLM over several nodes: rank 0 is healthy once the others are there, and does not notice when one has gone.

    The others hold a connection to rank 0, and serve nothing. All need the key: the environment reached them.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        words = sys.argv
        self.rank, self.nodes = (int(words[words.index(flag) + 1]) for flag in ("--node-rank", "--nnodes"))
        self.head = (words[words.index("--master-addr") + 1], int(words[words.index("--master-port") + 1]))
        self.followers: list[socket.socket] = []

    def health(self) -> int:
        return 200 if len(self.followers) == self.nodes - 1 else 503

    def start(self) -> None:
        if not self.key:
            sys.exit("no key")
        if self.rank == 0:
            threading.Thread(target=self.gather, daemon=True).start()
            return
        assert "--headless" in sys.argv
        while True:
            try:
                connection = socket.create_connection(self.head, 5)
                break
            except OSError:
                time.sleep(0.05)
        connection.settimeout(None)
        while connection.recv(1):
            pass
        time.sleep(600)

    def gather(self) -> None:
        with socket.create_server(self.head) as server:
            while True:
                self.followers.append(server.accept()[0])


class EngineThatReadsItsStdin(Engine):
    def start(self) -> None:
        print(f"stdin: {sys.stdin.read()!r}", flush=True)


if __name__ == "__main__":
    kind: type[Engine] = globals()[sys.argv[1]]
    words = sys.argv[2:]
    kind(words[words.index("--host") + 1], int(words[words.index("--port") + 1])).serve()
