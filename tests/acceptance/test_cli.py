"""The command line as a user meets it, mistakes included."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.gateway_process import SLURMGATE, GatewayProcess


def slurmgate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SLURMGATE, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def assert_one_clear_message(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("slurmgate: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_key_is_printed_alone_listed_and_revoked(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    made = slurmgate("keys", "create", "ada", *state)
    key = made.stdout.strip()
    assert made.stdout == f"{key}\n"
    assert key.startswith("sk-sg-")
    listed = slurmgate("keys", "list", *state).stdout
    assert "ada" in listed
    assert "valid" in listed
    assert key not in listed
    assert slurmgate("keys", "revoke", "ada", *state).stdout == "revoked 1 key\n"
    assert "revoked" in slurmgate("keys", "list", *state).stdout
    assert_one_clear_message(slurmgate("keys", "revoke", "ada", *state), "no valid key")


def test_a_wrong_configuration_names_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[server]\nport = "x"\n[models.a]\nengine = "tgi"\n')
    done = slurmgate("serve", "--config", str(path), "--state-dir", str(tmp_path / "state"))
    assert_one_clear_message(done, "2 mistakes", "server.port: found 'x'", "models.a: expected either `source`")


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    assert_one_clear_message(slurmgate("serve", "--config", str(tmp_path / "none.toml")), "none.toml", "No such file")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = slurmgate("serve", "--port", port, "--state-dir", str(tmp_path / "state"))
    assert_one_clear_message(done, f"cannot listen on 127.0.0.1:{port}: Address already in use")


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = slurmgate("keys", "list", "--state-dir", str(tmp_path / "file" / "state"))
    assert_one_clear_message(done, "state directory", "cannot be used")


def test_render_of_an_unknown_model_lists_the_known(tmp_path: Path) -> None:
    done = slurmgate("render", "nosuch", "--state-dir", str(tmp_path / "state"))
    assert_one_clear_message(done, "no model 'nosuch'", "slurmgate-guide, slurmgate-embed")


def test_stop_where_nothing_runs(tmp_path: Path) -> None:
    assert_one_clear_message(slurmgate("stop", "--state-dir", str(tmp_path / "state")), "no gateway runs")


def test_status_before_anything(tmp_path: Path) -> None:
    assert "no replicas" in slurmgate("status", "--state-dir", str(tmp_path / "state")).stdout


FIXED = '[server]\nhost = "0.0.0.0"\n[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]\n'


def listening(port: int) -> set[str]:
    """Addresses on which this port is listened to, as /proc/net/tcp has them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {words[1].split(":")[0] for words in lines if words[3] == "0A" and int(words[1].split(":")[1], 16) == port}


@pytest.mark.parametrize("keys", [0, 1])
def test_without_a_key_it_listens_on_loopback_only_and_says_so(tmp_path: Path, keys: int) -> None:
    gateway = GatewayProcess(tmp_path, FIXED)
    if keys:
        gateway.key()
    gateway.start()
    try:
        assert listening(gateway.port) == {"00000000" if keys else "0100007F"}
        assert ("this machine only and not on 0.0.0.0" in gateway.log_path.read_text()) is not keys
    finally:
        assert gateway.stop() == 0


def test_a_key_made_while_it_runs_counts_within_a_second_and_a_revoked_one_no_more(tmp_path: Path) -> None:
    import httpx

    from tests.waiting import until_sync

    gateway = GatewayProcess(tmp_path, FIXED)
    gateway.start()
    try:
        with httpx.Client(base_url=gateway.url) as http:
            assert http.get("/v1/models").status_code == 200, "open until there is a key"
            key = gateway.key("ada")
            until_sync(lambda: http.get("/v1/models").status_code == 401, 5)
            headers = {"authorization": f"Bearer {key}"}
            assert http.get("/v1/models", headers=headers).status_code == 200
            gateway.run("keys", "revoke", "ada")
            until_sync(lambda: http.get("/v1/models", headers=headers).status_code == 401, 5)
    finally:
        gateway.stop()
