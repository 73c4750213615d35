"""Batches as values: a batch, its states and the legal steps between them, its card; who works, and on what. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from proxy.files.batch_lines import Mistake

Json = dict[str, Any]


class Status(enum.StrEnum):
    """OpenAI's. Pausing is none of them: a batch that rests is `in_progress`, and says so in `paused_at`."""

    VALIDATING = "validating"  # its input is read: nothing has run
    IN_PROGRESS = "in_progress"  # lines run, or wait
    FINALIZING = "finalizing"  # no line runs any more; its files are being made
    CANCELLING = "cancelling"  # somebody wants its end; what has run by then is kept
    COMPLETED = "completed"  # every line was run, though each may have failed
    FAILED = "failed"  # its `errors` say why; before the first line, but for a key or a file that were taken away
    EXPIRED = "expired"  # out of time: lines that had not run are errors
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Nothing changes any more."""
        return not STEPS[self]


STEPS: Final[dict[Status, frozenset[Status]]] = {
    Status.VALIDATING: frozenset({Status.IN_PROGRESS, Status.FAILED, Status.CANCELLING}),
    Status.IN_PROGRESS: frozenset({Status.FINALIZING, Status.CANCELLING}),
    Status.FINALIZING: frozenset({Status.COMPLETED, Status.EXPIRED, Status.FAILED}),
    Status.CANCELLING: frozenset({Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.EXPIRED: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""The one table: whoever changes a status asks for one that leads there, in the same statement."""


def before(status: Status) -> list[str]:
    """The states that lead to one."""
    return sorted(one.value for one, following in STEPS.items() if status in following)


LIVE: Final = tuple(status.value for status in STEPS if STEPS[status])


@dataclass(frozen=True, slots=True)
class Batch:
    """Times are whole seconds since the epoch, None until they have come.

    owner          a project's id, or that of a key of no project; "" where no key is needed
    key_id         of the key that made it, "" where none is needed
    ending         how it will end, once that is decided: its files' ids are decided then, too
    completed, failed   lines whose results are committed: those of the output file, those of the error file
    output_keep_s  how long its files are kept, None for good
    worker, epoch  who validates or ends it now
    """

    id: str
    owner: str
    key_id: str
    status: Status
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    output_file_id: str | None = None
    error_file_id: str | None = None
    metadata: dict[str, str] | None = None
    errors: tuple[Mistake, ...] = ()
    model: str | None = None
    mixed_models: bool = False
    output_keep_s: int | None = None
    webhook: str | None = None
    paused_at: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    ending: Status | None = None
    worker: str | None = None
    epoch: int = 0

    @property
    def answered(self) -> bool:
        """Every line has its result."""
        return self.completed + self.failed >= self.total

    def card(self) -> Json:
        """OpenAI's batch object, and `paused_at`. Files show when they are there."""
        over = self.status.over
        errors = {"object": "list", "data": [mistake.card() for mistake in self.errors]} if self.errors else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status.value,
            "output_file_id": self.output_file_id if over else None,
            "error_file_id": self.error_file_id if over else None,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": self.cached_tokens},
                "output_tokens": self.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
            "metadata": self.metadata,
            "paused_at": self.paused_at,
        }


# -- work ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that runs lines.

    id     its own, never used again
    home   the state directory that its gateway holds (`StateDir.identity`)
    boot   of that gateway, made at its start: who starts in the directory knows that processes of other boots are gone
    """

    id: str
    home: str
    boot: str


class Kind(enum.Enum):
    VALIDATE = "validate"
    END = "end"


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with a batch outside of its lines, leased to a worker as `batch.epoch` says."""

    kind: Kind
    batch: Batch


class LineRef(NamedTuple):
    """A tuple, since there is one for each line: a frozen dataclass takes four times as long to make.

    line_no   1-based, in the input file; empty lines count
    offset, size   of its bytes there, without its end
    attempts       that failed so far and count
    """

    line_no: int
    offset: int
    size: int
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Lines of one model that belong together, claimed by a worker under an epoch. `lines` are those without a
    result, in the order of the file."""

    batch_id: str
    window_no: int
    model: str
    epoch: int
    lines: tuple[LineRef, ...]


class Done(NamedTuple):
    """One line's result; a tuple as `LineRef` is. `data` is the JSON line for the output file (ok) or the error file,
    without its end."""

    batch_id: str
    window_no: int
    epoch: int
    line_no: int
    ok: bool
    data: bytes
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """lines      how many results are new in the database
    lost          windows (batch, number) that are another's now, or over: nothing more is to be done for them. Their
                  results were thrown away, but those that had been committed before
    answered      batches of which every line has its result now
    """

    lines: int
    lost: frozenset[tuple[str, int]] = frozenset()
    answered: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Result:
    """A committed result. `seq` counts those of a batch in the order in which they were committed, from 1."""

    seq: int
    line_no: int
    ok: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """What is left of a batch for one of its models.

    windows   that still have lines, claimed or not; `free` of them are nobody's
    lines, tokens   without a result; tokens are an estimate of prompts and answers together
    """

    batch: Batch
    model: str
    windows: int
    free: int
    lines: int
    tokens: int


@dataclass(frozen=True, slots=True)
class NewLine:
    """A line of a validated input. `tokens` is an estimate, prompt and answer together."""

    line_no: int
    offset: int
    size: int
    custom_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class NewWindow:
    window_no: int
    model: str
    lines: tuple[NewLine, ...]


# -- lines that did not run ------------------------------------------------------------------------------------------

EXPIRED = Mistake(
    "batch_expired", "This request could not be executed before the completion window expired."
)  # OpenAI's words


def request_id_of(batch_id: str, line_no: int) -> str:
    """The `id` of a line of output: the same whenever it is made."""
    return f"batch_req_{batch_id.removeprefix('batch_')}{line_no:06x}"


def unrun(batch_id: str, line_no: int, custom_id: str, why: Mistake) -> bytes:
    """The error file's line of a request that was never asked."""
    line = {
        "id": request_id_of(batch_id, line_no),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": why.code, "message": why.message},
    }
    return orjson.dumps(line)
