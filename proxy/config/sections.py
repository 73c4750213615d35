"""The sections beside the models: pydantic models, so that their fields are the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .notation import Bytes, Seconds, Section


class Server(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    advertise_url: str | None = None
    """Where the agents in the jobs report, such as `http://login1.cluster:8000`; by default this machine's name."""
    max_body_mb: int = Field(64, ge=1)
    body_timeout_s: Seconds = 60.0
    """How long a client may take to send its request."""
    shutdown_grace_s: float = Field(30.0, ge=0)
    """How long running streams may go on after SIGTERM."""
    workers: int = Field(1, ge=1, le=64)
    """Processes that serve behind the one port."""


class DatabaseSection(Section):
    url_env: str | None = None
    """The environment variable that holds a URL such as `postgresql://user:password@host/name`; by default SQLite in
    the state directory."""


class FilesSection(Section):
    """What clients upload, and what batches make for them. Sizes are bytes, or texts such as "64G"."""

    directory: Path | None = Field(None, strict=False)
    """By default `files` in the state directory. Gateways that share a database share it, too."""
    max_bytes_total: Bytes | None = None
    max_bytes_per_project: Bytes | None = None
    """Of a project's files together, or those of a key of no project."""
    max_file_bytes: Bytes = 8 * 1024**3
    """Of one file, however it comes. By itself `POST /v1/files` takes 512M at most, and 200M for a batch."""
    keep_free_bytes: Bytes = 1024**3
    """What stays free on the file system: nothing more is taken when less is left."""


class Limits(Section):
    """What everybody may do whose key and project say nothing else. Tokens are prompt and completion together."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent_requests: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)
    tokens_per_month: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Limits:
        day, month, minute = self.tokens_per_day, self.tokens_per_month, self.tokens_per_minute
        if day and month and day > month:
            raise ValueError(f"expected tokens_per_day ({day}) to be at most tokens_per_month ({month})")
        if minute and day and minute > day:
            raise ValueError(f"expected tokens_per_minute ({minute}) to be at most tokens_per_day ({day})")
        if minute and month and minute > month:
            raise ValueError(f"expected tokens_per_minute ({minute}) to be at most tokens_per_month ({month})")
        return self


class Observability(Section):
    privacy: bool = True
    """Prompts and answers stay out of logs and traces. Off only by choice."""
    tracing: bool = False
    """OpenTelemetry spans (the extra `otel`); where they go is said by the usual OTEL_* environment variables."""


class LauncherSection(Section):
    kind: Literal["slurm", "local"] = "slurm"
    service: str = Field("main", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """Jobs are called `slurmgate-<service>`."""
    python: str = "python3"
    """Runs the agent on the nodes; 3.6 or newer, nothing else needed."""
    heartbeat_s: Seconds = 5.0
    orphan_timeout_s: Seconds = 3600.0
    """A replica that cannot reach any gateway for this long ends itself."""
    shared_dir: Path | None = Field(None, strict=False)
    """Job logs and the gateway's current URL, visible from the nodes; by default the state directory."""
    poll_busy_s: float = Field(15.0, ge=1)
    poll_calm_s: float = Field(60.0, ge=1)
    max_pending_jobs: int | None = Field(None, ge=1)
    """Jobs that may wait in Slurm's queue at once, all models together."""
    max_gpus: int | None = Field(None, ge=1)
    """GPUs that all replicas together may have or wait for."""
    stop_replicas_on_exit: bool = False
