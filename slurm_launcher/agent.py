"""The agent: in the job, it starts one engine, proves it, speaks for it to the gateway, and ends it.

It is carried inside the batch script, after `on_node.py`, and read from stdin by the node's own Python (3.6 or newer),
so it uses the standard library only. All it knows is in a manifest (`slurm_launcher/script.py` writes it).

    starting ---- health says 200, and one real token came ----> ready
        |  ^                                                       |
        |  +-- the port was taken: again, on another one           |
        |                                                          |
        +----------- USR1, TERM, or the gateway says drain --------+--> draining
        |                                                                  |
        |                  nothing is in flight, or the grace is over      v
        |                                                               stopped   exit status 0
        v
      failed    the engine exited, never got healthy, or gave no token; exit status 1

Only the main thread decides. Signals and the other threads post events into its `Mailbox`, and never wait for it:

    Relay      the engine's output -> the job's log, and the last lines for a failure report
    Prover     health, then the first token
    Reporter   the state -> the gateway, at once after a change, and every heartbeat; the gateway's answer -> event
    GpuWatch   what nvidia-smi says, now and then

While the gateway cannot be reached the engine goes on serving; after `orphan_timeout_s` nobody will come back for it,
and it is ended. Nothing outlives the agent: its descendants are killed on the way out, its container is removed, and
the kernel kills the engine should the agent itself be killed (a container left then goes with the next agent here).

An engine over several nodes is one step: the engine's process is then `srun`, which holds until all nodes have ended.

To drain, signal the agent alone (USR1 before the wall time, `scancel --batch --signal=TERM`) or let the gateway say so.
A plain scancel signals every process of the job: then the engine ends by itself, and what it was answering is cut off.
(Blocking TERM in the engine would shield it, but would also hang engines that end their own workers by TERM.)
"""

import collections
import http.client
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import IO, Any, Callable, Deque, Dict, Iterable, List, Optional, Tuple
from urllib.parse import urlsplit

from slurm_launcher.local_copy import (
    localised,
)
from slurm_launcher.on_node import (
    OWN_SIGNAL_S,
    Container,
    Places,
    Process,
    become_subreaper,
    environment_of,
    fill_all,
    mark_directory,
    node_name,
    places_here,
    program_for_nodes,
    remove_left_directories,
    resolve,
    write_files,
)

PORTS = (10000, 20000)  # below Linux' range for outgoing connections, which could take the port before the engine does
PORT_ATTEMPTS = 5
TMP = "/tmp"  # noqa: S108  # a private directory is made in it
TAIL_LINES = 40
TAIL_COLUMNS = 500
REPORT_TIMEOUT_S = 5.0
LAST_REPORT_S = 10.0  # how long the last report is tried
DRAIN_BEAT_S = 0.5
BEFORE_WALL_TIME_S = 15.0
GPU_BEAT_S = 10.0

PORT_TAKEN = re.compile("address (is )?already in use|eaddrinuse|errno 98|os error 98", re.IGNORECASE)
SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
NODE_SAYS = re.compile(r"slurmgate: (\S+ \(rank \d+\)): the engine (.*)")
READ_PROGRAM = "import sys; exec(sys.stdin.buffer.read({}).decode())"  # and leave stdin open
TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Event = Tuple[Any, ...]


def main(manifest: Dict[str, Any]) -> int:
    """Run one replica from start to end. Returns the exit status of the job."""
    return Agent(manifest).run()


