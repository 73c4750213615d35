"""The causes of engines' ends, from what they print."""

from __future__ import annotations

import pytest

from slurm_launcher.diagnosis import CAUSES, diagnosed
from slurm_launcher.failing import REMEDIES
from slurm_launcher.states import Failure

LINES = {
    "gpu_memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be "
        "stored in KV cache (54512).",
        "RuntimeError: Not enough memory to handle 4096 prefill tokens. You need to decrease",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4403.49 MiB on device 0: cudaMalloc failed",
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
    ),
    "gpu_fault": (
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        "RuntimeError: No CUDA GPUs are available: no CUDA-capable device is detected",
        "Failed to initialize NVML: Driver/library version mismatch",
        "torch.distributed.DistBackendError: NCCL error: unhandled system error, NCCL version 2.21.5",
    ),
    "host_memory": (
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have been OOM Killed.",
        "terminate called after throwing an instance of 'std::bad_alloc'",
    ),
    "weights_missing": (
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url",
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. Access to model org/llama is restricted",
        "OSError: /models/x is not a local folder and is not a valid model identifier listed on the hub",
        "gguf_init_from_file: failed to open GGUF file '/models/none.gguf'",
        "error: failed to open /models/none.gguf: No such file or directory",
    ),
    "image_missing": (
        "FATAL:   could not open image /images/tgi.sif: failed to retrieve path: no such file",
        "Error: initializing source docker://ghcr.io/none/none:1: reading manifest 1: manifest unknown",
        "Error: localhost/vllm:1: image not known",
        "ch-run[4711]: error: can't stat: /images/vllm: No such file or directory (ch_core.c:255 2)",
        "[ERROR] No such file or directory: /images/vllm.sqsh",
        "slurmstepd: error: pyxis: [ERROR] No such file or directory: /images/vllm.sqsh",
        "docker: Error response from daemon: pull access denied for none/none, repository does not exist",
    ),
    "bad_arguments": (
        "api_server.py: error: unrecognized arguments: --max-model-length 4096",
        "error: unexpected argument '--max-total-token' found",
        "error: invalid argument: --ctx-sise",
    ),
    "model_unsupported": ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",),
    "program_missing": (
        "bash: line 1: vllm: command not found",
        "ch-run[4711]: error: can't execve(2): vllm: No such file or directory (ch_core.c:410 2)",
        'Error: runc: runc create failed: exec: "vllm": executable file not found in $PATH: OCI runtime attempted',
        "1: slurmgate: n2 (rank 1): the engine cannot be started: vllm: No such file or directory",
    ),
    "disk_full": ("OSError: [Errno 28] No space left on device: '/scratch/models'",),
}
EXITED = "The engine exited with status 1 after 12 s."


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in LINES.items() for line in lines])
def test_a_last_line_tells_the_cause(kind: str, line: str) -> None:
    found = diagnosed(Failure("engine_exited", EXITED, ("INFO loading", line, "INFO shutting down")))
    assert found is not None
    assert found.kind == kind
    assert found.message.endswith(f"({EXITED})")
    assert found.tail[1] == line


def test_no_line_of_the_log_comes_into_the_message() -> None:
    secret = "my prompt: CUDA out of memory, they said"  # a log may quote anything
    found = diagnosed(Failure("engine_exited", EXITED, (secret,)))
    assert found is not None
    assert "my prompt" not in found.message


@pytest.mark.parametrize(
    "failure", [None, Failure("refused", "no", ("CUDA out of memory",)), Failure("engine_exited", EXITED)]
)
def test_what_is_known_or_unknown_stays_as_it_is(failure: Failure | None) -> None:
    assert diagnosed(failure) == failure


def test_every_cause_has_lines_here_and_a_remedy_or_another_try() -> None:
    assert {cause.kind for cause in CAUSES} == LINES.keys()
    assert {cause.kind for cause in CAUSES} - REMEDIES.keys() == {"host_memory"}
