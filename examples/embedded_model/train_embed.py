"""The embedding model: one bidirectional layer over a bag of subwords, sharpened by contrast.

It starts as a good bag of words already. The direction of a token is random but the same for all its
spellings (case, leading space), and its length follows how rare it is (smooth inverse frequency: Arora et
al., ICLR 2017). llama.cpp normalises every token's state before the mean, so a length cannot be had
directly: frequent tokens put their energy into SINK dimensions, whose gain in the last norm is zero.

Training then is InfoNCE with the other pairs of the batch as negatives (van den Oord et al., arXiv
1807.03748). What is written is a mixture of the start and the end, which keeps the matching of words in other
texts (Wortsman et al., arXiv 2109.01903): unmixed it is as good on slurmgate's facts and worse on all else.

Sources of the pairs: the corpus, and for English at large the docstrings of numpy and torch, which are on the
machine that runs this and are pinned in requirements.txt.
"""

from __future__ import annotations

import inspect
import random
import re
import time
import zlib
from pathlib import Path
from types import ModuleType

import corpus
import gguf
import numpy as np
import torch
import torch.nn.functional as F
from gguf_export import PAD, train_tokenizer, write_gguf
from model import Llama, Shape, optimizers, set_rate
from tokenizers import Tokenizer
from torch import Tensor

STEPS = 800
BLEND = 0.7  # the share of the trained weights; the rest is the start
SINK = 32  # dimensions without gain, for the energy of tokens that say little
RARITY = 2e-3  # the constant of smooth inverse frequency
TEMPERATURE = 0.05
FACTS_PER_STEP, GENERIC_PER_STEP, FOREIGN_PER_STEP = 72, 36, 12
LONGEST = 48  # tokens of a text in training
SHAPE = Shape(vocabulary=4096, width=192, layers=1, heads=6, kv_heads=2, hidden=384, context=4096, causal=False)


def generic_passages(limit: int = 12_000) -> list[str]:
    """Plain English paragraphs from the docstrings of numpy and torch, in a fixed order."""
    found: set[str] = set()
    modules: list[ModuleType] = [
        np,
        np.linalg,
        np.random,
        np.fft,
        np.ma,
        torch,
        torch.nn,
        torch.optim,
        torch.nn.functional,
        torch.distributions,
        torch.utils.data,
        torch.linalg,
    ]
    for module in modules:
        for name in dir(module):
            thing = getattr(module, name, None)
            for member in [thing, *(vars(thing).values() if inspect.isclass(thing) else ())]:
                for paragraph in re.split(r"\n\s*\n", str(getattr(member, "__doc__", None) or "")):
                    text = re.sub(r"\s+", " ", paragraph).strip()
                    letters = sum(c.isalpha() or c in " ,." for c in text)
                    if 40 < len(text) < 500 and letters > 0.93 * len(text) and text.count(" ") > 6:
                        found.add(text)
    return sorted(found, key=lambda text: zlib.crc32(text.encode()))[:limit]


