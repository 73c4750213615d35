"""A small Llama in PyTorch, whose weights go into a GGUF file of architecture "llama" unchanged.

RMSNorm (Zhang and Sennrich, arXiv 1910.07467), rotary positions (Su et al., 2104.09864) on interleaved pairs
as llama.cpp's "norm" rope wants them, SwiGLU (Shazeer, 2002.05202), grouped queries (Ainslie et al.,
2305.13245), tied input and output embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; every width is a multiple of 32, the block of Q8_0."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    causal: bool = True

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


def rotation(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions, each (length, head_width / 2)."""
    frequency = ROPE_BASE ** (-torch.arange(0, head_width, 2) / head_width)
    angle = torch.outer(torch.arange(length), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of x (batch, heads, length, head_width) by their angles."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream (batch, length, width)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        kv_width = shape.kv_heads * shape.head_width
        self.shape = shape
        self.attn_norm = nn.RMSNorm(shape.width, EPSILON)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, EPSILON)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)
        for out in (self.attn_output, self.ffn_down):  # a layer starts as the identity
            nn.init.zeros_(out.weight)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """x and the result: (batch, length, width); mask: (batch, 1, 1, length), true for keys to read."""
        batch, length, width = x.shape
        h = self.attn_norm(x)
        q, k, v = (
            project(h).view(batch, length, -1, self.shape.head_width).transpose(1, 2)
            for project in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeat = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        read = F.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, is_causal=self.shape.causal
        )
        x = x + self.attn_output(read.transpose(1, 2).reshape(batch, length, width))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    """Token ids (batch, length) to normalised states (batch, length, width)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, EPSILON)
        cos, sin = rotation(shape.context, shape.head_width)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """States after the last norm."""
        x = self.token_embd(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.blk:
            x = layer(x, cos, sin, mask)
        return self.output_norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Scores of the next token, (..., vocabulary)."""
        return F.linear(states, self.token_embd.weight)


def optimizers(model: Llama, matrix_rate: float, other_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms: far fewer steps than AdamW alone."""
    matrices = [p for layer in model.blk for p in layer.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0)]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.02, adjust_lr_fn="original"))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def set_rate(made: list[torch.optim.Optimizer], progress: float, warm: float = 0.02, hold: float = 0.4) -> None:
    """Warm up, hold, and fall linearly to zero; progress runs from 0 to 1."""
    factor = min(1.0, progress / warm, (1 - progress) / (1 - hold))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * max(factor, 0.0)
