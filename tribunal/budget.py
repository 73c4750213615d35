"""What a deliberation may cost and how long it may take. Pure; the caller says what time it is.

Calls and tokens are reserved before a child starts and put right when it ends. The verdict's share is set aside before
anything else, so a deliberation that has spent all it may spend can still give its answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .moves import Message, Phase, Usage
from .profile import Profile

CHARS_PER_TOKEN = 3.5
PART_TOKENS = 1000
"""What an image or another part that is no text is taken for."""

MESSAGE_TOKENS = 8


def estimate_tokens(messages: Iterable[Message]) -> int:
    """Prompt tokens, roughly, rather too many than too few."""
    tokens = 0.0
    for message in messages:
        tokens += MESSAGE_TOKENS + _content_tokens(message.get("content"))
        calls = message.get("tool_calls")
        if calls:
            tokens += len(str(calls)) / CHARS_PER_TOKEN
    return int(tokens) + 1


def _content_tokens(content: Any) -> float:
    if isinstance(content, str):
        return len(content) / CHARS_PER_TOKEN
    if not isinstance(content, list):
        return 0.0
    return sum(
        len(part["text"]) / CHARS_PER_TOKEN
        if isinstance(part, dict) and isinstance(part.get("text"), str)
        else PART_TOKENS
        for part in content
    )


class Budget:
    """Calls and tokens. `tokens` is None for no limit. `verdict_calls` and `verdict_tokens` are set aside at once."""

    __slots__ = ("_aside_calls", "_aside_tokens", "_open", "_tokens", "asked", "calls", "spent")

    def __init__(self, calls: int, tokens: int | None, *, verdict_calls: int, verdict_tokens: int) -> None:
        self.calls = calls
        self._tokens = tokens
        self._aside_calls = min(verdict_calls, calls)
        self._aside_tokens = min(verdict_tokens, tokens) if tokens is not None else 0
        self._open: dict[int, int] = {}
        self.asked = 0
        self.spent = 0

    @property
    def reserved(self) -> int:
        """Tokens of children that still run."""
        return sum(self._open.values())

    def affords(self, phase: Phase, tokens: int) -> bool:
        """Whether one more child may be asked that costs at most so many tokens."""
        verdict = phase is Phase.VERDICT
        if self.asked + 1 + (0 if verdict else self._aside_calls) > self.calls:
            return False
        if self._tokens is None:
            return True
        aside = 0 if verdict else self._aside_tokens
        return self.spent + self.reserved + tokens + aside <= self._tokens

    def release(self) -> None:
        """There will be no synthesis: what was set aside for it is for everything else."""
        self._aside_calls = self._aside_tokens = 0

    def take(self, ask_id: int, phase: Phase, tokens: int) -> None:
        """A child starts. Raises ValueError for one that is not afforded."""
        if not self.affords(phase, tokens):
            raise ValueError(f"a {phase.value} of {tokens} tokens is beyond the budget")
        self.asked += 1
        self._open[ask_id] = tokens
        if phase is Phase.VERDICT:  # what was set aside is for this
            self._aside_calls = max(0, self._aside_calls - 1)

    def settle(self, ask_id: int, usage: Usage | None) -> None:
        """A child has ended. One that does not say what it used counts as all that it might have used.

        That is too much for a child that failed at once, but a budget that is kept is worth more than one used up.
        """
        reserved = self._open.pop(ask_id, None)
        if reserved is not None:
            self.spent += reserved if usage is None else usage.prompt + usage.completion


class Deadlines:
    """When each phase is over, in seconds of the caller's clock. What a phase leaves over is the later ones'."""

    __slots__ = ("_profile", "began_at", "ends_at")

    def __init__(self, profile: Profile, now_s: float) -> None:
        self._profile = profile
        self.began_at = now_s
        self.ends_at = now_s + profile.deadline_s

    def of(self, phase: Phase, round_: int = 0) -> float:
        """`round_` counts from 0; critique and refinement share their time among the rounds."""
        shares = self._profile.shares
        one = (shares.critique + shares.refine) / max(1, self._profile.rounds)
        done = shares.draft + one * round_
        match phase:
            case Phase.DRAFT:
                part = shares.draft
            case Phase.CRITIQUE:
                part = done + shares.critique / max(1, self._profile.rounds)
            case Phase.REFINE:
                part = done + one
            case Phase.JUDGE:
                # half of the verdict's own time, if the phases before have used all of theirs
                part = 1.0 - shares.verdict / 2
            case Phase.VERDICT:
                part = 1.0
        return self.began_at + part * self._profile.deadline_s
