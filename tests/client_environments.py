"""The clients under .clients/, where tests/clients/install.sh puts each into an environment of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess

ROOT = Path(__file__).parent.parent
CLIENTS = ROOT / ".clients"
CHAT, EMBED = "slurmgate-guide", "slurmgate-embed"


def require_client(name: str) -> Path:
    """Its directory. Skips the test if it is not installed; fails it there in CI, where a skip looks like a pass."""
    directory = CLIENTS / name
    if not (directory / ".stamp").exists():
        reason = f"no client {name}: run `tests/clients/install.sh` (as `make test` does)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return directory


def python_command(script: Path, environment: str | None) -> list[str]:
    """The script in that environment; None is the project's own, which has litellm."""
    interpreter = sys.executable if environment is None else require_client(environment) / "bin" / "python"
    return [str(interpreter), str(script)]


def node_command(script: Path, directory: Path) -> list[str]:
    """The script as a user has it: in a folder of its own, beside the packages that npm installed."""
    (directory / "node_modules").symlink_to(require_client("npm") / "node_modules")
    copy = directory / script.name
    copy.write_bytes(script.read_bytes())
    return [str(require_client("node") / "bin" / "node"), str(copy)]


def output_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What the client writes to stdout; an exit status of its own is a failure, with what it said."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, (
        f"{' '.join(command)} -> {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def offline() -> dict[str, str]:
    """Settings for what would otherwise download: tiktoken's vocabulary and litellm's prices."""
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(next(iter(spec.submodule_search_locations)))
    return {
        "TIKTOKEN_CACHE_DIR": str(package / "litellm_core_utils" / "tokenizers"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


@contextmanager
def embedded_gateway(directory: Path) -> Iterator[GatewayProcess]:
    """`slurmgate serve` without a configuration, with both of its models ready."""
    gateway = GatewayProcess(directory, None)
    gateway.start()
    try:
        gateway.until_ready(**{CHAT: 1, EMBED: 1})
        yield gateway
    finally:
        gateway.stop()
