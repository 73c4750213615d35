"""The commands that look at a running gateway and tell it what to do.

They reach it by the socket in its state directory, so they run on its machine, as its user, without a key. `status` and
`logs` also work while no gateway runs: then they show what it left.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import ConfigOption, Mistake, StateOption, database, mistakes, open_state, read_config, say

if TYPE_CHECKING:
    from rich.table import Table

    from .state import StateDir

EVERY_S = 2.0
TAIL_LINES = 200
FOLLOW_S = 0.3

JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
ModelArgument = Annotated[str, typer.Argument(help="A model of the configuration.")]

Json = dict[str, Any]


def mount(app: typer.Typer) -> None:
    """Make these commands part of `slurmgate`."""
    for command in (status, logs, scale, drain, restart, reload):
        app.command()(command)


def ask(state: StateDir, method: str, target: str, body: Any = None) -> Any:
    """The running gateway's answer."""
    from .operator_socket import NotRunning, OperatorError
    from .operator_socket import ask as ask_socket

    with mistakes(NotRunning, OperatorError):
        return ask_socket(state.operator_socket, method, target, body)


def quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


# -- looking ---------------------------------------------------------------------------------------------------------


def status(
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every two seconds.")] = False,
) -> None:
    """Show the models and their replicas: state, job, node, time left, load, and why what failed did."""
    config = read_config(config_file)
    state = open_state(config, state_dir)
    if as_json:
        say(json.dumps(overview(config_file, state_dir, state)))
        return
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False)
    if not watch:
        for part in tables(overview(config_file, state_dir, state), None):
            console.print(part)
        return
    speed = Speed(state)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                seen = overview(config_file, state_dir, state)
                live.update(Group(*tables(seen, speed.now())), refresh=True)
                time.sleep(EVERY_S)
        except KeyboardInterrupt:
            return


def overview(config_file: Path | None, state_dir: Path | None, state: StateDir) -> Json:
    """Of the running gateway; or of what the last one left, with its replicas as it last knew them."""
    from slurm_launcher.store import ReplicaStore

    from .operations import replica_card
    from .operator_socket import NotRunning, OperatorError
    from .operator_socket import ask as ask_socket

    pid = state.holder()
    gateway = {"running": pid is not None, "pid": pid, "state_dir": str(state.path)}
    if pid is not None:
        try:
            return {"gateway": gateway, **ask_socket(state.operator_socket, "GET", "/admin/overview")}
        except NotRunning:  # it is just starting, or ending
            pass
        except OperatorError as error:
            raise Mistake(str(error)) from None
    with database(config_file, state_dir) as engine:
        replicas = sorted(ReplicaStore(engine, state.identity).load(), key=lambda r: (r.model, r.created_at))
    now = time.time()
    return {
        "gateway": gateway,
        "object": "overview",
        "troubles": [],
        "models": [],
        "replicas": [replica_card(r, now) for r in replicas],
    }


def tables(seen: Json, speeds: dict[str, float] | None) -> Iterator[Table | str]:
    """`speeds`: completion tokens a second of each model; None where nobody has looked twice."""
    gateway = seen["gateway"]
    runs = f"running, process {gateway['pid']}" if gateway["running"] else "not running"
    yield f"gateway: {runs} ({gateway['state_dir']})"
    for trouble in seen["troubles"]:
        yield f"trouble: {trouble}"
    if seen["models"]:
        yield _models(seen, speeds)
    if not seen["replicas"]:
        yield "no replicas"
        return
    yield _replicas(seen)


def _models(seen: Json, speeds: dict[str, float] | None) -> Table:
    from rich.table import Table

    load: defaultdict[str, int] = defaultdict(int)
    for replica in seen["replicas"]:
        load[replica["model"]] += replica["in_flight"]
    table = Table(box=None, pad_edge=False)
    for title in ("model", "state"):
        table.add_column(title, overflow="fold")
    for title in ("replicas", "in flight", "queue", *(["tokens/s"] if speeds is not None else [])):
        table.add_column(title, justify="right")
    table.add_column("why", overflow="fold")
    for model in seen["models"]:
        name = model["model"]
        replicas = "-" if model["wanted"] is None else f"{model['ready']} of {model['wanted']}"
        numbers = [replicas, str(load[name]), str(model["waiting"])]
        if speeds is not None:
            numbers.append(f"{speeds.get(name, 0.0):.0f}")
        table.add_row(name, model["state"], *numbers, model["why"])
    return table


