"""What a tribunal is worth, with members whose accuracy is a stated input, through the whole gateway over real sockets.

    python -m bench.tribunal_eval [--trials 400] [--quick] [--json FILE] [--plot FILE.svg]

A gateway process stands before an engine process with simulated members, critics and judges (tribunal_members.py). Each
arm asks so many questions; intervals are Wilson's, 95 %. Ends with status 1 where something is not as it must be: the
majority vote outside of its interval around the exact binomial value, an early exit that saves too little or loses
accuracy, a deliberation without an end, tokens that do not add up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import orjson
import uvloop

from .load import in_ms
from .processes import Process, free_port, term_is_exit
from .report import machine, shown, table
from .targets import find
from .tribunal_members import World, court, right_answer

AT_ONCE = 32
MEMBERS = 7
Z95 = 1.96
FAMILY_Z = 3.5
"""For what must hold: 16 cells at 95 % each would fail every second run by chance."""

TABLE = {0.4: (0.400, 0.352, 0.317, 0.290), 0.6: (0.600, 0.648, 0.683, 0.710), 0.7: (0.700, 0.784, 0.837, 0.874),
         0.8: (0.800, 0.896, 0.942, 0.967)}  # fmt: skip
"""Exact values of the majority vote of 1, 3, 5, 7 members."""
VOTERS = (1, 3, 5, 7)

ESTIMATED = ("stalls", "chaos", "failing")
"""Here children end without a word on their tokens, and what they may have used is counted."""

WORLDS = {
    **{f"p{round(p * 100)}": World((p,)) for p in TABLE},
    "uneven": World((0.85, 0.6, 0.6)),
    "even": World((0.8, 0.7, 0.7)),
    "differ": World((0.8,), agree=0.0),
    "alike": World((0.8,), correlation=0.6),
    "critics": World((0.6,), critic=0.85),
    "deceived": World((0.8,), critic=0.85, deceiver="m3", persuaded=0.5),
    "honest": World((0.8,), critic=0.85),
    "stalls": World((0.8,), latency_s=0.05, stall_s=3.0, stalling=0.04),
    "failing": World((0.8,), failing=0.25, mute=0.1, critic=0.85),
    "chaos": World((0.8,), failing=0.3, mute=0.1, stalling=0.05, stall_s=30.0, latency_s=0.02),
}


def profile(name: str, count: int, **keys: Any) -> str:
    members = ", ".join(f'"m{n}"' for n in range(1, count + 1))
    lines = [f"[tribunal.profiles.{name}]", f"members = [{keys.pop('members', members)}]", 'answer = "choice"']
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]) + "\n"


def configuration(port: int, engine_port: int, room: Path) -> str:
    models = "".join(
        f'[models.m{n}]\nengine = "vllm"\nurls = ["http://127.0.0.1:{engine_port}"]\nmax_in_flight = 2000\n'
        for n in range(1, MEMBERS + 1)
    )
    alone = {"rounds": 0, "quorum": 1, "verdict": "select", "hedge": False}
    weights = ", ".join(
        json.dumps({"model": f"m{n}", "weight": round(math.log(p / (1 - p)), 3)}).replace('": ', '" = ').replace(
            '"model" =', "model ="
        ).replace('"weight" =', "weight =")
        for n, p in enumerate((0.85, 0.6, 0.6), 1)
    )  # fmt: skip
    critics = {"verdict": "select", "judge": "m7", "hedge": False}
    return (
        f'state_dir = "{room / "state"}"\n[server]\nport = {port}\n[launcher]\nkind = "local"\n{models}'
        '[tribunal]\nmembers = ["m1", "m2", "m3"]\n'
        + "".join(profile(f"vote{n}", n, **alone) for n in VOTERS)
        + profile("weighted", 3, members=weights, **alone)
        + profile("full", 3, **critics, early_exit=False)
        + profile("early", 3, **critics)
        + profile("wave", 3, **critics, first_wave=2)
        + profile("unanimous", 3, **critics, agree=3)
        + profile("plain", 3, **{**critics, "hedge": False}, deadline_s=20)
        + profile("hedged", 3, **{**critics, "hedge": True}, deadline_s=20)
        + profile("chaos", 3, **critics, deadline_s=4, grace_s=0.5)
    )


# -- asking ----------------------------------------------------------------------------------------------------------


class Asker(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._whole: asyncio.Future[bytes] | None = None
        self.request_id = self.deliberation = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(ConnectionError("closed"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"x-request-id":
            self.request_id = value.decode()
        elif name == b"x-slurmgate-deliberation":
            self.deliberation = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._whole is not None:
            self._whole.set_result(bytes(self._body))

    async def ask(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        self._whole = asyncio.get_running_loop().create_future()
        self.transport.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        answer = await self._whole
        return self._parser.get_status_code(), answer


@dataclass
class Arm:
    """One profile in one world."""

    name: str
    world: str
    asked: int = 0
    right: int = 0
    failed: int = 0
    calls: int = 0
    seconds: list[float] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    usage: dict[str, tuple[int, int]] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    @property
    def accuracy(self) -> float:
        return self.right / self.asked

    @property
    def calls_each(self) -> float:
        return self.calls / self.asked

    def interval(self, z: float = Z95) -> tuple[float, float]:
        return wilson(self.right, self.asked, z)

    def cell(self) -> str:
        low, high = self.interval()
        return f"{self.accuracy:.3f} ({low:.3f} to {high:.3f})"


def wilson(right: int, asked: int, z: float) -> tuple[float, float]:
    """Interval of a proportion (E. B. Wilson, 1927)."""
    p, z2 = right / asked, z * z
    middle = (p + z2 / (2 * asked)) / (1 + z2 / asked)
    half = z / (1 + z2 / asked) * math.sqrt(p * (1 - p) / asked + z2 / (4 * asked * asked))
    return middle - half, middle + half


class Site:
    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self._head = f"HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"

    async def arm(self, name: str, world: str, trials: int, *, at_once: int = AT_ONCE, from_: int = 0) -> Arm:
        """Ask the profile `name` so many questions of a world, and read what each deliberation did."""
        arm = Arm(name, world)
        numbers = iter(range(from_, from_ + trials))
        loop = asyncio.get_running_loop()

        async def client() -> None:
            _, asker = await loop.create_connection(Asker, "127.0.0.1", self.port)
            for number in numbers:
                await self._one(arm, asker, number)
            asker.transport.close()

        await asyncio.gather(*(client() for _ in range(min(at_once, trials))))
        return arm

    async def _one(self, arm: Arm, asker: Asker, number: int) -> None:
        text = f"World {arm.world}, question {number}.\nA) one\nB) two\nC) three\nD) four\nAnswer with a letter."
        body = orjson.dumps({"model": f"tribunal/{arm.name}", "messages": [{"role": "user", "content": text}]})
        loop = asyncio.get_running_loop()
        began = loop.time()
        status, answer = await asker.ask(
            f"POST /v1/chat/completions {self._head}content-type: application/json\r\n", body
        )
        arm.seconds.append(loop.time() - began)
        arm.asked += 1
        request_id = asker.request_id
        if status == 200:
            said = orjson.loads(answer)
            arm.right += said["choices"][0]["message"]["content"] == right_answer(arm.world, number)
            usage = said["usage"]
            arm.usage[request_id] = usage["prompt_tokens"], usage["completion_tokens"]
        else:
            arm.failed += 1
        for _ in range(50):  # it is written a moment after its answer
            found, trace = await asker.ask(f"GET /v1/tribunal/deliberations/{asker.deliberation} {self._head}")
            if found == 200:
                told = orjson.loads(trace)
                arm.calls += len(told["calls"])
                arm.endings[told["degraded"] or told["outcome"]] += 1
                if any(call["outcome"] != "replied" for call in told["calls"]):
                    arm.cancelled.add(request_id)
                return
            await asyncio.sleep(0.02)
        raise RuntimeError(f"no trace of {asker.deliberation}")


# -- the arms --------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    arms: dict[str, Arm]
    wrong: list[str]

    def must(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


async def everything(site: Site, trials: int) -> Found:
    found = Found({}, [])

    async def run(name: str, world: str, count: int = trials, **keys: Any) -> Arm:
        found.arms[f"{name}/{world}"] = arm = await site.arm(name, world, count, **keys)
        return arm

    for p, exact in TABLE.items():
        for count, expected in zip(VOTERS, exact, strict=True):
            arm = await run(f"vote{count}", f"p{round(p * 100)}")
            low, high = arm.interval(FAMILY_Z)
            found.must(low <= expected <= high, f"majority of {count} at {p}: {arm.accuracy:.3f}, exact {expected:.3f}")
    for name, world in (("vote3", "uneven"), ("weighted", "uneven"), ("vote1", "uneven"), ("vote3", "even"),
                        ("vote1", "even"), ("vote3", "alike"), ("vote5", "alike")):  # fmt: skip
        await run(name, world)
    for world in ("p80", "differ", "critics", "honest", "deceived"):
        for name in ("full", "early", "wave", "unanimous"):
            await run(name, world)
    for world in ("differ", "critics", "honest", "deceived"):
        for name in ("vote1", "vote3", "vote7"):
            await run(name, world)
    # where those who are wrong differ, three asked at once save 45 %; two first, and the third if need be, more
    for world, name in (("p80", "early"), ("p80", "wave"), ("differ", "wave")):
        full, early = found.arms[f"full/{world}"], found.arms[f"{name}/{world}"]
        share = early.calls / full.calls
        found.must(share <= 0.55, f"early exit in {world}: {share:.1%} of the calls")
        found.must(early.interval()[1] >= full.accuracy, f"early exit in {world} loses accuracy")
    await run("plain", "stalls", max(40, trials // 2))
    await run("hedged", "stalls", max(40, trials // 2))
    await run("chaos", "failing")
    chaos = await run("chaos", "chaos", max(128, trials), at_once=128)
    found.must(max(chaos.seconds) < 30, f"a deliberation took {max(chaos.seconds):.0f} s")
    return found


def balanced(found: Found, books: dict[str, list[int]], running: int) -> str:
    """Whether what each client was told is what its children's engine said. Of a child that was cancelled or has failed
    the gateway may not have heard what the engine has counted: then it may be less, never more."""
    same = less = 0
    for arm in found.arms.values():
        for request_id, told in arm.usage.items():
            counted = tuple(books.get(request_id, (0, 0)))
            same += told == counted
            less += told != counted
            if request_id not in arm.cancelled:
                found.must(told == counted, f"usage of {request_id}, {arm.name} in {arm.world}: {told}, not {counted}")
            elif told[0] > counted[0] or told[1] > counted[1]:
                found.must(arm.world in ESTIMATED, f"usage of {request_id}: {told}, more than {counted}")
    found.must(running == 0, f"{running} children run on after the last answer")
    return (
        f"usage: in {same} deliberations the engine counted what the client was told; in {less}, all with children "
        f"that were cancelled or failed, something else. {running} children left running."
    )


def report(found: Found, books: str) -> str:
    arms = found.arms
    vote = [["accuracy of one", *(f"{n} votes" for n in VOTERS), "exact"]]
    for p, exact in TABLE.items():
        cells = [arms[f"vote{n}/p{round(p * 100)}"].cell() for n in VOTERS]
        vote.append([f"{p}", *cells, " ".join(f"{x:.3f}" for x in exact)])
    rows = [["world", "profile", "accuracy (95 %)", "calls", "p50 ms", "p99 ms", "failed", "how they ended"]]
    for key, arm in arms.items():
        if key.startswith("vote") and arm.world.startswith("p"):
            continue
        endings = ", ".join(f"{name} {count / arm.asked:.0%}" for name, count in arm.endings.most_common(4))
        p50, p99 = (shown(in_ms(arm.seconds, q), 0) for q in (0.5, 0.99))
        rows.append([arm.world, arm.name, arm.cell(), shown(arm.calls_each, 2), p50, p99, str(arm.failed), endings])
    verdict = "\n".join(f"not as it must be: {what}" for what in found.wrong) or "all as it must be"
    return f"{machine()}\n\n{table(vote)}\n\n{table(rows)}\n\n{books}\n{verdict}"


def plot(found: Found, path: Path) -> None:
    """Accuracy against calls, a panel for each kind of world."""
    import matplotlib as mpl  # noqa: PLC0415  # an optional extra

    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    worlds = ("p80", "differ", "critics", "deceived")
    titles = (
        "members 0.8, wrong ones agree",
        "members 0.8, wrong ones differ",
        "members 0.6, critics 0.85",
        "one deceives",
    )
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True)
    for axis, world, title in zip(axes, worlds, titles, strict=True):
        for arm in found.arms.values():
            if arm.world == world:
                low, high = arm.interval()
                bars = [[max(0.0, arm.accuracy - low)], [max(0.0, high - arm.accuracy)]]
                axis.errorbar([arm.calls_each], [arm.accuracy], yerr=bars, fmt="o", capsize=2)
                axis.annotate(
                    arm.name, (arm.calls_each, arm.accuracy), xytext=(4, 4), textcoords="offset points", size=7
                )
        axis.set_title(title, size=9)
        axis.set_xlabel("calls")
    axes[0].set_ylabel("accuracy")
    figure.tight_layout()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400, help="questions of each arm (400)")
    parser.add_argument("--quick", action="store_true", help="a look: 60 of each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args(arguments)
    program = find("slurmgate", "SLURMGATE")
    if program is None:
        raise SystemExit("slurmgate is not installed")
    spawning = multiprocessing.get_context("spawn")  # a fork would copy the locks of whoever calls this
    ours, theirs = spawning.Pipe()
    engine_port = free_port()
    process = spawning.Process(target=court, args=(engine_port, WORLDS, theirs), daemon=True)
    process.start()
    ours.recv()
    with tempfile.TemporaryDirectory() as directory, term_is_exit():
        room = Path(directory)
        config, port = room / "config.toml", free_port()
        config.write_text(configuration(port, engine_port, room))
        key = subprocess.run(
            [program, "keys", "create", "bench", "--config", str(config)], capture_output=True, text=True, check=True
        ).stdout.strip()
        with Process("slurmgate", [program, "serve", "--config", str(config)], port, room / "log"):
            found = uvloop.run(everything(Site(port, key), 60 if given.quick else given.trials))
            ours.send("end")
            books, running = ours.recv()
    process.join()
    print(report(found, balanced(found, books, running)))
    if given.json is not None:
        arms = [
            {"name": arm.name, "world": arm.world, "asked": arm.asked, "right": arm.right, "failed": arm.failed,
             "calls": arm.calls, "endings": dict(arm.endings)}
            for arm in found.arms.values()
        ]  # fmt: skip
        given.json.write_text(json.dumps({"arms": arms, "wrong": found.wrong}, indent=1))
    if given.plot is not None:
        with suppress(ImportError):
            plot(found, given.plot)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
