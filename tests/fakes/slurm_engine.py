"""An engine for jobs of a real Slurm that answers quickly and can be told how to fail. Takes vLLM's arguments and key.

    python tests/fakes/slurm_engine.py serve MODEL --host H --port P ...

POISON      a prompt with this word in it kills it, as a bug in a real engine does
FAULTS      names a directory in the environment: who takes a file out of it has the fault that it is named after;
            those that end in `.always` stay, and are every engine's

    mute          healthy, and without a token
    never_ready   never healthy
    port_taken    finds its port taken

Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

POISON = "arsenic"
WORDS = 12
PER_WORD_S = 0.02


def taken_fault(directory: Path) -> str:
    """The fault of this engine, "" for none. To take a file away is atomic: only one engine gets it."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.suffix == ".always":
            return path.stem
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            return path.name
    return ""


def chunks(model: str) -> Iterator[dict[str, Any]]:
    for number in range(WORDS):
        delta = {"role": "assistant", "content": f"word{number} "}
        finish = "stop" if number == WORDS - 1 else None
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        yield {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
        time.sleep(PER_WORD_S)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    key = os.environ.get("VLLM_API_KEY", "")
    fault = ""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(503 if self.fault == "never_ready" else 200, {})
        elif not self.is_known():
            self.reply(401, {"error": "Unauthorized"})
        else:
            self.reply(405, {"detail": "Method Not Allowed"})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        if not self.is_known():
            self.reply(401, {"error": "Unauthorized"})
            return
        if POISON.encode() in raw:
            os.kill(os.getpid(), signal.SIGKILL)
        body = json.loads(raw)
        usage = {"prompt_tokens": 5, "completion_tokens": WORDS, "total_tokens": 5 + WORDS}
        if self.path != "/v1/chat/completions":
            self.reply(200, {"choices": [] if self.fault == "mute" else [{"text": "x"}]})
        elif body.get("stream"):
            self.stream(body["model"], usage)
        else:
            text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks(body["model"]))
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
            self.reply(200, {**whole, "choices": [choice], "usage": usage})

    def is_known(self) -> bool:
        return self.headers.get("authorization", "") == f"Bearer {self.key}"

    def stream(self, model: str, usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for chunk in chunks(model):
            self.event(json.dumps(chunk))
        self.event(
            json.dumps(
                {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": []}
                | {"usage": usage}
            )
        )
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no news."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args()
    Handler.fault = taken_fault(Path(os.environ["FAULTS"]))
    if Handler.fault == "port_taken":
        sys.exit("[Errno 98] address already in use")
    print(f"listening at {options.host}:{options.port}", flush=True)  # noqa: T201  # engines talk to the job's log
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
