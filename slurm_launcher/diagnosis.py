"""Why an engine ended, from its last lines: pure.

An agent tells that its engine exited, and the last lines of its log. The table below knows what engines, CUDA,
container runtimes and shells say when they fail for a reason that somebody can act on. The message that comes out is in
our own words: a log may quote prompts, and the message is shown to users. The lines themselves are kept for operators.

The phrases were read in the sources of vLLM (`v1/core/kv_cache_utils.py`, `engine/arg_utils.py`), TGI (`server/`,
`launcher/src/main.rs`), SGLang (`model_executor/`), llama.cpp (`src/llama-model.cpp`, `ggml-cuda.cu`), PyTorch's
allocator, transformers and huggingface_hub (`utils/_http.py`), clap and argparse, apptainer, podman, enroot and ch-run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .states import Failure


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that goes wrong. `kind` is looked up in failing.REMEDIES; `words` end the sentence "The engine ..."."""

    kind: str
    words: str
    signs: re.Pattern[str]


def _signs(*phrases: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{phrase})" for phrase in phrases), re.IGNORECASE)


CAUSES: tuple[Cause, ...] = (
    Cause(
        "gpu_fault",
        "met a fault of the node's GPU or its driver",
        _signs(
            r"uncorrectable ECC error",
            r"fallen off the bus",
            r"GPU is lost",
            r"no CUDA-capable device is detected",
            r"CUDA driver version is insufficient",
            r"Driver/library version mismatch",
            r"system not yet initialized",
            r"CUDA-capable device\(s\) is/are busy or unavailable|all CUDA-capable devices are busy",
            r"CUDA error: (hardware stack error|unknown error|the launch timed out)",
            r"NVRM: Xid|NVLink.*(error|fault)",
            r"Failed to initialize NVML",
            r"ncclSystemError|NCCL.*unhandled system error",
        ),
    ),
    Cause(
        "gpu_memory",
        "ran out of GPU memory: fewer tokens (context_length), more GPUs, or a smaller model (`slurmgate fit`)",
        _signs(
            r"CUDA out of memory|HIP out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaMalloc failed: out of memory",
            r"torch\.(cuda\.)?OutOfMemoryError",
            r"No available memory for the cache blocks",
            r"larger than the (maximum number of tokens that can be stored in|available) KV cache",
            r"KV cache .*needed, which is larger than the available",
            r"Free memory on device .* is less than desired GPU memory utilization",
            r"Not enough memory to handle \d+ ",
            r"Not enough memory\. Please try",
            r"unable to allocate CUDA\d* buffer|ggml_backend_cuda_buffer_type_alloc_buffer: allocating .* failed",
        ),
    ),
    Cause("disk_full", "found no space left on a disk of its node", _signs(r"No space left on device|ENOSPC")),
    Cause(
        "host_memory",
        "ran out of the host memory that its job asked for (slurm.memory)",
        _signs(
            r"oom[-_ ]kill|Detected \d+ oom|Out of memory: Killed",
            r"\bMemoryError\b|std::bad_alloc|Cannot allocate memory|DefaultCPUAllocator: can't allocate memory",
        ),
    ),
    Cause(
        "image_missing",
        "could not be started: its container image is not there, or cannot be read",
        _signs(
            r"could not open image|image not found|unable to open file .*\.(sif|sqsh)|failed to open .*\.sif",
            r"(manifest|name) unknown|unable to (copy from source|pull) |initializing source docker://",
            r"No such image|image not known|Unable to find image|pull access denied",
            r"can't (stat|open) (image|.*\.sqsh)|ch-run\[\d+\]: error: can't stat:",
            r"ch-run.*(can't find image|not an image)",
            r"\[ERROR\] (No such file or directory|Invalid image format): .*\.sqsh|pyxis: failed to import",
        ),
    ),
    Cause(
        "weights_missing",
        "did not find the model's weights, or may not read them (`slurmgate fetch`, the hub's token)",
        _signs(
            r"RepositoryNotFoundError|Repository Not Found|GatedRepoError|Access to model .* is restricted",
            r"is not a local folder and is not a valid model identifier",
            r"LocalEntryNotFoundError|cannot find the requested files in the (disk|local) cache",
            r"OfflineModeIsEnabled|Can't load the configuration of|does not appear to have a file named",
            r"(No such file or directory|failed to open|cannot open|does not exist)[^\n]*\.(gguf|safetensors|bin)",
            r"(gguf|safetensors|bin)[^\n]*(No such file or directory|not found|does not exist)",
            r"No \.?(safetensors|bin)[^\n]* weights found|Cannot find any model weights",
        ),
    ),
    Cause(
        "model_unsupported",
        "does not know this kind of model, or of its quantisation",
        _signs(
            r"Model architectures? .* (is|are) not supported|Unsupported model type|unknown model architecture",
            r"does not recognize this architecture|not supported for this model|unsupported model architecture",
        ),
    ),
    Cause(
        "bad_arguments",
        "refused its arguments",
        _signs(
            r"unrecognized arguments|unexpected argument '|invalid choice|the following required arguments",
            r"the following arguments are required|error: invalid argument|invalid value '[^']*' for '",
            r"error: argument |unknown argument",
        ),
    ),
    Cause(
        "program_missing",
        "was not found: its program is not in the image or on the node's PATH",
        _signs(
            r"command not found|executable file not found|exec: .*: no such file",
            r"can't execve|the engine cannot be started: .*No such file",
        ),
    ),
)
"""In the order in which they are looked for: an engine that has run out of memory may then fail in other ways, too."""

_REFINED = frozenset({"engine_exited", "launch", "engine_unproven", "start_timeout", "job_failed"})
"""The kinds that leave open why."""


def diagnosed(failure: Failure | None) -> Failure | None:
    """The failure with its cause in place of "it exited", where the last lines tell it."""
    if failure is None or failure.kind not in _REFINED:
        return failure
    text = "\n".join(failure.tail)
    for cause in CAUSES:
        if cause.signs.search(text):
            return replace(failure, kind=cause.kind, message=f"The engine {cause.words}. ({failure.message})")
    return failure
