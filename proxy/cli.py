"""The command line. Commands import what they need when they run, so that each starts as fast as it can."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from . import cli_admin, cli_batch, cli_doctor, cli_operations, cli_tribunal, cli_weights
from .benchmark.command import bench
from .terminal import (
    ConfigOption,
    Mistake,
    StateOption,
    database,
    fail,
    mistakes,
    open_state,
    print_table,
    read_config,
    say,
)

if TYPE_CHECKING:
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


def main() -> None:
    try:
        app()
    except Mistake as error:
        fail(str(error))


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
    gc.disable()  # while modules are read, which takes most of the start and leaves no garbage; the server turns it on
    config = read_config(config_file)
    state = open_state(config, state_dir)

    from .config import ConfigError, load
    from .database import DatabaseUnusable
    from .embedded import configuration
    from .server import CannotListen, run
    from .state import StateDirInUse, StateDirUnusable
    from .workers.supervisor import WorkersKeepDying

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

    with mistakes(StateDirInUse, StateDirUnusable, CannotListen, WorkersKeepDying, DatabaseUnusable, ConfigError):
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
def models(config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """List the models that are served, what answers for each, and how many replicas are ready."""
    from slurm_launcher.states import Status
    from slurm_launcher.store import ReplicaStore

    config = read_config(config_file)
    state = open_state(config, state_dir)
    if config is None:
        from .embedded import configuration

        config = configuration()
    with database(config_file, state_dir) as engine:
        replicas = ReplicaStore(engine, state.identity).load()
    rows = []
    for name, model in config.models.items():
        if model.source:
            ready = sum(r.model == name and r.status is Status.READY for r in replicas)
            least, most = config.specs[name].scaling.least, config.specs[name].scaling.most
            rows.append([name, f"{model.engine} on {config.launcher.kind}", f"{ready} of {counted(least, most)}"])
        else:
            at = f"{model.engine} at {', '.join(engine.url for engine in model.urls)}"
            rows.append([name, model.hosted or model.backend or at, "-"])
    print_table(["model", "answered by", "ready"], rows)


def counted(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


@app.command()
def render(
    model: Annotated[str, typer.Argument(help="A model of the configuration.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    placement: Annotated[str, typer.Option("--placement", help="One of its placements, in place of its own.")] = "",
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
    kind = spec.at(placement)
    if kind is None:
        known = ", ".join(one.name for one in spec.placements) or "none"
        raise Mistake(f"no placement {placement!r} of {model}; there are: {known}")
    url = config.server.advertise_url or advertised(config, config.server.host, config.server.port)
    site = site_of(config, state, url)
    say(Builder(config, site, Secrets(b"")).script(kind, "REPLICA", redact=True).rstrip("\n"))


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
    from .database import database_of
    from .logging import configure

    log, lines = configure()
    gateway = Gateway(
        config, state, database_of(config, state), gateway_url="", loopback_only=True, log=log, lines=lines
    )
    left = await gateway.control.launcher.stop_replicas(timeout_s)
    lines.flush()
    return left


cli_operations.mount(app)
cli_doctor.mount(app)
cli_weights.mount(app)
cli_batch.mount(app)
cli_tribunal.mount(app)
app.command()(bench)
cli_admin.mount(app)

if __name__ == "__main__":
    main()
