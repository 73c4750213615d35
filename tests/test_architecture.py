"""The arrows between packages, and what every file keeps to."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.config import load

ROOT = Path(__file__).parent.parent
PACKAGES = ("proxy", "backends", "slurm_launcher", "tribunal")
MAY_IMPORT = {
    "proxy": {"tribunal", "backends", "slurm_launcher"},
    "tribunal": {"backends"},
    "backends": set(),
    "slurm_launcher": set(),
}
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = set(imported(ast.parse(path.read_text()))) & set(PACKAGES)
    assert ours - {package} <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_task_is_named_and_held(path: Path) -> None:
    """A task that nobody holds may be collected while it runs; one without a name cannot be told apart in a trace."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            assert not is_create_task(node.value), f"{path}:{node.lineno}: nobody holds this task"
        if isinstance(node, ast.Call) and is_create_task(node):
            assert any(keyword.arg == "name" for keyword in node.keywords), f"{path}:{node.lineno}: no name"


def is_create_task(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("create_task", "ensure_future")


def test_backends_and_launcher_are_joined_by_the_deciding_half_alone() -> None:
    joining = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.parts[-2] == "proxy" and {"backends", "slurm_launcher"} <= set(imported(ast.parse(path.read_text())))
    }
    assert joining <= {"proxy/local_control.py", "proxy/operations.py", "proxy/demand.py"}


def test_the_packages_that_are_installed_are_all_there_are() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found


def test_the_example_configuration_loads() -> None:
    config = load(ROOT / "config.example.toml")
    engines = {name: model.engine for name, model in config.models.items()}
    assert len(engines) >= 4
    assert set(engines.values()) >= {"tgi"}


def test_serving_does_not_import_what_only_some_requests_need() -> None:
    code = "import sys, proxy.server, proxy.cli; print([m for m in ('litellm', 'openai', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_lock_names_no_index_and_has_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    requirements = [line for line in text.splitlines() if "==" in line and not line.startswith(" ")]
    assert len(requirements) > 50
    assert all(line.endswith("\\") for line in requirements), "each requirement is followed by its hashes"


def test_nothing_in_the_repository_is_large() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    sizes = {name.decode(): (ROOT / name.decode()).stat().st_size for name in files if name}
    assert {name: size for name, size in sizes.items() if size > 4_000_000} == {}
