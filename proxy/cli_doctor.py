"""`slurmgate doctor`: looks for what is wrong between this machine, its configuration and the cluster.

It works whether a gateway runs or not, changes nothing, and submits a job only with --from-node.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import ConfigOption, StateOption, read_config, say

if TYPE_CHECKING:
    from slurm_launcher.doctor import Finding
    from slurm_launcher.node_visit import Asked
    from slurm_launcher.slurm import SlurmCluster
    from slurm_launcher.spec import ModelSpec, Site

    from .config import Config
    from .state import StateDir

POLL_S = 0.5
FILE_LAG_S = 30.0
"""How long a file that a node has written may take to be seen here (NFS caches attributes for a minute at most)."""


def mount(app: typer.Typer) -> None:
    """Make this command part of `slurmgate`."""
    app.command()(doctor)


def doctor(
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    from_node: Annotated[
        bool, typer.Option("--from-node", help="Submit a job of one minute that looks at a node and the way back.")
    ] = False,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only this one; may be repeated.")] = None,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the job of --from-node.")] = 180.0,
) -> None:
    """Look for mistakes in the configuration, on this machine and in Slurm, and say what to do about each."""
    from slurm_launcher.doctor import Verdict

    from .terminal import Mistake

    config = read_config(config_file)
    if config is None:
        from .embedded import configuration

        config = configuration()
    specs = config.specs
    if model:
        if missing := sorted(set(model) - specs.keys()):
            raise Mistake(f"no model {missing[0]!r} to launch in the configuration; there are: {', '.join(specs)}")
        specs = {name: specs[name] for name in model}
    findings = asyncio.run(examine(config, config_file, state_dir, specs, wait_s if from_node else None))
    if as_json:
        fields = [
            {"what": f.what, "verdict": f.verdict.value, "sentence": f.sentence, "advice": f.advice} for f in findings
        ]
        say(json.dumps({"object": "doctor", "findings": fields}))
    else:
        show(findings)
    if any(f.verdict is Verdict.WRONG for f in findings):
        sys.exit(1)


def show(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from slurm_launcher.doctor import Verdict

    colours = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.WRONG: "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for f in findings:
        told = Text(f.sentence)
        if f.advice:
            told.append(f"\n-> {f.advice}", style="italic")
        table.add_row(Text(f.verdict.value, style=colours[f.verdict]), f.what, told)
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    console.print(table)
    counts = [(v, sum(f.verdict is v for f in findings)) for v in (Verdict.WRONG, Verdict.WARNING)]
    console.print(", ".join(f"{count} {verdict.value}" for verdict, count in counts if count) or "all is well")


# -- examining -------------------------------------------------------------------------------------------------------


async def examine(
    config: Config,
    config_file: Path | None,
    state_dir: Path | None,
    specs: dict[str, ModelSpec],
    wait_s: float | None,
) -> list[Finding]:
    """`wait_s`: how long a job that looks at a node may take; None for no such job."""
    from . import checkup
    from .config import default_state_dir
    from .launching import site_of

    state = checkup.open_or_tell(state_dir or config.state_dir or default_state_dir())
    if not hasattr(state, "holder"):
        return [state]  # without it there is nothing to look at
    url = address(config, state)
    site = site_of(config, state, url)
    findings = [*here(config, config_file, state, site, specs)]
    if config.launcher.kind == "local":
        return findings
    clusters = sorted({spec.resources.cluster for spec in specs.values()} or {""})
    for name in clusters:
        on_it = {m: spec for m, spec in specs.items() if spec.resources.cluster == name}
        findings += [f async for f in on_cluster(config, state, site, name, on_it, wait_s)]
    return findings


def here(
    config: Config, config_file: Path | None, state: StateDir, site: Site, specs: dict[str, ModelSpec]
) -> Iterator[Finding]:
    """On this machine."""
    from slurm_launcher.doctor import ok, wrong

    from . import checkup
    from .database import DatabaseUnusable, database_of
    from .keys import KeyStore

    sqlite = config.database.url_env is None
    yield from checkup.state_findings(state.path, sqlite=sqlite)
    has_key = True
    try:
        engine = database_of(config, state)
        has_key = KeyStore(engine).ever()
        engine.dispose()
        yield ok("database", f"{'SQLite in the state directory' if sqlite else 'PostgreSQL'} answers.")
    except DatabaseUnusable as error:
        yield wrong("database", f"{error}.", "See docs/operations.md; the gateway does not start without it.")
    yield from checkup.secrets_findings(config, config_file)
    yield checkup.port_finding(config.server.host, config.server.port, state.holder())
    yield from checkup.url_findings(config, site.gateway_url, has_key=has_key)
    yield checkup.files_finding()
    if config.launcher.kind == "slurm":
        yield from checkup.shared_findings(site.log_directory.parent, configured=config.launcher.shared_dir is not None)
    for spec in specs.values():
        yield from checkup.model_files(spec)


def address(config: Config, state: StateDir) -> str:
    """Where agents report: what the running gateway has told them, else what the next one would."""
    from .server import advertised

    if config.server.advertise_url is not None:
        return config.server.advertise_url
    shared = config.launcher.shared_dir
    file = (shared.expanduser() if shared is not None else state.path) / state.url_file.name
    if state.holder() is not None and file.exists():
        return file.read_text().strip()
    return advertised(config, config.server.host, config.server.port)


async def on_cluster(
    config: Config,
    state: StateDir,
    site: Site,
    name: str,
    specs: dict[str, ModelSpec],
    wait_s: float | None,
) -> AsyncIterator[Finding]:
    """One cluster and the models on it."""
    from slurm_launcher.cluster import CouldNotAsk
    from slurm_launcher.doctor import cluster_findings, look, model_findings, wrong
    from slurm_launcher.slurm import SlurmCluster
    from slurm_launcher.spec import Secrets

    from .launching import Builder

    cluster = SlurmCluster(f"slurmgate-doctor-{config.launcher.service}", name=name)
    build = Builder(config, site, Secrets(b""))
    try:
        seen = await look(cluster, {m: build.script(spec, "DOCTOR", redact=True) for m, spec in specs.items()})
    except CouldNotAsk as error:
        advice = (
            "Slurm's commands must be on PATH and reach slurmctld: try `scontrol ping` in the same shell. Requests to "
            "running replicas go on without it."
        )
        yield wrong(f"Slurm {name}".strip(), f"{error}.".replace("..", "."), advice)
        return
    for finding in cluster_findings(name, seen):
        yield finding
    for spec in specs.values():
        for finding in model_findings(spec, seen):
            yield finding
    if wait_s is not None and specs:
        for finding in await from_a_node(cluster, config, state, site, list(specs.values()), wait_s):
            yield finding


# -- from a node -----------------------------------------------------------------------------------------------------


async def from_a_node(
    cluster: SlurmCluster, config: Config, state: StateDir, site: Site, specs: list[ModelSpec], wait_s: float
) -> list[Finding]:
    """One job, in the first model's partition, that looks for all of them."""
    from slurm_launcher.node_visit import asks

    if state.holder() is not None:
        asked = asks(specs, site.log_directory.parent, url=site.gateway_url, path="/health", expect='"ok"')
        return await visit(cluster, asked, specs[0], site, wait_s)
    nonce = secrets.token_hex(16)
    async with listening(config, nonce) as port:
        url = site.gateway_url
        if port != config.server.port:
            from urllib.parse import urlsplit

            parts = urlsplit(url)
            shown = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            url = f"{parts.scheme}://{shown}:{port}"
        asked = asks(specs, site.log_directory.parent, url=url, path="/doctor", expect=nonce)
        return await visit(cluster, asked, specs[0], site, wait_s)


