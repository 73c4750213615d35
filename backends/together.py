"""Several calls that are one: all of them answer, or none does.

`together` is a task group that raises the error itself, not a group of them, and lets go of the answers that had
already come when another call failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .base import Backend, Call, EventStream, Reply
from .errors import MalformedResponse


async def together(backend: Backend, calls: Sequence[Call], *, at_once: int | None = None) -> list[Reply | EventStream]:
    """The answers, in the calls' order. The first error cancels the other calls. Cancelling it cancels all."""
    if len(calls) == 1:
        return [await backend.run(calls[0])]
    turns = asyncio.Semaphore(at_once or len(calls))

    async def ask(call: Call) -> Reply | EventStream:
        async with turns:
            return await backend.run(call)

    tasks = [asyncio.create_task(ask(call), name=f"part of {call.id}") for call in calls]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        # by the calls' order, so that the same failure is always told the same way
        for task in tasks:
            if task in done and (error := task.exception()) is not None:
                raise error
        return [task.result() for task in tasks]
    except BaseException:
        for task in tasks:
            task.cancel()
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(answer, EventStream):
                answer.close()
        raise


async def replies(backend: Backend, calls: Sequence[Call], *, at_once: int) -> list[Reply]:
    """The same for calls that are not streamed."""
    answers = await together(backend, calls, at_once=at_once)
    return [whole(answer) for answer in answers]


def whole(answer: Reply | EventStream) -> Reply:
    """The reply to a call that did not ask for a stream."""
    if isinstance(answer, Reply):
        return answer
    answer.close()
    raise MalformedResponse("The engine answered with a stream that nobody asked for.")


def served_by(answers: Sequence[Reply | EventStream]) -> str:
    """Who gave them, for the log."""
    return ",".join(dict.fromkeys(answer.served_by for answer in answers))
