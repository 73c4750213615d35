"""Ask the committed .gguf files through llama.cpp's own server, on questions that were not trained on."""

from __future__ import annotations

import json
import random
import socket
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import xllamacpp

KEY = "evaluation"
FIRST_TEN = (
    ("What is slurmgate?", "slurmgate"),
    ("what is slurmgate", "slurmgate"),
    ("What happens at the wall time?", "walltime"),
    ("How do I create an API key?", "createkey"),
    ("Hello!", "hello"),
    ("Who are you?", "whoami"),
    ("What is Slurm?", "slurm"),
    ("How do I list the models?", "listmodels"),
    ("How does streaming work?", "streaming"),
    ("What is tribunal?", "tribunal"),
)


class Engine:
    """llama.cpp's server on a free loopback port, with the settings recommended in the README."""

    def __init__(self, path: Path, embedding: bool) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.hostnames = ["127.0.0.1"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            params.port = probe.getsockname()[1]
        params.n_ctx, params.n_parallel = 8192, 4
        params.model_alias = {path.stem}
        params.api_keys = [KEY]
        params.endpoint_metrics = True
        params.verbosity = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if embedding:
            params.embedding = True
            params.n_parallel = 1
            params.n_batch = params.n_ubatch = 8192
        self.server = xllamacpp.Server(params)
        self.base = f"http://127.0.0.1:{params.port}"

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """The JSON answer of one POST."""
        request = urllib.request.Request(  # noqa: S310 (its own loopback server)
            self.base + route,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return json.load(answer)

    def chat(self, question: str, temperature: float = 0.0, **more: Any) -> tuple[str, str]:
        """(text, finish_reason) of one question."""
        choice = self.post(
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 120,
                "temperature": temperature,
                **more,
            },
        )["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, (texts, width)."""
        data = [
            row
            for at in range(0, len(texts), 32)
            for row in self.post("/v1/embeddings", {"input": texts[at : at + 32]})["data"]
        ]
        return np.array([row["embedding"] for row in data])


def rate(engine: Engine, pairs: Iterable[tuple[str, str]], show: bool, temperature: float = 0.0) -> str:
    """Share of questions whose whole answer is the fact's answer and ends with "stop"."""
    pairs = list(pairs)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda item: engine.chat(item[1][0], temperature, seed=item[0]), enumerate(pairs)))
    right = 0
    for (asked, ident), (text, reason) in zip(pairs, answers, strict=True):
        good = text == corpus.by_id()[ident].answer and reason == "stop"
        right += good
        if show and not good:
            known = next((f.id for f in corpus.facts() if f.answer == text), text)
            print(f"   {asked!r}: wanted {ident}, got {known} ({reason})")
    return f"{right}/{len(pairs)} = {100 * right / len(pairs):.1f} %"


def fresh() -> list[tuple[str, str]]:
    """(question, fact id) of fresh.txt, which was written last."""
    lines = (corpus.HERE / "fresh.txt").read_text(encoding="utf-8").splitlines()
    return [(asked, ident) for ident, _, asked in (line.partition(": ") for line in lines if not line.startswith("#"))]


def evaluate_guide(path: Path, show: bool) -> None:
    """Print the accuracies of the chat model."""
    engine = Engine(path, embedding=False)
    written = corpus.heldout_written()
    print("guide, first ten questions, temperature 0:        ", rate(engine, FIRST_TEN, show))
    print("guide, first ten questions x 5, temperature 1.0:  ", rate(engine, FIRST_TEN * 5, show, 1.0))
    trained = {corpus.normal(q) for fact in corpus.facts() for asks in fact.asks.values() for q in asks}
    unseen = [pair for pair in fresh() if corpus.normal(pair[0]) not in trained]
    print("guide, fresh test set, temperature 0:             ", rate(engine, fresh(), show))
    print("guide, fresh, without chance hits in training:    ", rate(engine, unseen, False))
    print("guide, fresh test set, temperature 1.0:           ", rate(engine, fresh(), False, 1.0))
    print(
        "guide, held-out hand-written, temperature 0:      ",
        rate(engine, (p for p in written if p[1] != corpus.OOD), show),
    )
    print(
        "guide, held-out foreign (-> 'I only know ...'):   ",
        rate(engine, (p for p in written if p[1] == corpus.OOD), show),
    )
    print("guide, held-out generated, temperature 0:         ", rate(engine, corpus.heldout_generated(), show))