class Agent:
    """The state and every decision about it. See the module's docstring for the states."""

    def __init__(self, manifest: Dict[str, Any]) -> None:
        self.manifest = manifest
        self.mailbox = Mailbox()
        self.log = Log(secrets_in(manifest))
        self.node = node_name()
        self.gpus = GpuWatch(int(manifest.get("gpus") or 0))
        self.reporter = Reporter(manifest, self.node, self.gpus, self.mailbox)
        self.engine: Optional[Engine] = None
        self.prover: Optional[Prover] = None
        self.state = "starting"
        self.exit_status: Optional[int] = None
        self.tries = 0
        self.terms = 0
        self.refusals = 0  # of reports in a row, while draining
        self.silent = ""  # why the gateway cannot be reached, while it cannot
        self.gone_at: Optional[float] = None
        now = time.monotonic()
        self.started_at = now
        self.heard_at = now
        self.drain_deadline = now
        self.tmp = ""
        self.weights = ""  # the folder that holds them, where they are copied to the node

    # -- life ---------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        become_subreaper()
        self.mailbox.catch_signals(self.count_terms)
        self.reporter.start()
        self.gpus.start()
        try:
            self.host = own_address(self.manifest)
            self.bring_weights()
            while self.exit_status is None:
                for event in self.mailbox.wait(self.time_to_next_deadline()):
                    if self.exit_status is None:
                        self.handle(event)
                if self.exit_status is None:
                    self.look_at_the_clock()
        except Exception as error:  # a fault of ours must not leave an engine behind, nor go unreported
            lines = traceback.format_exc().splitlines()
            self.fail("agent", "The agent itself failed: {!r}.".format(error), lines[-TAIL_LINES:])
        finally:
            if self.tmp:
                shutil.rmtree(self.tmp, ignore_errors=True)
        return self.exit_status if self.exit_status is not None else 1

    def count_terms(self) -> None:
        self.terms += 1

    def bring_weights(self) -> None:
        """Copy them to this node first, where that is asked for: beside this thread, since signals may come meanwhile.

        Of several nodes each one does that for itself.
        """
        plan = self.manifest["engine"].get("local_copy")
        if plan is None or self.manifest["engine"]["step"] is not None:
            self.start_engine()
            return

        def bring() -> None:
            folder = localised(plan, self.log.say, lambda text: self.mailbox.post("note", text))
            self.mailbox.post("weights", folder)

        threading.Thread(target=bring, name="weights", daemon=True).start()

    def start_engine(self) -> None:
        """Start it on ports that are free now, and begin to ask whether it is up."""
        self.tries += 1
        self.gone_at = None
        if self.tmp:
            shutil.rmtree(self.tmp, ignore_errors=True)
        plan = self.manifest["engine"]
        if "{tmp}" in json.dumps({name: plan[name] for name in ("argv", "follower", "environment", "files")}):
            # not TMPDIR: containers see the node's /tmp, and the path of a socket must stay short
            parent = TMP if os.access(TMP, os.W_OK) else tempfile.gettempdir()
            remove_left_directories(parent)
            self.tmp = tempfile.mkdtemp(prefix="slurmgate-", dir=parent)
            mark_directory(self.tmp, self.manifest["replica"])
        # behind NAT the address is not one of this node's own
        listen = self.host if can_listen_at(self.host) else "0.0.0.0"  # noqa: S104
        ports = free_ports(3, self.manifest.get("ports") or PORTS)
        places: Places = {"host": listen, "head": self.host, "tmp": self.tmp, "weights": self.weights}
        places.update({"port": ports[0], "port2": ports[1], "port3": ports[2]})
        try:
            self.engine = Engine(plan, places, self.manifest["replica"], self.log)
        except OSError as error:
            program = plan["argv"][0]
            why = error.strerror or str(error)
            self.fail("launch", "The engine cannot be started on {}: {}: {}.".format(self.node, program, why), [])
            return
        self.log.say("engine started, process {}, at {}:{}".format(self.engine.pid, self.host, ports[0]))
        self.state = "starting"
        self.reporter.tell(state="starting", host=self.host, port=ports[0])
        health_host = self.host if listen == self.host else "127.0.0.1"
        self.prover = Prover(
            self.engine.pid,
            plan,
            place=(health_host, ports[0]),
            patience_s=float(self.manifest["probe_timeout_s"]),
            mailbox=self.mailbox,
            log=self.log,
        )
        self.prover.start()

    # -- events -------------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        kind = event[0]
        if kind == "signal":
            self.on_signal(event[1])
        elif kind == "proved":
            if self.state == "starting" and self.engine is not None and event[1] == self.engine.pid:
                self.state = "ready"
                self.log.say("ready after {:.1f} s".format(time.monotonic() - self.started_at))
                self.reporter.tell(state="ready")
        elif kind == "unproven":
            if self.state == "starting" and self.engine is not None and event[1] == self.engine.pid:
                self.fail("engine_unproven", event[2])
        elif kind == "note":
            self.reporter.tell(note=event[1])
        elif kind == "weights":
            self.weights = event[1]
            if self.state == "starting":
                self.reporter.tell(note="")
                self.start_engine()
        elif kind == "heard":
            self.on_answer(*event[1:])
        elif kind == "unheard":
            self.on_silence(*event[1:])

    def on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            if self.engine is not None and self.engine.reap() and self.gone_at is None:
                self.on_engine_gone()
        elif number == signal.SIGUSR1:
            self.drain("USR1", float(self.manifest["drain_grace_s"]))
        elif self.terms > 1:
            self.stop("told twice to end")
        else:
            grace_s = min(float(self.manifest["drain_grace_s"]), float(self.manifest["term_grace_s"]))
            self.drain(signal.Signals(number).name, grace_s)

    def on_engine_gone(self) -> None:
        """The engine's process has ended, and nobody here has ended it."""
        assert self.engine is not None  # noqa: S101  # told to the type checker
        self.gone_at = time.monotonic()
        self.engine.relay.join(0.5)  # its last words
        if self.state == "draining":
            self.stop("the engine has ended")
        elif any(PORT_TAKEN.search(line) for line in self.engine.relay.tail) and self.tries < PORT_ATTEMPTS:
            self.log.say("the port was taken by another process; trying another one")
            self.end_engine()
            self.start_engine()
        elif not self.engine.went_quietly():
            self.fail_for_exit()
        # else: look_at_the_clock, unless a signal of our own explains it

    def fail_for_exit(self) -> None:
        assert self.engine is not None  # noqa: S101
        when = "while starting" if self.state == "starting" else "while serving"
        self.fail("engine_exited", "The engine {} {}.".format(self.engine.how_it_failed(), when))

    def on_answer(self, sent_state: str, command: str, in_flight: Optional[int]) -> None:
        """The gateway has answered to a report that said `sent_state`."""
        self.heard_at = time.monotonic()
        self.refusals = 0
        if self.silent:
            self.silent = ""
            self.log.say("the gateway answers again")
        if command == "stop":
            self.stop("the gateway says stop")
        elif self.state == "draining":
            # only an answer to "draining" counts: before, it was still sending requests
            if sent_state == "draining" and in_flight == 0:
                self.stop("nothing is in flight")
        elif command == "drain":
            self.drain("the gateway says drain", float(self.manifest["drain_grace_s"]))

    def on_silence(self, why: str, refused: bool) -> None:
        """A report was not answered as a gateway would."""
        if not self.silent:
            self.log.say("the gateway cannot be reached, serving on: {}".format(why))
        self.silent = why
        if self.state == "draining" and refused:
            self.refusals += 1
            if self.refusals > 1:  # nobody listens there, so nobody is waiting for an answer through it either
                self.stop("the gateway is gone")

    # -- time ---------------------------------------------------------------------------------------------------------

    def look_at_the_clock(self) -> None:
        now = time.monotonic()
        if self.gone_at is not None and now - self.gone_at >= OWN_SIGNAL_S:
            self.fail_for_exit()
        elif self.state == "starting" and self.gone_at is None and now >= self.start_deadline():
            seconds = float(self.manifest["start_timeout_s"])
            so_far = self.prover.so_far if self.prover is not None else ""
            self.fail("start_timeout", "The engine was not ready within {:.0f} s.{}".format(seconds, so_far))
        elif self.state == "draining" and now >= self.drain_deadline:
            self.stop("the grace is over")
        elif now >= self.orphan_deadline():
            message = "No gateway has answered for {:.0f} s.".format(now - self.heard_at)
            self.stop("orphaned", {"kind": "orphaned", "message": message, "tail": []})

    def time_to_next_deadline(self) -> float:
        deadlines = [self.orphan_deadline()]
        if self.gone_at is not None:
            deadlines.append(self.gone_at + OWN_SIGNAL_S)
        if self.state == "starting":
            deadlines.append(self.start_deadline())
        if self.state == "draining":
            deadlines.append(self.drain_deadline)
        return max(0.0, min(1.0, min(deadlines) - time.monotonic()))

    def start_deadline(self) -> float:
        return self.started_at + float(self.manifest["start_timeout_s"])

    def orphan_deadline(self) -> float:
        return self.heard_at + float(self.manifest["orphan_timeout_s"])

    # -- ends ---------------------------------------------------------------------------------------------------------

    def drain(self, why: str, grace_s: float) -> None:
        """Take no new requests: the gateway learns it at once. May be called again with another grace."""
        left_s = time_left_s()
        if left_s is not None:
            grace_s = min(grace_s, max(1.0, left_s - BEFORE_WALL_TIME_S))
        deadline = time.monotonic() + grace_s
        if self.state == "draining":
            self.drain_deadline = min(self.drain_deadline, deadline)
            return
        served = self.state == "ready"
        self.state = "draining"
        self.drain_deadline = deadline
        self.log.say("draining: {}; at most {:.0f} s".format(why, grace_s))
        self.reporter.tell(state="draining")
        if not served or self.gone_at is not None:
            self.stop("nothing can be in flight")

    def stop(self, why: str, failure: Optional[Dict[str, Any]] = None) -> None:
        """The orderly end."""
        self.log.say("ending: {}".format(why))
        self.end_engine()
        self.state = "stopped"
        self.reporter.tell(state="stopped", failure=failure)
        self.reporter.flush(LAST_REPORT_S if not self.silent else DRAIN_BEAT_S)
        self.exit_status = 0

    def fail(self, kind: str, message: str, tail: Optional[List[str]] = None) -> None:
        """The end by a fault, reported before the cleaning up."""
        if tail is None:
            tail = list(self.engine.relay.tail) if self.engine is not None else []
        self.log.say("failed ({}): {}".format(kind, message))
        failure = {"kind": kind, "message": self.log.clean(message), "tail": [self.log.clean(line) for line in tail]}
        self.state = "failed"
        self.reporter.tell(state="failed", failure=failure)
        self.end_engine()
        self.reporter.flush(LAST_REPORT_S)
        self.exit_status = 1

    def end_engine(self) -> None:
        if self.prover is not None:
            self.prover.cancelled.set()
        if self.engine is not None:
            self.engine.finish(hurry=lambda: self.terms > 1)


