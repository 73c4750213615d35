"""The progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .figures import Sample
from .load import Cell, Plan


class Silent:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


class Bar:
    """The progress bar: by requests, or by seconds where time decides. Drawn four times a second at most, since it is
    drawn by the process that measures; and not at all where standard error is no terminal."""

    def __init__(self, plan: Plan, targets: int, console: Console) -> None:
        self._plan = plan
        self._done = 0.0
        self._failed = 0
        self._turn_done = 0.0
        self._by_time = plan.requests is None
        total = targets * len(plan.users) * (plan.duration_s or 0.0)
        if plan.requests is not None:
            total = float(targets * sum(plan.users) * plan.requests)
        unit = "s" if self._by_time else "requests"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=round(total))

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def turn_begins(self, cell: Cell, turn: int) -> None:
        self._turn_done = 0.0
        many = "user" if cell.users == 1 else "users"
        failed = f", {self._failed} failed" if self._failed else ""
        what = f"{cell.users} {many}, {cell.target}, turn {turn + 1} of {self._plan.turns}{failed}"
        self._progress.update(self._task, description=what)

    def answered(self, cell: Cell, sample: Sample, elapsed_s: float) -> None:
        self._failed += sample.error is not None
        if self._by_time:
            self._turn_done = min(elapsed_s, self._plan.turn_s or 0.0)
        else:
            self._turn_done += 1
        self._progress.update(self._task, completed=int(self._done + self._turn_done))

    def turn_ended(self, cell: Cell) -> None:
        self._done += self._turn_done
