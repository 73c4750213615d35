"""What the header of a GGUF file says of a model, as a Hugging Face configuration would. The file is not loaded.

Layout (ggml's docs/gguf.md): magic, version, number of tensors, number of key-value pairs, then the pairs: name, type,
value. The model's own keys come before the tokenizer's, which are megabytes; reading ends there.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 1 << 20
_MOST_ITEMS = 4096
"""Arrays of the model's own keys have an item a layer; longer ones are the tokenizer's."""


class BadGguf(ValueError):
    """Not a GGUF file, or one that ends too early."""


def read_header(path: Path) -> dict[str, Any]:
    """Keys -> values, up to the tokenizer's vocabulary. Raises `BadGguf`, `OSError`."""
    with path.open("rb") as file:
        return parse_header(file)


def parse_header(file: BinaryIO) -> dict[str, Any]:
    """The same of an open file, or of its first part. Raises `BadGguf`."""
    magic, version, _tensors, pairs = _take(file, "4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise BadGguf("not a GGUF file of version 2 or 3")
    found: dict[str, Any] = {}
    for _ in range(min(pairs, 1000)):
        name, kind = _string(file), _take(file, "I")[0]
        if kind != _ARRAY:
            found[name] = _value(file, kind)
            continue
        item, count = _take(file, "IQ")
        if name == "tokenizer.ggml.tokens":
            found["vocabulary"] = count
        if count > _MOST_ITEMS:
            break
        found[name] = [_value(file, item) for _ in range(count)]
    return found


def configuration(header: dict[str, Any]) -> dict[str, Any]:
    """In the words of `config.json`, so that `model_shape` reads both."""
    kind = str(header.get("general.architecture", ""))

    def own(key: str) -> Any:
        return header.get(f"{kind}.{key}")

    # llama.cpp keeps what the file says a key and a value have, which may differ
    key, value = own("attention.key_length"), own("attention.value_length")
    given = {
        "model_type": kind.replace("-", "_"),
        "num_hidden_layers": own("block_count"),
        "num_attention_heads": _largest(own("attention.head_count")),
        "num_key_value_heads": own("attention.head_count_kv"),
        "head_dim": (key + value) // 2 if key and value else None,
        "hidden_size": own("embedding_length"),
        "intermediate_size": _largest(own("feed_forward_length")),
        "vocab_size": own("vocab_size") or header.get("vocabulary"),
        "max_position_embeddings": own("context_length"),
        "sliding_window": own("attention.sliding_window"),
        "kv_lora_rank": own("attention.kv_lora_rank"),
        "qk_rope_head_dim": own("rope.dimension_count"),
        "quantization_config": {"quant_method": "gguf"},
    }
    return {name: value for name, value in given.items() if value is not None}


def _largest(value: Any) -> Any:
    return max(value) if isinstance(value, list) and value else value


def _take(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    wanted = struct.calcsize("<" + layout)
    data = file.read(wanted)
    if len(data) < wanted:
        raise BadGguf("the file ends within its header")
    return struct.unpack("<" + layout, data)


def _string(file: BinaryIO) -> str:
    (length,) = _take(file, "Q")
    if length > _LONGEST_STRING:
        raise BadGguf("a name in its header is too long")
    return str(_take(file, f"{length}s")[0], "utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind not in _SIZES:
        raise BadGguf(f"type {kind} in its header is unknown")
    return _take(file, _SIZES[kind])[0]
