"""Does a model fit into these GPUs? Pure: a shape, a GPU, numbers in; a verdict with numbers out.

    memory of a GPU x what the engine takes of it      engine_memory.py
        - its share of the weights                     model_shape.py, weights.py
        - what running takes: an assumption            engine_memory.overhead_bytes
        = room for the KV cache  ->  tokens  ->  sequences of the wanted context

A verdict says what it counted, so that it can be judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from .engine_memory import GIB, Rule, overhead_bytes, rule_of
from .gpus import Gpu
from .model_shape import ModelShape

Kind = Literal["fits", "smaller_context", "more_gpus", "several_nodes", "wrong_count", "too_large", "unknown"]

LEAST_CONTEXT = 2048
"""With room for less than this, a model does not fit "at a smaller context": it does not fit."""

DEFAULT_CONTEXT = 8192
"""Counted with where neither the model nor anybody else says."""

NODE_GPUS = 8
"""GPUs of one node at most, where nobody says otherwise."""

MOST_GPUS = 128


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it fits, with the numbers behind it. Bytes are of all GPUs together.

    kind             fits; smaller_context: with less than was wanted; more_gpus: `needed` of them on one node;
                     several_nodes: `needed` on `needed_nodes`; wrong_count: the engine cannot use this number;
                     too_large: for any number that we would try; unknown: `why` says what could not be told
    taken_bytes      of the GPUs' memory, what the engine takes
    kv_token_bytes   what a token of context costs
    room_bytes       what is left for the KV cache; negative where not even the weights fit
    sequences        so many of the wanted context fit at once
    largest_context  that `concurrency` sequences can have at once
    needed           GPUs with which all that is wanted fits; None where no number was found
    """

    kind: Kind
    model: str
    gpu: Gpu | None
    gpus: int
    nodes: int
    context: int
    concurrency: int
    weight_bytes: int = 0
    overhead_bytes: int = 0
    taken_bytes: int = 0
    kv_token_bytes: int = 0
    room_bytes: int = 0
    sequences: int = 0
    largest_context: int = 0
    needed: int | None = None
    needed_nodes: int = 1
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def refusable(self) -> bool:
        """The engine would certainly fail to start."""
        return self.kind in ("more_gpus", "several_nodes", "wrong_count", "too_large")

    @property
    def sentence(self) -> str:
        return _sentence(self)


def fit(
    shape: ModelShape,
    gpu: Gpu | None,
    gpus: int,
    context: int | None = None,
    *,
    concurrency: int = 1,
    engine: str | Rule = "vllm",
    nodes: int = 1,
    node_gpus: int = NODE_GPUS,
) -> Verdict:
    """The verdict on a model in `gpus` GPUs on each of `nodes` nodes.

    context      tokens that a sequence shall be able to have; None: what the model was made for
    concurrency  so many sequences of that length at once
    engine       a name, or a rule of `rule_of`
    node_gpus    how many GPUs one node may have, for what is proposed

    Several nodes are counted as vLLM uses them: tensor parallel within a node, layers split among the nodes.
    """
    rule = rule_of(engine) if isinstance(engine, str) else engine
    notes = [*shape.notes, *([gpu.note] if gpu is not None and gpu.note else [])]
    if context is None:
        context = shape.max_context or DEFAULT_CONTEXT
        if shape.kv != ():
            told = "what the model was made for" if shape.max_context else "an assumption: the model does not say"
            notes.append(f"context {context:,}: {told}")
    elif shape.max_context and context > shape.max_context:
        notes.append(f"the model was made for {shape.max_context:,} tokens, {context:,} are wanted")
    if not rule.known:
        notes.append("nothing is known of this engine's memory; it is taken to be like vLLM")
    asked = Verdict("unknown", shape.name, gpu, gpus, nodes, context, concurrency, shape.weight_bytes)
    asked = replace(asked, kv_token_bytes=round(shape.kv_bytes_per_token(rule.kv_element_bytes)), notes=tuple(notes))
    if why := _untellable(shape, gpu, gpus):
        return replace(asked, why=why)
    assert gpu is not None  # noqa: S101  # told to the type checker
    verdict = _measured(asked, shape, gpu, rule)
    if verdict.kind in ("fits", "unknown"):
        return verdict
    needed, needed_nodes = _proposal(asked, shape, gpu, rule, node_gpus)
    verdict = replace(verdict, needed=needed, needed_nodes=needed_nodes)
    if verdict.kind != "too_large" or needed is None:
        return verdict
    return replace(verdict, kind="more_gpus" if needed_nodes <= nodes else "several_nodes")


def _untellable(shape: ModelShape, gpu: Gpu | None, gpus: int) -> str:
    """Why nothing can be said; "" where it can."""
    if not shape.weight_bytes:
        return "how large its weights are is unknown"
    if gpu is None:
        return "the memory of the GPUs is unknown (slurm.gpu_type, or slurm.gpu_memory)"
    return "" if gpus > 0 else "no GPUs are asked for"


