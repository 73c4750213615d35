"""What each engine does with a GPU's memory. Pure; the assumptions, and where they were read.

    vLLM       takes 90 % (`gpu_memory_utilization`, vllm/config/cache.py), weights, runtime and activations included;
               prefills 8,192 tokens at once on GPUs from 70 GiB on, else 2,048 (vllm/engine/arg_utils.py); does not
               start where one sequence of the context does not fit
    TGI        takes 90 % (`--cuda-memory-fraction` 1.0 times TGI_WIGGLE_ROOM 0.90, server/.../models/globals.py)
    SGLang     leaves room by a formula of its own (`mem_fraction_static`, python/sglang/srt/server_args.py); what is
               taken holds weights and cache only
    llama.cpp  takes what it needs, all of the cache at the start; splits layers, so any number of GPUs will do
    TEI        takes what it needs; there is no cache

Engines differ by a few percent from release to release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .gpus import Gpu
from .model_shape import ModelShape

GIB = 1 << 30

RUNTIME_BYTES = GIB
"""CUDA's context, its libraries' workspaces, NCCL's buffers, CUDA graphs: 0.5 to 1.5 GiB were seen in vLLM's logs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What an engine does with a GPU's memory.

    fraction        what it takes of it, for (memory in bytes, GPUs)
    batched         tokens that it computes at once, for (memory in bytes): activations grow with them
    inside          runtime and activations come out of what it takes (else out of the rest)
    windows         it forgets what lies behind a layer's window
    splits_heads    tensor parallelism, which must divide the attention heads
    known           False: a plugin's engine, taken to be like vLLM
    """

    fraction: Callable[[int, int], float]
    batched: Callable[[int], int]
    inside: bool = True
    windows: bool = True
    splits_heads: bool = True
    known: bool = True
    stated: float | None = None
    """The fraction, where the model's arguments give it."""
    kv_element_bytes: float = 2.0

    def taken(self, gpu: Gpu, gpus: int) -> float:
        return self.stated if self.stated is not None else self.fraction(gpu.memory_bytes, gpus)


def _sglang_fraction(memory: int, gpus: int) -> float:
    """`reserved_mem` of server_args.py: 512 MiB + 1.5 MiB a token of a chunk + 2 MiB a sequence of the largest CUDA
    graph + 128 MiB a GPU."""
    chunk, graph = _sglang_chunk(memory), _sglang_graph(memory, gpus)
    reserved = 512 + max(chunk, 2048) * 1.5 + graph * 2 + gpus * 128
    return max(0.3, 1 - reserved * (1 << 20) / memory)


def _sglang_chunk(memory: int) -> int:
    steps = ((35, 2048), (60, 4096), (160, 8192))
    return next((tokens for gib, tokens in steps if memory < gib * GIB), 16384)


def _sglang_graph(memory: int, gpus: int) -> int:
    steps = ((20, 8, 8), (35, 24, 80), (60, 32, 160), (160, 256, 512))
    return next(((few if gpus < 4 else many) for gib, few, many in steps if memory < gib * GIB), 512)


def _all_of_it(memory: int, gpus: int) -> float:
    return 0.98  # what the driver keeps for itself


RULES: dict[str, Rule] = {
    "vllm": Rule(lambda memory, gpus: 0.9, lambda memory: 8192 if memory >= 70 * GIB else 2048),
    "tgi": Rule(lambda memory, gpus: 0.9, lambda memory: 4096, windows=False),
    "sglang": Rule(_sglang_fraction, _sglang_chunk, inside=False),
    "llamacpp": Rule(_all_of_it, lambda memory: 512, splits_heads=False),
    "tei": Rule(_all_of_it, lambda memory: 16384, splits_heads=False),
}

_FRACTION_FLAGS = ("--gpu-memory-utilization", "--mem-fraction-static", "--cuda-memory-fraction")
_KV_BYTES = {"fp8": 1.0, "int8": 1.0, "q8_0": 34 / 32, "q5_1": 0.75, "q5_0": 22 / 32, "q4_1": 0.625, "q4_0": 18 / 32,
             "f32": 4.0, "float32": 4.0}  # fmt: skip


def rule_of(engine: str, arguments: Sequence[str] = ()) -> Rule:
    """An engine's rule with what a model's own arguments change of it."""
    rule = RULES.get(engine) or replace(RULES["vllm"], known=False)
    for flag, value in _options(arguments):
        if flag in _FRACTION_FLAGS:
            try:
                stated = float(value)
            except ValueError:
                continue
            if 0 < stated <= 1:
                rule = replace(rule, stated=stated * (0.9 if engine == "tgi" else 1))
        elif flag in ("--kv-cache-dtype", "--cache-type-k"):
            known = next((size for name, size in _KV_BYTES.items() if value.startswith(name)), 2.0)
            rule = replace(rule, kv_element_bytes=known)
    return rule


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--flag value` and `--flag=value`."""
    found = []
    for index, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if not equals and index + 1 < len(arguments):
            value = arguments[index + 1]
        if flag.startswith("-"):
            found.append((flag.replace("_", "-"), value))
    return found


def overhead_bytes(shape: ModelShape, gpu: Gpu, rule: Rule, gpus: int) -> int:
    """What running takes on one GPU beside weights and cache: an assumption.

    The runtime, and the largest activations: of each token computed at once, the feed-forward layer's two halves and
    product (split among GPUs) and four copies of the hidden state, 16 bits each; and logits of 256 sequences, twice in
    32 bits.
    """
    width = 3 * (shape.intermediate or 4 * shape.hidden) / gpus + 4 * shape.hidden
    activations = rule.batched(gpu.memory_bytes) * width * 2
    logits = 0 if shape.kv == () else 2 * 256 * shape.vocabulary * 4
    return RUNTIME_BYTES + int(activations) + logits