def _replicas(seen: Json) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model", "replica", "state", "job", "node"):
        table.add_column(title, overflow="fold")
    for title in ("age", "time left", "in flight"):
        table.add_column(title, justify="right")
    table.add_column("note", overflow="fold")
    for r in seen["replicas"]:
        job = f"{r['job'] or '-'}{'@' + r['cluster'] if r['cluster'] else ''}"
        job += f" ({placement})" if (placement := r.get("placement")) else ""
        left = "-" if r["time_left_s"] is None else span(r["time_left_s"])
        note = r["failure"]["message"] if r["failure"] else r["note"]
        times = (span(time.time() - r["created_at"]), left, str(r["in_flight"]))
        table.add_row(r["model"], r["replica"], r["state"], job, r["node"] or "-", *times, note)
    return table


def span(seconds: float) -> str:
    """A length of time in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class Speed:
    """Completion tokens a second of each model, from one look to the next."""

    _LINE = re.compile(r'^slurmgate_tokens_total\{kind="completion",model="((?:[^"\\]|\\.)*)"\} (\S+)$', re.MULTILINE)

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._at = 0.0
        self._tokens: dict[str, float] | None = None

    def now(self) -> dict[str, float] | None:
        """None at the first look, and while no gateway runs."""
        from .operator_socket import NotRunning, OperatorError, text

        try:
            found = self._LINE.findall(text(self._state.operator_socket, "/metrics"))
        except (NotRunning, OperatorError):
            self._tokens = None
            return None
        tokens, at = {model: float(count) for model, count in found}, time.monotonic()
        before, elapsed = self._tokens, at - self._at
        self._tokens, self._at = tokens, at
        if before is None:
            return None
        return {m: (n - before.get(m, 0.0)) / elapsed for m, n in tokens.items()}


# -- logs ------------------------------------------------------------------------------------------------------------


def logs(
    replica: Annotated[str, typer.Argument(help="A replica's id, or a model: then its newest replica.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Of the end; 0 for all.")] = TAIL_LINES,
) -> None:
    """Print a replica's job log: its prologue, its agent and its engine."""
    config = read_config(config_file)
    state = open_state(config, state_dir)
    seen = overview(config_file, state_dir, state)
    mine = [r for r in seen["replicas"] if replica in (r["replica"], r["model"])]
    if not mine:
        known = ", ".join(r["replica"] for r in seen["replicas"]) or "there is none"
        raise Mistake(f"no replica {replica!r}; known: {known}")
    name = max(mine, key=lambda r: float(r["created_at"]))["replica"]
    shared = config.launcher.shared_dir if config is not None else None
    path = (shared.expanduser() if shared is not None else state.path) / state.logs.name / f"{name}.log"
    try:
        with path.open(errors="replace") as log:
            text = log.readlines()
            for line in text[-lines:] if lines else text:
                sys.stdout.write(line)
            sys.stdout.flush()
            while follow:
                if line := log.readline():
                    sys.stdout.write(line)
                    sys.stdout.flush()
                else:
                    time.sleep(FOLLOW_S)
    except FileNotFoundError:
        raise Mistake(f"replica {name} has no log yet: {path}") from None
    except KeyboardInterrupt:
        return


# -- telling ---------------------------------------------------------------------------------------------------------


def scale(
    model: ModelArgument,
    replicas: Annotated[str, typer.Argument(help="A number, or 'auto': as the configuration says.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Set how many replicas a model shall have, whatever its demand, until it is set to 'auto' again."""
    if replicas != "auto" and not replicas.isdecimal():
        raise Mistake(f"expected a number or 'auto', found {replicas!r}")
    state = open_state(read_config(config_file), state_dir)
    body = {"replicas": None if replicas == "auto" else int(replicas)}
    wanted = ask(state, "POST", f"/admin/models/{quoted(model)}/scale", body)["wanted"]
    say(f"{model} shall have {wanted} replica{'' if wanted == 1 else 's'}")


def restart(model: ModelArgument, config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """Forget how a model's replicas have failed, and replace those that run one after the other."""
    ask(open_state(read_config(config_file), state_dir), "POST", f"/admin/models/{quoted(model)}/restart")
    say(f"{model} is started anew, one replica after the other")


def drain(
    replica: Annotated[str, typer.Argument(help="A replica's id.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Let a replica finish what it has and end. Another one takes its place."""
    ask(open_state(read_config(config_file), state_dir), "POST", f"/admin/replicas/{quoted(replica)}/drain")
    say(f"{replica} is draining")


def reload(config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """Have the running gateway read its configuration again. With a mistake in it nothing changes."""
    say(ask(open_state(read_config(config_file), state_dir), "POST", "/admin/reload")["summary"])
