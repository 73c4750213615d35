"""The command line. Commands import what they need when they run, so that each starts as fast as it can."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from slurm_launcher.states import Replica

    from .config import Config
    from .server import Started
    from .state import StateDir

app = typer.Typer(
    name="slurmgate",
    help="An OpenAI-compatible gateway that runs inference engines as Slurm jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
keys_app = typer.Typer(help="API keys: make, list, revoke. They are stored hashed.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The configuration, a TOML file.", envvar="SLURMGATE_CONFIG")
]
StateOption = Annotated[
    Path | None, typer.Option("--state-dir", help="Where the gateway keeps its state.", envvar="SLURMGATE_STATE_DIR")
]


class Mistake(Exception):
    """Something the user can mend: shown as one message, without a trace."""


def main() -> None:
    try:
        app()
    except Mistake as error:
        fail(str(error))


def fail(message: str) -> None:
    sys.stderr.write(f"slurmgate: {message}\n")
    sys.exit(1)


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def mistakes(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions that explain themselves into `Mistake`."""
    try:
        yield
    except kinds as error:
        raise Mistake(str(error)) from None


def read_config(path: Path | None) -> Config | None:
    from .config import ConfigError, load

    with mistakes(ConfigError):
        return load(path) if path is not None else None


def open_state(config: Config | None, given: Path | None) -> StateDir:
    """The state directory: the option, else the configuration's, else the default."""
    from .config import default_state_dir
    from .state import StateDir, StateDirUnusable

    configured = config.state_dir if config is not None else None
    with mistakes(StateDirUnusable):
        return StateDir(given or configured or default_state_dir())


# -- serve -----------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", envvar="PORT", min=0, max=65535)] = None,
    stop_replicas: Annotated[
        bool | None,
        typer.Option("--stop-replicas/--keep-replicas", help="At the end, cancel all jobs, or leave them running."),
    ] = None,
) -> None:
    """Run the gateway. Without a configuration: two small models on this machine, to try it out."""
    config = read_config(config_file)
    state = open_state(config, state_dir)

    from .config import ConfigError, load
    from .database import NewerDatabase
    from .embedded import configuration
    from .server import CannotListen, run
    from .state import StateDirInUse

    embedded = config is None
    default_key = None
    if config is None:
        config = configuration()
        default_key = embedded_key(state)
    overrides = {name: value for name, value in (("host", host), ("port", port)) if value is not None}

    def with_options(config: Config) -> Config:
        return config.model_copy(update={"server": config.server.model_copy(update=overrides)})

    def reread() -> Config:
        return with_options(load(config_file) if config_file is not None else configuration())

    config = with_options(config)
    stops = config.launcher.stop_replicas_on_exit if stop_replicas is None else stop_replicas

    async def greet(started: Started) -> None:
        await (greet_newcomer(started, default_key) if embedded else greet_operator(started))

    with mistakes(StateDirInUse, CannotListen, NewerDatabase, ConfigError):
        left = run(config, state, stop_replicas=stops, on_start=greet, default_key=default_key, reread=reread)
    if left:
        raise Mistake(f"these jobs have not ended: {', '.join(left)}")


def embedded_key(state: StateDir) -> str:
    """The embedded default's key: the same at every start, so that what was pasted once keeps working."""
    import hashlib
    import hmac

    return "sk-sg-" + hmac.new(state.secret(), b"embedded key", hashlib.sha256).hexdigest()[:43]


async def greet_operator(started: Started) -> None:
    models = ", ".join(started.gateway.config.models)
    sys.stderr.write(f"slurmgate listens on {started.url}/v1 and serves {models}\n")
    if started.narrowed_from is not None:
        sys.stderr.write(
            f"There is no API key yet, so it listens on this machine only and not on {started.narrowed_from}. "
            "Make one with `slurmgate keys create NAME` and start again.\n"
        )
    elif not started.gateway.needs_key:
        sys.stderr.write(
            "There is no API key yet, so anyone on this machine may use it: `slurmgate keys create NAME`.\n"
        )
    sys.stderr.flush()


