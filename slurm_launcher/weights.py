"""What a model weighs: its files' real sizes and its configuration, from a directory, a GGUF file or the hub.

    found(source, ...)   where a model's files lie on this machine, if they do
    local(path)          -> Weights
    from_hub(source)     -> Weights, by the hub's metadata; only `config.json` is downloaded

Sizes are those of the files, so quantized weights (AWQ, GPTQ, FP8, GGUF) count as what they are.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gguf_header import BadGguf, configuration, read_header
from .model_files import NoSuchFiles, gguf_of, parts_of, split_source, weights_of
from .model_shape import ModelShape, shape_of

_LONGEST_HEADER = 100 << 20  # the safetensors format's own limit
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}


class WeightsUnknown(Exception):
    """Why a model's weights could not be looked at, in one sentence."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights.

    bytes    of the files that an engine loads
    dtypes   (dtype, bytes), the largest first; () where the files' headers were not read
    config   as in `config.json`; {} where there is none
    """

    bytes: int
    files: int
    config: Mapping[str, Any]
    dtypes: tuple[tuple[str, int], ...] = ()

    def shape(self, name: str) -> ModelShape:
        return shape_of(name, self.config, self.bytes, self.dtypes)


# -- on this machine -------------------------------------------------------------------------------------------------


def found(
    source: str, engine: str, *, environment: Mapping[str, str] | None = None, binds: Sequence[str] = ()
) -> Path | None:
    """The directory or the GGUF file of a model, if this machine has it.

    A path is looked for as it is outside of the container (`binds`); a hub id in the cache that the engine would use.
    """
    if source.startswith(("/", "./", "../", "~")):
        path = Path(outside(source, binds)).expanduser()
        return path if path.exists() else None
    if Path(source).exists() and (engine == "llamacpp" or (Path(source) / "config.json").exists()):
        return Path(source)
    repository, quantization = split_source(source, engine)
    snapshot = cached(repository, environment or {})
    if snapshot is None or engine != "llamacpp":
        return snapshot
    try:
        return snapshot / next(iter(gguf_of(_sizes(snapshot), quantization)))
    except NoSuchFiles:
        return None


def outside(source: str, binds: Sequence[str]) -> str:
    """A path inside of a container -> the same on the host, by `SRC`, `SRC:DST` or `SRC:DST:ro`; the last bind wins."""
    for bind in reversed(binds):
        host, _, rest = bind.partition(":")
        inside = (rest.partition(":")[0] or host).rstrip("/")
        if source == inside or source.startswith(inside + "/"):
            return host.rstrip("/") + source[len(inside) :]
    return source


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub and the engines keep what they download (its docs: "Environment variables")."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if given := environment.get(name):
            return Path(given).expanduser()
    if home := environment.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "huggingface" / "hub"


def cached(repository: str, environment: Mapping[str, str]) -> Path | None:
    """The snapshot of a repository's main branch in the hub's cache."""
    folder = hub_cache({**os.environ, **environment}) / f"models--{repository.replace('/', '--')}"
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return snapshot if snapshot.is_dir() else None


def local(path: Path, *, headers: bool = True) -> Weights:
    """Of a directory with `config.json`, or of a GGUF file. Raises `WeightsUnknown`.

    headers    read each safetensors file's own header, for the sizes by dtype; a few ms a file
    """
    try:
        if path.is_file():
            return _gguf(path)
        sizes = _sizes(path)
        weights = weights_of(sizes)
        if not weights and (files := [n for n in sizes if n.endswith(".gguf")]):
            return _gguf(path / min(files))
        if not weights:
            raise WeightsUnknown(f"{path} holds no weights (*.safetensors, *.bin or *.gguf)")
        config = _json(path / "config.json")
        dtypes = _by_dtype([path / name for name in weights if name.endswith(".safetensors")]) if headers else ()
        return Weights(sum(weights.values()), len(weights), config, dtypes)
    except OSError as error:
        raise WeightsUnknown(f"{error.filename or path} cannot be read: {error.strerror}") from None
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise WeightsUnknown(f"{path} cannot be understood: {error}") from None


def _gguf(path: Path) -> Weights:
    if path.suffix.lower() != ".gguf":
        raise BadGguf("expected a directory or a .gguf file")
    parts = parts_of(path.name, sorted(p.name for p in path.parent.glob("*.gguf")))
    total = sum((path.parent / name).stat().st_size for name in parts)
    return Weights(total, len(parts), configuration(read_header(path)))


def _sizes(directory: Path) -> dict[str, int]:
    """Its files with their sizes, behind links; three levels are enough for any model."""
    found_sizes = {}
    for base, folders, files in os.walk(directory):
        inner = Path(base).relative_to(directory)
        folders[:] = [] if len(inner.parts) > 1 else [name for name in folders if not name.startswith(".")]
        for name in files:
            try:
                found_sizes[(inner / name).as_posix()] = (Path(base) / name).stat().st_size
            except FileNotFoundError:
                continue  # a link into a cache that was cleaned
    if not found_sizes and not directory.is_dir():
        raise WeightsUnknown(f"{directory} is not a directory")
    return found_sizes


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return value if isinstance(value, dict) else {}


def _by_dtype(files: Sequence[Path]) -> tuple[tuple[str, int], ...]:
    """From the files' headers: 8 bytes of length, then JSON (the safetensors format)."""
    sizes: dict[str, int] = {}
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"{path.name} is not a safetensors file")
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + end - start
    return tuple(sorted(sizes.items(), key=lambda item: -item[1]))


# -- on the hub ------------------------------------------------------------------------------------------------------


def from_hub(source: str, engine: str) -> Weights:
    """By the hub's metadata. Raises `hub.HubError`, `WeightsUnknown`."""
    from . import hub  # noqa: PLC0415  # huggingface_hub takes a while to import

    repository, quantization = split_source(source, engine)
    listed = hub.listing(repository)
    if engine == "llamacpp":
        try:
            gguf = gguf_of(listed.sizes, quantization)
        except NoSuchFiles as error:
            raise WeightsUnknown(f"{repository}: {error}") from None
        return Weights(sum(gguf.values()), len(gguf), hub.gguf_configuration(listed, next(iter(gguf))))
    weights = weights_of(listed.sizes)
    if not weights:
        raise WeightsUnknown(f"{repository} holds no weights (*.safetensors or *.bin)")
    counts = hub.parameters(listed) if all(name.endswith(".safetensors") for name in weights) else {}
    dtypes = tuple(sorted(((d, n * _BITS.get(d, 8) // 8) for d, n in counts.items()), key=lambda item: -item[1]))
    return Weights(sum(weights.values()), len(weights), hub.config(listed), dtypes)
