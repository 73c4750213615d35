"""Chunks that pass without being parsed: only those that are exactly one event, and never in another one's place."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.sse import DONE, EventFilter
from tests.backends.test_transport import sent, wired
from tests.fakes.faulty_servers import LAST_CHUNK, STREAM_HEAD, chunk

EVENT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
LONG = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 600)


def passes(read: bytes) -> bool:
    """Whether it goes on untouched."""
    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return True

    passed = EventFilter(forward_usage=False).chunk_sink(take)(read)
    assert taken == ([read] if passed else [])
    return passed


@pytest.mark.parametrize("event", [EVENT, LONG, b"data: {}\n\n", b'data: {"usage":null}\n\n'])
def test_one_event_in_one_chunk_passes(event: bytes) -> None:
    assert passes(chunk(event))
    assert passes(b"%X\r\n%b\r\n" % (len(event), event))


@pytest.mark.parametrize(
    "read",
    [
        EVENT,
        chunk(EVENT)[:-1],
        chunk(EVENT) + b"0",
        chunk(EVENT) + chunk(EVENT),
        chunk(EVENT) + LAST_CHUNK,
        chunk(EVENT + EVENT),
        chunk(DONE),
        chunk(EVENT[:-1]),
        b"0" + chunk(EVENT),
        chunk(EVENT).replace(b"\r\n", b";x=y\r\n", 1),
        b"%x\r\n%b\r\n" % (len(EVENT) + 1, EVENT),
        chunk(EVENT.replace(b"Hi", b"H\ri")),
        chunk(EVENT.replace(b"Hi", b"H\ni")),
        chunk(b": x\n\n" + EVENT),
        chunk(b'data: {"usage":{"prompt_tokens":1}}\n\n'),
        chunk(b'data: {"error":{"message":"no"}}\n\n'),
        chunk(b'data: {"a":"%b"}\n\n' % (b"x" * 5000)),
        b"",
        b"\r\n",
    ],
)
def test_everything_else_is_left_to_the_parser(read: bytes) -> None:
    assert not passes(read)


def test_after_the_end_nothing_passes() -> None:
    events = EventFilter(forward_usage=False)
    sink = events.chunk_sink(lambda _: True)
    events.feed(EVENT[:10])
    assert not sink(chunk(EVENT)), "a part of an event waits for its rest"


def test_who_cannot_take_it_now_is_not_skipped() -> None:
    assert not EventFilter(forward_usage=False).chunk_sink(lambda _: False)(chunk(EVENT))


async def relayed(reads: list[bytes], refuse: set[int]) -> tuple[bytes, int]:
    """A stream's body as a client gets it that cannot take some of the pieces at once; how many passed unparsed."""
    pool, connection, _ = wired()
    asking = await sent(pool)
    connection.data_received(STREAM_HEAD)
    arriving = iter(reads)
    while not asking.done():  # a stream's head alone is no news
        connection.data_received(next(arriving))
        await asyncio.sleep(0)
    response = await asking
    out: list[bytes] = []
    offered = itertools.count()
    passed = 0

    def push(data: bytes) -> bool:
        if next(offered) in refuse:
            return False
        out.append(data)
        return True

    def push_chunk(data: bytes) -> bool:
        nonlocal passed
        if not push(data[data.index(b"\n") + 1 : -2]):
            return False
        passed += 1
        return True

    async def rest() -> None:
        while piece := await response.next():
            out.append(piece)

    response.pass_to(push)
    response.pass_chunks_to(EventFilter(forward_usage=False).chunk_sink(push_chunk))
    reading = asyncio.ensure_future(rest())
    await asyncio.sleep(0)
    for read in arriving:
        connection.data_received(read)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await reading
    assert pool.idle_connections == 1
    connection.connection_lost(None)
    return b"".join(out), passed


EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(8)]
WIRE = b"".join(map(chunk, EVENTS))


async def test_the_chunks_of_a_stream_pass_from_the_second_on() -> None:
    body, passed = await relayed([*map(chunk, EVENTS), LAST_CHUNK], set())
    assert (body, passed) == (b"".join(EVENTS), len(EVENTS) - 1)


@given(cuts=st.sets(st.integers(1, len(WIRE) - 1), max_size=12), refuse=st.sets(st.integers(0, 12)))
@settings(max_examples=300, deadline=None)
def test_however_a_stream_is_cut_and_taken_nothing_is_lost_doubled_or_moved(cuts: set[int], refuse: set[int]) -> None:
    ends = set(itertools.accumulate(len(chunk(event)) for event in EVENTS))
    places = sorted({0, *ends, *cuts})  # many reads are whole chunks, and some are not
    reads = [WIRE[start:end] for start, end in itertools.pairwise(places)] + [LAST_CHUNK]
    body, _ = asyncio.run(relayed(reads, refuse))
    assert body == b"".join(EVENTS)


@given(cuts=st.sets(st.integers(1, len(WIRE) - 1), max_size=12))
@settings(max_examples=300, deadline=None)
def test_however_it_is_cut_without_regard_for_chunks(cuts: set[int]) -> None:
    places = sorted({0, len(WIRE), *cuts})
    reads = [WIRE[start:end] for start, end in itertools.pairwise(places)] + [LAST_CHUNK]
    body, _ = asyncio.run(relayed(reads, set()))
    assert body == b"".join(EVENTS)