async def greet_newcomer(started: Started, key: str | None) -> None:
    """What to do next, then how the two engines come up."""
    from .embedded import CHAT_MODEL, EMBEDDING_MODEL

    begun = time.monotonic()
    question = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "What is slurmgate?"}]}
    say(f"slurmgate {version()}: two small demonstration models, on this machine, without Slurm")
    say()
    say(f"  base URL  {started.url}/v1")
    say(f"  API key   {key}")
    say(f"  models    {CHAT_MODEL} (chat), {EMBEDDING_MODEL} (embeddings)")
    say()
    say(f"  curl {started.url}/v1/chat/completions -H 'Content-Type: application/json' \\")
    say(f"    -H 'Authorization: Bearer {key}' \\")
    say(f"    -d '{json.dumps(question)}'")
    say()
    waiting = [CHAT_MODEL, EMBEDDING_MODEL]
    shown: dict[str, str] = {}
    while waiting:
        for model in list(waiting):
            if started.gateway.control.endpoints()[model]:
                waiting.remove(model)
                say(f"  {model} is ready after {time.monotonic() - begun:.1f} s")
            else:
                why, _ = started.gateway.control.launcher.outlook(model)
                if shown.get(model) != why:
                    shown[model] = why
                    say(f"  {why}")
        await asyncio.sleep(0.1)
    say("  Stop with Ctrl-C. The log of requests goes to standard error.")


def version() -> str:
    from importlib.metadata import version as installed

    return installed("slurmgate")


# -- looking ---------------------------------------------------------------------------------------------------------


