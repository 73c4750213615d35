"""The checks of `slurmgate doctor`, in their order: this machine, each cluster, a node.

The verdicts are elsewhere (checkup.py, slurm_launcher/doctor.py, slurm_launcher/node_visit.py); here is the asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from slurm_launcher.cluster import CouldNotAsk, JobComment, Refused, Submission
from slurm_launcher.doctor import Finding, cluster_findings, look, model_findings, ok, warning, wrong
from slurm_launcher.node_visit import Asked, asks, node_findings, node_script, read_node_report, silent_findings
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import ModelSpec, Secrets, Site

from . import checkup
from .config import Config
from .database import DatabaseUnusable, database_of
from .keys import KeyStore
from .launching import Builder, site_of
from .server import advertised
from .state import StateDir, StateDirUnusable

POLL_S = 0.5
FILE_LAG_S = 30.0
"""How long a file that a node has written may take to be seen here (NFS keeps what it knows of a directory so long)."""


async def examine(
    config: Config,
    state_dir: Path,
    specs: Mapping[str, ModelSpec],
    *,
    config_file: Path | None = None,
    wait_s: float | None = None,
) -> list[Finding]:
    """All findings. `wait_s`: how long a job that looks at a node may take; None for no such job."""
    try:
        state = StateDir(state_dir)
    except StateDirUnusable as error:  # without it there is nothing more to look at
        return [wrong("state directory", f"{error}.", "Give --state-dir or state_dir a directory of yours.")]
    site = site_of(config, state, address(config, state))
    it = Examination(config, state, site, specs, wait_s)
    findings = [*it.here(config_file)]
    if config.launcher.kind == "slurm":
        for name in sorted({kind.resources.cluster for spec in specs.values() for kind in spec.kinds} or {""}):
            findings += [finding async for finding in it.cluster(name)]
    return findings


def address(config: Config, state: StateDir) -> str:
    """Where agents report: what the running gateway has told them, else what the next one would."""
    if config.server.advertise_url is not None:
        return config.server.advertise_url
    shared = config.launcher.shared_dir
    file = (shared.expanduser() if shared is not None else state.path) / state.url_file.name
    if state.holder() is not None and file.exists():
        return file.read_text().strip()
    return advertised(config, config.server.host, config.server.port)


@dataclass(frozen=True, slots=True)
class Examination:
    config: Config
    state: StateDir
    site: Site
    specs: Mapping[str, ModelSpec]
    wait_s: float | None

    def here(self, config_file: Path | None) -> Iterator[Finding]:
        """On this machine."""
        config, state, sqlite = self.config, self.state, self.config.database.url_env is None
        yield from checkup.state_findings(state.path, sqlite=sqlite)
        has_key = True
        try:
            engine = database_of(config, state)
            has_key = KeyStore(engine).ever()
            engine.dispose()
            yield ok("database", f"{'SQLite in the state directory' if sqlite else 'PostgreSQL'} answers.")
        except DatabaseUnusable as error:
            yield wrong("database", f"{error}.", "Mend it first: the gateway does not start without it.")
        yield from checkup.secrets_findings(config, config_file)
        yield checkup.port_finding(config.server.host, config.server.port, state.holder())
        yield from checkup.url_findings(config, self.site.gateway_url, has_key=has_key)
        yield checkup.files_finding()
        if config.launcher.kind == "slurm":
            configured = config.launcher.shared_dir is not None
            yield from checkup.shared_findings(self.shared, configured=configured)
        for spec in self.specs.values():
            yield from checkup.model_files(spec)

    @property
    def shared(self) -> Path:
        """What the nodes have to see."""
        return self.site.log_directory.parent

    async def cluster(self, name: str) -> AsyncIterator[Finding]:
        """One cluster and the models on it."""
        cluster = SlurmCluster(f"slurmgate-doctor-{self.site.service}", name=name)
        build = Builder(self.config, self.site, Secrets(b""))
        kinds = [kind for spec in self.specs.values() for kind in spec.variants]
        specs = {kind.label: kind for kind in kinds if kind.resources.cluster == name}
        scripts: dict[str, str] = {}
        for model, spec in list(specs.items()):
            try:
                scripts[model] = build.script(spec, "DOCTOR", redact=True)
            except ValueError as error:  # what cannot stand in a batch script, or what its runtime does not take
                yield wrong(f"{model}: configuration", f"{error}.", "Correct it: the gateway does not start like this.")
                del specs[model]
        try:
            seen = await look(cluster, scripts)
        except CouldNotAsk as error:
            advice = (
                "Slurm's commands must be on PATH and reach slurmctld: try `scontrol ping` in the same shell. Replicas "
                "that run go on without it."
            )
            yield wrong(f"Slurm {name}".strip(), f"{error}.", advice)
            return
        for finding in cluster_findings(name, seen):
            yield finding
        for spec in specs.values():
            for finding in model_findings(spec, seen):
                yield finding
        if self.wait_s is not None and specs:
            # in the partition of one that Slurm would take
            first = sorted(specs, key=lambda model: not isinstance(seen.tests[model], str))
            for finding in await self.from_a_node(cluster, [specs[model] for model in first], self.wait_s):
                yield finding

    async def from_a_node(self, cluster: SlurmCluster, specs: list[ModelSpec], wait_s: float) -> list[Finding]:
        """One job, with the first model's partition and account, that looks for all of them."""
        url = self.site.gateway_url
        if self.state.holder() is not None:
            asked = asks(specs, self.shared, url=url, path="/health", expect='"ok"')
            return await self.visit(cluster, asked, specs[0], wait_s)
        nonce = secrets.token_hex(16)
        async with listening(self.config.server.host, self.config.server.port, nonce) as port:
            if port != self.config.server.port:
                url = with_port(url, port)
            asked = asks(specs, self.shared, url=url, path="/doctor", expect=nonce)
            return await self.visit(cluster, asked, specs[0], wait_s)

    async def visit(self, cluster: SlurmCluster, asked: Asked, spec: ModelSpec, wait_s: float) -> list[Finding]:
        """Submit the job, wait for what it says, and clean up."""
        output = self.site.log_directory / f"doctor-{secrets.token_hex(4)}.log"
        sent_at, job_id = time.time(), ""
        try:
            output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            job_id = await self.submit(cluster, asked, spec, output)
            return await outcome(cluster, asked, Sent(job_id, output, sent_at), wait_s)
        except Refused as error:
            advice = "See the finding on this model's submission."
            return [wrong("node", f"the job that would look at a node was refused: {error}.", advice)]
        except (CouldNotAsk, OSError) as error:
            return [wrong("node", f"no job could be sent to a node: {error}.", "Run this again when Slurm answers.")]
        finally:
            if job_id:
                with contextlib.suppress(CouldNotAsk):  # it ends by itself within its minute
                    await cluster.cancel([job_id])
            output.unlink(missing_ok=True)

    async def submit(self, cluster: SlurmCluster, asked: Asked, spec: ModelSpec, output: Path) -> str:
        """Without a GPU, since that starts sooner; with one where the partition takes no job without."""
        job_name = f"slurmgate-doctor-{self.site.service}"
        mark = JobComment(self.site.service, spec.name, "doctor", "")
        for gpu in (False, True):
            script = node_script(spec, asked, job_name=job_name, output=str(output), python=self.site.python, gpu=gpu)
            try:
                return await cluster.submit(Submission("doctor", script, mark, output))
            except Refused:
                if gpu or not spec.resources.gpus:
                    raise
        raise AssertionError("the second attempt returns or raises")