# -- events -----------------------------------------------------------------------------------------------------------


class Mailbox:
    """Events for the main thread. `post` never blocks and may be called from signal handlers and any thread."""

    def __init__(self) -> None:
        self._events: Deque[Event] = collections.deque()
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)

    def catch_signals(self, count_term: Callable[[], None]) -> None:
        def caught(number: int, _frame: Any) -> None:
            if number in (signal.SIGTERM, signal.SIGINT):
                count_term()
            self._events.append(("signal", number))

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, caught)
        # the C handler writes there, so a signal that comes just before `select` is not slept over
        signal.set_wakeup_fd(self._wake)

    def post(self, *event: Any) -> None:
        self._events.append(event)
        try:
            os.write(self._wake, b".")
        except BlockingIOError:
            pass  # full: it will wake up anyway

    def wait(self, timeout_s: float) -> List[Event]:
        """What has come, after at most `timeout_s`."""
        if not self._events:
            select.select([self._awake], [], [], timeout_s)
        try:
            while os.read(self._awake, 4096):
                pass
        except BlockingIOError:
            pass
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events


# -- the engine -------------------------------------------------------------------------------------------------------


class Engine(Process):
    """The engine's process (over several nodes: the step's), with its output in the log."""

    def __init__(self, plan: Dict[str, Any], places: Places, replica: str, log: "Log") -> None:
        """Raises OSError where it cannot be started."""
        step = plan["step"]
        told = None
        if step is None:
            places = places_here(places, replica)
            write_files(plan, places)
        else:
            parts = {name: plan[name] for name in ("argv", "follower", "files", "container")}
            parts["names"] = list(plan["environment"])
            parts["local_copy"] = plan.get("local_copy")
            told = program_for_nodes(step["program"], {"replica": replica, "places": places, "plan": parts})
        argv = fill_all(
            plan["argv"] if step is None else step["argv"] + [READ_PROGRAM.format(len(told or b""))], places
        )
        environment = environment_of(plan, places)
        self.container = Container(plan["container"] if step is None else None, places, environment)
        self.container.remove_leftovers(log.say)
        log.say("engine: {}".format(" ".join(argv if step is None else step["argv"] + fill_all(plan["argv"], places))))
        log.say("engine's variables: {}".format(" ".join(sorted(plan["environment"]))))
        Process.__init__(self, argv, environment, subprocess.PIPE, told)
        assert self.process.stdout is not None  # noqa: S101
        self.relay = Relay(self.process.stdout, log)
        self.relay.start()

    def finish(self, hurry: Callable[[], bool]) -> None:
        """End it, and hear its last words."""
        self.end(hurry, self.container)
        self.relay.join(0.5)

    def how_it_failed(self) -> str:
        """In words. Of a step it is what the first node to fail has said."""
        said = [NODE_SAYS.search(line) for line in self.relay.tail] if self.lifeline is not None else []
        for words in said:
            if words is not None:
                return "{} on {}".format(words.group(2), words.group(1))
        return self.how_it_ended()


