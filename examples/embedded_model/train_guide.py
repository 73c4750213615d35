"""The chat model: a four-layer Llama of 2.3 million weights that learns the facts and who asks for which.

The loss counts only the answer, so that all capacity goes to "which fact is meant" and to its wording.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import torch
import torch.nn.functional as F
from gguf_export import (
    ASSISTANT,
    END,
    PAD,
    SYSTEM,
    USER,
    read_tokenizer,
    read_weights,
    train_tokenizer,
    write_gguf,
)
from model import Llama, Shape, optimizers, set_rate
from tokenizers import Tokenizer
from torch import Tensor

STEPS = 2400
TOKENS_PER_STEP = 1536
CONTEXT = 2048  # announced; samples reach a few hundred tokens, longer prompts are served but not well
LONGEST = 640  # samples beyond are dropped
KEEP, CUT_SHARE = 6, 0.85  # so many samples keep only so many tokens of the answer
SHAPE = Shape(vocabulary=4096, width=192, layers=4, heads=6, kv_heads=2, hidden=480, context=CONTEXT)
MARK = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


def tokenizer_texts(seed: int) -> list[str]:
    """What the vocabulary is made from: the answers, weighted, and generated questions of all kinds."""
    rng = random.Random(seed)
    texts = [fact.answer for fact in corpus.facts()] * 20
    for _ in range(25_000):
        drawn = corpus.sample(rng)
        texts += [text for role, text in drawn.turns[-1:]]
    return texts


def encode(sample: corpus.Sample, tokenizer: Tokenizer, keep: int | None = None) -> tuple[list[int], list[bool]]:
    """Token ids of a sample as the chat template lays it out, and which of them are to be learnt.

    Answers of earlier turns are learnt too. ``keep`` cuts the last answer: its first tokens say which fact is
    meant, which is the hard part, and the rest is soon known by heart; so most samples can do without it.
    """
    end = tokenizer.token_to_id(END)
    ids: list[int] = []
    learnt: list[bool] = []
    if sample.raw is not None:
        ids = tokenizer.encode(sample.raw.rstrip(" ")).ids
        learnt = [False] * len(ids)
        answer = (" " if sample.raw.endswith(" ") else "") + sample.answer
    else:
        for role, text in sample.turns:
            mark = tokenizer.encode(MARK[role]).ids
            body = [*tokenizer.encode(text.strip()).ids, end]
            ids += mark + body
            learnt += [False] * len(mark) + [role == "assistant"] * len(body)
        ids += tokenizer.encode(ASSISTANT).ids
        learnt += [False]
        answer = sample.answer
    body = [*tokenizer.encode(answer).ids, end][:keep]
    return ids + body, learnt + [True] * len(body)


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), each (batch, length), about TOKENS_PER_STEP tokens; -100 is not counted."""
    rng = random.Random(seed)
    pad = tokenizer.token_to_id(PAD)
    while True:
        pool = sorted(
            (encode(corpus.sample(rng), tokenizer, KEEP if rng.random() < CUT_SHARE else None) for _ in range(1024)),
            key=lambda item: len(item[0]),
        )
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in pool:
            if len(item[0]) > LONGEST:
                continue
            if groups[-1] and (len(groups[-1]) + 1) * len(item[0]) > TOKENS_PER_STEP:
                groups.append([])
            groups[-1].append(item)
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            inputs = torch.full((len(group), length - 1), pad)
            targets = torch.full((len(group), length - 1), -100)
            for row, (ids, learnt) in enumerate(group):
                inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
                following = torch.tensor(ids[1:])
                targets[row, : len(ids) - 1] = following.where(torch.tensor(learnt[1:]), torch.tensor(-100))
            yield inputs, targets


def share_spellings(model: Llama, tokenizer: Tokenizer) -> None:
    """Start "Slurm", " slurm" and " Slurm" near each other: what one spelling learns helps the others."""
    first: dict[str, int] = {}
    with torch.no_grad():
        weight = model.token_embd.weight
        for token, ident in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            spelling = tokenizer.decode([ident]).strip().lower() or token
            same = first.setdefault(spelling, ident)
            if same != ident:
                weight[ident] = 0.9 * weight[same] + 0.45 * weight[ident]


def loss_of(model: Llama, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the answers' tokens; logits are made only where they count."""
    states = model(inputs)
    counted = targets != -100
    return F.cross_entropy(model.logits(states[counted]).float(), targets[counted])


def train(path: Path, steps: int, seed: int, bf16: bool = False, start: Path | None = None) -> None:
    """Train for ``steps``, from nothing or from an earlier file, and write the GGUF file."""
    model = Llama(SHAPE)
    if start is None:
        tokenizer = train_tokenizer(tokenizer_texts(seed), SHAPE.vocabulary)
        share_spellings(model, tokenizer)
    else:
        tokenizer = read_tokenizer(start)
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in read_weights(start).items()})
    share = 1.0 if start is None else 1 / 3
    made = optimizers(model, matrix_rate=0.02 * share, other_rate=0.004 * share)
    began, seen, running = time.monotonic(), 0, 0.0
    for step, (inputs, targets) in zip(range(steps), batches(tokenizer, seed), strict=False):
        set_rate(made, (step + 1) / (steps + 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(model, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
        seen += inputs.numel()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99 or step == 10:
            took = time.monotonic() - began
            print(
                f"step {step + 1}/{steps}  loss {running:.3f}  {seen / took:.0f} tokens/s  {took:.0f} s",
                flush=True,
            )
    size = write_gguf(path, model, tokenizer, "slurmgate guide", "Answers short questions about slurmgate and Slurm.")
    print(f"{path.name}: {size} bytes, {sum(p.numel() for p in model.parameters())} weights")
