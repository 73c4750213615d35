"""vLLM, 0.6 to today. It speaks OpenAI: nothing is repaired, so its bytes go through as they are.

Its errors (nested with an integer code, or flat in older releases) are engine_errors.py's. Fields that it adds
(`stop_reason`, `reasoning`, `prompt_logprobs`) and fields that it ignores pass. `priority` passes as well: whether it
counts is how the engine was started (`--scheduling-policy priority`). `dimensions` is refused by vLLM itself for models
that were not trained for it (`vllm/pooling_params.py`).
"""

from __future__ import annotations

from .seam import EVERYWHERE, RERANK, TOKENIZE, TRANSCRIPTIONS, Dialect

VLLM = Dialect(
    "vllm",
    paths=EVERYWHERE | {RERANK, TOKENIZE, TRANSCRIPTIONS},
    judges_dimensions=True,
)