class Relay(threading.Thread):
    """The engine's output -> the job's log; `tail` keeps its last lines."""

    def __init__(self, source: IO[bytes], log: "Log") -> None:
        threading.Thread.__init__(self, name="relay", daemon=True)
        self._source = source
        self._log = log
        self._overwrites = False
        self.tail: Deque[str] = collections.deque(maxlen=TAIL_LINES)

    def run(self) -> None:
        held = b""
        while True:
            try:
                chunk = os.read(self._source.fileno(), 65536)
            except OSError:
                chunk = b""
            lines = (held + chunk).splitlines(True)
            held = b""
            if chunk and lines and not lines[-1].endswith((b"\n", b"\r")) and len(lines[-1]) < 65536:
                held = lines.pop()  # secrets are found in whole lines only
            for line in lines:
                self._take(line.decode("utf-8", "replace"))
            if not chunk:
                return

    def _take(self, line: str) -> None:
        line = self._log.clean(line)
        self._log.write(line)
        text = TERMINAL_CODE.sub("", line).rstrip()
        if text and self._overwrites and self.tail:  # a progress bar: its last state is enough
            self.tail.pop()
        if text:
            self.tail.append(text[:TAIL_COLUMNS])
        self._overwrites = line.endswith("\r")


class Prover(threading.Thread):
    """Asks the engine until it has given one real token (or vector)."""

    def __init__(
        self, pid: int, plan: Dict[str, Any], *, place: Tuple[str, int], patience_s: float, mailbox: Mailbox, log: "Log"
    ) -> None:
        threading.Thread.__init__(self, name="prover", daemon=True)
        self.cancelled = threading.Event()
        self.so_far = ""  # what the engine has come to, as a sentence, for who gives it up
        self._pid = pid
        self._plan = plan
        self._place = place
        self._patience_s = patience_s
        self._mailbox = mailbox
        self._log = log

    def run(self) -> None:
        pause_s = 0.05
        while not self._is_healthy():
            if self.cancelled.wait(pause_s):
                return
            pause_s = min(1.0, pause_s * 1.3)
        why = self._first_token()
        if why is None:
            self._check_guard()
            self._mailbox.post("proved", self._pid)
        elif not self.cancelled.is_set():
            self._mailbox.post("unproven", self._pid, why)

    def _is_healthy(self) -> bool:
        try:
            status, _body = call(self._place, "GET", self._plan["health"])
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def _first_token(self) -> Optional[str]:
        """None for proved, else what is wrong. A request that is refused three times will be refused for ever."""
        deadline = time.monotonic() + self._patience_s
        refused = 0
        while True:
            left_s = max(0.1, deadline - time.monotonic())
            try:
                status, body = self._ask(self._plan["key"], left_s)
            except (OSError, http.client.HTTPException) as error:
                why = "no answer ({})".format(error or type(error).__name__)
            else:
                if status == 200 and self._holds_result(body):
                    return None
                why = "an empty answer" if status == 200 else "status {}".format(status)
                refused += 400 <= status < 500 and status not in (408, 425, 429)
            found = "The engine says that it is healthy, but {} gave {}.".format(self._plan["probe"]["path"], why)
            if self.cancelled.is_set() or refused >= 3 or time.monotonic() >= deadline:
                return found
            self.so_far = " " + found
            self.cancelled.wait(min(0.5, left_s))

    def _check_guard(self) -> None:
        """Another user's process could answer on this port, or the engine take anybody's requests: say so."""
        if not self._plan["guards_key"]:
            return
        try:
            status, _body = self._ask("not-the-key", REPORT_TIMEOUT_S)
        except (OSError, http.client.HTTPException):
            return
        if status == 200:
            place = "{}:{}".format(*self._place)
            self._log.say("warning: {} accepts a wrong key: is it this job's engine that listens there?".format(place))

    def _ask(self, key: str, timeout_s: float) -> Tuple[int, bytes]:
        probe = self._plan["probe"]
        return call(self._place, probe["method"], probe["path"], probe["body"], key=key, timeout_s=timeout_s)

    def _holds_result(self, body: bytes) -> bool:
        try:
            result = json.loads(body.decode("utf-8")).get(self._plan["probe"]["reply_list"])
        except (ValueError, AttributeError):
            return False
        return isinstance(result, list) and bool(result)


