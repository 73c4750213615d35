"""Which files of a model an engine needs, and which of them are the weights. Pure: names and sizes in, names out.

Repositories hold the same weights several times: `original/` and `consolidated.*` as their makers trained them,
`pytorch_model*.bin` beside safetensors, ONNX, TensorFlow, a GGUF for each quantization.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

Sizes = Mapping[str, int]
"""Paths within the model -> bytes."""

_ELSEWHERE = ("original/", "onnx/", "openvino/", "coreml/", "runs/", "logs/", ".cache/", "checkpoint-", ".git")
_FOREIGN = {".pth", ".pt", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".ot", ".ckpt", ".mlmodel", ".nemo",
            ".png", ".jpg", ".jpeg", ".gif", ".mp4", ".webp", ".svg", ".pdf"}  # fmt: skip
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

DEFAULT_QUANTIZATION = "Q4_K_M"
"""llama.cpp's own choice where none is asked for; else the first file (common/arg.cpp, `--hf-repo`)."""


class NoSuchFiles(ValueError):
    """The repository has not what is asked for; the message says what it has."""


def split_source(source: str, engine: str) -> tuple[str, str]:
    """A hub id -> (repository, quantization): llama.cpp's `USER/REPO:QUANT`; "" for none."""
    repository, _, quantization = source.partition(":")
    return (repository, quantization) if engine == "llamacpp" else (source, "")


def needed(sizes: Sizes, engine: str, quantization: str = "") -> dict[str, int]:
    """What the engine reads, of all that a repository has. Raises `NoSuchFiles`."""
    if engine == "llamacpp":
        return gguf_of(sizes, quantization)
    weights = weights_of(sizes)
    if not weights:
        has = "only GGUF files, which are for llamacpp" if any(n.endswith(".gguf") for n in sizes) else "no weights"
        raise NoSuchFiles(f"the repository has {has}")
    kept = {}
    for name, size in sizes.items():
        suffix = PurePosixPath(name).suffix.lower()
        if name.startswith(_ELSEWHERE) or suffix in _FOREIGN:
            continue
        # a part of its own, such as `2_Dense/` of an embedding model, is in no index
        part = "/" in name and suffix == _kind(weights)
        if suffix in (".safetensors", ".bin", ".gguf") and name not in weights and not part:
            continue
        if suffix == ".json" and name.endswith(".bin.index.json") and _kind(weights) == ".safetensors":
            continue
        kept[name] = size
    return kept


def weights_of(sizes: Sizes) -> dict[str, int]:
    """The weights that an engine loads: safetensors if there are any, else PyTorch's; at the top of the repository."""
    top = {name: size for name, size in sizes.items() if "/" not in name}
    for suffix in (".safetensors", ".bin"):
        found = {n: s for n, s in top.items() if n.endswith(suffix) and n not in ("training_args.bin", "optimizer.bin")}
        # Mistral's own format lies beside the one with everybody's names
        if common := {n: s for n, s in found.items() if not n.startswith("consolidated")}:
            return {n: s for n, s in common.items() if not n.startswith("adapter_")} or common
        if found:
            return found
    return {}


def gguf_of(sizes: Sizes, quantization: str = "") -> dict[str, int]:
    """The file of one quantization, all parts of it. Raises `NoSuchFiles`."""
    files = sorted(n for n in sizes if n.lower().endswith(".gguf") and "mmproj" not in n.lower())
    if not files:
        raise NoSuchFiles("the repository has no GGUF file")
    wanted = [quantization] if quantization else [DEFAULT_QUANTIZATION]
    chosen = next((n for n in files for tag in wanted if _has_tag(n, tag)), None)
    if chosen is None:
        if quantization:
            known = ", ".join(sorted({tag for n in files if (tag := tag_of(n))}))
            raise NoSuchFiles(f"the repository has no GGUF of quantization {quantization}; it has {known or files[0]}")
        chosen = files[0]
    return {name: sizes[name] for name in parts_of(chosen, files)}


def parts_of(name: str, files: list[str]) -> list[str]:
    """A GGUF file, or all parts of one that was split."""
    match = _SPLIT.search(name)
    if match is None:
        return [name]
    stem = name[: match.start()]
    return [n for n in files if n.startswith(stem) and (m := _SPLIT.fullmatch(n[len(stem) :])) and m[2] == match[2]]


def tag_of(name: str) -> str:
    """`Q4_K_M` of `Llama-3.1-8B.Q4_K_M.gguf`; "" for none."""
    match = re.search(
        r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))(?:-\d{5}-of-\d{5})?\.gguf$", name, re.I
    )
    return match[1].upper() if match else ""


def _has_tag(name: str, tag: str) -> bool:
    return tag_of(name).removeprefix("UD-") == tag.upper().removeprefix("UD-") if tag else False


def _kind(weights: Sizes) -> str:
    return PurePosixPath(next(iter(weights))).suffix
