"""The interpreters that are found here, for what runs under whatever Python a node has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def pythons() -> list[str]:
    """From 3.6 on, the oldest first: those of pyenv, those on PATH, and at least this one."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for minor in range(6, 20):
        if minor == sys.version_info.minor:
            found.append(sys.executable)
            continue
        for path in [*sorted(versions.glob(f"3.{minor}.*/bin/python3")), shutil.which(f"python3.{minor}")]:
            if path and runs(str(path)):
                found.append(str(path))
                break
    return found


def runs(path: str) -> bool:
    """A shim may be on PATH for a version that is not there."""
    return subprocess.run([path, "-I", "-S", "-c", "0"], capture_output=True, check=False).returncode == 0
