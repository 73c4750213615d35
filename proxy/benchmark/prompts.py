"""Synthetic prompts: distinct, of a wanted length, the same again for the same seed. Pure.

A prompt is words drawn at random and one closing sentence. Sixteen of these words hold 128 bits, so two prompts never
share a block of an engine's prefix cache, except for the chat template's own opening and for what is shared on purpose.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

CLOSING = "Write a long story in which all of these words occur."
"""At the end, where it can be no common prefix. It asks for a long answer, since models stop early on bare words."""

_WORDS = (
    "able acid air apple arm art baby back bag ball band bank base bath bean bear bed bell belt bird blood blue "
    "boat body bone book boot boy brain bread brick bridge brown brush bus cake camp card care cat chain chair "
    "chalk cheese chest chief child church city clay clock cloth cloud coal coat coin cold cook copper cord cork "
    "cotton cow crew crop cross crowd crown cup dark day deal desk dog door dream dress drink drop dust ear earth "
    "east edge egg end engine eye face fall farm fast father field fire fish flag flat floor flower fly fold food "
    "foot fork form fox frame friend front fruit full game garden gate girl glass glove goat gold grain grass green "
    "grey ground group guide hair hall hand hat head heart heat hill hole home hook horn horse hour house ice ink "
    "iron island jewel join judge jump kettle key kick king kiss knee knife knot lake lamp land law leaf leg letter "
    "light line lion lip list lock loss low map mark market mass meal metal milk mill mind mine moon morning mother "
    "mouth nail name neck needle nerve nest net night noise north nose note number nut office oil orange oven page "
    "paint paper part paste pen pencil pig pin pipe plane plant plate play pocket point pool port pot price print "
    "queen rail rain rat ray ring river road rock roof room root rose sail salt"
)
WORDS = tuple(_WORDS.split(" "))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens, drawn evenly from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def parse_lengths(text: str) -> Lengths:
    """`128`, or `64:256`. Raises `ValueError`."""
    low, colon, high = text.partition(":")
    if not (low.isdecimal() and (high.isdecimal() if colon else True)):
        raise ValueError(f"expected a number of tokens such as 128, or a range such as 64:256, found {text!r}")
    lengths = Lengths(int(low), int(high) if colon else int(low))
    if not 1 <= lengths.low <= lengths.high <= 1_000_000:
        raise ValueError(f"expected 1 to 1000000 tokens, the smaller number first, found {text!r}")
    return lengths


@dataclass(frozen=True, slots=True)
class WordCount:
    """How many words make a prompt of so many tokens: tokens = fixed + per_word * words.

    exact   measured by the engine's /tokenize; otherwise an assumption: a token a word, and 20 for the chat template
            and the closing sentence
    """

    per_word: float = 1.0
    fixed: float = 20.0
    exact: bool = False

    def words(self, tokens: int) -> int:
        return max(1, round((tokens - self.fixed) / self.per_word))


def fitted(few: tuple[int, int], many: tuple[int, int]) -> WordCount | None:
    """From two measurements (words, tokens); None where they make no sense."""
    (w0, t0), (w1, t1) = few, many
    if w1 <= w0 or t1 <= t0 or t0 < 1:
        return None
    per_word = (t1 - t0) / (w1 - w0)
    return WordCount(per_word, t0 - per_word * w0, exact=True)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which request it is: the prompt depends on all of it, the lengths on all but the target."""

    target: str
    users: int
    turn: int
    user: int
    index: int

    @property
    def place(self) -> str:
        return f"{self.users}/{self.turn}/{self.user}/{self.index}"


@dataclass(frozen=True, slots=True)
class Prompts:
    """seed       the same seed gives the same prompts, which a prefix cache then knows from the last run
    prompt     tokens of a prompt, all in all
    output     tokens of an answer, as `max_tokens`
    shared     tokens that all prompts begin with
    """

    seed: int
    prompt: Lengths
    output: Lengths
    shared: int = 0
    count: WordCount = WordCount()

    def lengths(self, ticket: Ticket) -> tuple[int, int]:
        """(tokens of the prompt, tokens of the answer)"""
        rng = _rng(f"{self.seed}/lengths/{ticket.place}")
        return self.prompt.draw(rng), self.output.draw(rng)

    def text(self, ticket: Ticket) -> str:
        words = self.count.words(self.lengths(ticket)[0])
        shared = min(words, round(self.shared / self.count.per_word))
        common = sample_words(f"{self.seed}/shared", shared)
        return text_of(common + sample_words(f"{self.seed}/{ticket.target}/{ticket.place}", words - shared))


def sample_words(seed: str, words: int) -> list[str]:
    return _rng(seed).choices(WORDS, k=words)


def text_of(words: list[str]) -> str:
    return f"{' '.join(words)}. {CLOSING}"


def _rng(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311  # words and lengths, nothing secret
