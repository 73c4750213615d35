"""An engine's process and its container on one node: what only the node knows, the start, the end, nothing left behind.

It is carried in front of agent.py in every script (written for Python 3.6, standard library only). An engine on one
node is the agent's child. Over several nodes it is a step: the agent starts `srun`, and on each node this file runs by
itself (`run_on_node`), the program that srun's stdin brings. That stdin stays open as long as the agent wants the
engine; its end, which comes when the agent has died as well, ends the engine on every node.

Placeholders of a node, beside those that the agent fills for all nodes ({host}, {port}, {head}, {tmp}, ...):

    {node}       its address                              {rank}   its number in the step, 0 on the agent's node
    {uid} {gid}  whose job it is                          {gpus}   the job's GPUs here by their numbers: `0,1`, or `all`
    {gpu}        a word that holds it is repeated for each of them
    {container}  a name for the container: it says who started it, so that a later agent on this node sees whether that
                 one is still alive, and removes what it could not (`remove_leftovers`)

Why names and not Slurm: podman's conmon and docker's daemon take a container out of its job, so scancel does not end
it; and an agent that is killed cannot. A process of this node is asked for by its number and its time of start, which
needs no controller, cannot be fooled by a number that is used again, and stays right when Slurm is away.
"""

import collections
import ctypes
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys  # noqa: F401  # for the lines that follow this file where it is carried
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from slurm_launcher.local_copy import (
    localised,
)

KILL_AFTER_S = 5.0  # after TERM to the engine
STEP_ENDS_S = 8.0  # what a step may take longer than its engines: their containers go, Slurm tells us
CONTAINER_S = 10.0  # for a command of a container runtime
OWN_SIGNAL_S = 0.3  # scancel signals engine and agent together: an engine that went quietly may have been first

OWNER = ".owner"  # in a private directory: whose it is

PR_SET_PDEATHSIG = 1  # prctl(2)
PR_SET_CHILD_SUBREAPER = 36

Places = Dict[str, Any]


# -- what only the node knows -----------------------------------------------------------------------------------------


def places_here(shared: Places, replica: str) -> Places:
    """The placeholders of this node, added to those that all nodes share."""
    node = node_name()
    gpus = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS") or ""
    return dict(
        shared,
        node=resolve(node) or resolve(socket.gethostname()) or shared["head"],
        rank=int(os.environ.get("SLURM_PROCID") or 0),
        uid=os.getuid(),
        gid=os.getgid(),
        gpus=gpus if re.match(r"^\d+(,\d+)*$", gpus) else "all",
        container=own_name(replica),
    )


def own_name(replica: str) -> str:
    """A name for what this process makes: it says whose that is (`is_leftover`)."""
    node = plain(node_name()).replace("_", "-")
    return "slurmgate_{}_{}_{}_{}".format(plain(replica), node, os.getpid(), started_at(os.getpid()))


def plain(name: str) -> str:
    """With what the names of containers may hold."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def resolve(name: str) -> Optional[str]:
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except (OSError, UnicodeError):
        return None


def fill(text: str, places: Places) -> str:
    """Placeholders -> values. Not `format`: arguments may hold JSON."""
    for name, value in places.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def fill_all(words: List[str], places: Places) -> List[str]:
    """A command line with its values in."""
    filled = []
    for word in words:
        each = str(places.get("gpus", "")).split(",") if "{gpu}" in word else [""]
        filled += [fill(word.replace("{gpu}", gpu), places) for gpu in each]
    return filled


def environment_of(plan: Dict[str, Any], places: Places) -> Dict[str, str]:
    """The engine's whole environment: the job's, and over it the plan's. Some tools need USER, which a job may lack."""
    environment = dict(os.environ)
    if "USER" not in environment:
        try:
            environment["USER"] = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            environment["USER"] = str(os.getuid())
    environment.update({name: fill(value, places) for name, value in plan["environment"].items()})
    return environment


