"""Models of a few hundred bytes, in the real formats."""

from __future__ import annotations

import json
import struct
from typing import Any

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I8": 1, "F8_E4M3": 1}


def safetensors(tensors: dict[str, tuple[str, int]]) -> bytes:
    """Tensors by name: their dtype, how many numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, count) in tensors.items():
        start, end = end, end + count * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def gguf(keys: dict[str, Any], payload: int = 1000) -> bytes:
    """A GGUF's header with these keys, and so many bytes of weights."""
    body = b"".join(text(name) + value(given) for name, given in keys.items())
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(keys)) + body + bytes(payload)


def text(given: str) -> bytes:
    return struct.pack("<Q", len(given)) + given.encode()


def value(given: Any) -> bytes:
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    if isinstance(given, float):
        return struct.pack("<If", 6, given)
    if isinstance(given, list):
        kind, items = (
            (8, [text(i) for i in given]) if isinstance(given[0], str) else (4, [struct.pack("<I", i) for i in given])
        )
        return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
    return struct.pack("<II", 4, given)


LLAMA_GGUF = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(5000)],
}
