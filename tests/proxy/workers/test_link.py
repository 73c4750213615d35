"""The link: whole messages, answers to who asked, few writes, and nobody left waiting."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import GatewayError, QueueFull
from proxy.workers.link import Framing, Link, LinkLost, frame
from tests.waiting import until

from .pair import Pair, linked

MESSAGES = st.lists(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**31), 2**31) | st.none()), max_size=20
)


@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 2000)))
def test_messages_are_whole_however_their_bytes_are_cut(messages: list[list[Any]], cuts: list[int]) -> None:
    data = b"".join(map(frame, messages))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    framing, arrived = Framing(), []
    for start, end in pairwise(edges):
        arrived += framing.feed(data[start:end])
    assert arrived == messages


class CountingTransport(asyncio.Transport):
    """Counts writes, and sends them nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        pass


def counted(asked: dict[str, Any] | None = None) -> tuple[Link, CountingTransport]:
    link, transport = Link(asked or {}, {}, lambda: None), CountingTransport()
    link.connection_made(transport)
    return link, transport


async def test_what_many_requests_say_in_one_turn_of_the_loop_is_one_write() -> None:
    link, transport = counted()

    async def request(number: int) -> None:
        link.tell("leave", number, "served", 12)
        link.question("place", "m", [])

    await asyncio.gather(*(request(number) for number in range(1000)))
    await asyncio.sleep(0)
    assert len(transport.writes) == 1
    assert len(Framing().feed(transport.writes[0])) == 2000


async def test_all_answers_to_what_came_in_one_read_are_one_write() -> None:
    links: list[Link] = []

    def echo(number: int, value: str) -> None:
        links[0].answer(number, value)

    link, transport = counted({"echo": echo})
    links.append(link)
    link.data_received(b"".join(frame(["echo", number, "x"]) for number in range(500)))
    assert len(transport.writes) == 1, "and it has not waited for another turn of the loop"
    assert Framing().feed(transport.writes[0])[499] == ["=", 499, "x"]


async def test_answers_find_who_asked_in_whatever_order_they_come() -> None:
    waiting: list[tuple[int, int]] = []
    async with linked(asked={"double": lambda *question: waiting.append(question)}) as pair:
        asked = [asyncio.ensure_future(pair.worker.ask("double", value)) for value in range(50)]
        await until(lambda: len(waiting) == 50)
        for number, value in reversed(waiting):
            pair.main.answer(number, 2 * value)
        assert await asyncio.gather(*asked) == [2 * value for value in range(50)]


async def test_both_sides_may_ask_at_the_same_time() -> None:
    pair: Pair
    async with linked(
        worker_asked={"who": lambda number: pair.worker.answer(number, "worker")},
        asked={"who": lambda number: pair.main.answer(number, "main")},
    ) as pair:
        answers = await asyncio.gather(pair.worker.ask("who"), pair.main.ask("who"))
        assert list(answers) == ["main", "worker"]


async def test_an_error_is_raised_where_the_question_was_asked() -> None:
    pair: Pair
    full = QueueFull("256 requests wait already.", retry_after_s=3.5)
    async with linked(asked={"place": lambda number: pair.main.fail(number, full)}) as pair:
        with pytest.raises(QueueFull, match="256 requests wait already") as caught:
            await pair.worker.ask("place")
        assert caught.value.retry_after_s == 3.5


async def test_who_stops_waiting_says_so_and_a_late_answer_disturbs_nobody() -> None:
    asked: list[int] = []
    cancelled: list[int] = []
    async with linked(asked={"place": asked.append}, told={"cancel": cancelled.append}) as pair:
        task = asyncio.ensure_future(pair.worker.ask("place"))
        await until(lambda: asked)
        task.cancel()
        await until(lambda: cancelled == asked)
        pair.main.answer(asked[0], "late")
        pair.main.fail(asked[0], GatewayError("later still"))
        later = asyncio.ensure_future(pair.worker.ask("place"))
        await until(lambda: len(asked) == 2)
        pair.main.answer(asked[1], "in time")
        assert await later == "in time"
        assert task.cancelled()


async def test_an_answer_that_comes_in_the_very_moment_of_giving_up_is_given_up_too() -> None:
    """Its seat is main's to take back: it cannot know that nobody has sat down."""
    asked: list[int] = []
    cancelled: list[int] = []
    async with linked(asked={"place": asked.append}, told={"cancel": cancelled.append}) as pair:
        task = asyncio.ensure_future(pair.worker.ask("place"))
        await until(lambda: asked)
        pair.worker.data_received(frame(["=", asked[0], "a seat"]))
        task.cancel()
        await until(lambda: cancelled == asked)
        assert task.cancelled()


async def test_nobody_waits_for_a_process_that_is_gone() -> None:
    asked: list[int] = []
    async with linked(asked={"place": asked.append}) as pair:
        task = asyncio.ensure_future(pair.worker.ask("place"))
        await until(lambda: asked)
        pair.main.close()
        with pytest.raises(LinkLost):
            await task
        await until(lambda: sorted(pair.lost) == ["main", "worker"])
        with pytest.raises(LinkLost):
            await pair.worker.ask("place")
        pair.worker.tell("leave", 1, "served", 0)
        assert LinkLost().status == 503


async def test_what_was_said_before_closing_arrives() -> None:
    heard: list[int] = []
    async with linked(told={"leave": heard.append}) as pair:
        for number in range(100):
            pair.worker.tell("leave", number)
        pair.worker.close()
        await until(lambda: pair.lost)
        await until(lambda: heard == list(range(100)))


async def test_a_message_that_is_no_json_is_the_mistake_of_who_sends_it_alone() -> None:
    heard: list[str] = []
    async with linked(told={"say": heard.append}) as pair:
        pair.worker.tell("say", "before")
        with pytest.raises(TypeError):
            pair.worker.tell("say", object())
        pair.worker.tell("say", "after")
        await until(lambda: heard == ["before", "after"])