def write_files(plan: Dict[str, Any], places: Places) -> None:
    """The plan's files, for this user's eyes only. Raises OSError."""
    for path, text in plan["files"].items():
        descriptor = os.open(fill(path, places), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(fill(text, places))


# -- containers that outlive their processes --------------------------------------------------------------------------


class Container:
    """What a runtime with a daemon of its own leaves behind. `plan`: its commands, None where nothing can be left."""

    def __init__(self, plan: Optional[Dict[str, List[str]]], places: Places, environment: Dict[str, str]) -> None:
        self._plan = plan
        self._places = places
        self._environment = environment

    def remove(self) -> None:
        """This replica's own, if there is one."""
        if self._plan is not None:
            self._run(fill_all([*self._plan["remove"], "{container}"], self._places))

    def remove_leftovers(self, say: Callable[[str], None]) -> None:
        """Those of agents of this user on this node that are no more."""
        if self._plan is None:
            return
        listed = self._run(fill_all(self._plan["list"], self._places)).split()
        left = [name for name in listed if is_leftover(name)]
        if left:
            say("removing containers that earlier jobs have left: {}".format(" ".join(left)))
            self._run(fill_all(self._plan["remove"], self._places) + left)

    def _run(self, argv: List[str]) -> str:
        """The command's output, "" where it fails: what cannot be removed must not keep an engine from starting."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                timeout=CONTAINER_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.decode("utf-8", "replace")


def is_leftover(name: str) -> bool:
    """Whether a name (`own_name`) is of a process of this node that does not live any more."""
    parts = name.rsplit("_", 3)
    if len(parts) != 4 or not parts[0].startswith("slurmgate_") or not parts[2].isdigit():
        return False
    return parts[1] == plain(node_name()).replace("_", "-") and started_at(int(parts[2])) != parts[3]


def started_at(pid: int) -> str:
    """When a process began, in clock ticks since the node's start (proc(5)); "" for one that is not there."""
    try:
        with open("/proc/{}/stat".format(pid), "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        return ""


# -- processes --------------------------------------------------------------------------------------------------------


class Process:
    """An engine's process, in a process group of its own; the kernel kills it with us."""

    def __init__(
        self, argv: List[str], environment: Dict[str, str], stdout: Optional[int] = None, held: Optional[bytes] = None
    ) -> None:
        """`held`: what it reads from stdin, which then stays open. Raises OSError where it cannot be started."""
        parent = os.getpid()
        libc = c_library()

        def in_child() -> None:
            os.setpgid(0, 0)
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it was killed before the line above
                os._exit(1)

        self.process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL if held is None else subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout is not None else None,
            preexec_fn=in_child,  # noqa: PLW1509  # it takes no locks
        )
        self.pid = self.process.pid
        self.status: Optional[int] = None
        self.lifeline = self.process.stdin
        if self.lifeline is not None and held is not None:
            try:
                self.lifeline.write(held)
                self.lifeline.flush()
            except OSError:
                pass  # it has ended, and will be found so

    def reap(self) -> bool:
        """Bury ended children, grandchildren that became ours included. Returns whether the engine has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self.pid:
                self.status = status
                self.process.returncode = 0  # so that subprocess does not look for it
        return self.status is not None

    def went_quietly(self) -> bool:
        """As an engine does that was told to: by TERM, or with a status that says so."""
        status = self.status or 0
        if os.WIFSIGNALED(status):
            return os.WTERMSIG(status) == signal.SIGTERM
        return os.WEXITSTATUS(status) in (0, 128 + signal.SIGTERM)

    def how_it_ended(self) -> str:
        status = self.status or 0
        if not os.WIFSIGNALED(status):
            return "exited with status {}".format(os.WEXITSTATUS(status))
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in list(signal.Signals) else "signal {}".format(number)
        hint = ", as the kernel does when memory runs out," if number == signal.SIGKILL else ""
        return "was killed by {}{}".format(name, hint)

    def end(self, hurry: Callable[[], bool], container: Container) -> None:
        """TERM to its group, KILL to whatever is left of its family after a while. Returns when all are gone."""
        if self.lifeline is not None:
            try:
                self.lifeline.close()  # a step: its nodes see to their engines
            except OSError:
                pass
            self._wait(KILL_AFTER_S + STEP_ENDS_S, hurry)
        if not self.reap():
            kill_group(self.pid, signal.SIGTERM)
            self._wait(KILL_AFTER_S, hurry)
            if not self.reap():
                kill_group(self.pid, signal.SIGKILL)
        container.remove()
        deadline = time.monotonic() + KILL_AFTER_S
        while time.monotonic() < deadline:
            family = descendants(os.getpid())
            if not family and self.reap():
                break
            for pid in family:
                kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            self.reap()

    def _wait(self, seconds: float, hurry: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not self.reap() and time.monotonic() < deadline and not hurry():
            time.sleep(0.02)


def c_library() -> Optional[Any]:
    """libc with prctl, or None where there is none."""
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "prctl") else None
    except (OSError, TypeError):
        return None


def become_subreaper() -> None:
    """Descendants whose parent ends become our children, so that none gets away."""
    libc = c_library()
    if libc is not None:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> List[int]:
    """All living processes below `root`."""
    children: Dict[int, List[int]] = collections.defaultdict(list)
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for pid in pids:
        try:
            with open("/proc/{}/stat".format(pid), "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields and fields[0] not in (b"Z", b"X"):
            children[int(fields[1])].append(pid)
    found: List[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass


def kill_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except OSError:
        pass


# -- one node of several ----------------------------------------------------------------------------------------------


def program_for_nodes(source: str, told: Dict[str, Any]) -> bytes:
    """What each node runs: this file, and what to do (`run_on_node`)."""
    return "{}\n\nsys.exit(run_on_node(json.loads({!r})))\n".format(source, json.dumps(told)).encode("ascii")


def run_on_node(told: Dict[str, Any]) -> int:
    """One node's part of an engine, from start to end. `told`: replica, places, and the plan without its secrets.

    Returns 0 when it was told to end, else not 0, so that srun ends the others as well.
    """
    terms: List[int] = []
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: terms.append(caught))
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake)
    become_subreaper()
    plan = told["plan"]
    places = places_here(told["places"], told["replica"])
    where = "{} (rank {})".format(node_name(), places["rank"])

    def say(text: str) -> None:
        print("slurmgate: {}: {}".format(where, text), flush=True)

    if plan.get("local_copy"):
        bring = threading.Thread(
            target=lambda: places.update(weights=localised(plan["local_copy"], say, say)), name="weights", daemon=True
        )
        bring.start()
        while bring.is_alive() and not terms:
            bring.join(0.2)
        if terms:
            return 0
    plan["environment"] = {name: os.environ[name] for name in plan["names"] if name in os.environ}
    environment = environment_of(plan, places)
    container = Container(plan["container"], places, environment)
    argv = fill_all(plan["argv"] if places["rank"] == 0 else plan["follower"], places)
    try:
        if places["tmp"]:
            remove_left_directories(os.path.dirname(places["tmp"]))
            take_directory(places["tmp"])
            mark_directory(places["tmp"], told["replica"])
        write_files(plan, places)
        container.remove_leftovers(say)
        engine = Process(argv, environment)
    except OSError as error:
        say("the engine cannot be started: {}: {}".format(argv[0], error.strerror or error))
        return 127
    status = watch(engine, awake, terms, container, say)
    if places["tmp"]:
        shutil.rmtree(places["tmp"], ignore_errors=True)
    return status


def watch(engine: Process, awake: int, terms: List[int], container: Container, say: Callable[[str], None]) -> int:
    """Until the engine ends, or it shall. The exit status for srun."""
    wanted = True
    while wanted and not terms and not engine.reap():
        readable, _, _ = select.select([0, awake], [], [], 1.0)
        if awake in readable:
            os.read(awake, 4096)
        wanted = 0 not in readable or bool(os.read(0, 4096))
    if wanted and not terms and engine.went_quietly():
        select.select([awake], [], [], OWN_SIGNAL_S)
    engine.end(lambda: len(terms) > 1, container)
    if terms or not wanted:
        return 0
    say("the engine {}".format(engine.how_it_ended()))
    status = engine.status or 0
    return (os.WEXITSTATUS(status) or 1) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


# -- private directories ----------------------------------------------------------------------------------------------


def mark_directory(path: str, replica: str) -> None:
    """Say in a private directory whose it is. Where nodes share their /tmp, the agent has said it already."""
    try:
        with open(os.path.join(path, OWNER), "x") as file:
            file.write(own_name(replica))
    except OSError:
        pass  # it would stay behind if this process were killed: that is all


def remove_left_directories(parent: str) -> None:
    """Those of this user that killed agents of this node have left: there may be keys in them."""
    try:
        names = os.listdir(parent)
    except OSError:
        return
    for name in names:
        path = os.path.join(parent, name)
        try:
            if not name.startswith("slurmgate-") or os.lstat(path).st_uid != os.getuid():
                continue
            with open(os.path.join(path, OWNER)) as file:
                left = is_leftover(file.read(500))
        except (OSError, ValueError):
            continue
        if left:
            shutil.rmtree(path, ignore_errors=True)


def take_directory(path: str) -> None:
    """The replica's private directory, under the name that the agent has chosen. Raises OSError where it is another's.

    It may be there: on the agent's own node it is, and nodes may share their /tmp.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        about = os.lstat(path)
        if about.st_uid != os.getuid() or about.st_mode & 0o170077 != 0o040000:
            raise