@asynccontextmanager
async def listening(config: Config, nonce: str) -> AsyncIterator[int]:
    """In place of the gateway, which does not run: something that answers with the nonce. Gives its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(nonce)}\r\nConnection: close\r\n\r\n"
        writer.write((head + nonce).encode())
        await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, config.server.host, config.server.port)
    except OSError:  # taken, or of another gateway: any port tells of the way
        server = await asyncio.start_server(answer, config.server.host, 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


async def visit(cluster: SlurmCluster, asked: Asked, spec: ModelSpec, site: Site, wait_s: float) -> list[Finding]:
    """Submit the job, wait for what it says, and clean up."""
    from slurm_launcher.cluster import CouldNotAsk, JobComment, Refused, Submission
    from slurm_launcher.doctor import wrong
    from slurm_launcher.node_visit import node_script

    what = "node"
    output = site.log_directory / f"doctor-{secrets.token_hex(4)}.log"
    job_name = f"slurmgate-doctor-{site.service}"
    sent_at = time.time()
    job_id = None
    try:
        output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for gpu in (False, True):
            text = node_script(spec, asked, job_name=job_name, output=str(output), python=site.python, gpu=gpu)
            try:
                mark = JobComment(site.service, spec.name, "doctor", "")
                job_id = await cluster.submit(Submission("doctor", text, mark, output))
                break
            except Refused as error:
                if gpu or not spec.resources.gpus:
                    advice = "See the findings on this model's submission."
                    return [wrong(what, f"the job that would look at a node was refused: {error}.", advice)]
        assert job_id is not None  # noqa: S101  # the loop ends in one of the two, told to the type checker
        return await outcome(cluster, asked, job_id, output, sent_at, wait_s)
    except (CouldNotAsk, OSError) as error:
        return [wrong(what, f"no job could be sent to a node: {error}.", "Run this again when Slurm answers.")]
    finally:
        if job_id is not None:
            try:
                await cluster.cancel([job_id])
            except CouldNotAsk:
                pass  # it ends by itself within its minute
        output.unlink(missing_ok=True)


async def outcome(
    cluster: SlurmCluster, asked: Asked, job_id: str, output: Path, sent_at: float, wait_s: float
) -> list[Finding]:
    from slurm_launcher.doctor import warning
    from slurm_launcher.node_visit import node_findings, read_node_report, silent_findings

    deadline = time.monotonic() + wait_s
    over_since: float | None = None
    while True:
        text = output.read_text(errors="replace") if output.exists() else ""
        report: dict[str, Any] | None = read_node_report(text)
        if report is not None:
            return list(node_findings(report, asked, sent_at, time.time()))
        job = (await cluster.jobs()).get(job_id)
        now = time.monotonic()
        if job is not None and job.over:
            over_since = over_since or now
            if text or now - over_since > min(FILE_LAG_S, wait_s):
                return list(silent_findings(job, text, str(output)))
        if now > deadline:
            state = f"{job.state} ({job.reason})" if job is not None and job.reason else (job.state if job else "gone")
            advice = "Give it longer with --wait, or look again when the partition is less busy."
            return [warning("node", f"job {job_id} has told nothing within {wait_s:g} s; it is {state}.", advice)]
        await asyncio.sleep(POLL_S)
