"""A real Slurm cluster on this machine, for tests: up in under a second, needs root (acceptance/slurm_cluster.sh)."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "acceptance" / "slurm_cluster.sh"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "unshare")
ACCOUNTING = ("slurmdbd", "mariadbd")
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
_SLOTS = 1000


def slurm_unavailable_reason(*, accounting: bool = False) -> str | None:
    """Why no Slurm cluster (with accounting) can be booted here; None where one can."""
    if os.geteuid() != 0:
        return "a Slurm cluster on this machine needs root"
    needed = PROGRAMS + (ACCOUNTING if accounting else ())
    missing = [name for name in needed if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: run `SLURMLAB_DBD=1 {SCRIPT.name} install` (as `make test` does)"
    unshare = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, text=True, check=False)
    if unshare.returncode != 0:
        return f"no namespaces for the nodes: {unshare.stderr.strip()}"
    return None


def require_slurm(*, accounting: bool = False) -> None:
    """Skip the test where there can be no Slurm; fail it there in CI, where a silent skip would look like success."""
    reason = slurm_unavailable_reason(accounting=accounting)
    if reason is None:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class SlurmLab:
    """One booted cluster. Several can run side by side: each has a slot, which gives its ports and addresses.

    directory   its state; `slurm.conf` is under etc/
    nodes       node name -> its loopback address
    """

    def __init__(self, directory: Path, slot: int, nodes: int, knobs: dict[str, str]) -> None:
        net = f"127.{71 + slot // 250}.{1 + slot % 250}"
        self.directory = directory
        self.nodes = {f"n{i}": f"{net}.{i}" for i in range(1, nodes + 1)}
        self._knobs = {
            "SLURMLAB_DIR": str(directory),
            "SLURMLAB_PORT": str(_port_base(slot)),
            "SLURMLAB_NET": net,
            "SLURMLAB_NODES": str(nodes),
            **knobs,
        }
        # ends the daemons at the end of its stdin: also when this process is killed
        self._guard = subprocess.Popen(
            [str(SCRIPT), "guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment(),
            start_new_session=True,
        )

    @classmethod
    def start(cls, *, nodes: int = 4, dbd: bool = False, conf: str = "", **knobs: str) -> SlurmLab:
        """Boot a cluster. `conf`: more lines of slurm.conf. `knobs`: as the script's, such as GPUS="2"."""
        slot, directory = _reserve()
        extra = {f"SLURMLAB_{key}": value for key, value in knobs.items()}
        lab = cls(directory, slot, nodes, {"SLURMLAB_DBD": str(int(dbd)), "SLURMLAB_EXTRA": conf, **extra})
        try:
            lab.script("up")
        except BaseException:
            lab.stop()
            raise
        return lab

    def stop(self) -> None:
        """Cancel what runs, end every daemon, delete the state."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        self._guard.wait(timeout=60)

    def env(self) -> dict[str, str]:
        """The environment of a process that uses this cluster: ours, but for Slurm's own variables."""
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SQUEUE", "SCANCEL", "SACCT"))
        }
        return {**kept, "PATH": _PATH, "LC_ALL": "C", "SLURM_CONF": str(self.conf)}

    @property
    def conf(self) -> Path:
        return self.directory / "etc" / "slurm.conf"

    def run(self, *argv: str, stdin: str = "", timeout_s: float = 30.0, check: bool = True) -> str:
        """A command's stdout, such as `run("squeue", "-h")`. Raises `CalledProcessError` with its stderr."""
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, env=self.env(), timeout=timeout_s, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} -> {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def script(self, *arguments: str) -> None:
        """A verb of slurm_cluster.sh."""
        done = subprocess.run(
            [str(SCRIPT), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment(),
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{SCRIPT.name} {' '.join(arguments)} -> {done.returncode}: {done.stderr.strip()}")

    def _environment(self) -> dict[str, str]:
        return {"PATH": _PATH, "HOME": os.environ.get("HOME", "/root"), **self._knobs}

    def state(self, job_id: str) -> str:
        """A job's state word, "" where squeue does not know it."""
        return self.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T", check=False).strip()

    def cancel_all(self) -> None:
        """Cancel every job of every test, and wait until nothing of them is left."""
        self.run("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 20
        while self.run("squeue", "-h", "-t", "PD,R,S,CG,CF", "-o", "%i").strip():
            if time.monotonic() > deadline:
                raise AssertionError("jobs do not end: " + self.run("squeue"))
            time.sleep(0.05)

    # -- faults -------------------------------------------------------------------------------------------------------

    def controller_stop(self) -> None:
        self.script("ctld-stop")

    def controller_start(self) -> None:
        self.script("ctld-start")

    @contextmanager
    def controller_stopped(self) -> Iterator[None]:
        """No controller: connections are refused."""
        self.script("ctld-stop")
        try:
            yield
        finally:
            self.script("ctld-start")

    @contextmanager
    def controller_frozen(self) -> Iterator[None]:
        """A controller that takes connections and says nothing."""
        self.script("ctld-freeze")
        try:
            yield
        finally:
            self.script("ctld-thaw")

    def node_kill(self, node: str) -> None:
        """Power loss: the node's daemon and everything that ran there."""
        self.script("node-kill", node)

    def node_stop(self, node: str) -> None:
        """The node's daemon ends; its jobs go on, and soon count as lost."""
        self.script("node-stop", node)

    def node_start(self, node: str) -> None:
        self.script("node-start", node)

    def node_freeze(self, node: str) -> None:
        """The node's daemon says nothing; its jobs go on and their servers answer."""
        self.script("node-freeze", node)

    def node_thaw(self, node: str) -> None:
        self.script("node-thaw", node)

    def accounting_stop(self) -> None:
        self.script("dbd-stop")

    def accounting_start(self) -> None:
        self.script("dbd-start")


def _port_base(slot: int) -> int:
    """Four ports for each slot, below those that the kernel gives to clients (32768 and up)."""
    return 20000 + 10 * slot


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _reserve() -> tuple[int, Path]:
    """A slot of our own. Its directory is its lock: to make it is atomic, and it goes when the cluster goes.

    Under /tmp, whatever TMPDIR says: with a longer path the daemons' socket names would not fit (108 bytes).
    """
    first = random.randrange(_SLOTS)
    for slot in (n % _SLOTS for n in range(first, first + 50)):
        directory = Path(f"/tmp/slurmgate-lab-{slot}")  # noqa: S108 - see above
        if not all(_is_free(_port_base(slot) + i) for i in range(4)):
            continue
        with suppress(FileExistsError):
            directory.mkdir(mode=0o755)
            return slot, directory
    raise AssertionError("no free slot for a Slurm cluster: remove stale /tmp/slurmgate-lab-*")


def _session_lab(*, nodes: int, accounting: bool) -> Iterator[SlurmLab]:
    require_slurm(accounting=accounting)
    lab = SlurmLab.start(nodes=nodes, dbd=accounting)
    try:
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[SlurmLab]:
    """One cluster for all tests that ask for it: 4 nodes with 4 GPUs, partitions gpu, preempt, short; no accounting."""
    yield from _session_lab(nodes=4, accounting=False)


@pytest.fixture(scope="session")
def slurm_accounting_lab() -> Iterator[SlurmLab]:
    """Another, of 2 nodes, with slurmdbd: sacct, accounts, the QOS `tiny` (3 jobs a user). Takes 6 s to boot."""
    yield from _session_lab(nodes=2, accounting=True)


async def until(
    condition: Callable[[], Awaitable[object]], *, timeout_s: float = 15.0, what: str = "", every_s: float = 0.05
) -> None:
    """Wait until the condition holds; fail the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        await asyncio.sleep(every_s)