# -- the gateway ------------------------------------------------------------------------------------------------------


class Reporter(threading.Thread):
    """Sends the whole state, at once after each `tell` and every heartbeat; posts what came of it."""

    def __init__(self, manifest: Dict[str, Any], node: str, gpus: "GpuWatch", mailbox: Mailbox) -> None:
        threading.Thread.__init__(self, name="reporter", daemon=True)
        self._manifest = manifest
        self._url = str(manifest["gateway_url"])
        self._gpus = gpus
        self._mailbox = mailbox
        self._changed = threading.Condition()
        self._version = 0
        self._tried = -1
        self._delivered = -1
        self._facts: Dict[str, Any] = {
            "version": 1,
            "replica": manifest["replica"],
            "model": manifest["model"],
            "config": manifest["config"],
            "placement": manifest.get("placement", ""),
            "cluster": manifest["cluster"],
            "job": os.environ.get("SLURMGATE_JOB_ID") or os.environ.get("SLURM_JOB_ID") or "",
            "life": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            "state": "starting",
            "host": "",
            "node": node,
            "port": 0,
            "failure": None,
            "note": "",
        }

    def tell(self, **changes: Any) -> None:
        with self._changed:
            self._facts.update(changes)
            self._version += 1
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the last `tell` has been delivered. False: it was not, in this time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._delivered >= self._version, timeout_s)

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tried < self._version, self._beat_s())
                version = self._version
                message = dict(self._facts)
            self._tried = version
            if self._send(message) or (self._look_elsewhere() and self._send(message)):
                with self._changed:
                    self._delivered = version
                    self._changed.notify_all()

    def _beat_s(self) -> float:
        beat_s = float(self._manifest["heartbeat_s"])
        return beat_s if self._facts["state"] in ("starting", "ready") else min(beat_s, DRAIN_BEAT_S)

    def _send(self, message: Dict[str, Any]) -> bool:
        message["time_left_s"] = time_left_s()
        message["gpus"] = self._gpus.seen
        url = urlsplit(self._url)
        place = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        path = "{}/internal/replicas/{}".format(url.path.rstrip("/"), message["replica"])
        token = str(self._manifest["token"])
        try:
            status, body = call(place, "POST", path, message, key=token, tls=url.scheme == "https")
            if status == 410:
                self._mailbox.post("heard", message["state"], "stop", 0)
                return True
            if status != 200:
                raise ValueError("status {}{}".format(status, " (wrong token)" if status in (401, 403) else ""))
            answer = json.loads(body.decode("utf-8"))
            command, in_flight = answer["command"], answer.get("in_flight")
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
            why = "{}: {}".format(self._url, error or type(error).__name__)
            self._mailbox.post("unheard", why, isinstance(error, ConnectionRefusedError))
            return False
        self._mailbox.post("heard", message["state"], command, in_flight)
        return True

    def _look_elsewhere(self) -> bool:
        """A gateway that has moved says so in the rendezvous file. Returns whether there is another URL to try."""
        url = rendezvous_url(self._manifest.get("rendezvous")) or str(self._manifest["gateway_url"])
        if url == self._url:
            return False
        self._url = url
        return True


