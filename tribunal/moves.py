"""What goes into a plan and what comes out: events and actions, frozen.

The runner gives every event to `Plan.on` with the time and does what the plan says, in the order in which it says it.

    Ask    start a child; it ends in one `Replied` or one `Failed`, unless it is dropped
    Drop   cancel children: nothing more is heard of them
    Wake   send `Time` then; a new Wake replaces the one before
    Tell   progress for the client, one sentence without content
    Answer one choice of the client's answer is complete
    Fail   there is no answer: the error goes to the client
    Close  the last action: nothing runs any more, the trace is whole

For each of the question's `n` choices there is exactly one `Answer`, or one `Fail` in place of all that are missing;
then one `Close`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .profile import Kind

Message = Mapping[str, Any]


class Phase(StrEnum):
    DRAFT = "draft"
    CRITIQUE = "critique"
    REFINE = "refine"
    JUDGE = "judge"
    VERDICT = "verdict"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one child. `reasoning` is a part of `completion`, `cached` a part of `prompt`."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
            self.cached + other.cached,
        )


@dataclass(frozen=True, slots=True)
class Question:
    """What the client asked.

    messages         as the client sent them; never changed
    kind             of answer; the profile's where it is AUTO
    max_tokens       of the visible answer; None: the profile's caps
    response_format  as the client sent it, for the children that must keep to it
    valid            whether a text keeps to `response_format`; None: everything does
    tools            for the final call only, with `tool_choice` and the like; empty for none
    params           sampling parameters for drafts and verdicts (temperature, top_p, stop, ...), as the client sent
    them
    stream           the client reads a stream: a synthesis is asked for as one
    """

    messages: Sequence[Message]
    kind: Kind = Kind.AUTO
    max_tokens: int | None = None
    response_format: Mapping[str, Any] | None = None
    valid: Callable[[str], bool] | None = None
    tools: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    stream: bool = False


# -- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replied:
    """A child's whole answer. For a streamed one: it has ended, `text` is all that was streamed.

    tool_calls   it asked for tools: an answer even without a text. `message` then has them for a plain answer
    elapsed_s    since it was asked, waiting included
    served_by    the replica or provider
    """

    ask_id: int
    text: str
    finish_reason: str = "stop"
    usage: Usage | None = None
    elapsed_s: float = 0.0
    served_by: str = ""
    tool_calls: bool = False
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A child failed for good: what the dispatcher tries again has been tried. `code` and `status` are the error's.

    `message` is the error's own sentence, given on when every member fails for the same reason.
    """

    ask_id: int
    code: str
    status: int = 502
    usage: Usage | None = None
    elapsed_s: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Began:
    """A streamed child has given its first visible token, or its first tool call: it has gone to the client, there is
    no way back. A stream that ends without it has shown nothing, and its `Replied` is taken as a plain answer."""

    ask_id: int


@dataclass(frozen=True, slots=True)
class Time:
    """The time of the last `Wake` has come."""


Event = Replied | Failed | Began | Time


# -- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Start a child.

    params     of the chat request beside model, messages and stream: temperature, max_tokens, seed, tools, ...
    stream     its visible tokens go to the client's choice `index` as they come
    timeout_s  until its whole reply; of a streamed one: until its first visible token. The plan drops it by itself
               soon after, so this is for the child's own deadline
    label      whose it is: the seat, critic or judge
    hedge_of   the child that this one runs beside, if possible on another replica: the first to answer counts
    index      which of the client's choices it is for, with Phase.VERDICT
    """

    ask_id: int
    phase: Phase
    model: str
    messages: Sequence[Message]
    params: Mapping[str, Any]
    stream: bool
    timeout_s: float
    label: str
    hedge_of: int | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    ask_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wake:
    """`at_s` is of the clock that `Plan.on` is given. A new one replaces the one before."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Tell:
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Choice `index` is complete.

    text       the whole of it
    streamed   the client has it already: only its end is missing
    from_ask   the child that wrote it
    message    of a child that called tools: its message as it came, else None
    degraded   why it is less than the profile promises (`Degraded`), None if it is not
    """

    index: int
    text: str
    from_ask: int | None
    finish_reason: str = "stop"
    degraded: str | None = None
    streamed: bool = False
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """There is no answer. An upstream-class error; after `Began` it is an event of the stream."""

    status: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Close:
    """Everything is over. `outcome` is "answered" or the code of the failure; `usage` the sum over all children."""

    outcome: str
    usage: Usage
    degraded: str | None = None


Action = Ask | Drop | Wake | Tell | Answer | Fail | Close


class Degraded(StrEnum):
    """Why an answer is less than its profile promises."""

    ONE_ANSWER = "one_answer"
    """Only one member gave a usable draft."""
    BELOW_QUORUM = "below_quorum"
    NO_CRITIC = "no_critic"
    """No critic gave a usable ballot: the vote alone decided."""
    JUDGE_FAILED = "judge_failed"
    """The top-ranked candidate, since judge and alternate failed."""
    VERDICT_FAILED = "verdict_failed"
    """The top-ranked candidate, since the synthesis failed."""
    DEADLINE = "deadline"
    """The best so far, since time was up."""
    BUDGET = "budget"
    """The best so far, since calls or tokens were used up."""
    FEWER_CANDIDATES = "fewer_candidates"
    """A candidate is given again, since there were fewer than choices were asked for."""
