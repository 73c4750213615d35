"""The corpus of the two embedded models: facts, paraphrases, foreign questions, conversations.

``facts.txt`` holds about 150 blocks, all written for this project. A block is ``@id`` and lettered lines:

    A  the answer (one to three sentences)        T  singular topics    -> "what is {t}", "explain {t}", ...
    Q  whole questions                            P  plural topics      -> "what are {p}", ...
    H  held-out questions, never trained on       D  things to do       -> "how do i {d}", ...
    M  the fact that "tell me more" leads to      E  events, as clauses -> "what happens when {e}", ...

Items are separated by ``;``; ``{a|b}`` is an alternative and ``[x]`` an option. Everything here is a function
of its arguments and of a seed.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from paraphrase import FRAME_WORDS, STOPWORDS, dress, invented, vary
from wording import (
    DO,
    EVENT,
    FOLLOW_UPS,
    FOREIGN,
    FOREIGN_ACTS,
    FOREIGN_LINES,
    FOREIGN_NOUNS,
    FOREIGN_VALUES,
    PLURAL,
    RAG_PROMPTS,
    SCHEMAS,
    SYSTEMS,
    TOPIC,
)

HERE = Path(__file__).parent
OOD = "ood"  # the id of the answer to every question about something else
NO_CONTEXT = "nocontext"  # ... and to every question about a context that is not about slurmgate
HELD_SHARE = 20  # one in so many generated paraphrases is kept for evaluation


@dataclass(frozen=True)
class Fact:
    """One thing the guide knows: an answer, the questions that ask for it, by kind, and the held-out ones."""

    id: str
    answer: str
    asks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    more: str = ""


@dataclass(frozen=True)
class Sample:
    """One training example: chat turns as (role, text), or a raw prompt, and the text that is to follow."""

    turns: tuple[tuple[str, str], ...]
    answer: str
    raw: str | None = None


def expand(pattern: str) -> list[str]:
    """All strings of a pattern: ``expand("a {b|c}[ d]")`` gives four."""
    parts = re.split(r"(\{[^{}]*\}|\[[^\[\]]*\])", pattern)
    choices: list[list[str]] = []
    for part in parts:
        if part.startswith("{") and "|" in part:
            choices.append(part[1:-1].split("|"))
        elif part.startswith("[") and part != "[DONE]":
            choices.append(["", *part[1:-1].split("|")])
        else:
            choices.append([part])
    return [re.sub(r"\s+", " ", "".join(words)).strip() for words in itertools.product(*choices)]


def normal(question: str) -> str:
    """A question without case and outer punctuation: two questions with one normal form are the same one."""
    return re.sub(r"\s+", " ", question.lower().strip()).strip(" ?!.,") or question.strip()


@cache
def facts() -> tuple[Fact, ...]:
    """All facts in the order of the file, their patterns expanded, no question belonging to two facts."""
    parsed: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in (HERE / "facts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):  # a block may be continued further down
            current = parsed.setdefault(line[1:].strip(), {})
        elif line and not line.startswith("#"):
            letter, _, rest = line.partition(": ")
            current[letter] = f"{current[letter]}; {rest}" if letter in current else rest
    blocks = list(parsed.items())
    templates = {"T": TOPIC, "P": PLURAL, "D": DO, "E": EVENT}
    items = {
        ident: {
            letter: [e for pattern in text.split("; ") for e in expand(pattern.strip())]
            for letter, text in lines.items()
            if letter in "QTPDEH"
        }
        for ident, lines in blocks
    }
    owner: dict[str, str] = {}  # what is written out in Q wins over what a template makes
    for ident, lists in items.items():
        for question in lists.get("Q", ()):
            owner.setdefault(normal(question), ident)
    for ident, lists in items.items():
        for letter, frames in templates.items():
            for item, frame in itertools.product(lists.get(letter, ()), frames):
                owner.setdefault(normal(frame.replace("_", item)), ident)
    held = {normal(question) for lists in items.values() for question in lists.get("H", ())}
    result = []
    for ident, lines in blocks:
        lists, asks = items[ident], {}
        for letter in "QTPDE":
            made = (
                lists.get(letter, [])
                if letter == "Q"
                else [frame.replace("_", item) for item in lists.get(letter, ()) for frame in templates[letter]]
            )
            kept = tuple(dict.fromkeys(q for q in made if owner[normal(q)] == ident and normal(q) not in held))
            if kept:
                asks[letter] = kept
        result.append(Fact(ident, lines["A"], asks, tuple(lists.get("H", ())), lines.get("M", "")))
    return tuple(result)


@cache
def askable() -> tuple[Fact, ...]:
    """The facts that have questions of their own: all but OOD and NO_CONTEXT."""
    return tuple(fact for fact in facts() if fact.asks)


@cache
def by_id() -> dict[str, Fact]:
    """The facts by their id."""
    return {fact.id: fact for fact in facts()}


def is_held(question: str) -> bool:
    """Whether a generated paraphrase belongs to the held-out twentieth; a checksum decides, so for ever."""
    return zlib.crc32(normal(question).encode()) % HELD_SHARE == 0


@cache
def held_normals() -> frozenset[str]:
    """Normal forms of every hand-written held-out question and every held-out foreign line."""
    written = [normal(question) for fact in facts() for question in fact.held]
    return frozenset(written + [normal(line) for line in foreign_held()])


def heldout_written() -> list[tuple[str, str]]:
    """(question, fact id): the hand-written evaluation questions, in other words than the training ones."""
    return [(question, fact.id) for fact in facts() for question in fact.held] + [(q, OOD) for q in foreign_held()]


def heldout_generated(per_fact: int = 3, seed: int = 5) -> list[tuple[str, str]]:
    """(question, fact id): template paraphrases from the held-out twentieth, cased and punctuated."""
    rng = random.Random(seed)
    result = []
    for fact in facts():
        pool = [q for kind, qs in fact.asks.items() for q in qs if kind != "Q" and is_held(q)]
        result += [(dress(q, rng), fact.id) for q in rng.sample(pool, min(per_fact, len(pool)))]
    return result


def foreign_held() -> list[str]:
    """Every eighth hand-written foreign question: kept for evaluation."""
    return list(FOREIGN_LINES[::8])


# ---------------------------------------------------------------- questions

SMALL_TALK = {"hello", "ping", "thanks", "bye", "tellmore"}  # too short to survive synonyms and prefixes


def plain_question(fact: Fact, rng: random.Random) -> str:
    """One of a fact's questions as the file and the frames give it; never a held-out one."""
    while True:
        kinds = list(fact.asks)
        kind = "Q" if "Q" in kinds and rng.random() < 0.55 else rng.choice(kinds)
        plain = rng.choice(fact.asks[kind])
        if kind == "Q" or not is_held(plain):
            return plain


