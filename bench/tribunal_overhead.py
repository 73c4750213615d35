"""What a tribunal costs beyond its models' own time, phase by phase.

    python -m bench.tribunal_overhead [--at-once 32] [--rounds 6] [--answer-ms 500] [--together]

A gateway process stands before an engine process whose every reply takes the same time. The engine writes down when
each child's request has arrived and when its reply has left; the client, when it asked and when its answer was there.
All on one machine, by one clock. So what lies between the end of one phase at the engine (its last reply has left) and
the beginning of the next (its last request has arrived), and at both ends between client and engine, is all that is not
the models' own: sockets, parsing, the plan, prompts, dispatch, accounting, and waiting for each other.

Every deliberation takes all steps: three drafts that differ, three critiques, a synthesis.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import httptools
import orjson
import uvloop

from .load import in_ms
from .processes import Process, cpu, free_port, term_is_exit
from .report import machine, shown, table
from .targets import find

PHASES = ("draft", "critique", "verdict")
GOAL_MS = 5.0
_LABELS = re.compile(r"\[[0-9a-f]{16} (C\d+)\]")


# -- the engine ------------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """Of each child, by its request's id: when its request had arrived, and when its reply left."""

    arrived: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)


class EngineConnection(asyncio.Protocol):
    def __init__(self, log: Log, answer_s: float) -> None:
        self._log = log
        self._answer_s = answer_s
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = bytearray()
        self._id = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"x-request-id":
            self._id = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        now = time.monotonic()
        if not self._body:  # after its limits, or its health
            self._transport.write(b"HTTP/1.1 404 X\r\ncontent-length: 2\r\n\r\n{}")
            return
        body, id = bytes(self._body), self._id
        self._body.clear()
        self._log.arrived[id] = now
        asyncio.get_running_loop().call_later(self._answer_s, self._reply, id, body)

    def _reply(self, id: str, body: bytes) -> None:
        asked = orjson.loads(body)
        self._transport.write(streamed(asked) if asked.get("stream") else whole(asked))
        self._log.left[id] = time.monotonic()


def said_to(asked: dict[str, object]) -> str:
    messages = asked["messages"]
    assert isinstance(messages, list)
    text = messages[-1]["content"]
    labels = list(dict.fromkeys(_LABELS.findall(text)))
    if "You review candidate answers" in text:
        scores = enumerate(labels)
        return json.dumps(
            {"candidates": [{"label": label, "fatal_errors": [], "evidence": "", "score": n} for n, label in scores]}
        )
    if "Write the final answer" in text:
        return "It was all of them, as far as anybody can tell."
    return f"It was model {asked['model']} that says so, and nobody else, for reasons of its own."


_USAGE = {"prompt_tokens": 20, "completion_tokens": 12, "total_tokens": 32}


def whole(asked: dict[str, object]) -> bytes:
    message = {"role": "assistant", "content": said_to(asked)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = orjson.dumps({"id": "x", "object": "chat.completion", "created": 1, "choices": [choice], "usage": _USAGE})
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def streamed(asked: dict[str, object]) -> bytes:
    """All at once: it is the end that counts."""
    events = []
    for word in said_to(asked).split(" "):
        choice = {"index": 0, "delta": {"content": word + " "}, "finish_reason": None}
        events.append({"id": "x", "object": "chat.completion.chunk", "created": 1, "choices": [choice]})
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    events.append({"id": "x", "object": "chat.completion.chunk", "created": 1, "choices": [end]})
    events.append({"id": "x", "object": "chat.completion.chunk", "created": 1, "choices": [], "usage": _USAGE})
    data = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events) + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


def engine(port: int, answer_s: float, pipe: Connection) -> None:
    """A process: tells when it listens; gives its log when it is told anything, and ends."""

    async def serve() -> Log:
        log = Log()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: EngineConnection(log, answer_s), "127.0.0.1", port, backlog=4096)
        pipe.send("listens")
        done = asyncio.Event()
        loop.add_reader(pipe.fileno(), done.set)
        await done.wait()
        loop.remove_reader(pipe.fileno())
        os.set_blocking(pipe.fileno(), True)  # the loop has changed that
        server.close()
        return log

    log = uvloop.run(serve())
    pipe.send((log.arrived, log.left))


# -- the client ------------------------------------------------------------------------------------------------------


