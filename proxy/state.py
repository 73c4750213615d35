"""The state directory: one gateway's files, held by one process."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from pathlib import Path


class StateDirInUse(Exception):
    """Another gateway runs on this state directory."""


class StateDirUnusable(Exception):
    """It cannot be made or written."""


class StateDir:
    """`path` and what is in it. It is private to the user: it holds the secret that all replicas' keys come from.

    lock          held while a gateway runs; its process id is inside
    gateway.url   where the running gateway is reached by agents
    secret        32 random bytes
    control.sock  where the command line reaches the running gateway
    slurmgate.db  keys, usage, replicas
    jobs/         the local launcher's jobs
    logs/         the jobs' logs
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise StateDirUnusable(f"the state directory {self.path} cannot be used: {error.strerror}") from None
        self._lock: int | None = None

    @property
    def database(self) -> Path:
        return self.path / "slurmgate.db"

    @property
    def url_file(self) -> Path:
        return self.path / "gateway.url"

    @property
    def operator_socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def identity(self) -> str:
        """Whose the replicas are, where gateways share a database."""
        return hmac.new(self.secret(), b"identity", hashlib.sha256).hexdigest()[:32]

    def lock(self) -> None:
        """Take the directory for this process, until it ends. Raises `StateDirInUse`."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "?"
            os.close(lock)
            raise StateDirInUse(
                f"another slurmgate (process {pid}) runs on {self.path}; stop it, or give this one its own --state-dir"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def holder(self) -> int | None:
        """The process id of the gateway that runs on this directory, None for none."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(lock, 32, 0).decode(errors="replace").strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(lock)
        return None

    def secret(self) -> bytes:
        """The gateway's secret, made at its first use."""
        path = self.path / "secret"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_bytes()
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
        return path.read_bytes()
