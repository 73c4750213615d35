"""Who deliberates and how: frozen values, parsed once from the configuration.

    Profile   members, critics, a judge, how many rounds, until when, at what cost
    Seat      one voice: a member that is asked three times has three seats
    Shares    how the time is split over the phases

`mistakes` says what is impossible about a profile by itself; whether its models exist is for whoever knows the models.
`overridden` makes the profile of one request: what its `tribunal` object asks for, checked, never beyond the site's
limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import orjson

from backends.errors import InvalidRequest

from .templates import Templates

MOST_SEATS = 16
MOST_ROUNDS = 4
MOST_WEIGHT = 1000
MOST_TOKENS = 100_000_000


class Kind(StrEnum):
    """What an answer is, and so when two answers are the same (answers.py)."""

    CHOICE = "choice"
    NUMBER = "number"
    JSON = "json"
    CODE = "code"
    TEXT = "text"
    AUTO = "auto"
    """Told from the question and the answers."""


class Verdict(StrEnum):
    SELECT = "select"
    """The best candidate, word for word."""
    SYNTHESISE = "synthesise"
    """A new answer, written with all candidates in view."""
    AUTO = "auto"
    """`select` for closed answers, `synthesise` for free text and code, and wherever the client gave tools."""


class Tally(StrEnum):
    BORDA = "borda"
    """Critics' scores count as ranks: a critic that gives 10 to all says nothing."""
    MEDIAN = "median"
    """Critics' scores count as such; one that is far off moves nothing."""


class BelowQuorum(StrEnum):
    ANSWER = "answer"
    """With what there is, marked as degraded."""
    FAIL = "fail"
    """With 503."""


@dataclass(frozen=True, slots=True)
class Member:
    """A model that drafts.

    name         within the profile; requests choose members by it
    model        public name of the model
    weight       of its vote; log(p / (1 - p)) for accuracy p makes the weighted vote the best one
    samples      how many drafts it gives, each with a seed and a vote of its own
    temperature  None: what the client asked for, or the engine's default
    system       a system prompt of its own, put before the conversation's
    max_tokens   of a draft; None: the profile's `draft_max_tokens`
    """

    name: str
    model: str
    weight: float = 1.0
    samples: int = 1
    temperature: float | None = None
    top_p: float | None = None
    system: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Critic:
    """A model that criticises. It is never shown a candidate of its own model."""

    name: str
    model: str
    weight: float = 1.0
    temperature: float | None = 0.0
    system: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that decides between two, and that writes the synthesis.

    temperature  of deciding; a synthesis has what the client asked for
    """

    model: str
    temperature: float | None = 0.0
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """One voice of a member. `label` is `NAME`, or `NAME#2` for its second sample."""

    label: str
    member: Member


@dataclass(frozen=True, slots=True)
class Shares:
    """Of the time until the deadline. What a phase leaves over is the later ones'. They add up to 1."""

    draft: float = 0.45
    critique: float = 0.20
    refine: float = 0.15
    verdict: float = 0.20