def set_start(model: Llama, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Token vectors as described in the module's docstring, and the zero gains of the sink."""
    counts = np.bincount([i for text in texts for i in tokenizer.encode(text).ids], minlength=SHAPE.vocabulary) + 1.0
    share = counts / counts.sum()
    useful = SHAPE.width - SINK
    vectors = np.zeros((SHAPE.vocabulary, SHAPE.width), dtype=np.float32)
    for token, ident in tokenizer.get_vocab().items():
        spelling = tokenizer.decode([ident]).strip().lower() or token
        direction = np.random.default_rng(zlib.crc32(spelling.encode())).normal(size=SHAPE.width)
        weight = RARITY / (RARITY + share[ident]) * (0.3 if not any(c.isalnum() for c in spelling) else 1.0)
        vectors[ident, :useful] = weight * direction[:useful] / np.linalg.norm(direction[:useful])
        vectors[ident, useful:] = np.sqrt(1 - weight**2) * direction[useful:] / np.linalg.norm(direction[useful:])
    with torch.no_grad():
        model.token_embd.weight.copy_(torch.from_numpy(vectors) * SHAPE.width**0.5 * 0.1)
        model.output_norm.weight[useful:] = 0.0
    keep = torch.ones(SHAPE.width)
    keep[useful:] = 0.0
    model.output_norm.weight.register_hook(lambda gradient: gradient * keep)


def crop(text: str, rng: random.Random) -> str:
    """What someone might type to find this text: some of its words, in order, cased at random."""
    words = text.split(" ")
    if rng.random() < 0.5:
        start = rng.randrange(max(1, len(words) - 4))
        words = words[start : start + rng.randint(4, 14)]
    kept = [word for word in words if rng.random() < 0.7] or words
    joined = " ".join(kept[:20])
    return joined.lower() if rng.random() < 0.5 else joined


def pairs(rng: random.Random, passages: list[str]) -> list[tuple[str, str]]:
    """One batch of texts that belong together; no two pairs share a fact."""
    result = []
    for fact in rng.sample(corpus.askable(), FACTS_PER_STEP):
        other = fact.answer if rng.random() < 0.6 else corpus.question(fact, rng)
        if rng.random() < 0.1:
            other = crop(fact.answer, rng)
        result.append((corpus.question(fact, rng), other))
    result += [
        (crop(text, rng), text if rng.random() < 0.7 else crop(text, rng))
        for text in rng.sample(passages, GENERIC_PER_STEP)
    ]
    result += [(corpus.vary(line, rng), line) for line in rng.sample(corpus.FOREIGN_LINES, FOREIGN_PER_STEP)]
    return result


def embed(model: Llama, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Unit vectors (texts, width): the mean over each text's tokens, as llama.cpp's mean pooling gives it."""
    encoded = [tokenizer.encode(text).ids[:LONGEST] for text in texts]
    ids = torch.full((len(encoded), max(map(len, encoded))), tokenizer.token_to_id(PAD))
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    states = model(ids, mask[:, None, None, :]) * mask[..., None]
    return F.normalize(states.sum(1), dim=-1)


def train(path: Path, steps: int, seed: int, bf16: bool = False) -> None:
    """Train for ``steps`` and write the GGUF file."""
    rng = random.Random(seed)
    passages = generic_passages()
    questions = [corpus.exchange(rng)[0] for _ in range(12_000)]
    texts = [fact.answer for fact in corpus.facts()] * 10 + questions + passages
    tokenizer = train_tokenizer(texts, SHAPE.vocabulary)
    print(f"{len(passages)} generic passages, vocabulary {tokenizer.get_vocab_size()}")
    model = Llama(SHAPE)
    set_start(model, tokenizer, texts)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    made = optimizers(model, matrix_rate=0.01, other_rate=0.002)
    began, running = time.monotonic(), 0.0
    for step in range(steps):
        set_rate(made, (step + 1) / (steps + 1))
        left, right = zip(*pairs(rng, passages), strict=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            a, b = embed(model, tokenizer, list(left)), embed(model, tokenizer, list(right))
        scores = a.float() @ b.float().T / TEMPERATURE
        truth = torch.arange(len(left))
        loss = (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth)) / 2
        loss.backward()
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % 50 == 49 or step == 0:
            print(f"step {step + 1}/{steps}  loss {running:.3f}  {time.monotonic() - began:.0f} s", flush=True)
    trained = model.state_dict()
    model.load_state_dict({name: value.lerp(trained[name], BLEND) for name, value in start.items()})
    size = write_gguf(
        path,
        model,
        tokenizer,
        "slurmgate embed",
        "Text embeddings for retrieval about slurmgate.",
        pooling=gguf.PoolingType.MEAN,
    )
    print(f"{path.name}: {size} bytes, {sum(p.numel() for p in model.parameters())} weights")
