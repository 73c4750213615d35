"""Llama models on A100 GPUs as inputs of the engine model. Every number has its source, or is called an assumption.

Shapes      the models' config.json and model cards (huggingface.co/meta-llama): parameters, layers, KV heads, head
            size; weights and cache in bfloat16
Hardware    NVIDIA A100 80GB SXM data sheet: 80 GB, 2,039 GB/s, 312 TFLOPS in bfloat16, dense
Step        assumptions, in the range that profiles of vLLM on such cards show:
            - 75 % of the memory's bandwidth is reached while weights and cache are read
            - 50 % of the arithmetic is reached while prompts are processed
            - a step costs 3 ms of the host, and 10 us for each sequence
            - with several GPUs, two all-reduces a layer of 15 us each
Memory      vLLM's gpu_memory_utilization of 0.9; 2 GB a GPU for activations and graphs is an assumption
Limits      vLLM's defaults: max_num_seqs 256, max_num_batched_tokens 2048

Two more profiles show what a limit does: `llama-70b-2gpu` holds the 70B model on two GPUs, where 0.95 of the memory
leaves room for a few dozen requests; `llama-8b-tgi` prefills whole prompts and refuses the 129th request, as TGI does
(max_concurrent_requests 128).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .engine_model import Speeds

MEMORY_BYTES = 80e9
BANDWIDTH = 2_039e9
FLOPS = 312e12

BANDWIDTH_REACHED = 0.75
FLOPS_REACHED = 0.5
STEP_OVERHEAD_S = 3e-3
PER_SEQUENCE_S = 10e-6
ALL_REDUCE_S = 15e-6
MEMORY_USED = 0.9
ACTIVATION_BYTES = 2e9


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder-only transformer in bfloat16."""

    parameters: int
    layers: int
    kv_heads: int
    head_size: int

    @property
    def weights_bytes(self) -> int:
        return 2 * self.parameters

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token, over all layers."""
        return self.layers * self.kv_heads * self.head_size * 2 * 2


LLAMA_1B = Shape(1_235_814_400, layers=16, kv_heads=8, head_size=64)  # Llama-3.2-1B-Instruct
LLAMA_3B = Shape(3_212_749_824, layers=28, kv_heads=8, head_size=128)  # Llama-3.2-3B-Instruct
LLAMA_8B = Shape(8_030_261_248, layers=32, kv_heads=8, head_size=128)  # Llama-3.1-8B-Instruct
LLAMA_70B = Shape(70_553_706_496, layers=80, kv_heads=8, head_size=128)  # Llama-3.1-70B-Instruct


@dataclass(frozen=True, slots=True)
class Profile:
    """A model, how many GPUs it is split over, and what follows from that."""

    shape: Shape
    gpus: int
    speeds: Speeds


def on_a100(shape: Shape, gpus: int = 1, memory_used: float = MEMORY_USED) -> Profile:
    """Split evenly over GPUs (tensor parallel). Raises `ValueError` where the weights leave no room."""
    bandwidth = BANDWIDTH * BANDWIDTH_REACHED * gpus
    room = gpus * (MEMORY_BYTES * memory_used - ACTIVATION_BYTES) - shape.weights_bytes
    if room < shape.cache_bytes:
        raise ValueError(f"{shape.weights_bytes / 1e9:.0f} GB of weights leave no room on {gpus} GPUs")
    joining = 2 * shape.layers * ALL_REDUCE_S if gpus > 1 else 0.0
    return Profile(
        shape,
        gpus,
        Speeds(
            weights_s=shape.weights_bytes / bandwidth,
            overhead_s=STEP_OVERHEAD_S + joining,
            per_sequence_s=PER_SEQUENCE_S,
            per_context_token_s=shape.cache_bytes / bandwidth,
            per_token_s=2 * shape.parameters / (FLOPS * FLOPS_REACHED * gpus),
            cache_tokens=int(room / shape.cache_bytes),
        ),
    )


_8B = on_a100(LLAMA_8B)

PROFILES = {
    "llama-1b": on_a100(LLAMA_1B),
    "llama-3b": on_a100(LLAMA_3B),
    "llama-8b": _8B,
    "llama-70b": on_a100(LLAMA_70B, gpus=4),
    "llama-70b-2gpu": on_a100(LLAMA_70B, gpus=2, memory_used=0.95),
    "llama-8b-tgi": replace(_8B, speeds=replace(_8B.speeds, chunked=False, batch_tokens=4096, takes=128)),
}
