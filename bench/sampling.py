"""`--profile`: where the gateway's time goes. py-spy samples it under the same load, once plain, once streamed.

Native frames are sampled too, so that the kernel, the event loop and the parsers stand apart from our own modules.
A sample counts for the room of its innermost frame that says something: a `free` in libc counts for who called it.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .load import chat_request, measure
from .mock_engine import MODEL
from .report import table
from .targets import NotInstalled, Target, find

SECONDS = 12
_RATE = 250

_FRAME = re.compile(r"(?P<name>.*) \((?P<file>[^()]*?)(?::\d+)?\)")

_SYSCALLS = {
    "write to sockets and files": {"write", "writev", "send", "sendto", "sendmsg", "__write", "__send"},
    "read from sockets": {"read", "recv", "recvfrom", "recvmsg", "__read", "__recv"},
    "watch sockets": {"epoll_ctl"},
    "open and close sockets": {"close", "accept", "accept4", "connect", "socket", "shutdown", "setsockopt"},
    "write the database through": {"fsync", "fdatasync", "pread64", "pwrite64", "fcntl64"},
}
_UVLOOP = r"loop|core|linux|stream|tcp|udp|timer|poll|async|loop-watcher|uv-common|queue|heap-inl"
_NATIVE = (
    ("event loop: uvloop, libuv", re.compile(rf"^({_UVLOOP})\.[ch]$")),
    ("HTTP parser: httptools, llhttp", re.compile(r"^(parser|llhttp|api|http|url_parser)\.[ch]$")),
    ("JSON: orjson", re.compile(r"orjson")),
    ("database: SQLite", re.compile(r"sqlite")),
    ("tasks and futures: asyncio", re.compile(r"^_asynciomodule\.c(\.h)?$")),
)
_OURS = ("proxy", "backends", "slurm_launcher", "tribunal")
_RESTING = re.compile(
    r"(^|;)(wait \(threading\.py|_worker \(concurrent/futures/thread\.py|_queue_SimpleQueue_get)[^;]*"
)
_LOCK = re.compile(r"PyThread_acquire_lock|pthread_cond_|futex|sem_")
_POLL = re.compile(r"epoll_p?wait \(.*libc")


def profile(target: Target, place: Path, *, connections: int, streams: int, events: int) -> None:
    """Print tables, and leave the stacks in `place` for a flame graph. Raises `NotInstalled`."""
    spy = find("py-spy")
    if spy is None:
        raise NotInstalled("py-spy: bench/install_peers.sh, or into an environment on PATH")
    place.mkdir(parents=True, exist_ok=True)
    for word, stream in (("plain", False), ("streamed", True)):
        request = chat_request(MODEL, target.key, stream=stream)
        at_once = streams if stream else connections
        file = place / f"{word}.stacks"
        command = [spy, "record", "--pid", str(target.pid), "--duration", str(SECONDS), "--rate", str(_RATE)]
        command += ["--native", "--function", "--format", "raw", "--output", str(file)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as sampler:
            begun = time.perf_counter()
            user = system = 0.0
            while sampler.poll() is None and time.perf_counter() - begun < SECONDS + 2:
                count = at_once * (2 if stream else 50)
                figures = measure(
                    target.port,
                    target.pid,
                    request,
                    connections=at_once,
                    requests=count,
                    events=events if stream else 0,
                )
                user, system = user + figures.user_us, system + figures.system_us
            _, errors = sampler.communicate()
        if sampler.returncode or not file.exists():
            raise NotInstalled(f"py-spy could not sample: {errors.strip()}")
        stacks = parsed(file.read_text())
        kernel = system / (user + system) * 100 if user + system else 0.0
        print(f"\n{word}, {at_once} at once; stacks in {file}")
        print(f"{kernel:.0f} % of the CPU time is the kernel's (/proc/PID/stat)\n")
        print(table(by_room(stacks)) + "\n")
        print(table(by_function(stacks)))


def parsed(text: str) -> list[tuple[list[str], int]]:
    """Stacks and how often each was seen, without those of threads that rest: native sampling cannot tell.

    So what asking for events really takes is lost, a few percent under full load.
    """
    stacks = []
    for line in text.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        resting = _POLL.search(frames[-1]) or (
            _RESTING.search(stack) and any(_LOCK.search(frame) or "libc" in frame for frame in frames[-2:])
        )
        if stack and not resting:
            stacks.append((frames, int(number)))
    return stacks


def room_of(frames: Sequence[str]) -> str:
    """Of the innermost frame that belongs to one."""
    for frame in reversed(frames):
        match = _FRAME.fullmatch(frame)
        if match is None:
            continue
        name, file = match["name"], match["file"]
        if "libc" in file:
            for room, names in _SYSCALLS.items():
                if name in names:
                    return f"kernel: {room}"
            continue
        for room, pattern in _NATIVE:
            if pattern.search(file):
                return room
        if file.endswith(".py"):
            return python_room(file)
    return "the rest"


def python_room(file: str) -> str:
    """Ours by module, the others by package."""
    package, _, rest = file.partition("/")
    if package in _OURS:
        return file
    return f"Python: {package if rest else 'the standard library'}"


def function_of(frames: Sequence[str]) -> str:
    """The innermost frame that is Python's, or a system call: what C did for it counts for it."""
    for frame in reversed(frames):
        match = _FRAME.fullmatch(frame)
        if match is None:
            continue
        if "libc" in match["file"] and any(match["name"] in names for names in _SYSCALLS.values()):
            return f"{match['name']}()"
        if match["file"].endswith(".py"):
            return frame
    return "the rest"


def by_room(stacks: Sequence[tuple[Sequence[str], int]], least: float = 0.3) -> list[list[str]]:
    """Rows: each room's own share. Those under `least` percent are added up."""
    rooms: Counter[str] = Counter()
    for frames, number in stacks:
        rooms[room_of(frames)] += number
    total = sum(rooms.values()) or 1
    small = sum(number for number in rooms.values() if number / total * 100 < least)
    ours = sum(number for room, number in rooms.items() if room.partition("/")[0] in _OURS)
    kernel = sum(number for room, number in rooms.items() if room.startswith("kernel: "))
    rows = [["room", "alone %"]]
    rows += [[room, share(n, total)] for room, n in rooms.most_common() if n / total * 100 >= least]
    rows += [[f"under {least:g} % each", share(small, total)]]
    rows += [["all of ours", share(ours, total)], ["all of the kernel", share(kernel, total)]]
    return rows


def by_function(stacks: Sequence[tuple[Sequence[str], int]], count: int = 40) -> list[list[str]]:
    """Rows: functions by samples, alone (with the C that they call) and with what they call."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for frames, number in stacks:
        alone[function_of(frames)] += number
        for frame in set(frames):
            within[frame] += number
    total = sum(alone.values()) or 1
    rows = [["function", "alone %", "with callees %"]]
    rows += [
        [name, share(number, total), share(max(within[name], number), total)]
        for name, number in alone.most_common(count)
    ]
    return rows


def share(number: int, total: int) -> str:
    return f"{number / total * 100:.1f}"
