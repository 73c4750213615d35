"""Tokenizer and weights to one GGUF file that llama.cpp loads: architecture "llama", vocabulary "gpt2".

Keys as listed in the GGUF specification (ggml repository, docs/gguf.md) and in llama.cpp's llama-arch.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
from model import EPSILON, ROPE_BASE, Llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, SYSTEM, USER, ASSISTANT, PAD = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIALS = [END, SYSTEM, USER, ASSISTANT, PAD]

# Unknown roles (tool, function, ...) count as the user; content may be null, a string or a list of parts. Of
# a long conversation the template keeps the system messages and whatever else is among the last five: a model
# of this size answers the last question better without the rest.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set system = message['role'] == 'system' or message['role'] == 'developer' -%}"
    "{%- if system or loop.revindex <= 5 -%}"
    "{%- if system -%}<|system|>"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>"
    "{%- else -%}<|user|>{%- endif -%}"
    "{%- if message['content'] is string -%}{{- message['content'] | trim -}}"
    "{%- elif message['content'] -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['text'] -%}{{- part['text'] | trim -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}<|end|>"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al., arXiv 1508.07909) of ``size`` tokens, special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_gguf(  # noqa: PLR0917 (one value per property of the file)
    path: Path,
    model: Llama,
    tokenizer: Tokenizer,
    name: str,
    description: str,
    pooling: gguf.PoolingType | None = None,
) -> int:
    """Write the model; matrices as Q8_0, norms as F32. Returns the file's size in bytes."""
    shape = model.shape
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_description(description)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if not shape.causal:
        writer.add_causal_attention(False)
    add_vocabulary(writer, tokenizer, shape.vocabulary)
    if pooling is None:
        writer.add_chat_template(CHAT_TEMPLATE)
        writer.add_sampling_top_k(1)  # llama.cpp's default for requests without top_k, so for every OpenAI client
    for key, value in model.state_dict().items():
        array = value.float().numpy()
        if array.ndim == 1:
            writer.add_tensor(key, array)
        else:
            quantised = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(key, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file that write_gguf wrote."""
    fields = gguf.GGUFReader(str(path)).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: ident for ident, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that write_gguf wrote, as float32, by their names in the model's state."""
    reader = gguf.GGUFReader(str(path))
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Tokens, merges and special ids. Rows beyond the tokenizer's size (padding of the matrix) are unused."""
    vocabulary = {ident: token for token, ident in tokenizer.get_vocab().items()}
    tokens = [vocabulary.get(ident, f"<|unused{ident}|>") for ident in range(size)]
    types = [
        gguf.TokenType.CONTROL
        if token in SPECIALS
        else gguf.TokenType.NORMAL
        if ident in vocabulary
        else gguf.TokenType.UNUSED
        for ident, token in enumerate(tokens)
    ]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(np.array(types, dtype=np.int32).tolist())
    writer.add_token_merges([" ".join(pair) for pair in merges])
    end = tokenizer.token_to_id(END)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(tokenizer.token_to_id(PAD))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
