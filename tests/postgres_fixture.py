"""A real PostgreSQL for tests: a server for each test process, in a directory of its own; a database for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine

from proxy.database import open_database
from tests.waiting import until_sync

SCRIPT = Path(__file__).parent / "acceptance" / "postgres.sh"
PROGRAMS = ("initdb", "postgres")
_ENDS_WITH_US = ("setpriv", "--pdeathsig=QUIT")  # also when this process is killed
PASSWORD = "p@ss/w:rd"  # what must be percent-encoded in a URL


def programs() -> Path | None:
    """Where the newest installed server's programs are: Debian keeps them off PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    found.sort(key=lambda path: [int(part) for part in path.parent.name.split(".")])
    if on_path := shutil.which("postgres"):
        found.append(Path(on_path).parent)
    usable = [path for path in found if all((path / name).exists() for name in PROGRAMS)]
    return usable[-1] if usable else None


def postgres_unavailable_reason() -> str | None:
    """Why no PostgreSQL can be started here; None where one can."""
    if programs() is None:
        return f"no PostgreSQL server: run `{SCRIPT.name} install` (as `make test` does)"
    if shutil.which("setpriv") is None:
        return "no setpriv (util-linux): PostgreSQL does not run as root, and is to end with the tests"
    return None


def require_postgres() -> None:
    """Skip the test where there can be none; fail it there in CI, where a silent skip would look like success."""
    reason = postgres_unavailable_reason()
    if reason is None:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class PostgresServer:
    """A server on a loopback port of its own. Who connects over TCP needs the password.

    directory  holds everything: data, log, sockets
    """

    def __init__(self, directory: Path) -> None:
        found = programs()
        assert found is not None
        self._programs = found
        self.directory = directory
        self._data = directory / "data"
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = next(name for name in ("postgres", "nobody") if _has_user(name))
            known = pwd.getpwnam(user)
            os.chown(directory, known.pw_uid, known.pw_gid)
            self._as = ["setpriv", f"--reuid={known.pw_uid}", f"--regid={known.pw_gid}", "--clear-groups"]
        self.port = 0
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._programs / name), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.directory,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
        if done.returncode != 0:
            raise AssertionError(f"{name} -> {done.returncode}: {done.stderr.strip()}")

    def initialise(self) -> None:
        password = self.directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            "initdb", "-D", str(self._data), "-U", "tests", "-A", "scram-sha-256", f"--pwfile={password}",
            "-E", "UTF8", "--no-locale", "--no-sync",
        )  # fmt: skip

    def start(self) -> None:
        """On a free port, which another process may take first: then on another."""
        for _ in range(5):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            options = {
                "listen_addresses": "127.0.0.1",
                "port": str(self.port),
                "unix_socket_directories": str(self.directory),
                "fsync": "off",
                "max_connections": "200",
                "shared_buffers": "16MB",
            }
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*_ENDS_WITH_US, *self._as[1:], str(self._programs / "postgres"), "-D", str(self._data)]
                    + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    start_new_session=True,
                )
            if self._ready():
                return
        raise AssertionError(f"PostgreSQL does not start: {(self.directory / 'log').read_text()[-2000:]}")

    def _ready(self) -> bool:
        """Whether it has come up, told by the file that it writes then."""
        process, status = self._process, self._data / "postmaster.pid"
        assert process is not None

        def answers() -> bool:
            if process.poll() is not None:
                return True
            try:
                return status.read_text().splitlines()[7].strip() == "ready"
            except (OSError, IndexError):
                return False

        until_sync(answers, 60)
        return process.poll() is None

    def stop(self) -> None:
        """At once, as an administrator in a hurry does."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT)  # by its own id; it ends its children
            process.wait(60)

    def new_database(self) -> str:
        """The URL of a new and empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            # not of template1, which the server itself may be looking at
            connection.execute(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(name)))
        return self.url(name)

    def url(self, name: str, password: str = PASSWORD) -> str:
        return f"postgresql://tests:{quote(password, safe='')}@127.0.0.1:{self.port}/{name}"


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this process; each process of a parallel run starts its own."""
    require_postgres()
    # under /tmp, whatever pytest's own directory is: that one is closed to the user whom the server runs as
    with tempfile.TemporaryDirectory(prefix="slurmgate-pg-", dir="/tmp") as directory:
        server = PostgresServer(Path(directory))
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'slurmgate.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An open database, once of each kind."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()
