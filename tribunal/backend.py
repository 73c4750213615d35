"""The thin runner: what a plan wants becomes calls, what comes of them becomes events; nothing is decided here.

    Call --asked_of--> Question, Profile --> Plan.start, Plan.on --actions--> children, over `ask`
                                               ^------- events -------- Replied, Failed, Began, Time
    Client  <-- progress, the answer's parts, its end (stream.py)         keep  <-- Deliberated, when all is over

Each child is a task that the deliberation holds. A child's end is given to the plan in the child's own task, so a phase
costs no other wake-ups than those of its children. When the client leaves, all are cancelled; the deliberation is
over, and kept, when the last one has ended: then it is known what was used.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import orjson

from backends.base import Call, EventStream, Headers, Reply
from backends.dialects.seam import unsupported_endpoint
from backends.errors import GatewayError, InvalidRequest, MalformedResponse, Unavailable

from .latencies import Latencies
from .moves import Action, Answer, Ask, Began, Close, Drop, Event, Fail, Failed, Replied, Tell, Time, Usage, Wake
from .plan import Plan
from .profile import Profile
from .replies import Heard, chunks_in
from .requests import PATH, Asked, asked_of
from .stream import AnswerStream, Client, Face, WholeAnswer
from .trace import Trace

HEADER = b"x-slurmgate-deliberation"
Asking = Callable[[Call, Call], AbstractAsyncContextManager[Reply | EventStream]]
"""(the request, a child) -> the child's answer. Afterwards its `usage` is what was accounted for."""


@dataclass(frozen=True, slots=True)
class Deliberated:
    """A deliberation that is over.

    call     the request
    began_s  and `ended_s`, of time.monotonic()
    redact   what was said shall not be kept
    """

    id: str
    call: Call
    profile: Profile
    trace: Trace
    began_s: float
    ended_s: float
    redact: bool


class TribunalFailed(GatewayError):
    """There is no answer. It has cost many calls, so clients shall not simply try again."""

    quotes = True  # where all members refuse the request, it is in their words

    def __init__(self, failure: Fail, headers: Headers) -> None:
        super().__init__(failure.message, code=failure.code)
        self.status = failure.status
        if failure.status < 500:
            self.type = InvalidRequest.type
        self.headers = MappingProxyType({b"x-should-retry": b"false", **dict(headers)})


class Gone(GatewayError):
    """Nobody waits for the answer any more, so nobody gets this."""

    status = 499
    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("The client has gone.")


