"""A container image of a few kilobytes: empty folders and links. The programs are the machine's own, bound into it."""

from __future__ import annotations

import sys
from pathlib import Path

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