def rendezvous_url(path: Optional[str]) -> Optional[str]:
    """The URL in the file, unless anybody might have written it."""
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            text = file.read(2048).decode("utf-8", "replace").strip()
    except OSError:
        return None
    if about.st_uid not in (os.getuid(), 0) or about.st_mode & 0o002:
        return None
    return text if text.startswith(("http://", "https://")) else None


def call(
    place: Tuple[str, int],
    method: str,
    path: str,
    body: Any = None,
    *,
    key: Optional[str] = None,
    timeout_s: float = REPORT_TIMEOUT_S,
    tls: bool = False,
) -> Tuple[int, bytes]:
    """One HTTP request, straight to its target: no proxy, no redirect. Raises OSError, http.client.HTTPException."""
    make = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    connection = make(place[0], place[1], timeout=timeout_s)
    headers = {"Connection": "close"}
    data = None
    if body is not None:
        data = json.dumps(body).encode("ascii")
        headers["Content-Type"] = "application/json"
    if key is not None:
        headers["Authorization"] = "Bearer " + key
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, response.read(1 << 20)
    finally:
        connection.close()


# -- what is around ---------------------------------------------------------------------------------------------------


class GpuWatch(threading.Thread):
    """`seen`: what nvidia-smi last said of this job's GPUs; empty without GPUs or without nvidia-smi."""

    FIELDS = "index,name,memory.used,memory.total,utilization.gpu,uuid"

    def __init__(self, count: int) -> None:
        threading.Thread.__init__(self, name="gpus", daemon=True)
        self.seen: List[Dict[str, Any]] = []
        self._program = shutil.which("nvidia-smi") if count > 0 else None

    def run(self) -> None:
        while self._program is not None:
            command = [self._program, "--query-gpu=" + self.FIELDS, "--format=csv,noheader,nounits"]
            try:
                text = subprocess.check_output(command, stdin=subprocess.DEVNULL, timeout=GPU_BEAT_S)
                self.seen = parse_gpus(text.decode("utf-8", "replace"), os.environ.get("CUDA_VISIBLE_DEVICES"))
            except (OSError, subprocess.SubprocessError):
                self.seen = []
            time.sleep(GPU_BEAT_S)


