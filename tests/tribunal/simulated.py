"""A deliberation without a network: a clock of its own, and children whose answers a function makes."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tribunal.plan import (
    Action,
    Answer,
    Ask,
    Began,
    Close,
    Drop,
    Fail,
    Failed,
    Phase,
    Plan,
    Question,
    Replied,
    Tell,
    Time,
    Usage,
    Wake,
)
from tribunal.profile import Judge, Member, Profile

NONCE = "0123456789abcdef"


def members(*weights: float) -> tuple[Member, ...]:
    return tuple(Member(f"m{n}", f"model-{n}", weight) for n, weight in enumerate(weights or (1.0, 1.0, 1.0), 1))


def profile(**fields: Any) -> Profile:
    return Profile(**{"name": "", "members": members(), "judge": Judge("judge"), **fields})


def question(text: str = "Which?\nA) red\nB) green\nC) blue\nD) grey", **fields: Any) -> Question:
    return Question(messages=[{"role": "user", "content": text}], **fields)


@dataclass(frozen=True)
class Says:
    """What a child does: a text (or a failure's status), after so many seconds.

    began_s   a stream's first token comes so long after the question; None: it has none
    """

    text: str = ""
    after_s: float = 1.0
    status: int = 0
    usage: Usage | None = field(default_factory=lambda: Usage(10, 5))
    finish_reason: str = "stop"
    began_s: float | None = None
    code: str = "engine_error"
    tool_calls: bool = False


Script = Callable[[Ask], Says | str | None]
"""None: it never answers."""


@dataclass
class Outcome:
    plan: Plan
    asks: list[Ask] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    failure: Fail | None = None
    closed: Close | None = None
    dropped: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    wake_at: float | None = None
    now_s: float = 0.0

    @property
    def text(self) -> str:
        assert self.failure is None, self.failure
        return self.answers[0].text

    def of(self, phase: Phase) -> list[Ask]:
        return [ask for ask in self.asks if ask.phase is phase]

    def take(self, actions: list[Action]) -> list[Ask]:
        """What a runner does with actions; the children to be started."""
        started = []
        for action in actions:
            assert self.closed is None, "nothing comes after Close"
            match action:
                case Ask():
                    started.append(action)
                    self.running.add(action.ask_id)
                case Drop():
                    assert set(action.ask_ids) <= self.running
                    self.running.difference_update(action.ask_ids)
                    self.dropped += action.ask_ids
                case Wake():
                    self.wake_at = action.at_s
                case Tell():
                    self.told.append(action.text)
                case Answer():
                    self.answers.append(action)
                case Fail():
                    self.failure = action
                case Close():
                    assert not self.running, "children that nobody has dropped"
                    self.closed = action
        self.asks += started
        return started


def deliberate(
    profile: Profile,
    question: Question,
    script: Script,
    *,
    seed: int = 1,
    p95_s: Mapping[str, float] | None = None,
) -> Outcome:
    """Until it is closed. Fails if the plan waits for nothing."""
    plan = Plan(profile, question, seed=seed, now_s=0.0, nonce=NONCE, p95_s=(p95_s or {}).get)
    out = Outcome(plan)
    queue: list[tuple[float, int, Replied | Failed | Began]] = []
    order = iter(range(1_000_000_000))

    def start(asks: list[Ask]) -> None:
        for ask in asks:
            said = script(ask)
            if said is not None:
                for at_s, event in _events(ask.ask_id, Says(said) if isinstance(said, str) else said):
                    heapq.heappush(queue, (out.now_s + at_s, next(order), event))

    start(out.take(plan.start()))
    while out.closed is None:
        if queue and (out.wake_at is None or queue[0][0] <= out.wake_at):
            at_s, _, event = heapq.heappop(queue)
            if event.ask_id not in out.running:
                continue  # cancelled before
            out.now_s = at_s
            if not isinstance(event, Began):
                out.running.discard(event.ask_id)
            start(out.take(plan.on(event, at_s)))
        else:
            assert out.wake_at is not None, "it waits for nothing"
            out.now_s, out.wake_at = out.wake_at, None
            start(out.take(plan.on(Time(), out.now_s)))
    assert plan.closed
    return out


def _events(ask_id: int, says: Says) -> list[tuple[float, Replied | Failed | Began]]:
    found: list[tuple[float, Replied | Failed | Began]] = []
    if says.began_s is not None:
        found.append((says.began_s, Began(ask_id)))
    if says.status:
        found.append((says.after_s, Failed(ask_id, says.code, says.status, None, says.after_s)))
    else:
        reply = Replied(ask_id, says.text, says.finish_reason, says.usage, says.after_s, tool_calls=says.tool_calls)
        found.append((says.after_s, reply))
    return found


# -- what children say ----------------------------------------------------------------------------


def shown(ask: Ask) -> dict[str, str]:
    """label -> what stands under it, in the prompt of a critic, a judge or a writer."""
    contents = [message["content"] for message in ask.messages]
    text = "\n".join(content if isinstance(content, str) else content[-1]["text"] for content in contents)
    return {label: orjson.loads(body) for label, body in re.findall(rf"\[{NONCE} (C\d+)\]\n(.*)\n", text)}


def ballot_of(ask: Ask, score: Callable[[str], float], errors: Callable[[str], list[str]] = lambda text: []) -> str:
    """A proper ballot, from what is thought of each text."""
    entries = [
        {"label": label, "fatal_errors": errors(text), "evidence": "", "score": score(text)}
        for label, text in shown(ask).items()
    ]
    return orjson.dumps({"candidates": entries}).decode()


def preferring(*texts: str) -> Callable[[str], float]:
    """The earlier in the list, the better."""
    return lambda text: 10.0 - texts.index(text) if text in texts else 0.0


def picking(ask: Ask, text: str) -> str:
    """The label of a text: a judge that knows what it wants."""
    return next((label for label, said in shown(ask).items() if said == text), "none")


__all__ = [
    "NONCE",
    "Outcome",
    "Says",
    "Script",
    "ballot_of",
    "deliberate",
    "members",
    "picking",
    "preferring",
    "profile",
    "question",
    "shown",
]