@dataclass(frozen=True, slots=True)
class Profile:
    """How one kind of deliberation goes.

    name               "" for the default one, listed as `tribunal`; otherwise listed as `tribunal/NAME`
    critics            empty: the members criticise one another
    judge              None: the tally alone decides, and a synthesis is written by the heaviest member
    alternate          in the judge's place when it fails
    quorum             usable drafts that are wanted before anything else happens
    below_quorum       what to do with fewer
    rounds             of critique and refinement; 0 for a vote alone
    early_exit         answer at once when `agree` drafts say the same and carry more than `agree_share` of all weights
    first_wave         so many seats are asked first, the others only if those do not agree; 0 for all at once
    kind, verdict, tally   see there
    close              the judge is asked if the top two tallies (0 to 1) are not farther apart than this
    error_votes        so many critics must name an error before a candidate is refined
    deadline_s         until the verdict has begun
    grace_s            how long stragglers are waited for once there is a quorum
    hedge              ask again elsewhere when a child takes longer than its model's p95
    max_calls          children of one deliberation, at most
    max_tokens         prompt and completion tokens of all children, at most; None for no limit
    draft_max_tokens, critique_max_tokens, judge_max_tokens, verdict_max_tokens   caps of the children's completions
    guided_json        critics are held to the ballot's JSON schema by their engines; not every engine can
    candidate_max_chars    of a candidate inside another model's prompt; what is cut is marked
    answer_max_chars   a draft that is longer is not usable
    progress           tell what happens in `reasoning_content`, unless the request says otherwise
    keep_s             how long a deliberation can be read afterwards; 0: not at all
    redact             keep it without texts
    """

    name: str
    members: tuple[Member, ...]
    critics: tuple[Critic, ...] = ()
    judge: Judge | None = None
    alternate: Judge | None = None
    quorum: int = 2
    below_quorum: BelowQuorum = BelowQuorum.ANSWER
    rounds: int = 1
    early_exit: bool = True
    agree: int = 2
    agree_share: float = 0.5
    first_wave: int = 0
    kind: Kind = Kind.AUTO
    verdict: Verdict = Verdict.AUTO
    tally: Tally = Tally.BORDA
    close: float = 0.1
    error_votes: int = 2
    deadline_s: float = 120.0
    grace_s: float = 5.0
    shares: Shares = field(default_factory=Shares)
    hedge: bool = True
    max_calls: int = 32
    max_tokens: int | None = None
    draft_max_tokens: int = 2048
    critique_max_tokens: int = 1024
    judge_max_tokens: int = 512
    verdict_max_tokens: int = 4096
    guided_json: bool = False
    candidate_max_chars: int = 16_000
    answer_max_chars: int = 200_000
    progress: bool = False
    keep_s: float = 3600.0
    redact: bool = False
    templates: Templates = field(default_factory=Templates)

    @property
    def model_name(self) -> str:
        return f"tribunal/{self.name}" if self.name else "tribunal"

    @property
    def seats(self) -> tuple[Seat, ...]:
        return tuple(
            Seat(member.name if n == 0 else f"{member.name}#{n + 1}", member)
            for member in self.members
            for n in range(member.samples)
        )

    @property
    def models(self) -> frozenset[str]:
        """Every model that a deliberation may ask."""
        judges = (self.judge, self.alternate)
        return frozenset(
            [m.model for m in self.members] + [c.model for c in self.critics] + [j.model for j in judges if j]
        )

    @property
    def full_calls(self) -> int:
        """Children of a deliberation that takes every step, without hedges and repairs."""
        seats = sum(member.samples for member in self.members)
        critics = len(self.critics) or seats
        judging = 2 if self.judge else 0
        return seats + self.rounds * (critics + seats) + judging + (self.verdict is not Verdict.SELECT)

    @property
    def fingerprint(self) -> str:
        """The same for equal profiles: OpenAI's `system_fingerprint`."""
        return "fp_" + hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


_POSITIVE = (
    *("deadline_s", "draft_max_tokens", "critique_max_tokens", "judge_max_tokens", "verdict_max_tokens"),
    *("candidate_max_chars", "answer_max_chars"),
)


def mistakes(profile: Profile) -> Iterator[tuple[str, str]]:
    """What is impossible: (field, what was expected)."""
    if not profile.members:
        yield "members", "expected at least one member"
        return
    yield from _mistaken_people(profile)
    yield from _mistaken_numbers(profile)
    for name, expected in profile.templates.mistakes():
        yield f"prompts.{name}", expected


def _mistaken_people(profile: Profile) -> Iterator[tuple[str, str]]:
    names = [member.name for member in profile.members]
    if len(set(names)) < len(names) or any("#" in name or not name for name in names):
        yield "members", "expected a name of its own for each, without '#'"
    critics = [critic.name for critic in profile.critics]
    if len(set(critics)) < len(critics):
        yield "critics", "expected a name of its own for each"
    for member in profile.members:
        if not 0 < member.weight <= MOST_WEIGHT:
            yield f"members.{member.name}.weight", f"expected more than 0, at most {MOST_WEIGHT}"
        if member.samples < 1:
            yield f"members.{member.name}.samples", "expected at least 1"
    for critic in profile.critics:
        if not 0 < critic.weight <= MOST_WEIGHT:
            yield f"critics.{critic.name}.weight", f"expected more than 0, at most {MOST_WEIGHT}"
    seats = len(profile.seats)
    if seats > MOST_SEATS:
        yield "members", f"expected at most {MOST_SEATS} drafts, these are {seats}"
    models = {member.model for member in profile.members}
    if profile.rounds and any(models == {critic.model} for critic in profile.critics):
        yield "critics", "expected critics of another model than all the members': nobody is shown its own candidates"
    if profile.alternate is not None and profile.judge is None:
        yield "alternate", "expected a judge for it to stand in for"


