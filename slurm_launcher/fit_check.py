"""Whether a configured model fits, asked at the start of the gateway: by local files only, in milliseconds.

What cannot be told is no reason for anything: the hub is not asked here, and unreadable files are left to the engine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from .engine_memory import rule_of
from .fit import Verdict, fit
from .gpus import gpu_of
from .model_shape import quantization_of
from .spec import ModelSpec
from .weights import WeightsUnknown, found, local, outside

Mode = Literal["refuse", "warn", "off"]

LEAST_SENSIBLE_CONTEXT = 2048
"""Asked of engines that take what context fits, where the configuration names none."""

_SPREADS = {
    *("--tensor-parallel-size", "-tp", "--tp-size", "--tp", "--num-shard"),
    *("--pipeline-parallel-size", "-pp", "--pp-size", "--data-parallel-size", "-dp", "--dp-size"),
    *(
        "--cpu-offload-gb",
        "--n-gpu-layers",
        "-ngl",
        "--gpu-layers",
        "--n-cpu-moe",
        "--cpu-moe",
        "--override-tensor",
        "-ot",
    ),
}
_RESIZES = {"--torchao-config", "--load-format", "--hf-overrides", "--speculative-config", "--model-draft", "-md"}
_QUANTIZES = {"--quantization", "-q", "--quantize"}
"""Arguments after which the files say nothing of what is loaded, or where."""


def check_fit(spec: ModelSpec, mode: Mode) -> Verdict | None:
    """What is wrong with a model's GPUs; None where nothing is, or where it cannot be told. Never raises for files.

    A verdict with `mode` "refuse" is to stop the start; with "warn" it is to be logged.
    """
    if mode == "off" or not spec.resources.gpus:
        return None
    verdict = verdict_of(spec)
    return verdict if verdict is not None and verdict.kind not in ("fits", "unknown") else None


def line(spec: ModelSpec, verdict: Verdict) -> str:
    """For a `ConfigError` or a log: the key's path, and the numbers."""
    return f"{spec.path}.slurm.gpus: {verdict.sentence}{_assumed(verdict)}"


def missing_weights(spec: ModelSpec) -> str | None:
    """A warning where the source is a path that this machine does not have. The nodes may have it all the same."""
    if not spec.source.startswith("/"):
        return None
    path = outside(spec.source, spec.binds)
    if (path == spec.source and spec.runtime != "none") or Path(path).exists():
        return None  # it may lie in the image
    shown = path if path == spec.source else f"{path} ({spec.source} in the container)"
    return f'models."{spec.name}".source: {shown} is not on this machine; replicas fail unless the nodes have it'


def verdict_of(spec: ModelSpec) -> Verdict | None:
    """By the files on this machine; None where there are none that can be read, or the model's own arguments say how
    it is spread and shrunk."""
    flags = {word.partition("=")[0] for word in spec.arguments}
    if flags & (_SPREADS | _RESIZES):
        return None
    path = found(spec.source, spec.engine, environment=dict(spec.environment), binds=spec.binds)
    if path is None:
        return None
    try:
        weights = local(path, headers=False)
    except WeightsUnknown:
        return None
    if flags & _QUANTIZES and not quantization_of(weights.config):
        return None  # it is made smaller while it is loaded
    shape = replace(weights.shape(spec.name), notes=())
    resources = spec.resources
    return fit(
        shape,
        gpu_of(resources.gpu_type, resources.gpu_memory_mb),
        resources.gpus,
        wanted_context(spec, shape.max_context),
        engine=rule_of(spec.engine, spec.arguments),
        nodes=resources.nodes,
    )


def wanted_context(spec: ModelSpec, made_for: int | None) -> int | None:
    """What the engine will not start without. vLLM wants one sequence of the whole context to fit; the others take less
    where nothing is configured."""
    if spec.context_length:
        return spec.context_length
    return made_for if spec.engine == "vllm" else min(LEAST_SENSIBLE_CONTEXT, made_for or LEAST_SENSIBLE_CONTEXT)


def _assumed(verdict: Verdict) -> str:
    """The GPU's memory, where that was a guess, is what to look at first."""
    note = verdict.gpu.note if verdict.gpu is not None else ""
    return f" ({note})" if note else ""
