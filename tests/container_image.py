"""A container image of a few kilobytes: empty folders and links. The programs are the machine's own, bound into it.

And a podman with a storage of its own, for tests, where this machine has one that runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FOLDERS = ("usr", "etc", "dev", "proc", "sys", "run", "tmp", "var", "root", "home", "ch")


def host_paths() -> list[str]:
    """What an engine of ours needs of the machine: its libraries, this Python, this repository."""
    paths = ["/usr", str(REPOSITORY)]
    paths += [path for path in sorted({sys.base_prefix, sys.prefix}) if not path.startswith(("/usr/", *paths))]
    return paths


def make_image(directory: Path) -> Path:
    """An image directory in which `host_paths` can be mounted."""
    for name in FOLDERS:
        (directory / name).mkdir(parents=True, exist_ok=True)
    for name, target in LINKS.items():
        (directory / name).symlink_to(target)
    for path in host_paths():
        directory.joinpath(path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for path, text in {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/resolv.conf": "",
        "ch/environment": "PATH=/usr/local/bin:/usr/bin:/bin\nFROM_THE_IMAGE=yes\nHOME=/nowhere\n",
    }.items():
        (directory / path).write_text(text)
    return directory


CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Podman:
    """Storage of its own, and the image in it."""

    image = "localhost/slurmgate-test:1"

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "containers.conf").write_text(CONTAINERS_CONF)
        storage = f'[storage]\ndriver = "vfs"\nrunroot = "{directory}/run"\ngraphroot = "{directory}/graph"\n'
        (directory / "storage.conf").write_text(storage)
        self.environment = {
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
        }

    def run(self, *argv: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            ["podman", *argv], input=stdin, capture_output=True, env={**os.environ, **self.environment}, check=False
        )
        if done.returncode != 0:
            raise AssertionError(done.stderr.decode())
        return done.stdout.decode()

    def load(self, image: Path) -> None:
        tar = subprocess.run(["tar", "-C", str(image), "-c", "."], capture_output=True, check=True).stdout
        self.run("import", "-", self.image, stdin=tar)

    def containers(self) -> list[str]:
        return self.run("ps", "--all", "--format={{.Names}}").split()


def podman_unavailable_reason(directory: Path) -> str | None:
    """Why podman cannot run a container here; None where it can."""
    if shutil.which("podman") is None or shutil.which("runc") is None:
        return "no podman with runc"
    podman = Podman(directory)
    podman.load(make_image(directory / "image"))
    try:
        podman.run("run", "--rm", "--network=host", "--volume=/usr:/usr:ro", podman.image, "/usr/bin/true")
    except AssertionError as error:
        return f"podman does not run here: {str(error).strip()[:200]}"
    return None


@pytest.fixture(scope="module")
def podman_reason(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    return podman_unavailable_reason(tmp_path_factory.mktemp("podman") / "probe")


@pytest.fixture
def podman(tmp_path: Path, podman_reason: str | None) -> Iterator[Podman]:
    if podman_reason is not None:
        pytest.skip(podman_reason)
    podman = Podman(tmp_path / "podman")
    podman.load(make_image(tmp_path / "image"))
    yield podman
    podman.run("rm", "--all", "--force")
    podman.run("rmi", "--all", "--force")
