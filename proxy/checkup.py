"""What may be wrong on the gateway's own machine: its directories, secrets, database, address, files to serve.

Each check is a small function that gives `Finding`s; `facts` of the machine are asked for by the functions at the end.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from slurm_launcher.doctor import Finding, ok, warning, wrong
from slurm_launcher.node_visit import is_path
from slurm_launcher.spec import ModelSpec

from .config import Config
from .server import is_loopback

LEAST_FREE = 200 * 1024**2
LITTLE_FREE = 2 * 1024**3
LEAST_FILES = 4096
"""Each request has a client's connection and an engine's."""

SHARED_TYPES = frozenset({
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "smbfs", "afs", "9p", "panfs", "pvfs2",
    "orangefs", "wekafs", "ocfs2", "gfs2", "glusterfs", "virtiofs",
})  # fmt: skip


def is_shared(filesystem: str) -> bool:
    """Of a type as /proc/mounts has it. What is behind FUSE is seldom a local disk."""
    return filesystem in SHARED_TYPES or filesystem.startswith("fuse.") or filesystem == "fuse"


# -- directories ------------------------------------------------------------------------------------------------------


def state_findings(path: Path, *, sqlite: bool) -> Iterator[Finding]:
    """The state directory: writable, private, with space, and on a local disk where the database is in it."""
    what = "state directory"
    if (failed := cannot_write(path)) is not None:
        yield wrong(what, f"{path} cannot be written: {failed}.", "Give --state-dir or state_dir a directory of yours.")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield wrong(what, f"others may look into {path} (mode {mode:04o}), and secrets are there.", f"chmod 700 {path}")
    for name in ("secret", "slurmgate.db", "control.sock"):
        file = path / name
        if file.exists() and (loose := stat.S_IMODE(file.stat().st_mode) & 0o077) and name == "secret":
            yield wrong(what, f"others may read {file} (mode {loose:03o} for them).", f"chmod 600 {file}")
        if file.exists() and file.stat().st_uid != os.geteuid():
            yield wrong(what, f"{file} is not yours.", "Run every slurmgate command as the gateway's user.")
    kind = filesystem_of(path)
    if is_shared(kind) and sqlite:
        advice = "Choose a directory on a local disk, or PostgreSQL (database.url_env); logs go to launcher.shared_dir."
        yield wrong(what, f"{path} is on {kind}, where SQLite's locks and its log are not safe.", advice)
    else:
        yield ok(what, f"{path} is writable{f', on a local disk ({kind})' if kind and not is_shared(kind) else ''}.")
    yield space_finding(path)


def space_finding(path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    sentence = f"{free / 1024**3:.1f} GiB are free in {path}."
    advice = "Make room, or give the state directory another place: keys and usage are written there."
    if free < LEAST_FREE:
        return wrong("free space", sentence, advice)
    return warning("free space", sentence, advice) if free < LITTLE_FREE else ok("free space", sentence)


def shared_findings(path: Path, *, configured: bool) -> Iterator[Finding]:
    """Where the job logs go: it must be there on the nodes too."""
    what = "launcher.shared_dir"
    if (failed := cannot_write(path)) is not None:
        yield wrong(what, f"{path} cannot be written: {failed}.", "Make it, as the gateway's user, on a shared disk.")
        return
    kind = filesystem_of(path)
    if is_shared(kind):
        yield ok(what, f"{path} is on {kind}.")
    else:
        named = path if configured else f"it is not set, so the logs are in {path}, which"
        advice = "Set it to a directory that the nodes see; --from-node tells whether they see this one."
        yield warning(what, f"{named} is on a local disk ({kind}) of this machine.", advice)


def secrets_findings(config: Config, config_file: Path | None) -> Iterator[Finding]:
    """Values of a model's `environment` may be secrets; so the file that has them should be the user's alone."""
    if config_file is None or not any(spec.environment for spec in config.specs.values()):
        return
    mode = stat.S_IMODE(config_file.stat().st_mode)
    if mode & 0o044:
        sentence = f"others may read {config_file} (mode {mode:04o}), which has an `environment` for engines."
        yield warning("configuration", sentence, f"chmod 600 {config_file}, if there is a secret among its values.")


# -- the address ------------------------------------------------------------------------------------------------------


def url_findings(config: Config, url: str, *, has_key: bool) -> Iterator[Finding]:
    """The URL that agents are told: whether it can be found, and whether the gateway will listen there."""
    what = "gateway's URL"
    host = urlsplit(url).hostname or ""
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, None)})
    except OSError as error:
        advice = "Set server.advertise_url to a name or an address that this machine and the nodes know."
        yield wrong(what, f"{host} of {url} is not known here: {error.strerror or error}.", advice)
        return
    shown = f"{url} ({', '.join(addresses)})"
    if config.launcher.kind == "slurm" and all(is_loopback(address) for address in addresses):
        advice = "Set server.host to an address that the nodes reach, or 0.0.0.0, and server.advertise_url to its URL."
        yield warning(what, f"{shown} is this machine alone: jobs on other nodes cannot report.", advice)
    else:
        yield ok(what, f"agents report to {shown}.")
    if not is_loopback(config.server.host) and not has_key:
        advice = "slurmgate keys create NAME"
        yield warning("API keys", f"there is none, so it will not listen on {config.server.host}.", advice)


def port_finding(host: str, port: int, holder: int | None) -> Finding:
    """`holder`: the process id of the gateway that runs on this state directory."""
    if holder is not None:
        return ok("gateway", f"it runs (process {holder}).")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = "Choose another server.port, or end the program that has it (`ss -ltnp`)."
            return wrong("gateway", f"it cannot listen on {host}:{port}: {error.strerror or error}.", advice)
    return ok("gateway", f"it does not run; {host}:{port} is free.")


def files_finding() -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    sentence = f"{limit} files and connections may be open at once."
    if limit < LEAST_FILES:
        return warning("open files", sentence, "`ulimit -n 65536`, or LimitNOFILE= in the systemd unit.")
    return ok("open files", sentence)


# -- what is served ---------------------------------------------------------------------------------------------------


def model_files(spec: ModelSpec) -> Iterator[Finding]:
    """Weights and images that are files: here now. --from-node looks for them on a node."""
    what = f"{spec.name}: weights"
    if is_path(spec.source):
        yield readable(what, Path(spec.source).expanduser(), "source")
    if spec.image and is_path(spec.image):
        yield readable(f"{spec.name}: image", Path(spec.image).expanduser(), "image")


def readable(what: str, path: Path, key: str) -> Finding:
    try:
        if path.is_dir():
            empty = next(path.iterdir(), None) is None
            return (
                wrong(what, f"{path} is empty.", f"Put it there, or correct `{key}`.")
                if empty
                else ok(what, f"{path}.")
            )
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        return wrong(what, f"{path} cannot be read: {error.strerror}.", f"Correct `{key}`, or let your user read it.")
    return wrong(what, f"{path} is empty.", "Copy it again.") if empty else ok(what, f"{path}.")


# -- facts ------------------------------------------------------------------------------------------------------------


def cannot_write(path: Path) -> str | None:
    """Why not; None if it can be. Written and not asked: a full or read-only disk shows itself only then."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"slurmgate" * 1000)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def filesystem_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that has a path, by /proc/mounts; "" where that is not there."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return ""
    best, kind = "", ""
    real = str(path.resolve())
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        at = fields[1].encode().decode("unicode_escape")  # a blank is \040
        inside = real == at or real.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= len(best):  # the last one lies on top
            best, kind = at, fields[2]
    return kind