@app.command()
def status(
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the replicas: state, job, node, and why those that failed did."""
    config = read_config(config_file)
    state = open_state(config, state_dir)
    from slurm_launcher.store import ReplicaStore

    from .database import open_database

    replicas: list[Replica] = []
    if state.database.exists():
        replicas = sorted(ReplicaStore(open_database(state.database)).load(), key=lambda r: (r.model, r.created_at))
    pid = state.holder()
    if as_json:
        say(
            json.dumps(
                {"gateway": {"running": pid is not None, "pid": pid}, "replicas": [as_dict(r) for r in replicas]}
            )
        )
        return
    say(f"gateway: {f'running, process {pid}' if pid is not None else 'not running'} ({state.path})")
    if not replicas:
        say("no replicas")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "replica", "state", "job", "node", "age", "note", box=None, pad_edge=False)
    for r in replicas:
        note = r.failure.message if r.failure is not None else r.note
        table.add_row(r.model, r.id, r.word, r.job_id or "-", r.node or "-", age(time.time() - r.created_at), note)
    Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False).print(table)


def as_dict(replica: Replica) -> dict[str, Any]:
    failure = replica.failure
    return {
        "model": replica.model,
        "replica": replica.id,
        "state": replica.word,
        "job": replica.job_id,
        "node": replica.node or None,
        "created_at": replica.created_at,
        "ready_at": replica.ready_at,
        "time_left_s": replica.time_left_s(time.time()),
        "note": replica.note,
        "failure": None
        if failure is None
        else {"kind": failure.kind, "message": failure.message, "tail": list(failure.tail)},
    }


def age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@app.command()
def models(config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """List the models that are served, what answers for each, and how many replicas are ready."""
    from rich.console import Console
    from rich.table import Table

    from slurm_launcher.states import Status
    from slurm_launcher.store import ReplicaStore

    from .database import open_database

    config = read_config(config_file)
    state = open_state(config, state_dir)
    if config is None:
        from .embedded import configuration

        config = configuration()
    replicas = ReplicaStore(open_database(state.database)).load() if state.database.exists() else []
    table = Table("model", "answered by", "ready", box=None, pad_edge=False)
    for name, model in config.models.items():
        ready = sum(r.model == name and r.status is Status.READY for r in replicas)
        by = (
            model.hosted or model.backend or f"{model.engine} at {', '.join(engine.url for engine in model.urls)}"
            if not model.source
            else ""
        )
        table.add_row(
            name,
            by or f"{model.engine} on {config.launcher.kind}",
            f"{ready} of {model.replicas}" if model.source else "-",
        )
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


@app.command()
def render(
    model: Annotated[str, typer.Argument(help="A model of the configuration.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Print the batch script of a model, as it would be submitted, its secrets blacked out."""
    config = read_config(config_file)
    if config is None:
        from .embedded import configuration

        config = configuration()
    state = open_state(config, state_dir)
    from slurm_launcher.spec import Secrets

    from .launching import Builder, site_of
    from .server import advertised

    spec = config.specs.get(model)
    if spec is None:
        known = ", ".join(config.specs) or "none"
        raise Mistake(f"no model {model!r} to launch in the configuration; there are: {known}")
    url = config.server.advertise_url or advertised(config, config.server.host, config.server.port)
    site = site_of(config, state, url)
    say(Builder(config, site, Secrets(b"")).script(spec, "REPLICA", redact=True).rstrip("\n"))


# -- reload ----------------------------------------------------------------------------------------------------------


@app.command()
def reload(config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """Have the running gateway read its configuration again. With a mistake in it nothing changes."""
    from .operator_socket import NotRunning, OperatorError, ask

    state = open_state(read_config(config_file), state_dir)
    with mistakes(NotRunning, OperatorError):
        say(ask(state.operator_socket, "POST", "/admin/reload")["summary"])


# -- stop ------------------------------------------------------------------------------------------------------------


@app.command()
def stop(
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    stop_replicas: Annotated[bool, typer.Option("--stop-replicas", help="Cancel all jobs as well.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for streams and jobs to end.")] = 90.0,
) -> None:
    """Stop the gateway that runs on this state directory. Its replicas go on unless told otherwise."""
    config = read_config(config_file)
    state = open_state(config, state_dir)
    from .state import StateDirInUse

    deadline = time.monotonic() + timeout_s
    pid = state.holder()
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
    elif not stop_replicas:
        raise Mistake(f"no gateway runs on {state.path}")
    while True:
        try:
            state.lock()
            break
        except StateDirInUse:
            if time.monotonic() > deadline:
                raise Mistake(f"process {pid} has not stopped within {timeout_s:g} s") from None
            time.sleep(0.1)
    if stop_replicas:
        left = asyncio.run(end_jobs(config, state, max(1.0, deadline - time.monotonic())))
        if left:
            raise Mistake(f"these jobs have not ended: {', '.join(left)}")


async def end_jobs(config: Config | None, state: StateDir, timeout_s: float) -> list[str]:
    """Cancel every job of the service, the gateway being down."""
    if config is None:
        from .embedded import configuration

        config = configuration()
    from .app import Gateway
    from .database import open_database
    from .logging import configure

    log, lines = configure()
    gateway = Gateway(
        config, state, open_database(state.database), gateway_url="", loopback_only=True, log=log, lines=lines
    )
    left = await gateway.control.launcher.stop_replicas(timeout_s)
    lines.flush()
    return left


# -- keys ------------------------------------------------------------------------------------------------------------


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as a person or a project.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Make a key and print it, alone, on standard output: it is shown this once."""
    from .database import open_database
    from .keys import KeyStore

    if not name.strip() or len(name) > 200:
        raise Mistake("a key's name has 1 to 200 characters")
    say(KeyStore(open_database(open_state(read_config(config_file), state_dir).database)).create(name))


@keys_app.command("list")
def list_keys(config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """List the keys: id, name, last four characters, when made, whether revoked."""
    from rich.console import Console
    from rich.table import Table

    from .database import open_database
    from .keys import KeyStore

    table = Table("id", "name", "ends with", "made", "state", box=None, pad_edge=False)
    for key in KeyStore(open_database(open_state(read_config(config_file), state_dir).database)).list():
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
        table.add_row(key.id, key.name, key.hint, made, "valid" if key.revoked_at is None else "revoked")
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


@keys_app.command("revoke")
def revoke_key(
    id_or_name: Annotated[str, typer.Argument(help="A key's id, or a name: then all keys of that name.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Revoke keys: a running gateway refuses them within a second."""
    from .database import open_database
    from .keys import KeyStore

    count = KeyStore(open_database(open_state(read_config(config_file), state_dir).database)).revoke(id_or_name)
    if not count:
        raise Mistake(f"no valid key has the id or the name {id_or_name!r}")
    say(f"revoked {count} key{'s' if count > 1 else ''}")


if __name__ == "__main__":
    main()
