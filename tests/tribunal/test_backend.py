"""The runner by itself, before fakes that are no engines: what must hold without a gateway around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from backends.base import Call, EventStream, Reply, Usage
from backends.errors import GatewayError, InvalidRequest, Unavailable
from tribunal.backend import Deliberated, TribunalBackend
from tribunal.profile import Member, Profile

PROFILE = Profile(name="", members=(Member("a", "a"), Member("b", "b"), Member("c", "c")))


def call(**changes: Any) -> Call:
    body = {"model": "tribunal", "messages": [{"role": "user", "content": "?"}], **changes.pop("body", {})}
    return Call("req_1", "/v1/chat/completions", "tribunal", body, orjson.dumps(body), key_id="key_a", **changes)


class Models:
    """Asked for by a tribunal. `says` answers, by the child; a child that gets None hangs."""

    def __init__(self, says: str | None = "42") -> None:
        self.says = says
        self.asked: list[Call] = []
        self.running = 0
        self.over: list[Deliberated] = []

    @asynccontextmanager
    async def __call__(self, _parent: Call, child: Call) -> AsyncIterator[Reply | EventStream]:
        self.asked.append(child)
        self.running += 1
        try:
            if self.says is None:
                await asyncio.get_running_loop().create_future()
            message = {"role": "assistant", "content": self.says}
            body = orjson.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
            yield Reply(200, b"application/json", body, Usage(5, 2))
        finally:
            self.running -= 1

    def backend(self, profile: Profile = PROFILE) -> TribunalBackend:
        return TribunalBackend(profile, self, keep=self.over.append)


async def test_the_first_chunk_is_there_without_waiting_for_anything() -> None:
    models = Models(None)
    running = models.backend().run(call(stream=True))
    with pytest.raises(StopIteration) as ran:  # it returns at its first step: nothing was awaited
        running.send(None)
    stream = ran.value.value
    with pytest.raises(StopIteration) as begun:
        stream.__anext__().send(None)
    assert b'"role":"assistant"' in begun.value.value
    stream.close()
    assert not models.asked


async def test_children_inherit_whose_they_are_their_class_and_the_deadline() -> None:
    models = Models()
    deadline = time.monotonic() + 3
    alone = {"tribunal": {"early_exit": False, "rounds": 0, "verdict": "select"}}
    await models.backend().run(call(priority=1, deadline=deadline, body=alone))
    assert len(models.asked) == 3
    for number, child in enumerate(models.asked, 1):
        assert child.id == f"req_1-{number}"
        assert (child.key_id, child.priority, child.depth) == ("key_a", 1, 1)
        assert child.deadline is not None
        assert child.deadline <= deadline


async def test_a_tribunal_cannot_be_asked_by_a_tribunal() -> None:
    models = Models()
    with pytest.raises(InvalidRequest) as raised:
        await models.backend().run(call(depth=1))
    assert raised.value.code == "tribunal_recursion"
    assert not models.asked


async def test_a_request_whose_time_is_over_asks_nobody() -> None:
    models = Models()
    with pytest.raises(Unavailable):
        await models.backend().run(call(deadline=time.monotonic() - 1))
    assert not models.asked


async def test_the_clients_deadline_comes_before_the_profiles() -> None:
    models = Models(None)
    with pytest.raises(GatewayError) as raised:
        await models.backend().run(call(deadline=time.monotonic() + 0.2))
    assert raised.value.status == 504
    assert raised.value.headers[b"x-should-retry"] == b"false"
    assert not models.running


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_a_stream_that_is_closed_leaves_no_child_whenever_it_is(steps: int) -> None:
    models = Models(None)
    stream = await models.backend().run(call(stream=True))
    assert isinstance(stream, EventStream)
    for _ in range(steps):
        await asyncio.sleep(0)
    stream.close()
    stream.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not models.running
    assert [over.trace.outcome for over in models.over] == ["cancelled"]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("tribunal")]


async def test_a_mistake_in_the_plan_ends_the_request_and_every_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: object) -> None:
        raise ZeroDivisionError

    models = Models()
    monkeypatch.setattr("tribunal.plan.Plan.on", mistaken)
    async with asyncio.timeout(5):
        with pytest.raises(ZeroDivisionError):
            await models.backend().run(call())
    assert not models.running
    assert [over.trace.outcome for over in models.over] == ["internal_error"]
