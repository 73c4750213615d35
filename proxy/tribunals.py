"""The models that deliberate, joined with what they need of the gateway: other models, the log, the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from backends.base import Call
from backends.errors import GatewayError

from .children import Child
from .control import Control
from .deliberations import Deliberations
from .dispatch import Dispatcher
from .logging import RequestsLog
from .metrics import Metrics
from .middleware import line_of
from .record import Record
from .registry import Entry
from .tracebacks import frames_of

if TYPE_CHECKING:
    from tribunal.backend import Deliberated
    from tribunal.latencies import Latencies
    from tribunal.profile import Profile


class Tribunals:
    """dispatcher   set before the first request
    secret          of this gateway: makes what a request with a seed needs unguessable, and the same each time
    """

    dispatcher: Dispatcher

    def __init__(
        self,
        deliberations: Deliberations,
        *,
        secret: bytes,
        metrics: Metrics,
        requests: RequestsLog,
        log: FilteringBoundLogger,
    ) -> None:
        self._deliberations = deliberations
        self._secret = secret
        self._metrics = metrics
        self._requests = requests
        self._log = log
        self._latencies: Latencies | None = None

    def entries(self, profiles: Mapping[str, Profile], control: Control, created: int) -> Iterator[Entry]:
        """Of the registry. Deliberations that run keep the profile they began with."""
        if not profiles:
            return
        # a tenth of a start, which who has no tribunal need not wait for
        from tribunal.backend import TribunalBackend  # noqa: PLC0415
        from tribunal.latencies import Latencies  # noqa: PLC0415

        self._latencies = self._latencies or Latencies()
        for name, profile in profiles.items():
            backend = TribunalBackend(
                profile, self._child, keep=self._keep, latencies=self._latencies, secret=self._secret
            )
            yield Entry(
                name,
                backend,
                created,
                partial(context_length, profile, control.context_length),
                partial(state_of, profile, control.state_of),
                calls=expected_calls(profile),
            )

    def _child(self, parent: Call, call: Call) -> Child:
        return Child(self.dispatcher, call, parent, self._done, self._as_ours)

    def _done(self, record: Record, elapsed_s: float) -> None:
        self._metrics.observe(record, elapsed_s)
        self._requests.write(line_of(record, elapsed_s) | {"event": "tribunal_call"})

    def _as_ours(self, problem: Exception, record: Record) -> GatewayError:
        """What we did not foresee costs this call, not the whole deliberation."""
        where = frames_of(problem)  # without its message, which may quote the prompt
        self._log.error("unexpected_error", id=record.id, endpoint=record.endpoint, exception=where)
        return GatewayError("The gateway made a mistake; its log has the details.", code="internal_error")

    def _keep(self, over: Deliberated) -> None:
        notes = over.call.notes
        if isinstance(notes, Record):
            notes.note().deliberated = over
        self._metrics.deliberations.observe(over)
        self._deliberations.keep(over)


def expected_calls(profile: Profile) -> int:
    """What limits reckon with: with early exits a deliberation takes half of what follows its drafts, on the whole."""
    full = min(profile.full_calls, profile.max_calls)
    seats = len(profile.seats)
    return seats + max(0, full - seats) // 2 if profile.early_exit else full


def context_length(profile: Profile, of_model: Callable[[str], int | None]) -> int | None:
    """The shortest of its models'; None where one is not known."""
    lengths = [of_model(model) for model in profile.models]
    return min((length for length in lengths if length is not None), default=None) if None not in lengths else None


def state_of(profile: Profile, of_model: Callable[[str], str]) -> str:
    """Ready when a quorum of its members is; starting when it can still become so."""
    states = [of_model(seat.member.model) for seat in profile.seats]
    if states.count("ready") >= profile.quorum:
        return "ready"
    return "starting" if len(states) - states.count("unavailable") >= profile.quorum else "unavailable"
