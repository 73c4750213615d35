"""A runner, made of what a serving process has."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine
from structlog.typing import FilteringBoundLogger

from backends.errors import NotFound
from proxy.config import Config
from proxy.control import Control
from proxy.dispatch import Dispatcher
from proxy.files.batch_lines import Rules
from proxy.files.service import Files
from proxy.logging import RequestsLog
from proxy.metrics import Metrics
from proxy.principals import Principal
from proxy.record import Record
from proxy.registry import Registry

from .census import states
from .line import Asking, Exchanges
from .runner import BatchRunner
from .step_store import Events, Lost, StepStore
from .steps import REVOKED, Steps
from .store import BatchStore
from .values import Batch, Worker

GRACE_S = 10.0
"""At most, for lines that run when the gateway stops: they are asked again by whoever goes on."""


def runner_of(
    config: Config,
    control: Control,
    database: Engine,
    *,
    files: Files,
    dispatcher: Dispatcher,
    exchanges: Exchanges,
    principal_of: Callable[[str], Principal | None],
    home: str,
    boot: str,
    metrics: Metrics,
    requests: RequestsLog,
    events: Events,
    log: FilteringBoundLogger,
) -> BatchRunner:
    """home   whose state directory this is
    events    rows of what is told about a batch that has ended
    boot      of the gateway that holds it now: the same in each of its processes
    """
    store = BatchStore(database)
    pauses = Pauses()
    rules = partial(rules_of, dispatcher.registry, principal_of)
    name_of = partial(name_in, dispatcher.registry)
    runner = BatchRunner(
        store,
        Steps(store, StepStore(database, events=events), files, rules, log, pause=pauses, name_of=name_of),
        Asking(dispatcher, exchanges, partial(line_asked, metrics, requests)),
        Worker(f"worker_{secrets.token_hex(8)}", home, boot),
        on_stop=pauses.end,
        census=partial(states, database),
        control=control,
        traffic=dispatcher,
        principal_of=principal_of,
        section=config.batches,
        processes=config.server.workers,
        grace_s=min(GRACE_S, config.server.shutdown_grace_s),
        log=log,
    )
    metrics.batches = runner.numbers
    return runner


def rules_of(registry: Registry, principal_of: Callable[[str], Principal | None], batch: Batch) -> Rules:
    """What the lines of a batch have to be like, as its key is now."""
    principal = principal_of(batch.key_id)

    def why_not(model: str) -> tuple[str, str] | None:
        if principal is None:
            return REVOKED.code, REVOKED.message
        try:
            registry.find(model, principal)
        except NotFound as error:
            return error.code or "model_not_found", error.message
        return None

    return Rules(batch.endpoint, why_not, batch.mixed_models)


def name_in(registry: Registry, model: str) -> str:
    """A model's own name, by which its seats and replicas are known; as it was called, where it is gone meanwhile."""
    try:
        return registry.find(model).name
    except NotFound:
        return model


class Pauses:
    """What a step does again and again while it works: it lets others run, and ends early when the gateway stops."""

    def __init__(self) -> None:
        self.ending = False

    def end(self) -> None:
        self.ending = True

    def __call__(self, seconds: float) -> None:
        """Raises `Lost`: then the step is anybody's."""
        if self.ending:
            raise Lost
        time.sleep(seconds)


def line_asked(metrics: Metrics, requests: RequestsLog, record: Record, elapsed_s: float) -> None:
    """A line is a request like any other for the metrics; in the log stand those that failed: there are many lines, and
    the output has the id of each."""
    metrics.observe(record, elapsed_s)
    if not record.error:
        return
    fields: dict[str, object] = {
        "event": "batch_line_failed",
        "id": record.id,
        "status": record.status,
        "ms": int(elapsed_s * 1e5) / 100,
        "key": record.key_id,
        "model": record.model,
        "replica": record.served_by,
        "error": record.error,
    }
    if record.detail:
        fields["detail"] = record.detail
    if record.trail is not None:
        fields |= record.unusual()
    requests.write(fields)
