"""What is done with a batch outside of its lines: its input is validated and made into rows, and it is ended.

    validate   check the file -> failed, with every mistake | rows of windows and lines -> in progress
    end        lines that never ran get their error -> files' ids decided -> files written -> over

A step may be killed anywhere and done again, by the same worker or another. It blocks, for as long as a large file
takes: it runs in a thread of its own, beside that of the worker's commits and beats.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from proxy.files.batch_lines import Mistake, Rules, check_file
from proxy.files.errors import InsufficientStorage, StorageQuotaExceeded
from proxy.files.service import Files
from proxy.stored_responses import StorageFailed

from .input import Index, windows_of
from .output import write_files
from .step_store import Lost, StepStore
from .store import BatchStore
from .values import Batch, Kind, NewWindow, Status, Step

RETRY_S = 10.0
"""After trouble with the disk. Somebody has to make room, or has been doing so."""
TIDY_EVERY_S = 3600.0
SLICE_LINES = 1000
"""Rows that are written in one transaction: others have to wait for it."""

GONE = Mistake(
    "input_file_not_found", "The input file is not there any more: it was deleted, or it has expired.", "input_file_id"
)
REVOKED = Mistake("key_revoked", "The API key that made this batch may not be used any more.")


class Steps:
    """rules_of   what a batch's lines have to be like, as its key and the configuration are now
    pause         `time.sleep`, by which a thread lets others run
    name_of       a model's name, where a line may use an alias
    """

    def __init__(
        self,
        store: BatchStore,
        rows: StepStore,
        files: Files,
        rules_of: Callable[[Batch], Rules],
        log: FilteringBoundLogger,
        *,
        pause: Callable[[float], None] = time.sleep,
        name_of: Callable[[str], str] = lambda model: model,
    ) -> None:
        self._store = store
        self._rows = rows
        self._files = files
        self._rules_of = rules_of
        self._log = log
        self._pause = pause
        self._name_of = name_of
        self._tidied_at: float | None = None

    def run(self, step: Step) -> Batch | None:
        """The batch as it is then; None where somebody else goes on with it, or it is tried again later: no room on
        disk is waited for. Raises `SQLAlchemyError`; then it is to be called again with the same step."""
        try:
            batch = self._validate(step) if step.kind is Kind.VALIDATE else self._end(step)
            self._tidy()
            return batch
        except Lost:
            self._rows.drop(step)
        except (OSError, StorageFailed, InsufficientStorage, StorageQuotaExceeded) as error:
            self._log.error(
                "batch_step_put_off", batch=step.batch.id, step=step.kind.value, reason=str(error), again_in_s=RETRY_S
            )
            self._rows.put_off(step, RETRY_S)
        return None

    def _tidy(self) -> None:
        """Rows of lines that nobody needs any more go when there is something to do anyway."""
        now = time.monotonic()
        if self._tidied_at is None or now - self._tidied_at > TIDY_EVERY_S:
            self._tidied_at = now
            while self._rows.forget():
                pass

    def open_input(self, batch: Batch) -> int:
        """A file descriptor of a batch's input, to be closed by the caller.

        Raises `FileNotFoundError` where that file is gone, and the batch is being ended for that; `OSError` for
        anything else that a disk may do; `SQLAlchemyError`.
        """
        try:
            return os.open(self._path(batch), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.abandon(batch.id, GONE)
            raise FileNotFoundError("the input file is not there any more") from None

    def abandon(self, batch_id: str, why: Mistake) -> None:
        """End a batch that cannot go on: `failed`, its remaining lines with this error."""
        if self._store.abandon(batch_id, [why]):
            self._log.warning("batch_abandoned", batch=batch_id, code=why.code)

    def _path(self, batch: Batch) -> Path:
        """Whose it is was looked at when the batch was made. Past its time it is still there while batches read it."""
        return self._files.disk.path(batch.input_file_id)

    # -- validating ---------------------------------------------------------------------------------------------------

    def _validate(self, step: Step) -> Batch:
        batch = step.batch
        try:
            path = self._path(batch)
            index = Index(batch.endpoint, self._name_of)
            found = check_file(path, self._rules_of(batch), self._pause, index.take)
            if not found.good:
                return self._failed(step, found.mistakes, found.models[0] if found.models else None)
            self._rows.clear(step)
            self._add(step, path, index)
        except FileNotFoundError:
            return self._failed(step, [GONE], None)
        begun = self._rows.validated(step, found.lines, found.models[0])
        self._log.info("batch_begins", batch=batch.id, lines=found.lines, models=found.models[:10])
        return begun

    def _failed(self, step: Step, mistakes: list[Mistake], model: str | None) -> Batch:
        batch = self._rows.failed(step, mistakes, model)
        self._log.info("batch_failed", batch=batch.id, code=mistakes[0].code, line=mistakes[0].line)
        return batch

    def _add(self, step: Step, path: Path, index: Index) -> None:
        waiting: list[NewWindow] = []
        lines = 0
        for window in windows_of(path, index, self._pause):
            waiting.append(window)
            lines += len(window.lines)
            if lines >= SLICE_LINES:
                self._rows.add(step, waiting)
                waiting.clear()
                lines = 0
        if waiting:
            self._rows.add(step, waiting)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _end(self, step: Step) -> Batch:
        batch = self._rows.begin_ending(step)
        if batch.ending in (Status.EXPIRED, Status.FAILED):  # who cancels does not want to read about it line by line
            line_no: int | None = 0
            while line_no is not None:
                line_no = self._rows.close_lines(step, line_no, SLICE_LINES)
        decided = replace(step, batch=self._rows.decide_files(step))
        write_files(self._rows, self._files, decided)
        batch = self._rows.finished(decided)
        self._log.info(
            "batch_ended", batch=batch.id, status=batch.status.value, lines=batch.total, completed=batch.completed,
            failed=batch.failed,
        )  # fmt: skip
        return batch
