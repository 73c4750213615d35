"""Rows of results -> a file of them. The same rows give the same bytes, and the file's id is known before: who is
killed here does it again, and nobody sees a difference.

Results stand in the order of the input's lines. Memory does not grow with the batch.
"""

from __future__ import annotations

from proxy.files.service import Files
from proxy.files.values import BATCH_OUTPUT, File

from .results import FAILED, OK
from .step_store import StepStore
from .values import Step

SLICE_LINES = 512
SLICE_BYTES = 1024 * 1024


def write_files(store: StepStore, files: Files, step: Step) -> None:
    """The output and the error file of a batch whose ids are decided, those that it shall have.

    Raises `Lost`, and as `Files.put`: with nothing left behind.
    """
    batch = step.batch
    if batch.output_file_id is not None:
        _write(store, files, step, OK, batch.output_file_id)
    if batch.error_file_id is not None:
        _write(store, files, step, FAILED, batch.error_file_id)


def _write(store: StepStore, files: Files, step: Step, state: int, file_id: str) -> File:
    batch = step.batch
    name = f"{batch.id}_{'output' if state == OK else 'error'}.jsonl"
    incoming = files.begin()
    try:
        line_no = 0
        while rows := store.lines(batch.id, state, line_no, SLICE_LINES, SLICE_BYTES):
            incoming.write(b"\n".join([*(data for _, data in rows), b""]))
            line_no = rows[-1][0]
        store.check(step)  # who has lost it shall not bring back a file that its owner has deleted
        return files.put(batch.owner, incoming, name, BATCH_OUTPUT, keep_s=batch.output_keep_s, file_id=file_id)
    finally:
        incoming.discard()
