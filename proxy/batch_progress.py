"""How a batch advances, for who waits at a terminal: speed and time left from its cards, and the progress bar."""

from __future__ import annotations

from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

Json = dict[str, Any]

OVER = ("completed", "failed", "expired", "cancelled")
LOOK_BACK_S = 60.0
"""Speed is that of the last minute."""


class Speed:
    """From one look to the next. Pure but for the cards it keeps."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def look(self, card: Json, now: float) -> None:
        """`now` is in seconds, of any clock that does not jump."""
        usage = card.get("usage") or {}
        tokens = int(usage.get("total_tokens") or 0)
        self._seen.append((now, tokens, done_of(card)))
        while len(self._seen) > 2 and self._seen[1][0] <= now - LOOK_BACK_S:
            self._seen.popleft()

    def tokens_per_s(self) -> float | None:
        return self._per_s(1)

    def left_s(self, card: Json) -> float | None:
        """By the lines that were done lately; None while none was."""
        rate = self._per_s(2)
        return (total_of(card) - done_of(card)) / rate if rate else None

    def _per_s(self, which: int) -> float | None:
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None
        return max(0.0, (self._seen[-1][which] - self._seen[0][which]) / (self._seen[-1][0] - self._seen[0][0]))


def total_of(card: Json) -> int:
    return int((card.get("request_counts") or {}).get("total") or 0)


def failed_of(card: Json) -> int:
    return int((card.get("request_counts") or {}).get("failed") or 0)


def done_of(card: Json) -> int:
    return int((card.get("request_counts") or {}).get("completed") or 0) + failed_of(card)


def state_of(card: Json) -> str:
    """Its status in words."""
    return "paused" if card.get("paused_at") and card["status"] == "in_progress" else str(card["status"])


def summary(card: Json) -> str:
    """One sentence on a batch that has ended, or on how far it is."""
    done, failed, total = done_of(card), failed_of(card), total_of(card)
    text = f"{card['id']} is {state_of(card)}: {done} of {total} lines done"
    return f"{text}, {failed} of them failed" if failed else text


def mistakes_of(card: Json) -> list[str]:
    """What was wrong with its file."""
    told = []
    for error in (card.get("errors") or {}).get("data") or []:
        line = f"line {error['line']}: " if error.get("line") is not None else ""
        told.append(f"{line}{error['message']} ({error['code']})")
    return told


def span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


class Bar:
    """On a terminal a bar that is drawn anew; elsewhere one line whenever the status changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = ""
        self._speed = Speed()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Words(),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, words="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, card: Json, now: float, clock: float) -> None:
        """`now` of a clock that does not jump, `clock` since the epoch, as `estimated_completion_at`."""
        self._speed.look(card, now)
        words = ", ".join(self.words(card, clock))
        state = state_of(card)
        self._progress.update(
            self._task, description=state, completed=done_of(card), total=total_of(card) or None, words=words
        )
        if not self._console.is_terminal and state != self._told:
            self._told = state
            self._console.print(summary(card), markup=False, highlight=False)

    def lost(self, message: str) -> None:
        """The gateway does not answer; it is asked again."""
        self._progress.update(self._task, words=f"{message}; asking again")
        if not self._console.is_terminal and message != self._told:
            self._told = message
            self._console.print(f"{message}; asking again", markup=False, highlight=False)

    def words(self, card: Json, clock: float) -> list[str]:
        words = [f"{failed_of(card)} failed"]
        rate = self._speed.tokens_per_s()
        if rate is not None:
            words.append(f"{rate:.0f} tokens/s")
        expected = card.get("estimated_completion_at")
        left = max(0.0, expected - clock) if expected is not None else self._speed.left_s(card)
        if left is not None and state_of(card) == "in_progress":
            words.append(f"{span(left)} left")
        return words


class _Words(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        return Text(str(task.fields.get("words", "")))
