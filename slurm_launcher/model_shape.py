"""What a model needs memory for, read from its `config.json`: weights, and the KV cache of a token. Pure.

The names are those of Hugging Face's configurations, which differ from one architecture to the next. What cannot be
read, such as the state of a Mamba, is not guessed: `kv` is then None and `kv_unknown` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that remember alike.

    layers   how many
    heads    KV heads of each; tensor parallelism divides them, but each GPU keeps one at least
    values   numbers that each head keeps of a token: key and value, or the latent vector of MLA
    window   only so many of the last tokens are kept; None: all
    """

    layers: int
    heads: int
    values: int
    window: int | None = None

    def values_per_token(self, tensor_parallel: int = 1) -> int:
        """On one GPU. Heads that do not divide evenly count for the GPU with most of them."""
        return self.layers * -(-self.heads // tensor_parallel) * self.values


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as memory sees it.

    weight_bytes    of all weights, as loaded (what the files hold, 32-bit floats apart: see `loaded_bytes`)
    dtypes          (dtype, bytes) of what the files hold, the largest first; () where it was not looked at
    heads           attention heads, which tensor parallelism must divide; 0 where unknown
    kv              None where unknown (`kv_unknown` says why); () for models without a cache, such as encoders
    max_context     tokens the model was made for; None where unknown
    notes           what one should know of these numbers
    """

    name: str
    weight_bytes: int
    dtypes: tuple[tuple[str, int], ...] = ()
    heads: int = 0
    hidden: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    kv: tuple[KvGroup, ...] | None = None
    kv_unknown: str = ""
    max_context: int | None = None
    notes: tuple[str, ...] = ()

    def kv_bytes(
        self, tokens: int, *, element_bytes: float = 2, tensor_parallel: int = 1, windows: bool = True
    ) -> float:
        """Of one sequence of `tokens`, on one GPU. `windows`: layers with a window keep no more than that."""
        total = 0.0
        for group in self.kv or ():
            kept = min(tokens, group.window) if windows and group.window else tokens
            total += kept * group.values_per_token(tensor_parallel) * element_bytes
        return total

    def kv_bytes_per_token(self, element_bytes: float = 2, tensor_parallel: int = 1) -> float:
        """Of a token in all layers, on one GPU."""
        return self.kv_bytes(1, element_bytes=element_bytes, tensor_parallel=tensor_parallel)


def shape_of(name: str, config: Json, weight_bytes: int, dtypes: tuple[tuple[str, int], ...] = ()) -> ModelShape:
    """From `config.json` and the size of the weights' files. Never raises: what is odd becomes unknown, with a note."""
    text = _text_part(config)
    notes = []
    if text is not config:
        notes.append("only text is counted; images and sound take memory beside it")
    loaded = loaded_bytes(config, text, weight_bytes, dtypes)
    if loaded != weight_bytes:
        notes.append("the files hold 32-bit floats, which engines load as 16-bit ones")
    try:
        kv, unknown = _kv(config, text), ""
    except _Unknown as why:
        kv, unknown = None, str(why)
    per_expert = _int(text, "moe_intermediate_size") * max(1, _int(text, "num_experts_per_tok"))
    return ModelShape(
        name=name,
        weight_bytes=loaded,
        dtypes=dtypes,
        heads=_int(text, "num_attention_heads", "n_head", "n_heads", "num_heads"),
        hidden=_hidden(text),
        intermediate=max(_int(text, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), per_expert),
        vocabulary=_int(text, "vocab_size", "padded_vocab_size"),
        kv=kv,
        kv_unknown=unknown,
        max_context=_int(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length") or None,
        notes=tuple(notes),
    )


def quantization_of(config: Json) -> str:
    """`awq`, `gptq`, `fp8`, ...; "" for none."""
    for part in (config, _text_part(config)):
        if isinstance(given := part.get("quantization_config"), Mapping):
            return str(given.get("quant_method") or "quantized").lower()
    return ""


def loaded_bytes(config: Json, text: Json, on_disk: int, dtypes: tuple[tuple[str, int], ...]) -> int:
    """Engines load 32-bit floats as 16-bit ones (vLLM's `--dtype auto`; TGI's and SGLang's defaults), unless the model
    is quantized, where they are scales."""
    if quantization_of(config):
        return on_disk
    if dtypes:
        floats = sum(size for dtype, size in dtypes if dtype == "F32")
        return on_disk - floats // 2 if floats > on_disk // 2 else on_disk
    dtype = text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype")
    return on_disk - on_disk // 2 if dtype == "float32" else on_disk


# -- the cache -------------------------------------------------------------------------------------------------------


class _Unknown(Exception):
    """Why the cache's size cannot be told."""


_STATEFUL = ("mamba", "rwkv", "jamba", "bamba", "zamba", "falcon_h1", "nemotron_h", "recurrent_gemma", "xlstm", "lfm2")
_ENCODERS = ("bert", "roberta", "mpnet", "electra", "deberta", "camembert", "jina_embeddings", "nomic", "gte", "new")
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Every so many-th layer sees everything, where the configuration does not say so (transformers' own defaults)."""

_STATES = ("linear_attention", "mamba", "recurrent", "conv")


def _kv(config: Json, text: Json) -> tuple[KvGroup, ...]:
    kind = str(text.get("model_type") or config.get("model_type") or "").lower()
    layer_types = text.get("layer_types")
    listed = isinstance(layer_types, list) and bool(layer_types)
    if not listed and kind.startswith(_STATEFUL):
        raise _Unknown(f"{kind} keeps a state beside or in place of a KV cache")
    if _is_encoder(kind, text):
        return ()
    if "block_configs" in text:
        raise _Unknown("its layers differ from each other")
    layers = _int(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not layers:
        raise _Unknown("config.json does not say how many layers it has" if kind else "there is no config.json to read")
    if isinstance(heads := text.get("num_key_value_heads"), list):
        return tuple(KvGroup(1, n, 2 * _head_dim(text)) for n in heads if isinstance(n, int) and n > 0)
    if rank := _int(text, "kv_lora_rank"):
        # DeepSeek's latent attention keeps one vector of a token, the same for all heads (DeepSeek-V2, section 2.1)
        return (KvGroup(layers, 1, rank + _int(text, "qk_rope_head_dim")),)
    groups: dict[int | None, int] = {}
    for window in _windows(kind, text, layers):
        if window != 0:
            groups[window] = groups.get(window, 0) + 1
    heads, values = _kv_heads(text), 2 * _head_dim(text)
    return tuple(KvGroup(count, heads, values, window) for window, count in groups.items())


def _windows(kind: str, text: Json, layers: int) -> list[int | None]:
    """For each layer: the window, None for none, 0 for a layer that keeps nothing by the token."""
    window = _int(text, "sliding_window") or None
    types = text.get("layer_types")
    if isinstance(types, list) and types:
        chunk = _int(text, "attention_chunk_size") or None
        return [
            0 if any(word in str(of) for word in _STATES)
            else window if of == "sliding_attention"
            else chunk if of == "chunked_attention"
            else None
            for of in types
        ]  # fmt: skip
    if window is None or text.get("use_sliding_window") is False:
        return [None] * layers
    every = _int(text, "sliding_window_pattern", "_sliding_window_pattern") or _PATTERNS.get(kind)
    if every:
        return [None if (number + 1) % every == 0 else window for number in range(layers)]
    return [window] * layers


def _is_encoder(kind: str, text: Json) -> bool:
    architectures = str(text.get("architectures"))
    if "CausalLM" in architectures or "ConditionalGeneration" in architectures or text.get("is_decoder"):
        return False
    return "bert" in kind or kind in _ENCODERS or "MaskedLM" in architectures


def _kv_heads(text: Json) -> int:
    if given := _int(text, "num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv"):
        return given
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    attention = text.get("attn_config")  # MPT and DBRX
    if isinstance(attention, Mapping) and (given := _int(attention, "kv_n_heads")):
        return given
    heads = _int(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    if not heads:
        raise _Unknown("config.json does not say how many attention heads it has")
    return heads


def _head_dim(text: Json) -> int:
    if given := _int(text, "head_dim", "kv_channels", "attention_head_dim"):
        return given
    heads = _int(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    if not heads or not _hidden(text):
        raise _Unknown("config.json does not say how large an attention head is")
    return _hidden(text) // heads


# -- small things ----------------------------------------------------------------------------------------------------


def _text_part(config: Json) -> Json:
    """Of a model for several media, the part that writes."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(part := config.get(key), Mapping) and _int(part, "num_hidden_layers", "n_layer"):
            return part
    return config


def _hidden(text: Json) -> int:
    return _int(text, "hidden_size", "n_embd", "d_model")


def _int(text: Json, *keys: str) -> int:
    """The first of these that is a positive number, else 0."""
    for key in keys:
        value = text.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
