"""Processes that we start: their port, their CPU time and memory as the kernel counts them, their end.

Only what was started here is ever signalled, each by its own process id.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class DidNotStart(Exception):
    """The process ended, or never listened. The message has the end of its log."""


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """The process and everything under it."""
    members = [pid]
    for member in members:
        with contextlib.suppress(OSError):
            for task in (_PROC / str(member) / "task").iterdir():
                members += map(int, (task / "children").read_text().split())
    return members


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds. `user` and `system` come in ticks of the kernel's clock (10 ms), `total` in nanoseconds."""

    total: float
    user: float
    system: float

    def __sub__(self, before: Cpu) -> Cpu:
        return Cpu(self.total - before.total, self.user - before.user, self.system - before.system)


def cpu(pids: Sequence[int]) -> Cpu:
    """What all threads took. Threads that ended are not in `total`, so ask before and after, not after the end."""
    total, user, system = 0, 0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in (_PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError):
                    total += int((task / "schedstat").read_text().split()[0])
            ticks = cpu_ticks((_PROC / str(pid) / "stat").read_text())
            user, system = user + ticks[0], system + ticks[1]
    return Cpu(total / 1e9, user / _TICKS_PER_S, system / _TICKS_PER_S)


def cpu_ticks(stat: str) -> tuple[int, int]:
    """`utime` and `stime` of a line of /proc/PID/stat (proc(5)), whose second field may hold blanks and brackets."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return int(fields[11]), int(fields[12])


def open_files(pid: int) -> int:
    """How many file descriptors the process holds."""
    return len(os.listdir(_PROC / str(pid) / "fd"))


def allow_many_files() -> None:
    """Raise our limit of open files, and so that of everything started from now on: a stream takes two in a proxy."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 65536 if most == resource.RLIM_INFINITY else min(most, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))


def memory_mb(pids: Sequence[int]) -> float:
    """Resident memory, in MiB. Pages that processes share are counted in each."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    kib += int(line.split()[1])
    return kib / 1024


class Process:
    """A server of ours on a port of loopback: `with Process(...) as process`.

    name        for messages
    log         where its output goes
    patience_s  how long it may take until it listens
    start_s     after `__enter__`: from its start until it accepted a connection
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self.name = name
        self.port = port
        self.log = log
        self.start_s = float("nan")
        self._patience_s = patience_s
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Process:
        begun = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
            )
        try:
            self._wait_for_port(begun + self._patience_s)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.perf_counter() - begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        return family(self.pid)

    def stop(self) -> None:
        """TERM, and KILL after ten seconds."""
        members = self.pids
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            for pid in members[1:]:  # a killed master leaves its workers
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _wait_for_port(self, deadline: float) -> None:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None:
                raise DidNotStart(f"{self.name} ended with status {self._process.returncode}:\n{self.log_tail()}")
            if time.perf_counter() > deadline:
                raise DidNotStart(f"{self.name} does not listen on its port:\n{self.log_tail()}")
            time.sleep(0.005)

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def term_is_exit() -> Iterator[None]:
    """While in it, SIGTERM unwinds the stack, so that everything started is stopped."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
