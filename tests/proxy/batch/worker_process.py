"""A worker that runs batches to their ends in a process of its own, and can be killed at any moment.

python -m tests.proxy.batch.worker_process killed URL DIRECTORY
    For each moment at which something is written or committed: a batch, a worker that is killed (SIGKILL) at just
    that moment, and another one that starts in the same directory and goes on. Prints a line of JSON for each.
python -m tests.proxy.batch.worker_process race URL DIRECTORY NAME
    A worker beside others. Prints how many lines it has run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, event, select

from proxy import database as db
from proxy.batch import leases
from proxy.batch.step_store import StepStore
from proxy.batch.steps import Steps
from proxy.batch.store import BatchStore
from proxy.batch.values import Batch, Done, Status, Window, Worker, request_id_of
from proxy.config import FilesSection
from proxy.database import open_database
from proxy.files import disk
from proxy.files.batch_lines import Rules
from proxy.files.service import Files
from proxy.files.values import new_id

LINES = 6
ENDPOINT = "/v1/completions"


class Gateway:
    """All that a worker needs, on a database and a directory."""

    def __init__(self, url: str, directory: Path, who: Worker) -> None:
        self.engine = open_database(url)
        log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
        self.files = Files(self.engine, FilesSection(), directory, log)
        self.store = BatchStore(self.engine)
        self.rows = StepStore(self.engine)
        self.steps = Steps(self.store, self.rows, self.files, lambda batch: Rules(batch.endpoint), log)
        self.who = who
        self.ran: list[int] = []

    def submit(self, lines: int, prompt: Callable[[int], str] = str) -> Batch:
        incoming = self.files.begin()
        for number in range(1, lines + 1):
            body = {"model": "m", "prompt": prompt(number)}
            line = {"custom_id": f"c{number}", "method": "POST", "url": ENDPOINT, "body": body}
            incoming.write(json.dumps(line).encode() + b"\n")
        file = self.files.put("one", incoming, "in.jsonl", "batch")
        now = int(time.time())
        made = Batch(
            id=new_id("batch_"), owner="one", key_id="", status=Status.VALIDATING, endpoint=ENDPOINT,
            input_file_id=file.id, completion_window="24h", created_at=now, expires_at=now + 86400,
        )  # fmt: skip
        return self.store.create(made)

    def work(self, batch_id: str) -> Batch:
        """Until the batch is over."""
        while not (found := self.store.find("one", batch_id)).status.over:
            self.store.beat(self.who)
            if (step := self.store.claim_step(self.who)) is not None:
                self.steps.run(step)
            elif (window := self.store.claim_window(self.who, batch_id)) is not None:
                self.run(found, window)
            else:
                time.sleep(0.01)
        return found

    def run(self, batch: Batch, window: Window) -> None:
        handle = self.steps.open_input(batch)
        try:
            half = len(window.lines) // 2
            for lines in (window.lines[:half], window.lines[half:]):
                results = []
                for line in lines:
                    request = json.loads(os.pread(handle, line.size, line.offset))
                    self.ran.append(line.line_no)
                    result = {
                        "id": request_id_of(batch.id, line.line_no),
                        "custom_id": request["custom_id"],
                        "said": f"{self.who.id}: {request['body']['prompt']}",
                    }
                    ok = line.line_no % 3 != 0
                    results.append(
                        Done(batch.id, window.window_no, window.epoch, line.line_no, ok, json.dumps(result).encode())
                    )
                self.store.commit(results)
        finally:
            os.close(handle)

    def content(self, file_id: str | None) -> list[Any]:
        if file_id is None:
            return []
        path = self.files.path_of(self.files.store.find("one", file_id))
        return [json.loads(line) for line in path.read_bytes().splitlines()]


# -- killed ----------------------------------------------------------------------------------------------------------


def _killed_at(engine: Engine, moment: int) -> None:
    """From now on, this process is killed when it has come to so many moments."""
    left = moment

    def pass_by(*_: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("slurmgate_writes"):
            pass_by()

    event.listen(engine, "begin", begin)
    event.listen(engine, "commit", pass_by)
    for where, name in (
        (disk.Incoming, "write"),
        (disk.Incoming, "place"),
        (disk.Disk, "take_in"),
        (disk.Disk, "settled"),
    ):
        _around(where, name, pass_by)


def _around(where: Any, name: str, pass_by: Callable[[], None]) -> None:
    verb = getattr(where, name)

    def wrapped(*arguments: Any) -> Any:
        pass_by()
        result = verb(*arguments)
        pass_by()
        return result

    setattr(where, name, wrapped)


def _in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """How a forked process ended (its signal, or 0), and what it returned."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(theirs, json.dumps(work()).encode())
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), None
    if os.WEXITSTATUS(status):
        raise SystemExit("a worker failed")
    return 0, json.loads(said)


def killed(url: str, directory: Path) -> None:
    moment, ended = 0, -1
    while ended != 0:
        moment += 1
        who, next_one = (Worker(f"{name}{moment}", "home", f"{name}{moment}") for name in ("first", "second"))

        def first(who: Worker = who, moment: int = moment) -> None:
            gateway = Gateway(url, directory, who)
            batch = gateway.submit(LINES)
            gateway.store.beat(gateway.who)
            _killed_at(gateway.engine, moment)
            gateway.work(batch.id)

        ended, _ = _in_child(first)

        def second(who: Worker = next_one, ended: int = ended) -> dict[str, Any]:
            gateway = Gateway(url, directory, who)
            batch_id = gateway.store.page("one", 1)[0].id
            lines = db.batch_lines
            with gateway.engine.connect() as connection:
                had = select(lines.c.line_no).where(lines.c.batch_id == batch_id, lines.c.state > 0)
                before = sorted(connection.execute(had).scalars())
            found = gateway.work(batch_id)
            gateway.files.disk.sweep(gateway.files.store.known)
            return {
                "killed": ended,
                "before": before,
                "ran": sorted(gateway.ran),
                "card": found.card(),
                "output": gateway.content(found.output_file_id),
                "error": gateway.content(found.error_file_id),
                "files": len(gateway.files.store.page("one", limit=1000)),
                "on_disk": sum(path.is_file() for path in (gateway.files.disk.directory / "content").glob("*/*")),
            }

        _, told = _in_child(second)
        print(json.dumps(told), flush=True)  # noqa: T201  # for the test


# -- side by side ----------------------------------------------------------------------------------------------------


def race(url: str, directory: Path, name: str) -> None:
    leases.LEASE_S, leases.LOOK_S = 1.5, 0.5
    gateway = Gateway(url, directory, Worker(name, name, "boot"))
    print("ready", flush=True)  # noqa: T201  # for the test
    batch_id = sys.stdin.readline().strip()
    gateway.work(batch_id)
    print(json.dumps(gateway.ran), flush=True)  # noqa: T201  # as above


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        killed(sys.argv[2], Path(sys.argv[3]))
    else:
        race(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
