"""Webhooks: who asked for it is told when a batch has ended, as Standard Webhooks has it, and as OpenAI does it.

    events_of     what is told of a batch: rows, written in the same transaction as its end, so that none is lost
    settings_of   `[batches]` -> where events may go, and the secrets
    sign          the signature of a delivery (https://github.com/standard-webhooks/standard-webhooks, spec)
    Destinations  which URLs a batch may name
    Notifier      sends what is due (webhook_rows.py), again and again over three days, until a receiver has taken it

A delivery may come twice: when a gateway is killed between a receiver's answer and its row, or the answer is lost. Both
have the same `webhook-id`. A batch's own webhook is signed with a secret of its owner, made from the gateway's: who can
check what is told to one project cannot pretend to be this gateway for another.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from backends.errors import InvalidRequest
from proxy.config import BatchesSection, ConfigError
from proxy.files.values import new_id

from .webhook_post import NotDelivered, destination_of, post
from .webhook_rows import Due, EventStore, Row

if TYPE_CHECKING:
    from .values import Batch

MINUTE, HOUR = 60, 3600
RETRY_AFTER_S = (5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR)
"""Standard Webhooks' own schedule, each with a tenth of jitter. After the last one it is given up."""
JITTER = 0.1
GONE = 410
AT_ONCE = 16
"""Receivers that are slow keep others waiting only when they are so many."""
LOOK_EVERY_S = 2.0
SECRET_PREFIX = "whsec_"  # noqa: S105  # what begins secrets, none itself
SECRET_BYTES = (24, 64)
"""As Standard Webhooks has them, at least and at most."""


# -- pure ------------------------------------------------------------------------------------------------------------


def events_of(batch: Batch, urls: Sequence[str], now: float) -> list[Row]:
    """Rows of `webhook_events` for a batch that has just ended, due at once.

    urls   the configured ones; the batch's own is added
    """
    rows: list[Row] = []
    for url in dict.fromkeys([*urls, *([batch.webhook] if batch.webhook else [])]):
        event_id = new_id("evt_")
        kind = f"batch.{batch.status}"
        body = {"id": event_id, "object": "event", "type": kind, "created_at": int(now), "data": {"id": batch.id}}
        rows.append(
            {
                "id": event_id,
                "batch_id": batch.id,
                "type": kind,
                "url": url,
                "body": orjson.dumps(body),
                "created_at": int(now),
                "attempts": 0,
                "next_at": int(now),
                "delivered_at": None,
                "given_up_at": None,
            }
        )
    return rows


def secret_of(text: str) -> bytes:
    """The key in `whsec_<base64>`. Raises `ValueError`, which says what was expected and nothing of the secret."""
    low, high = SECRET_BYTES
    expected = f"expected {SECRET_PREFIX} and {low} to {high} bytes in base64 (openssl rand -base64 32)"
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(expected)
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(expected) from None
    if not low <= len(key) <= high:
        raise ValueError(expected)
    return key