def with_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


@asynccontextmanager
async def listening(host: str, port: int, nonce: str) -> AsyncIterator[int]:
    """In place of the gateway, which does not run: something that answers with the nonce. Gives its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(nonce)}\r\nConnection: close\r\n\r\n"
        writer.write((head + nonce).encode())
        await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, host, port)
    except OSError:  # taken: any other port tells of the way as well
        server = await asyncio.start_server(answer, host, 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


@dataclass(frozen=True, slots=True)
class Sent:
    """The job that looks at a node."""

    job_id: str
    output: Path
    at: float

    def text(self) -> str:
        try:
            return self.output.read_text(errors="replace")
        except FileNotFoundError:
            return ""


async def outcome(cluster: SlurmCluster, asked: Asked, sent: Sent, wait_s: float) -> list[Finding]:
    """What the job has told; or why it has told nothing."""
    deadline = time.monotonic() + wait_s
    over_since: float | None = None
    while True:
        # asked before the file is read: of a job that is over, all that it wrote is there
        job = (await cluster.jobs()).get(sent.job_id)
        text = sent.text()
        report = read_node_report(text)
        if report is not None:
            return list(node_findings(report, asked, sent.at, time.time()))
        now = time.monotonic()
        if job is not None and job.over:
            over_since = over_since or now
            unlaunched = job.reason == "JobLaunchFailure"  # where its output could not be opened on the node
            if text or unlaunched or now - over_since > FILE_LAG_S or now > deadline:
                return list(silent_findings(job, text, str(sent.output)))
        if now > deadline:
            state = "gone" if job is None else f"{job.state} ({job.reason})" if job.reason else job.state
            advice = "Give it longer with --wait, or look again when the partition is less busy."
            return [warning("node", f"job {sent.job_id} has told nothing within {wait_s:g} s; it is {state}.", advice)]
        await asyncio.sleep(POLL_S)