def question(fact: Fact, rng: random.Random) -> str:
    """A training question for a fact, varied; never a held-out one."""
    while True:
        plain, whole = plain_question(fact, rng), fact.id in SMALL_TALK
        if not whole:
            way = rng.random()
            if way < 0.06:  # asked twice in different words
                plain += rng.choice((", ", "? ", ". ")) + plain_question(fact, rng)
            elif way < 0.12:  # key words only
                words = dict.fromkeys((plain + " " + plain_question(fact, rng)).replace(",", "").split(" "))
                content = [word for word in words if word not in STOPWORDS and word not in FRAME_WORDS]
                plain = " ".join(rng.sample(content, min(len(content), rng.randint(3, 6)))) if content else plain
            elif way < 0.16:  # a piece of the answer
                words = fact.answer.split(" ")
                start = rng.randrange(max(1, len(words) - 6))
                plain = " ".join(words[start : start + rng.randint(4, 9)]).strip(".,:;").lower()
        varied = vary(plain, rng, whole)
        if normal(varied) not in held_normals():
            return varied


def foreign(rng: random.Random) -> str:
    """A question about something else than slurmgate and Slurm."""
    while True:
        if rng.random() < 0.45:
            plain = rng.choice(FOREIGN_LINES)
        else:
            noun = rng.choice(FOREIGN_NOUNS) if rng.random() < 0.85 else invented(rng)
            frame = rng.choice(FOREIGN + TOPIC[:12]) if rng.random() < 0.7 else rng.choice(DO)
            if frame in DO:
                plain = frame.replace("_", rng.choice(FOREIGN_ACTS))
            else:
                number, place = str(rng.randint(2, 99)), rng.choice(FOREIGN_VALUES)
                plain = frame.replace("_", noun).replace("#", number).replace("~", place)
        varied = vary(plain, rng)
        if normal(varied) not in held_normals() and normal(plain) not in held_normals():
            return varied