def _mistaken_numbers(profile: Profile) -> Iterator[tuple[str, str]]:
    seats = len(profile.seats)
    shares = profile.shares
    split = (shares.draft, shares.critique, shares.refine, shares.verdict)
    calls = profile.quorum + (profile.verdict is Verdict.SYNTHESISE)
    tokens = profile.draft_max_tokens + profile.verdict_max_tokens
    drafts = f"{seats}, the number of drafts"
    checks = (
        ("quorum", 1 <= profile.quorum <= seats, f"1 to {drafts}"),
        ("rounds", 0 <= profile.rounds <= MOST_ROUNDS, f"0 to {MOST_ROUNDS}"),
        ("agree", seats < 2 or 2 <= profile.agree <= seats, f"2 to {drafts}"),
        ("agree_share", 0 <= profile.agree_share < 1, "at least 0, less than 1"),
        ("first_wave", 0 <= profile.first_wave <= seats, f"0 to {drafts}"),
        ("close", 0 <= profile.close <= 1, "0 to 1"),
        ("error_votes", profile.error_votes >= 1, "at least 1"),
        ("shares", min(split) >= 0 and abs(sum(split) - 1) < 1e-6, "shares of at least 0 that add up to 1"),
        ("shares", shares.draft > 0 and shares.verdict > 0, "more than 0 for draft and verdict"),
        ("max_calls", profile.max_calls >= calls, f"at least {calls}: a quorum of drafts and the verdict"),
        (
            "max_tokens",
            profile.max_tokens is None or profile.max_tokens >= tokens,
            f"at least {tokens}: draft_max_tokens and verdict_max_tokens together",
        ),
        ("grace_s", profile.grace_s >= 0, "at least 0"),
        ("keep_s", profile.keep_s >= 0, "at least 0"),
        *((name, getattr(profile, name) > 0, "more than 0") for name in _POSITIVE),
    )
    yield from ((name, f"expected {expected}") for name, holds, expected in checks if not holds)


# -- what one request may ask for -----------------------------------------------------------------


def overridden(profile: Profile, wishes: Any) -> Profile:
    """The profile with what a request's `tribunal` object asks for. Limits of the site can be lowered, never raised.

    Raises `InvalidRequest` naming the field: `tribunal.rounds`.
    """
    if wishes is None:
        return profile
    if not isinstance(wishes, Mapping):
        raise _refused("", "an object")
    changes = {name: _change(profile, name, value) for name, value in wishes.items()}
    if profile.redact and changes.get("redact") is False:
        raise _refused("redact", "true: this service keeps no texts")
    fewer = replace(profile, **changes)
    seats = len(fewer.seats)
    # fewer members than the site's numbers were made for; what the request itself says must fit
    adapted: dict[str, Any] = {
        "quorum": min(fewer.quorum, seats),
        "agree": max(2, min(fewer.agree, seats)),
        "first_wave": min(fewer.first_wave, seats),
    }
    asked = replace(fewer, **{name: value for name, value in adapted.items() if name not in changes})
    for name, expected in mistakes(asked):
        if name in changes:
            raise _refused(name, expected.removeprefix("expected "))
    return asked


_FLAGS = ("early_exit", "progress", "redact", "hedge")


def _change(profile: Profile, name: Any, value: Any) -> Any:
    """One override, checked."""
    checks: Mapping[str, Callable[[], Any]] = {
        "members": lambda: _members(profile, value),
        "rounds": lambda: _whole(name, value, 0, MOST_ROUNDS),
        "kind": lambda: Kind(_word(name, value, Kind)),
        "verdict": lambda: Verdict(_word(name, value, Verdict)),
        "max_calls": lambda: _whole(name, value, 1, profile.max_calls),
        "max_tokens": lambda: _whole(name, value, 1, profile.max_tokens or MOST_TOKENS),
        "deadline_s": lambda: _seconds(name, value, min(1.0, profile.deadline_s), profile.deadline_s),
        "grace_s": lambda: _seconds(name, value, 0.0, profile.deadline_s),
        "first_wave": lambda: _whole(name, value, 0, MOST_SEATS),
        **dict.fromkeys(("quorum", "agree"), lambda: _whole(name, value, 1, MOST_SEATS)),
        **dict.fromkeys(_FLAGS, lambda: _flag(name, value)),
    }
    if name not in checks:
        raise _refused(str(name)[:64], f"one of: {', '.join(checks)}")
    return checks[name]()


def _refused(name: str, expected: str) -> InvalidRequest:
    param = f"tribunal.{name}" if name else "tribunal"
    return InvalidRequest(f"'{param}': expected {expected}.", param=param, code="invalid_value")


def _members(profile: Profile, value: Any) -> tuple[Member, ...]:
    known = {member.name: member for member in profile.members}
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(name, str) and name in known for name in value)
        or len(set(value)) < len(value)
    ):
        raise _refused("members", f"a list of some of: {', '.join(known)}")
    return tuple(known[name] for name in value)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _refused(name, f"a whole number from {least} to {most}")
    return value


def _seconds(name: str, value: Any, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise _refused(name, f"seconds from {least:g} to {most:g}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused(name, "true or false")
    return value


def _word(name: str, value: Any, words: type[StrEnum]) -> str:
    if not isinstance(value, str) or value not in list(words):
        raise _refused(name, f"one of: {', '.join(words)}")
    return value