class TribunalBackend:
    """The `Backend` of one profile.

    ask        asks another model
    keep       is told of each deliberation that is over
    latencies  what is known of how long models take; may be shared by several profiles
    secret     delimiters of a deliberation whose request has a seed are made of this, the seed and the question: the
               same each time, and nothing that a member could know
    """

    def __init__(
        self,
        profile: Profile,
        ask: Asking,
        *,
        keep: Callable[[Deliberated], None] = lambda over: None,
        latencies: Latencies | None = None,
        secret: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.profile = profile
        self.ask = ask
        self.keep = keep
        self.latencies = latencies or Latencies()
        self.clock = clock
        self._secret = secret or secrets.token_bytes(32)
        self._fingerprint = profile.fingerprint

    async def run(self, call: Call) -> Reply | EventStream:
        """Raises `InvalidRequest`, and for a whole answer `TribunalFailed`."""
        if call.path != PATH:
            raise unsupported_endpoint(call.path)
        if call.depth:
            raise InvalidRequest("A tribunal cannot be asked by a tribunal.", param="model", code="tribunal_recursion")
        asked = asked_of(self.profile, call.body, stream=call.stream)
        own = asked.profile is self.profile
        face = Face(
            f"chatcmpl-{call.id}",
            int(time.time()),
            call.model,
            self._fingerprint if own else asked.profile.fingerprint,
        )
        deliberation = Deliberation(self, call, asked)
        headers: Headers = ((HEADER, deliberation.id.encode()),)
        if call.stream:
            stream = AnswerStream(
                face,
                headers,
                choices=asked.question.n,
                progress=asked.profile.progress,
                include_usage=asked.include_usage,
                leave=deliberation.cancel,
            )
            deliberation.start(stream)
            return stream
        whole = WholeAnswer(face)
        deliberation.start(whole)
        try:
            await deliberation.over
        finally:
            await deliberation.end()
        return Reply(200, b"application/json", whole.body, headers=headers)

    def in_flight(self, replica_id: str) -> int:
        """None of its own."""
        return 0

    async def aclose(self) -> None:
        """Nothing of its own to close."""

    def nonce(self, asked: Asked, messages: bytes) -> str:
        """Of the delimiters in one deliberation's prompts."""
        if asked.seed is None:
            return secrets.token_hex(8)
        return hmac.new(self._secret, b"%d:%b" % (asked.seed, messages), hashlib.sha256).hexdigest()[:16]


class Deliberation:
    """One of them: `start`, then either its client's `ended` is called, or somebody calls `cancel`.

    over   done when nothing runs any more; raises what `ended` was told
    """

    def __init__(self, backend: TribunalBackend, call: Call, asked: Asked) -> None:
        self.id = f"delib_{secrets.token_hex(12)}"
        self._backend = backend
        self._clock = backend.clock
        self._call = call
        self._question = asked.question
        self._redact = asked.redact
        self._began_s = now = self._clock()
        self._profile = asked.profile if call.deadline is None else in_time(asked.profile, call.deadline - now)
        messages = orjson.dumps(asked.question.messages)
        self._messages = orjson.Fragment(messages)
        self._plan = Plan(
            self._profile,
            asked.question,
            seed=asked.seed if asked.seed is not None else secrets.randbits(62),
            now_s=now,
            nonce=backend.nonce(asked, messages),
            p95_s=backend.latencies.p95_s,
        )
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._usages: dict[int, Usage] = {}
        self._authors: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None
        self._closing = False
        self._finished = False
        self._client: Client

    def start(self, client: Client) -> None:
        """Ask the first children. Nothing of theirs is waited for here."""
        self._client = client
        self._do(self._plan.start())

    def cancel(self) -> None:
        """Nobody waits for the answer any more. What is over stays as it was."""
        if not self._closing:
            self._error = Gone()
            self._do(self._plan.cancel(self._clock()))

    async def end(self) -> None:
        """Cancel, and return when all children have ended. Raises what the deliberation has ended with."""
        self.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    # -- the plan -----------------------------------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:
        if self._closing:
            return
        try:
            self._do(self._plan.on(event, self._clock()))
        except Exception as mistake:  # of ours: whoever waits for the answer must hear of it, and not wait forever
            self._plan.trace.outcome = "internal_error"
            self._close(mistake)

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Ask():
                    task = asyncio.create_task(self._child(action), name=f"tribunal {action.phase.value}")
                    task.add_done_callback(partial(self._gone, action.ask_id))
                    self._tasks[action.ask_id] = task
                case Drop(ask_ids):
                    for ask_id in ask_ids:
                        if (dropped := self._tasks.get(ask_id)) is not None:
                            dropped.cancel()
                case Wake(at_s):
                    self._wake(at_s)
                case Tell(text):
                    self._client.tell(text)
                case Answer():
                    if action.from_ask is not None:
                        self._authors.add(action.from_ask)
                    self._client.answered(action)
                case Fail():
                    self._error = TribunalFailed(action, ((HEADER, self.id.encode()),))
                case Close():
                    self._close(self._error)

    def _wake(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, at_s - self._clock()), self._happened, Time())

    # -- children -----------------------------------------------------------------------------------------------------

    async def _child(self, ask: Ask) -> None:
        began = self._clock()
        heard = Heard()
        reply: Reply | EventStream | None = None
        failure: GatewayError | None = None
        try:
            async with self._backend.ask(self._call, self._call_of(ask, began)) as reply:
                if isinstance(reply, Reply):
                    heard.whole(reply.body)
                    if ask.stream:
                        self._speak(ask, {"content": heard.text, **(heard.said() or {})})
                else:
                    await self._listen(ask, reply, heard)
        except GatewayError as error:
            failure = error
        finally:  # cancelled, too
            self._ended(ask, heard, reply, failure, self._clock() - began)

    async def _listen(self, ask: Ask, stream: EventStream, heard: Heard) -> None:
        async for events in stream:
            for chunk in chunks_in(events):
                if chunk.get("error"):
                    stream.close()
                    raise stream.failure or MalformedResponse("The engine broke off its answer.")
                begun = heard.visible
                delta = heard.chunk(chunk)
                if delta is None:
                    continue
                if not begun:
                    self._happened(Began(ask.ask_id))
                self._speak(ask, delta)

    def _speak(self, ask: Ask, delta: dict[str, object]) -> None:
        if not self._closing and ask.stream:
            self._client.said(ask.index, delta)

    def _ended(
        self,
        ask: Ask,
        heard: Heard,
        reply: Reply | EventStream | None,
        failure: GatewayError | None,
        elapsed_s: float,
    ) -> None:
        """A child has ended, one way or the other, and is accounted for."""
        self._tasks.pop(ask.ask_id)
        usage = used_by(reply, heard)
        if usage is not None:
            self._usages[ask.ask_id] = usage
        served_by = reply.served_by if reply is not None else ""
        if failure is not None:
            code = failure.code or failure.type
            event: Event = Failed(ask.ask_id, code, failure.status, usage, elapsed_s, failure.message)
        elif heard.over:
            if not ask.stream:
                self._backend.latencies.note(ask.model, elapsed_s)
            event = Replied(
                ask.ask_id,
                heard.text,
                heard.finish_reason,
                usage,
                elapsed_s,
                served_by,
                bool(heard.calls),
                heard.said(),
            )
        else:
            event = Failed(ask.ask_id, "dropped", 499, usage, elapsed_s)
        self._happened(event)
        self._finish()

    def _gone(self, ask_id: int, task: asyncio.Task[None]) -> None:
        """Its task is over. One that was cancelled before it began has not said so by itself."""
        self._tasks.pop(ask_id, None)
        if not task.cancelled() and (mistake := task.exception()) is not None and not self._closing:
            self._close(mistake)
        self._finish()

    def _call_of(self, ask: Ask, now: float) -> Call:
        call = self._call
        body = {**ask.params, "model": ask.model, "messages": ask.messages, "stream": ask.stream}
        if ask.stream:
            body["stream_options"] = {"include_usage": True}
        # most children get the client's own messages, which may hold images: they are written once
        same = ask.messages is self._question.messages
        raw = orjson.dumps({**body, "messages": self._messages} if same else body)
        deadline = call.deadline
        if not ask.stream:
            deadline = min(now + ask.timeout_s, deadline or now + ask.timeout_s)
        return Call(
            f"{call.id}-{ask.ask_id}",
            PATH,
            ask.model,
            body,
            raw,
            ask.stream,
            call.key_id,
            priority=call.priority,
            deadline=deadline,
            depth=call.depth + 1,
            spread=ask.hedge_of is not None,
        )

    # -- the end ------------------------------------------------------------------------------------------------------

    def _close(self, error: BaseException | None) -> None:
        """Nothing new from here on. It is over when the last child has ended."""
        self._closing = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._tasks.values():
            task.cancel()
        self._finish()

    def _finish(self) -> None:
        if not self._closing or self._tasks or self._finished:
            return
        self._finished = True
        total = sum(self._usages.values(), Usage())
        trace = self._plan.trace
        trace.usage = total
        for call in trace.calls:
            call.usage = self._usages.get(call.ask_id)
        visible = [self._usages[ask_id] for ask_id in self._authors if ask_id in self._usages]
        self._client.ended(total, sum(usage.completion - usage.reasoning for usage in visible), self._error)
        if not self.over.done():  # waiting for it was cancelled, so it is, too
            if self._error is None:
                self.over.set_result(None)
            else:
                self.over.set_exception(self._error)
                self.over.exception()  # of a stream nobody asks for it
        ended = self._clock()
        self._backend.keep(Deliberated(self.id, self._call, self._profile, trace, self._began_s, ended, self._redact))


def used_by(reply: Reply | EventStream | None, heard: Heard) -> Usage | None:
    """What was accounted for of a child, with the details that its engine gave."""
    counted = reply.usage if reply is not None else None
    if counted is None:
        return None
    told = heard.usage or Usage()
    reasoning, cached = min(told.reasoning, counted.completion_tokens), min(told.cached, counted.prompt_tokens)
    return Usage(counted.prompt_tokens, counted.completion_tokens, reasoning, cached)


def in_time(profile: Profile, left_s: float) -> Profile:
    """The profile for a client that waits so long at most. Raises `Unavailable` if that is over."""
    if left_s <= 0:
        raise Unavailable("The client's deadline is over.", code="deadline_exceeded", retry_after_s=1.0)
    left_s -= min(1.0, left_s / 20)  # for the answer's own way
    return profile if left_s >= profile.deadline_s else replace(profile, deadline_s=left_s)