def secret_text(key: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(key).decode()


def owners_secret(key: bytes, owner: str) -> bytes:
    """What an owner's own webhooks are signed with."""
    return hmac.digest(key, b"webhooks of " + owner.encode(), "sha256")


def sign(keys: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """`webhook-signature`: one for each key, so that receivers may change from one to the next."""
    signed = b"%b.%d.%b" % (event_id.encode(), timestamp, body)
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}" for key in keys)


def headers_of(keys: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "user-agent": "slurmgate",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(keys, event_id, timestamp, body),
    }


def next_try_s(attempts: int, retry_after_s: float | None, jitter: float) -> float | None:
    """Seconds until the next try after so many; None: there is none. A receiver may ask for a longer wait, for a day
    at most. `jitter` is in 0..1."""
    if attempts > len(RETRY_AFTER_S):
        return None
    wait = RETRY_AFTER_S[attempts - 1] * (1 + JITTER * jitter)
    return max(wait, min(retry_after_s or 0.0, RETRY_AFTER_S[-1]))


@dataclass(frozen=True, slots=True)
class Destinations:
    """Where events may go.

    urls      the configured ones: an operator's, wherever they lead
    origins   that a batch's own webhook may name, as `Destination.origin` has them
    private   those may be at addresses that are not public
    """

    urls: tuple[str, ...] = ()
    origins: frozenset[str] = frozenset()
    private: bool = False

    def check(self, url: str) -> str:
        """A batch's own webhook. Raises `InvalidRequest`."""
        if not self.origins:
            message = "This gateway takes no webhooks for single batches: its operator has allowed none."
            raise InvalidRequest(message, param="webhook", code="webhooks_not_allowed")
        try:
            origin = destination_of(url).origin
        except ValueError as error:
            raise InvalidRequest(f"Invalid 'webhook': {error}.", param="webhook", code="invalid_value") from None
        if origin not in self.origins:
            message = "Invalid 'webhook': its host is none that this gateway's operator has allowed."
            raise InvalidRequest(message, param="webhook", code="webhook_host_not_allowed")
        return url

    def allows(self, url: str) -> bool:
        """Whether something may be sent there now, whatever was allowed when its batch was made."""
        return url in self.urls or (destination_of(url).origin in self.origins)

    def private_at(self, url: str) -> bool:
        return self.private or url in self.urls


def origin_of(text: str) -> str:
    """An entry of `batches.webhook_hosts`: a host, for https, or an origin. Raises `ValueError`."""
    url = text if "://" in text else f"https://{text}"
    found = destination_of(url)
    if found.target != "/":
        raise ValueError(f"expected a host or an origin such as 'hooks.example.org', found {text!r}")
    return found.origin


def settings_of(
    section: BatchesSection, environment: Mapping[str, str] = os.environ
) -> tuple[Destinations, list[bytes]]:
    """Where events may go, and the gateway's secrets. Raises `ConfigError`."""
    wrong: list[str] = []
    origins: set[str] = set()
    for name, texts in (("webhook_urls", section.webhook_urls), ("webhook_hosts", section.webhook_hosts)):
        for index, text in enumerate(texts):
            try:
                origins.add(origin_of(text)) if name == "webhook_hosts" else destination_of(text)
            except ValueError as error:
                wrong.append(f"batches.{name}[{index}]: {error}")
    keys: list[bytes] = []
    variable = section.webhook_secret_env
    if variable is not None:
        path = f"batches.webhook_secret_env: the environment variable {variable}"
        try:
            keys = [secret_of(text) for text in environment.get(variable, "").split()]
        except ValueError as error:
            wrong.append(f"{path}: {error}")
        else:
            if not keys:
                wrong.append(f"{path} is not set")
    elif section.webhook_urls or section.webhook_hosts:
        wrong.append("batches.webhook_secret_env: required, since there are webhooks")
    if wrong:
        raise ConfigError("configuration", wrong)
    return Destinations(section.webhook_urls, frozenset(origins), section.webhook_private_addresses), keys


# -- sending ---------------------------------------------------------------------------------------------------------


class Notifier:
    """keys   the gateway's secrets, the newest first"""

    def __init__(
        self,
        store: EventStore,
        destinations: Destinations,
        keys: Sequence[bytes],
        log: FilteringBoundLogger,
        *,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        tls: ssl.SSLContext | None = None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._store = store
        self._destinations = destinations
        self._keys = keys
        self._log = log
        self._now = now
        self._jitter = jitter
        self._tls = tls
        self._look_every_s = look_every_s
        self._thread: Executor = ThreadPoolExecutor(1, thread_name_prefix="webhooks")
        self._task: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def configure(self, destinations: Destinations, keys: Sequence[bytes]) -> None:
        """Go by other settings from now on."""
        self._destinations = destinations
        self._keys = keys

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """What is under way is cut off, and sent again by who comes next. The database is not used any more then."""
        tasks = [*self._sending, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        forgotten_at = 0.0
        while True:
            try:
                found = await self._start_due() if self._keys else 0
                if self._now() - forgotten_at > HOUR:
                    forgotten_at = self._now()
                    await self._in_thread(self._store.forget)
            except SQLAlchemyError as error:  # the database may be away for a while
                self._log.warning("webhooks_not_read", exception=type(error).__name__)
                found = 0
            if not found or len(self._sending) >= AT_ONCE:
                await self._pause()

    async def _pause(self) -> None:
        """Until it is time to look again, or there is room again."""
        if len(self._sending) < AT_ONCE:
            await asyncio.sleep(self._look_every_s)
        else:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)

    async def _start_due(self) -> int:
        """Begin to send what is due, as far as there is room. Returns how many are new."""
        due: list[Due] = []
        if room := AT_ONCE - len(self._sending):
            due = await self._in_thread(lambda: self._store.claim(room))
        for event in due:
            task = asyncio.create_task(self._send(event), name=f"webhook {event.id}")
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return len(due)

    async def send_due(self) -> int:
        """Send what is due now, and wait for its end. Returns how many were."""
        found = await self._start_due()
        if self._sending:
            await asyncio.wait(self._sending)
        return found

    async def _send(self, event: Due) -> None:
        try:
            await self._attempt(event)
        except NotDelivered as error:
            wait_s = None if error.status == GONE else next_try_s(event.attempts, error.retry_after_s, self._jitter())
            next_at = None if wait_s is None else self._now() + wait_s
            await self._write(lambda: self._store.failed(event, next_at))
            self._tell("webhook_given_up" if wait_s is None else "webhook_failed", event, str(error))
        else:
            await self._write(lambda: self._store.delivered(event))
            self._tell("webhook_delivered", event)

    async def _attempt(self, event: Due) -> None:
        """Raises `NotDelivered`."""
        destinations, timestamp = self._destinations, int(self._now())
        if not destinations.allows(event.url):
            raise NotDelivered("its host is not allowed any more", GONE)
        own = event.url not in destinations.urls
        keys = [owners_secret(key, event.owner) for key in self._keys] if own else self._keys
        headers = headers_of(keys, event.id, timestamp, event.body)
        await post(event.url, headers, event.body, private=destinations.private_at(event.url), tls=self._tls)

    async def _write(self, work: Callable[[], None]) -> None:
        """What is not written is sent again later: who has it already knows it by its id."""
        try:
            await self._in_thread(work)
        except SQLAlchemyError as error:
            self._log.warning("webhook_not_written", exception=type(error).__name__)

    def _tell(self, what: str, event: Due, reason: str = "") -> None:
        """Of the URL only its host: the rest may be a secret."""
        fields: Mapping[str, Any] = {
            "id": event.id,
            "batch": event.batch_id,
            "type": event.type,
            "host": destination_of(event.url).host,
            "attempts": event.attempts,
        }
        (self._log.warning if reason else self._log.info)(what, **fields, **({"reason": reason} if reason else {}))

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
