"""Plugins as if they were installed: a directory with their modules and their .dist-info, made visible for a block."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from backends.dialects import DIALECTS
from slurm_launcher.engines import ENGINES

EXAMPLE = Path(__file__).parent / "plugin_example"


def distribution(directory: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], module: str = "") -> None:
    """What pip would leave of a package: metadata, entry points, and a module of the package's name."""
    info = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = ("\n".join([f"[{group}]", *(f"{k} = {v}" for k, v in e.items())]) for group, e in entry_points.items())
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    (directory / f"{name.replace('-', '_')}.py").write_text(module)


def example(directory: Path) -> None:
    """The example package, with the entry points that its own pyproject.toml names."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    module = (EXAMPLE / "slurmgate_echo.py").read_text()
    distribution(directory, project["name"], project["entry-points"], module)


@contextmanager
def installed(directory: Path) -> Iterator[None]:
    """The packages in a directory can be imported and are found by importlib.metadata; afterwards, nothing of them is
    left."""
    engines, dialects, modules = dict(ENGINES), dict(DIALECTS), set(sys.modules)
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        for table, before in ((ENGINES, engines), (DIALECTS, dialects)):
            for name in table.keys() - before.keys():
                del table[name]
        for name in set(sys.modules) - modules:
            if str(directory) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