async def ask(port: int, key: str, number: int) -> tuple[str, float, float]:
    """One deliberation -> its request's id, when it was asked, when its answer was there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    question = {"role": "user", "content": f"Which of them was it, in case {number}, and how can one know?"}
    body = orjson.dumps({"model": "tribunal", "messages": [question], "stream": True})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}"
    )
    writer.write(head.encode() + b"\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" + body)
    asked = time.monotonic()
    data = await reader.read()
    ended = time.monotonic()
    writer.close()
    found = re.search(rb"x-request-id: (\S+)", data)
    if found is None or b"[DONE]" not in data:
        raise RuntimeError(f"no answer: {data[-500:]!r}")
    return found[1].decode(), asked, ended


async def rounds(port: int, key: str, at_once: int, count: int, pause_s: float) -> list[tuple[str, float, float]]:
    """So many in flight all the time, each client asking again at once; they begin evenly over `pause_s`."""

    async def client(number: int) -> list[tuple[str, float, float]]:
        await asyncio.sleep(pause_s * number / at_once)
        await ask(port, key, number)  # connections, imports
        return [await ask(port, key, number) for _ in range(count)]

    return [one for found in await asyncio.gather(*map(client, range(at_once))) for one in found]


# -- what comes of it ------------------------------------------------------------------------------------------------


def beyond(
    asked: Sequence[tuple[str, float, float]], arrived: dict[str, float], left: dict[str, float]
) -> Iterator[tuple[str, float]]:
    """(between what, seconds) of each deliberation."""
    children: dict[str, list[str]] = defaultdict(list)
    for id in arrived:
        children[id.rsplit("-", 1)[0]].append(id)
    for request, began, ended in asked:
        mine = sorted(children[request], key=lambda id: int(id.rsplit("-", 1)[1]))
        if len(mine) != 7:
            raise RuntimeError(f"{len(mine)} calls instead of 7")
        phases = [mine[:3], mine[3:6], mine[6:]]
        since = began
        for name, phase in zip(("client -> draft", "draft -> critique", "critique -> verdict"), phases, strict=True):
            yield name, max(arrived[id] for id in phase) - since
            since = max(left[id] for id in phase)
        yield "verdict -> client", ended - since


def report(gaps: dict[str, list[float]], at_once: int) -> str:
    rows = [["beyond the models' own time", "p50 ms", "p90 ms", "p99 ms", "mean ms"]]
    for name, seconds in gaps.items():
        mean_ms = sum(seconds) / len(seconds) * 1e3
        rows.append([name, *(shown(in_ms(seconds, q), 2) for q in (0.5, 0.9, 0.99)), shown(mean_ms, 2)])
    return f"{machine()}\n{at_once} deliberations at once, 3 members, 7 calls each\n\n{table(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--answer-ms", type=float, default=500.0)
    parser.add_argument("--together", action="store_true", help="All begin in the same moment: the worst case.")
    given = parser.parse_args()
    program = find("slurmgate", "SLURMGATE")
    if program is None:
        raise SystemExit("slurmgate is not installed")
    ours, theirs = multiprocessing.Pipe()
    engine_port = free_port()
    process = multiprocessing.Process(target=engine, args=(engine_port, given.answer_ms / 1e3, theirs), daemon=True)
    process.start()
    ours.recv()
    with tempfile.TemporaryDirectory() as directory, term_is_exit():
        room = Path(directory)
        config, port = room / "config.toml", free_port()
        config.write_text(configuration(port, engine_port, room))
        key = subprocess.run(
            [program, "keys", "create", "bench", "--config", str(config)], capture_output=True, text=True, check=True
        ).stdout.strip()
        spread_s = 0.0 if given.together else 3 * given.answer_ms / 1e3
        with Process("slurmgate", [program, "serve", "--config", str(config)], port, room / "log") as gateway:
            before = cpu(gateway.pids)
            asked = uvloop.run(rounds(port, key, given.at_once, given.rounds, spread_s))
            used = cpu(gateway.pids) - before
    ours.send("end")
    arrived, left = ours.recv()
    process.join()
    gaps: dict[str, list[float]] = defaultdict(list)
    for name, seconds in beyond(asked, arrived, left):
        gaps[name].append(seconds)
    print(report(gaps, given.at_once))
    phases = sum(sum(seconds) for seconds in gaps.values()) / len(asked) / len(PHASES) * 1e3
    cpu_ms = used.total / (given.at_once * (given.rounds + 1)) * 1e3
    print(f"\nthe gateway's CPU: {cpu_ms:.2f} ms a deliberation, {cpu_ms / 8:.2f} ms for each of its 8 requests")
    print(f"a phase, on the average: {phases:.2f} ms (goal: under {GOAL_MS:g} ms)")
    sys.exit(phases >= GOAL_MS)


def configuration(port: int, engine_port: int, room: Path) -> str:
    models = "".join(
        f'[models.{name}]\nengine = "vllm"\nurls = ["http://127.0.0.1:{engine_port}"]\nmax_in_flight = 1000\n'
        for name in "abc"
    )
    return (
        f'state_dir = "{room / "state"}"\n[server]\nport = {port}\n[launcher]\nkind = "local"\n{models}'
        '[tribunal]\nmembers = ["a", "b", "c"]\njudge = "b"\nverdict = "synthesise"\nhedge = false\n'
    )


if __name__ == "__main__":
    main()
