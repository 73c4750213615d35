"""Text to another text that means the same: phrases, synonyms, noise, typos, case."""

from __future__ import annotations

import random
import re

from wording import (
    ACRONYMS,
    FOREIGN_NOUNS,
    INSERTS,
    LEADS,
    NAMES,
    PHRASES,
    PREFIXES,
    SHORTENINGS,
    SUFFIXES,
    SYNONYMS,
    words,
)

FRAME_WORDS = set(
    words(
        "what how when which where why who tell me about explain can could you please it is this that and or"
        " if in on for"
    )
)
STOPWORDS = {"the", "a", "an", "do", "does", "is", "my", "to", "of", "are", "i"}
SYLLABLES = words(
    "ba be bo ca da de do el fa fi ga go ha in ka ki la le lo ma mi mo na ni no or pa po ra ri ro sa so ta"
    " ti to un va vi wo za"
)


def vary(plain: str, rng: random.Random, whole: bool = False) -> str:
    """A paraphrase: other phrases, synonyms, fillers, lost and foreign words, a typo, case, punctuation."""
    text = plain
    if not whole:
        if rng.random() < 0.65:
            text = roughen(rephrase(text, rng), rng)
        if rng.random() < 0.16:
            text = rng.choice(PREFIXES if rng.random() < 0.7 else LEADS) + text
        if rng.random() < 0.12:
            text += rng.choice(SUFFIXES)
    if rng.random() < 0.10:
        text = typo(text, rng)
    return dress(text, rng)


def rephrase(text: str, rng: random.Random) -> str:
    """The same question with another beginning, synonyms and short forms."""
    if rng.random() < 0.3:
        for known, others in PHRASES:
            if text.startswith(known + " ") or f" {known} " in text:
                text = text.replace(known, rng.choice(others), 1)
                break
    if rng.random() < 0.15 and text.count(" ") > 4 and "slurmgate " in text and not text.startswith("slurmgate "):
        text = text.replace("slurmgate", rng.choice(NAMES), 1)
    text = " ".join(swap(word, rng) for word in text.split(" "))
    for long, short in SHORTENINGS:
        if long in text and rng.random() < 0.2:
            text = text.replace(long, short, 1)
    return text


def roughen(text: str, rng: random.Random) -> str:
    """Words lost and words put in: so that no single word and no unknown word decides."""
    words = text.split(" ")
    if len(words) > 4 and rng.random() < 0.15:
        words = [word for word in words if word not in STOPWORDS or rng.random() < 0.5] or words
    if len(words) > 4 and rng.random() < 0.2:
        del words[rng.randrange(len(words))]
    if len(words) > 2 and rng.random() < 0.06:
        words.insert(rng.randrange(1, len(words)), rng.choice(INSERTS))
    if len(words) > 3 and rng.random() < 0.12:
        strange = invented(rng) if rng.random() < 0.4 else rng.choice(FOREIGN_NOUNS).split(" ")[-1]
        at = rng.randrange(len(words) + 1)
        if at < len(words) and (words[at] in STOPWORDS or words[at] in FRAME_WORDS):
            words[at] = strange
        else:
            words.insert(at, strange)
    if len(words) > 3 and rng.random() < 0.04:
        rng.shuffle(words)
    return " ".join(words)


def swap(word: str, rng: random.Random) -> str:
    """The word, or now and then a synonym of it."""
    return rng.choice(SYNONYMS[word]) if word in SYNONYMS and rng.random() < 0.15 else word


def typo(text: str, rng: random.Random) -> str:
    """One letter of one longer word lost, doubled, exchanged with its neighbour or replaced."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    i = rng.choice(long)
    word, at = words[i], rng.randrange(1, len(words[i]) - 1)
    words[i] = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + rng.choice("aeinorst") + word[at + 1 :],
        )
    )
    return " ".join(words)


def dress(text: str, rng: random.Random) -> str:
    """Case and final punctuation as people type them."""
    style = rng.random()
    end = "" if text[-1:] in "?!." else ("?" if rng.random() < 0.8 else rng.choice((".", "!", "??", " ?")))
    if style < 0.25:
        return text
    if style < 0.40:
        return text + end
    if style < 0.43:
        return (text + end).upper()
    text = " ".join(ACRONYMS.get(word, word) if rng.random() < 0.7 else word for word in text.split(" "))
    text = re.sub(r"\bi\b(?=['\s]|$)", "I", text)
    text = text[:1].upper() + text[1:]
    return text if style < 0.52 else text + end


def invented(rng: random.Random) -> str:
    """A word that no one has seen, for names in contexts and for unknown subjects."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