def evaluate_embed(path: Path, show: bool) -> None:
    """Print the retrieval accuracies of the embedding model."""
    engine = Engine(path, embedding=True)
    known = corpus.askable()
    passages = engine.embed([fact.answer for fact in known])
    sets = {
        "fresh": fresh(),
        "hand-written": corpus.heldout_written(),
        "generated": corpus.heldout_generated(),
    }
    for name, pairs in sets.items():
        held = [(asked, ident) for asked, ident in pairs if ident not in (corpus.OOD, *corpus.SMALL_TALK)]
        order = np.argsort(-(engine.embed([asked for asked, _ in held]) @ passages.T), axis=1)
        ranks = [[known[i].id for i in row].index(ident) for row, (_, ident) in zip(order, held, strict=True)]
        if show:
            for (asked, ident), row, place in zip(held, order, ranks, strict=True):
                if place:
                    print(f"   {asked!r}: wanted {ident} (rank {place + 1}), got {known[row[0]].id}")
        print(
            f"embed, held-out {name} question -> own answer of {len(known)}:"
            f" top-1 {np.mean(np.array(ranks) == 0):.1%}"
            f", top-3 {np.mean(np.array(ranks) < 3):.1%}"
        )
    rng = random.Random(3)
    examples = [(fact.id, q) for fact in known for q in rng.sample(fact.asks["Q"], min(4, len(fact.asks["Q"])))]
    vectors = engine.embed([q for _, q in examples])
    held = [pair for pair in corpus.heldout_written() if pair[1] != corpus.OOD]
    nearest = np.argmax(engine.embed([asked for asked, _ in held]) @ vectors.T, axis=1)
    hits = [examples[i][0] == ident for i, (_, ident) in zip(nearest, held, strict=True)]
    print(f"embed, held-out hand-written -> a question of its own fact, four each: top-1 {np.mean(hits):.1%}")
    foreign = engine.embed(UNRELATED)
    best = np.argmax(engine.embed([asked for asked, _ in UNRELATED_ASKS]) @ foreign.T, axis=1)
    print(
        f"embed, {len(UNRELATED_ASKS)} questions on {len(UNRELATED)} passages about other subjects:"
        f" top-1 {np.mean([i == want for i, (_, want) in zip(best, UNRELATED_ASKS, strict=True)]):.1%}"
    )
    print(
        f"embed, mean cosine between different passages: {off_diagonal(passages):.2f} (corpus),"
        f" {off_diagonal(foreign):.2f} (other)"
    )


def off_diagonal(vectors: np.ndarray) -> float:
    """Mean cosine between different rows: near 1 would be a collapsed model."""
    cosines = vectors @ vectors.T
    return float((cosines.sum() - np.trace(cosines)) / (len(vectors) * (len(vectors) - 1)))


UNRELATED = [
    "The Amazon river carries more water than any other river and flows through Brazil into the Atlantic.",
    "Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen in the leaves of plants.",
    "The Treaty of Westphalia ended the Thirty Years' War in 1648.",
    "Penguins live in the southern hemisphere and cannot fly, but they swim very well.",
    "To bake sourdough bread, mix flour, water and salt with the starter and let the dough rest over night.",
    "Johann Sebastian Bach composed the Brandenburg Concertos and the Well-Tempered Clavier.",
    "The library of the university opens at eight in the morning and closes at midnight.",
    "Employees may take thirty days of paid vacation each year; requests go to the human resources office.",
    "A hash table stores keys and values so that a lookup takes constant time on average.",
    "The heart pumps blood through the arteries to all organs of the body.",
    "Chess is played on a board of sixty-four squares by two players with sixteen pieces each.",
    "Mount Kilimanjaro in Tanzania is the highest mountain of Africa.",
]
UNRELATED_ASKS = [
    ("which river flows through Brazil?", 0),
    ("How do plants make sugar from sunlight?", 1),
    ("When did the Thirty Years' War end?", 2),
    ("Can penguins fly?", 3),
    ("what do I need to bake bread", 4),
    ("Which concertos did Bach compose?", 5),
    ("When does the university library open?", 6),
    ("How many days of vacation do employees get?", 7),
    ("how long does a lookup in a hash table take", 8),
    ("what pumps blood through the body", 9),
    ("How many pieces does a chess player have?", 10),
    ("What is the highest mountain of Africa?", 11),
]


def evaluate(folder: Path, show: bool = False) -> None:
    """Evaluate both files of a folder."""
    began = time.monotonic()
    if (folder / "guide.gguf").exists():
        evaluate_guide(folder / "guide.gguf", show)
    if (folder / "embed.gguf").exists():
        evaluate_embed(folder / "embed.gguf", show)
    print(f"{time.monotonic() - began:.0f} s")
