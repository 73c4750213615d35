"""What container runtimes have in common: the contract, and the checks of images and binds. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypedDict

from slurm_launcher.spec import ModelSpec

SHARED_MEMORY = "16g"
"""The limit of a container's own shared memory (nothing is reserved): NCCL and TGI's shards need 1 GiB and more, and
the 64 MB that podman and docker give by default are too little."""


class Leftovers(TypedDict):
    """Commands for containers that outlive their processes.

    list     prints the names of this user's containers of ours, one a line
    remove   ends and removes the containers whose names are appended; none of that name is no error
    """

    list: list[str]
    remove: list[str]


@dataclass(frozen=True, slots=True)
class Wrapped:
    """An engine's command line in its container.

    argv          may hold placeholders (engines.py, on_node.py)
    environment   of the process that argv starts
    files         placeholder path -> text; the agent writes them before, for its user's eyes only
    container     None where nothing can outlive its processes
    step          options for srun: the runtime is a part of Slurm, and argv is the bare engine's
    """

    argv: list[str]
    environment: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    container: Leftovers | None = None
    step: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """One way to run an engine. To add one: a file here with a value of this, and its line in `RUNTIMES`.

    check   raises `ValueError` for what cannot be, naming the key: an image that this runtime does not take, a bind
            that is relative or that it cannot do
    around  (argv, environment, spec) -> Wrapped, for a spec that has been checked
    """

    name: str
    check: Callable[[ModelSpec], None]
    around: Callable[[Sequence[str], Mapping[str, str], ModelSpec], Wrapped]

    def wrap(self, argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
        """Raises `ValueError` as `check` does."""
        self.check(spec)
        return self.around(argv, environment, spec)


@dataclass(frozen=True, slots=True)
class Bind:
    """A path of the node, `source`, that the container sees at `target`."""

    source: str
    target: str
    read_only: bool = False


def binds_of(spec: ModelSpec, *, uses_tmp: bool = True) -> list[Bind]:
    """What the container has to see: the model's binds, its weights (read-only), the agent's private directory.

    Weights that are a hub's id are wherever the model's HF_HOME is: that is for the model to bind.
    """
    binds = [parse_bind(text) for text in spec.binds]
    if (path := weights_of(spec)) and not any(_covers(bind.target, path) for bind in binds):
        binds.append(Bind(path, path, read_only=True))
    if spec.local_copy is not None:
        binds.append(Bind("{weights}", "{weights}", read_only=True))
    if uses_tmp:
        binds.append(Bind("{tmp}", "{tmp}"))
    return binds


def weights_of(spec: ModelSpec) -> str | None:
    """The directory on the node that holds the weights; None for a hub's id.

    The parts of a GGUF file lie beside it.
    """
    if not spec.source.startswith("/"):
        return None
    return str(PurePosixPath(spec.source).parent) if spec.source.endswith(".gguf") else spec.source


def _covers(target: str, path: str) -> bool:
    return PurePosixPath(path).is_relative_to(PurePosixPath(target))


def parse_bind(text: str) -> Bind:
    """`SRC[:DST[:ro]]`. Raises `ValueError`."""
    source, *rest = text.split(":")
    target = rest[0] if rest else source
    options = rest[1:]
    if options not in ([], ["ro"], ["rw"]):
        raise ValueError(f"binds: {text!r}: expected SRC, SRC:DST or SRC:DST:ro")
    for path in (source, target):
        if not path.startswith("/"):
            raise ValueError(f"binds: {text!r}: {path!r} is relative; expected an absolute path")
        if not re.fullmatch(r"[^\s,\x00-\x1f]+", path):
            raise ValueError(f"binds: {text!r}: a path of a bind holds no blanks and no commas")
    return Bind(source, target, read_only=options == ["ro"])


def check(spec: ModelSpec, *, image: str, shape: str, without_ro: bool = False) -> None:
    """The checks of most runtimes. `shape`: a pattern of the images that this one takes; `image`: the same in words."""
    if not spec.image:
        raise ValueError(f"image: runtime {spec.runtime} needs an image: {image}")
    if not re.fullmatch(shape, spec.image):
        raise ValueError(f"image: {spec.image!r} is none for runtime {spec.runtime}; expected {image}")
    for bind in map(parse_bind, spec.binds):
        if bind.read_only and without_ro:
            raise ValueError(f"binds: {bind.source}:{bind.target}:ro: runtime {spec.runtime} cannot mount read-only")


def check_lines(spec: ModelSpec) -> None:
    """For runtimes that are told variables in lines of text."""
    for name, value in spec.environment:
        if "\n" in value:
            raise ValueError(f"environment: {name} holds a line break, which runtime {spec.runtime} cannot pass on")


def uses_tmp(argv: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the engine asks for the agent's private directory."""
    return any("{tmp}" in text for text in (*argv, *environment.values()))


def inside(environment: Mapping[str, str]) -> dict[str, str]:
    """The engine's variables. The Python in an image must not pick up packages from a home that is mounted."""
    return {"PYTHONNOUSERSITE": "1", **environment}


REFERENCE = r"(?!\S*//)[a-z0-9][a-zA-Z0-9._:/@+-]*"
"""An image of a registry, such as `ghcr.io/huggingface/text-generation-inference:3.3.6`."""
PATH = r"/[^\s\x00-\x1f]+"
