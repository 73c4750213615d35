"""Something that is loaded: what is known of it, how its program is found, and when it counts as started.

peers.py says what there is.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .load import chat_request
from .mock_engine import MODEL
from .processes import DidNotStart, Process, free_port, memory_mb

VENV = Path(".venv-bench") / "bin"


class NotInstalled(Exception):
    """The message says how to install it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that runs and answers.

    pid       None where no process stands between client and engine
    key       what clients send
    share     of the plain requests that it gets: 1, or less where all of them would take for ever
    at_once   the same for connections, and so for streams, which have one each
    start_s   from the start of its command until it accepted a connection
    answer_s  until it had answered a first chat request
    rest_mb   resident memory after that one answer
    """

    name: str
    port: int
    pid: int | None = None
    key: str = "sk-none"
    share: float = 1.0
    at_once: float = 1.0
    start_s: float = float("nan")
    answer_s: float = float("nan")
    rest_mb: float = float("nan")


def scaled(number: int, share: float) -> int:
    """A part of a load, at least one."""
    return max(1, round(number * share))


def find(program: str, variable: str | None = None) -> str | None:
    """A program's path: an environment variable, next to our Python, PATH, `.venv-bench`."""
    given = os.environ.get(variable) if variable else None
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"))
    return given or shutil.which(program, path=places) or shutil.which(program, path=str(VENV))


def running(process: Process, key: str = "sk-none", *, share: float = 1.0, at_once: float = 1.0) -> Target:
    """The target in a process that listens. Raises `DidNotStart` when it gives no answer."""
    waited = first_answer(process, key)
    time.sleep(0.3)  # what it does right after its start shall not be taken for rest
    return Target(
        name=process.name,
        port=process.port,
        pid=process.pid,
        key=key,
        share=share,
        at_once=at_once,
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
def engine(
    room: Path, chunks: int, interval_ms: float, *, answer_ms: float = 0.0, backlog: int = 4096
) -> Iterator[Process]:
    """A mock engine; in a comparison, the one that all of them ask."""
    port = free_port()
    options = ["--chunks", str(chunks), "--interval-ms", str(interval_ms)]
    options += ["--answer-ms", str(answer_ms), "--backlog", str(backlog)]
    command = [sys.executable, "-m", "bench.mock_engine", str(port), *options]
    with Process("mock engine", command, port, room / f"engine-{port}.log") as process:
        yield process