def parse_gpus(text: str, visible: Optional[str]) -> List[Dict[str, Any]]:
    """nvidia-smi's lines -> reports, for the GPUs that CUDA_VISIBLE_DEVICES names (by index or UUID), if it is set."""
    names = [name.strip() for name in visible.split(",")] if visible else None
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 6 or not fields[0].isdigit():
            continue
        index, name, used, total, busy, uuid = fields
        if names is not None and index not in names and not any(n and uuid.startswith(n) for n in names):
            continue
        gpus.append(
            {
                "index": int(index),
                "name": name,
                "memory_used_mb": number_in(used),
                "memory_total_mb": number_in(total),
                "utilization_percent": number_in(busy),
            }
        )
    return gpus


def number_in(text: str) -> Optional[int]:
    try:
        return int(float(text))
    except ValueError:
        return None  # "[N/A]"


def time_left_s() -> Optional[float]:
    """Until the job's wall time (Slurm 23.02 and newer say when), None where unknown."""
    try:
        return max(0.0, float(os.environ["SLURM_JOB_END_TIME"]) - time.time())
    except (KeyError, ValueError):
        return None


def own_address(manifest: Dict[str, Any]) -> str:
    """The address at which the gateway reaches this node."""
    if manifest.get("host"):
        return str(manifest["host"])
    url = urlsplit(str(manifest["gateway_url"]))
    gateway = resolve(url.hostname or "")
    for name in (os.environ.get("SLURMD_NODENAME"), socket.gethostname()):
        address = resolve(name) if name else None
        if address and (not is_loopback(address) or (gateway and is_loopback(gateway))):
            return address
    # its own name means nothing, or only itself, here: what would a packet to the gateway have as its sender?
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((gateway or url.hostname or "", url.port or 80))
            return str(sock.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def is_loopback(address: str) -> bool:
    return address.startswith("127.")


def can_listen_at(host: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((host, 0))
            return True
        except OSError:
            return False


def free_ports(count: int, between: Iterable[int]) -> List[int]:
    """Ports that nobody listens on now. They are not held: an engine that finds its port taken gets another one."""
    low, high = between
    sockets: List[socket.socket] = []
    try:
        for attempt in range(1000):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                sock.bind(("", random.randrange(low, high) if attempt < 900 else 0))  # noqa: S311
            except OSError:
                sock.close()
                continue
            sockets.append(sock)
            if len(sockets) == count:
                break
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


# -- the log ----------------------------------------------------------------------------------------------------------


class Log:
    """The job's log, on stdout. What is secret is blacked out: some engines print their own settings."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [secret for secret in secrets if len(secret) >= 8]

    def clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "<redacted>")
        return text

    def say(self, text: str) -> None:
        self.write(self.clean("{} slurmgate agent: {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%S"), text)))

    def write(self, text: str) -> None:
        """Past Python's buffers, which block at exit when a thread holds them. A full disk must not end a service."""
        data = text.encode("utf-8", "replace")
        while data:
            try:
                data = data[os.write(1, data) :]
            except OSError:
                return


def secrets_in(manifest: Dict[str, Any]) -> List[str]:
    environment = manifest["engine"]["environment"]
    found = [value for name, value in environment.items() if SECRET_NAME.search(name)]
    return [manifest["token"], manifest["engine"]["key"]] + found  # noqa: RUF005  # one spelling for all Pythons


if sys.version_info < (3, 6):
    sys.exit("slurmgate agent: needs Python 3.6 or newer, this is " + sys.version)