def _measured(asked: Verdict, shape: ModelShape, gpu: Gpu, rule: Rule) -> Verdict:
    """What is there and what it is enough for. `unknown`: the weights fit, the cache cannot be told."""
    total = asked.gpus * asked.nodes
    split = asked.gpus if rule.splits_heads else 1
    if shape.heads and shape.heads % split:
        below = next(n for n in range(split - 1, 0, -1) if shape.heads % n == 0)
        why = f"{split} GPUs cannot share {shape.heads} attention heads evenly; {below} can"
        return replace(asked, kind="wrong_count", why=why)
    overhead = overhead_bytes(shape, gpu, rule, split)
    taken = int(gpu.memory_bytes * rule.taken(gpu, total))
    if not rule.inside:  # what it leaves must hold the overhead; what it takes holds the rest
        taken = min(taken, gpu.memory_bytes - overhead)
    # all GPUs have the same share; the weights' own rounding is within the other assumptions
    room = taken - (overhead if rule.inside else 0) - shape.weight_bytes / total
    measured = replace(
        asked,
        overhead_bytes=overhead * total,
        taken_bytes=taken * total,
        room_bytes=int(room * total),
        # as it is kept on all GPUs, where heads may have to be kept twice
        kv_token_bytes=round(shape.kv_bytes_per_token(rule.kv_element_bytes, split) * split),
    )
    if room <= 0:
        return replace(measured, kind="too_large")
    if shape.kv is None:
        return replace(measured, why=f"the weights fit, but {shape.kv_unknown}")
    return _with_cache(measured, shape, rule, room, split)


def _with_cache(measured: Verdict, shape: ModelShape, rule: Rule, room: float, split: int) -> Verdict:
    """What `room` bytes on each GPU hold."""
    # a GPU has one share of the layers for each node, or, where heads are not split, for each GPU
    shares = measured.nodes if rule.splits_heads else measured.gpus * measured.nodes

    def of_sequence(tokens: int) -> float:
        kept = shape.kv_bytes(tokens, element_bytes=rule.kv_element_bytes, tensor_parallel=split, windows=rule.windows)
        return kept / shares

    each = of_sequence(measured.context)
    if not each:
        return replace(measured, kind="fits", sequences=measured.concurrency, largest_context=measured.context)
    largest = _largest(lambda tokens: of_sequence(tokens) * measured.concurrency <= room, measured.context)
    sequences = int(room / each)
    kind: Kind = "too_large"
    if sequences >= measured.concurrency:
        kind = "fits"
    elif sequences >= 1 or largest >= min(LEAST_CONTEXT, measured.context):
        kind = "smaller_context"
    return replace(measured, kind=kind, sequences=sequences, largest_context=largest)


def _largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` for which `holds`, which once false stays false; 0 for none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _proposal(asked: Verdict, shape: ModelShape, gpu: Gpu, rule: Rule, node_gpus: int) -> tuple[int | None, int]:
    """(GPUs in all, nodes) with which everything fits: powers of two, on one node while it has so many."""
    fallback: tuple[int | None, int] = (None, 1)
    total = 1
    while total <= MOST_GPUS:
        nodes = -(-total // node_gpus)
        tried = _measured(replace(asked, gpus=total // nodes, nodes=nodes), shape, gpu, rule)
        if tried.kind == "fits":
            return total, nodes
        if fallback[0] is None and tried.kind == "unknown" and tried.room_bytes > 0:
            fallback = (total, nodes)
        total *= 2
    return fallback


# -- words -----------------------------------------------------------------------------------------------------------


def gb(count: float) -> str:
    """Bytes for people, in decimal gigabytes, as files are counted."""
    return f"{count / 1e9:.1f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.1f} MB"


def _sentence(v: Verdict) -> str:
    if v.kind == "wrong_count":
        return f"{v.model} cannot run so: {v.why}.{_proposed(v)}"
    if v.kind == "unknown":
        known = f" (weights {gb(v.weight_bytes)})" if v.weight_bytes else ""
        return f"Whether {v.model} fits{known} cannot be told: {v.why}."
    where = _where(v)
    weights = f"its weights take {gb(v.weight_bytes)} and running it about {gb(v.overhead_bytes)}"
    if v.kind == "fits":
        if not v.kv_token_bytes:
            return f"{v.model} fits into {where}: {weights} of the {gb(v.taken_bytes)} that the engine takes."
        return (
            f"{v.model} fits into {where}: {gb(v.room_bytes)} are left for the KV cache, "
            f"{_count(v.sequences, 'sequence')} of {v.context:,} tokens at once."
        )
    if v.kind == "smaller_context":
        fewer = f"{_count(v.sequences, 'sequence')} of {v.context:,} tokens" if v.sequences else ""
        smaller = f"{_count(v.concurrency, 'sequence')} of {v.largest_context:,} tokens" if v.largest_context else ""
        return (
            f"{v.model} fits into {where} only with less: {weights} of the {gb(v.taken_bytes)} that the engine takes, "
            f"and {gb(v.room_bytes)} for the KV cache hold {' or '.join(filter(None, (fewer, smaller)))} instead of "
            f"{_count(v.concurrency, 'sequence')} of {v.context:,}.{_proposed(v)}"
        )
    short = f"{weights}, and the engine takes {gb(v.taken_bytes)}"
    if v.room_bytes > 0:
        short += f"; the {gb(v.room_bytes)} left hold {v.largest_context:,} tokens"
    return f"{v.model} does not fit into {where}: {short}.{_proposed(v)}"


def _where(v: Verdict) -> str:
    assert v.gpu is not None  # noqa: S101  # only verdicts with numbers come here
    each = f" on each of {v.nodes} nodes" if v.nodes > 1 else ""
    return f"{v.gpus} x {v.gpu.name} ({v.gpu.memory_bytes / GIB:.0f} GiB each){each}"


def _proposed(v: Verdict) -> str:
    if v.needed is None:
        return " No number of such GPUs that was tried is enough for what is wanted." if v.kind != "wrong_count" else ""
    if v.needed == 1:
        return " One of them is enough for what is wanted."
    if v.needed_nodes > 1:
        return f" {v.needed} of them on {v.needed_nodes} nodes are enough for what is wanted."
    return f" {v.needed} of them (tensor parallel) are enough for what is wanted."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
