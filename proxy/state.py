"""The state directory: one gateway's files, held by one process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import secrets
from pathlib import Path

SECRET_BYTES = 32


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
                read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
                number = errno.EROFS if read_only else errno.EACCES
                raise OSError(number, os.strerror(number))
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
        """Take the directory for this process, until it ends. Raises `StateDirInUse`, `StateDirUnusable`."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDirUnusable(f"the state directory {self.path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "?"
            os.close(lock)
            raise StateDirInUse(
                f"another slurmgate (process {pid}) runs on {self.path}; stop it, or give this one its own --state-dir"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same; the database tells of it
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
        """The gateway's secret, made at its first use: whole or not at all. Raises `StateDirUnusable`."""
        path = self.path / "secret"
        try:
            if not path.exists():
                self._make_secret(path)
            found = path.read_bytes()
        except OSError as error:
            raise StateDirUnusable(f"the secret {path} cannot be had: {error.strerror}") from None
        if len(found) < SECRET_BYTES:
            raise StateDirUnusable(f"the secret {path} is cut off: remove it, and running replicas are started anew")
        return found

    def _make_secret(self, path: Path) -> None:
        """Raises OSError. Who is later than another process takes the other's."""
        new = path.with_name(f"secret.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
            with contextlib.suppress(FileExistsError):
                os.link(new, path)
        finally:
            new.unlink(missing_ok=True)
