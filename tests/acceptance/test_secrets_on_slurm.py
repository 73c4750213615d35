"""What other users of the cluster can see of a service on a real Slurm with accounting, and what its doors refuse.

The cluster has accounting, so that there is one place more in which a secret could be read. `nobody` is another user.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from proxy.state import StateDir
from slurm_launcher.spec import Secrets
from slurm_launcher.states import Replica, Status
from slurm_launcher.store import ReplicaStore
from tests.acceptance.test_on_slurm import CHAT, config
from tests.gateway_process import GatewayProcess
from tests.slurm_fixture import SlurmLab
from tests.waiting import until_sync

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SERVICE = "secrets"
NOBODY = pwd.getpwnam("nobody")


class Site:
    """`secrets` by what they are; none of them is anybody else's business."""

    def __init__(self, gateway: GatewayProcess, lab: SlurmLab) -> None:
        self.gateway = gateway
        self.lab = lab
        self.client_key = gateway.key()
        self.admin_key = gateway.key("operator", "--admin")
        self.secret = (gateway.state_dir / "secret").read_bytes()
        derived = Secrets(self.secret)
        self.replicas = ready(gateway)
        self.tokens = {r.id: derived.agent_token(r.id) for r in self.replicas}
        self.engine_keys = {r.id: derived.engine_key(r.id) for r in self.replicas}

    def assert_hidden(self, texts: dict[str, bytes]) -> None:
        """`texts`: what was shown, by where."""
        hidden = [*self.tokens.values(), *self.engine_keys.values(), self.client_key, self.admin_key, self.secret.hex()]
        for where, text in texts.items():
            assert self.secret not in text, where
            for secret in hidden:
                assert secret.encode() not in text, where

    def as_nobody(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        """A command as another user of the cluster."""
        return subprocess.run(
            argv,
            capture_output=True,
            env=self.lab.env(),
            cwd="/",
            user=NOBODY.pw_uid,
            group=NOBODY.pw_gid,
            extra_groups=[],
            timeout=30,
            check=False,
        )

    def ask(self, url: str, key: str | None, body: Any) -> int:
        """The status of a POST."""
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        if key is not None:
            request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


def ready(gateway: GatewayProcess) -> list[Replica]:
    """Of the chat model, with their addresses, which `status` does not show."""
    engine = create_engine(f"sqlite:///{gateway.state_dir}/slurmgate.db")
    try:
        known = ReplicaStore(engine, StateDir(gateway.state_dir).identity).load()
    finally:
        engine.dispose()
    return [r for r in known if r.model == CHAT and r.status is Status.READY]


def accounted(lab: SlurmLab) -> set[str]:
    """Jobs that the accounting knows."""
    return set(lab.run("sacct", "-a", "-n", "-P", "-X", "-o", "JobID").split())


@pytest.fixture(scope="module")
def site(slurm_accounting_lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    gateway = GatewayProcess(tmp_path_factory.mktemp("secrets"), config(SERVICE), slurm_accounting_lab.env())
    try:
        gateway.start()
        gateway.until_ready(**{CHAT: 2})
        until_sync(lambda: len(ready(gateway)) == 2)
        jobs = {str(replica.job_id) for replica in ready(gateway)}
        # slurmctld tells slurmdbd some seconds later
        until_sync(lambda: jobs <= accounted(slurm_accounting_lab), every_s=0.2)
        yield Site(gateway, slurm_accounting_lab)
    finally:
        gateway.stop()
        slurm_accounting_lab.cancel_all()


COMMANDS = {
    "scontrol show job": ("scontrol", "show", "job"),
    "scontrol show job -dd": ("scontrol", "-dd", "show", "job"),
    "scontrol show step": ("scontrol", "show", "step"),
    "squeue, every field": ("squeue", "-t", "all", "-o", "%all"),
    "squeue, every long field": ("squeue", "-t", "all", "-O", "ALL"),
    "sacct, every field": ("sacct", "-a", "-P", "-o", "ALL"),
    "ps": ("ps", "-eo", "user,pid,args", "-ww"),
    "ps, as Slurm's own": ("ps", "-efww"),
}


@pytest.mark.parametrize("who", ["its owner", "nobody"])
def test_no_command_shows_a_secret(site: Site, who: str) -> None:
    shown: dict[str, bytes] = {}
    for name, argv in COMMANDS.items():
        if shutil.which(argv[0], path=site.lab.env()["PATH"]) is None:
            assert argv[0] == "ps", "Slurm's commands are there"
            continue  # /proc, where ps looks, is read below
        if who == "nobody":
            done = site.as_nobody(*argv)
            assert done.returncode == 0, (name, done.stderr)
            shown[name] = done.stdout + done.stderr
        else:
            shown[name] = site.lab.run(*argv).encode()
    job = str(site.replicas[0].job_id).encode()
    assert job in shown["scontrol show job"], "there is something to see"
    assert job in shown["sacct, every field"]
    assert site.replicas[0].id.encode() in shown["squeue, every field"], "its mark"
    site.assert_hidden(shown)


def test_no_process_has_a_secret_on_its_command_line(site: Site) -> None:
    shown = {str(path): content(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    assert any(b"xllamacpp_server" in text for text in shown.values())
    site.assert_hidden(shown)


def test_another_user_reads_neither_script_nor_environment_nor_files(site: Site) -> None:
    job = str(site.replicas[0].job_id)
    token = site.tokens[site.replicas[0].id].encode()
    assert token in site.lab.run("scontrol", "write", "batch_script", job, "-").encode(), "its owner may"
    refused = site.as_nobody("scontrol", "write", "batch_script", job, "-")
    assert b"Invalid user id" in refused.stderr
    kept = site.as_nobody("sacct", "-j", job, "--batch-script")  # the accounting keeps scripts here
    processes = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if b"xllamacpp" in content(path)]
    assert processes
    environments = [site.as_nobody("cat", f"/proc/{pid}/environ") for pid in processes]
    assert all(done.returncode != 0 for done in environments)
    state = site.as_nobody("find", str(site.gateway.state_dir))
    assert state.returncode != 0
    looks = [refused, kept, state, *environments]
    site.assert_hidden({" ".join(done.args): done.stdout + done.stderr for done in looks})


def test_no_log_and_no_database_has_a_secret(site: Site) -> None:
    state = site.gateway.state_dir
    paths = [site.gateway.log_path, site.gateway.out_path, *(state / "logs").iterdir(), *state.glob("slurmgate.db*")]
    assert len(paths) >= 2 + 3 + 1
    site.assert_hidden({str(path): path.read_bytes() for path in paths})


def test_files_with_secrets_are_their_owners_alone(site: Site) -> None:
    assert site.gateway.state_dir.stat().st_mode & 0o777 == 0o700
    assert (site.gateway.state_dir / "secret").stat().st_mode & 0o777 == 0o600
    assert (site.gateway.state_dir / "control.sock").stat().st_mode & 0o777 == 0o600
    assert (site.gateway.state_dir / "logs").stat().st_mode & 0o077 == 0
    holders = [*site.tokens.values(), *site.engine_keys.values()]
    for place in (site.gateway.state_dir, site.lab.directory, Path("/tmp")):  # noqa: S108  # where jobs leave files
        for path in files_below(place, depth=5):
            text = content(path)
            if any(secret.encode() in text for secret in holders):
                assert readers(path, place) == 0, f"{path} holds a secret and others may read it"


def files_below(place: Path, depth: int) -> Iterator[Path]:
    """Regular files of a moderate size."""
    for folder, folders, names in os.walk(place):
        if folder.count("/") - str(place).count("/") >= depth or (
            place == Path("/tmp") and not folder.startswith("/tmp/slurm") and folder != "/tmp"  # noqa: S108
        ):
            folders.clear()
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 4 * 1024**2:
                yield path


def readers(path: Path, place: Path) -> int:
    """The bits by which others than its owner may come to read a file: of itself and each folder on the way."""
    bits = path.stat().st_mode & 0o044
    for folder in path.parents:
        if folder in place.parents:
            break
        bits &= 0o044 if folder.stat().st_mode & 0o011 else 0
    return bits


def content(path: Path) -> bytes:
    """A file's bytes; none of one that has just gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_reports_are_taken_by_the_replicas_own_token_alone(site: Site) -> None:
    one, other = site.replicas
    url = f"{site.gateway.url}/internal/replicas/{one.id}"
    report = {"state": "failed", "failure": {"kind": "engine_exited", "message": "A lie."}}
    for key in (
        None,
        "",
        "wrong",
        site.tokens[other.id],
        site.engine_keys[one.id],
        site.client_key,
        site.admin_key,
        site.tokens[one.id][:-1],
        site.tokens[one.id] + "0",
    ):
        assert site.ask(url, key, report) == 401, key
    assert site.ask(url, site.tokens[one.id], {"state": "nonsense"}) == 400, "the right token, a wrong report"
    unknown = f"{site.gateway.url}/internal/replicas/unknown"
    assert site.ask(unknown, site.tokens[one.id], report) == 401, "of another replica"
    assert {r.id for r in ready(site.gateway)} == {one.id, other.id}, "nothing has changed"


def test_a_replicas_token_opens_nothing_else(site: Site) -> None:
    body = {"model": CHAT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    for secret in (site.tokens[site.replicas[0].id], site.engine_keys[site.replicas[0].id]):
        assert site.ask(f"{site.gateway.url}/v1/chat/completions", secret, body) == 401
        assert site.ask(f"{site.gateway.url}/admin/keys", secret, {"name": "mine"}) == 401
    assert site.ask(f"{site.gateway.url}/admin/keys", site.client_key, {"name": "mine"}) == 403, "no operator"


def test_an_engine_answers_to_its_own_key_alone(site: Site) -> None:
    one, other = site.replicas
    url = f"http://{one.host}:{one.port}/v1/chat/completions"
    body = {"model": CHAT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    for key in (None, "", "wrong", site.client_key, site.admin_key, site.tokens[one.id], site.engine_keys[other.id]):
        assert site.ask(url, key, body) == 401, key
    assert site.ask(url, site.engine_keys[one.id], body) == 200