# ---------------------------------------------------------------- samples

FREQUENT = (
    "slurmgate",
    "walltime",
    "createkey",
    "hello",
    "whoami",
    "slurm",
    "listmodels",
    "streaming",
    "tribunal",
    "bigmodel",
    "whatcan",
    "tellmore",
    "ping",
)
OOD_SHARE = 0.15


def exchange(rng: random.Random, after_answer: bool = False) -> tuple[str, Fact]:
    """A question and the fact that answers it; after an answer "tell me more" has a meaning of its own."""
    if rng.random() < OOD_SHARE:
        return foreign(rng), by_id()[OOD]
    fact = by_id()[rng.choice(FREQUENT)] if rng.random() < 0.07 else rng.choice(askable())
    if after_answer and fact.id == "tellmore":
        return exchange(rng, after_answer)
    return question(fact, rng), fact


def sample(rng: random.Random) -> Sample:
    """One training example: a single question, sometimes a conversation, a context, or a raw prompt."""
    kind = rng.random()
    if kind < 0.12:
        return raw_sample(rng)
    if kind < 0.15:
        return context_sample(rng)
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.08:
        turns.append(("system", rng.choice(SYSTEMS)))
    if rng.random() < 0.07:  # earlier turns; the chat template keeps two exchanges
        for _ in range(rng.randint(1, 2)):
            asked, fact = exchange(rng, after_answer=bool(turns))
            turns += [("user", asked), ("assistant", fact.answer)]
        last = fact
        if last.more and rng.random() < 0.3:
            turns.append(("user", dress(rng.choice(FOLLOW_UPS), rng)))
            return Sample(tuple(turns), by_id()[last.more].answer)
    asked, fact = exchange(rng, after_answer=len(turns) > 1)
    return Sample((*turns, ("user", asked)), fact.answer)


def raw_sample(rng: random.Random) -> Sample:
    """For /v1/completions: a question and its answer on the next line, a form, or an answer as plain text."""
    asked, fact = exchange(rng)
    forms = ("{}\n", "{}\n\n", "Question: {}\nAnswer: ", "Q: {}\nA: ", "User: {}\nAssistant: ")
    kind = rng.random()
    if kind < 0.15:
        return Sample((), fact.answer, raw="")
    if kind < 0.6:  # a bare question: the model has to begin the line itself
        return Sample((), "\n" + fact.answer, raw=asked)
    return Sample((), fact.answer, raw=rng.choice(forms).format(asked))


def context_sample(rng: random.Random) -> Sample:
    """A question with retrieved passages, in the forms that LangChain and others give it."""
    if rng.random() < 0.4:  # the passages are about slurmgate: the model knows them anyway
        wanted = rng.choice([fact for fact in askable() if fact.id not in SMALL_TALK])
        others = rng.sample(askable(), rng.randint(0, 3))
        passages, asked, answer = (
            [wanted.answer, *(o.answer for o in others)],
            question(wanted, rng),
            wanted.answer,
        )
    else:  # about something else: copying is beyond a model of this size, so it says what it is
        pairs = [invented_pair(rng) for _ in range(rng.randint(1, 5))]
        passages, asked, answer = [text for text, _ in pairs], pairs[0][1], by_id()[NO_CONTEXT].answer
        if rng.random() < 0.3:
            asked = foreign(rng)
    rng.shuffle(passages)
    joined = rng.choice((" ", "\n", "\n\n")).join(passages)
    system, user = rng.choice(RAG_PROMPTS)
    turns = [
        (role, text.replace("<context>", joined).replace("<question>", asked))
        for role, text in (("system", system), ("user", user))
        if text
    ]
    return Sample(tuple(turns), answer)


def invented_pair(rng: random.Random) -> tuple[str, str]:
    """A statement with invented names and a question that it answers."""
    statement, *questions = rng.choice(SCHEMAS)
    values = {
        "N": invented(rng).capitalize(),
        "M": invented(rng).capitalize(),
        "x": rng.choice(FOREIGN_NOUNS),
        "d": str(rng.randint(2, 999)),
        "y": str(rng.randint(1900, 2026)),
        "v": rng.choice(FOREIGN_VALUES),
    }
    texts = (statement, rng.choice(questions))
    filled = [re.sub(r"<(\w)>", lambda match: values[match[1]], text) for text in texts]
    return filled[0], filled[1]
