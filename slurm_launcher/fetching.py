"""`slurmgate fetch`: a model's weights from the hub to a disk that the nodes see.

    prepare(source, engine, to) -> Plan      what is needed, what is there already, whether there is room
    carry_out(plan, progress)   -> Path      downloads; what an earlier attempt left is gone on with

Progress is what lies on the disk, whichever way the library brings it there.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import hub
from .model_files import NoSuchFiles, needed, split_source
from .weights import hub_cache

SPARE_BYTES = 1 << 30
"""Left free on the disk."""

LOOK_EVERY_S = 0.3


class CannotFetch(Exception):
    """Why, and what to do, in one sentence."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be fetched.

    files     paths -> bytes
    present   bytes that are there already, whole files only
    to        the directory; None: the hub's cache
    """

    listed: hub.Listing
    files: dict[str, int]
    present: int
    to: Path | None
    engine: str

    @property
    def total(self) -> int:
        return sum(self.files.values())

    @property
    def folder(self) -> Path:
        """What grows while it is fetched."""
        return self.to or hub_cache(os.environ) / f"models--{self.listed.repository.replace('/', '--')}"


def prepare(source: str, engine: str, to: Path | None = None, revision: str | None = None) -> Plan:
    """Raises `CannotFetch`."""
    repository, quantization = split_source(source, engine)
    try:
        listed = hub.listing(repository, revision)
        files = needed(listed.sizes, engine, quantization)
    except hub.HubError as error:
        raise CannotFetch(str(error)) from None
    except NoSuchFiles as error:
        raise CannotFetch(f"{repository}: {error}") from None
    to = to.expanduser().absolute() if to is not None else None
    plan = Plan(listed, files, 0, to, engine)
    plan = Plan(listed, files, _present(plan), to, engine)
    missing, free = plan.total - plan.present, _free(plan.folder)
    if free is not None and missing and missing + SPARE_BYTES > free:
        raise CannotFetch(
            f"{repository} takes {missing / 1e9:.1f} GB more, and {plan.folder} has {free / 1e9:.1f} GB free "
            f"({SPARE_BYTES / 1e9:.0f} GB shall stay so): make room, or give another directory with --to"
        )
    return plan


def carry_out(plan: Plan, progress: Callable[[int], None] = lambda done: None) -> Path:
    """Download. `progress` is told how many of `plan.total` bytes are there. Raises `CannotFetch`.

    Returns what an engine's `source` is: the directory; for llama.cpp the GGUF file.
    """
    ended = threading.Event()
    before = on_disk(plan.folder)

    def watch() -> None:
        while not ended.wait(LOOK_EVERY_S):
            grown = max(0, on_disk(plan.folder) - before)
            progress(min(plan.total, plan.present + grown))

    progress(plan.present)
    watcher = threading.Thread(target=watch, name="fetch progress", daemon=True)
    watcher.start()
    try:
        directory = hub.download(plan.listed, list(plan.files), plan.to)
        if plan.to is None:
            hub.remember(plan.listed)
    except hub.HubError as error:
        raise CannotFetch(str(error)) from None
    except OSError as error:
        raise CannotFetch(f"{error.filename or plan.folder} cannot be written: {error.strerror}") from None
    finally:
        ended.set()
        watcher.join()
    for name, size in plan.files.items():
        if _size(directory / name) != size:
            raise CannotFetch(f"{directory / name} is not whole: run the command again")
    progress(plan.total)
    return directory / next(iter(plan.files)) if plan.engine == "llamacpp" else directory


def on_disk(folder: Path) -> int:
    """Bytes of all files below, half-fetched ones too; links count nothing."""
    return sum(_sizes_below(str(folder)))


def _sizes_below(folder: str) -> Iterator[int]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes_below(entry.path)
            elif entry.is_file(follow_symlinks=False):
                about = entry.stat(follow_symlinks=False)
                yield min(about.st_size, about.st_blocks * 512 + 4096)  # room that is only reserved is not there yet
        except OSError:
            continue  # renamed meanwhile


def _present(plan: Plan) -> int:
    directory = plan.to or plan.folder / "snapshots" / plan.listed.commit
    return sum(size for name, size in plan.files.items() if _size(directory / name) == size)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _free(folder: Path) -> int | None:
    """Of the file system that the folder will be on; None where it cannot be told."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
