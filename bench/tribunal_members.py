"""Simulated members, critics and judges of a tribunal: an engine whose models know as much as is stated, and no more.

A question names its world and its number: `World p80, question 17.` Worlds are stated inputs (`World`); what a model
says follows from world, question, model and call alone, so a run can be made again. Answers are letters; which one is
right follows from the question. Every reply carries usage, and the engine writes down what it has said, for the books.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, cast

import httptools
import orjson
import uvloop

LETTERS = "ABCD"
QUESTION = re.compile(r"World (\w+), question (\d+)\.")
_SHOWN = re.compile(r"\[[0-9a-f]{16} (C\d+)\]\n(.*)\n")


@dataclass(frozen=True, slots=True)
class World:
    """What its models are like.

    accuracies     of the members m1, m2, ...; the last one counts for all further ones
    correlation    how often a member's luck is that of the question and not its own
    agree          how often those who are wrong choose the same wrong answer
    critic         how often a critic knows the right answer; None: it believes what it has answered itself
    deceiver       a member that is always wrong, with the answer that the wrong ones agree on, "" for none
    persuaded      how often a critic believes the deceiver
    latency_s      of a reply, and of a stalled one, and how often one stalls
    failing, mute  how often a call fails with 500, or is answered with nothing
    """

    accuracies: tuple[float, ...] = (0.8,)
    correlation: float = 0.0
    agree: float = 1.0
    critic: float | None = None
    deceiver: str = ""
    persuaded: float = 0.0
    latency_s: float = 0.0
    stall_s: float = 0.0
    stalling: float = 0.0
    failing: float = 0.0
    mute: float = 0.0


class Case(NamedTuple):
    world: World
    name: str
    number: int
    right: str


def right_answer(world: str, number: int) -> str:
    return random.Random(f"{world}/{number}").choice(LETTERS)


@dataclass
class Court:
    """worlds   by name
    said        (world, question, model) -> its draft, for critics that believe themselves
    books       request id without its number -> tokens of its children: prompt, completion
    running     replies that are being made
    """

    worlds: dict[str, World]
    said: dict[tuple[str, int, str], str] = field(default_factory=dict)
    books: dict[str, list[int]] = field(default_factory=dict)
    running: int = 0

    def reply_to(self, asked: dict[str, Any], request_id: str) -> tuple[float, str | None]:
        """Seconds, and what is said then; None for a failure."""
        text = "\n".join(str(message["content"]) for message in asked["messages"])
        found = QUESTION.search(text)
        assert found is not None, text
        name, number = found[1], int(found[2])
        world, model = self.worlds[name], asked["model"]
        chance = random.Random(f"{name}/{number}/{model}/{request_id.rpartition('-')[2]}")
        after_s = world.stall_s if chance.random() < world.stalling else world.latency_s * (0.5 + chance.random())
        fate = chance.random()
        if fate < world.failing:
            return after_s, None
        if fate < world.failing + world.mute:
            return after_s, ""
        right = right_answer(name, number)
        case = Case(world, name, number, right)
        if labels := dict(_SHOWN.findall(text)):
            belief = self._belief(case, model, chance)
            if "You review candidate answers" in text:
                return after_s, ballot(labels, belief)
            return after_s, next((label for label, said in labels.items() if orjson.loads(said) == belief), "none")
        draft = self._draft(case, model, chance)
        self.said[name, number, model] = draft
        return after_s, draft

    def _draft(self, case: Case, model: str, chance: random.Random) -> str:
        world, name, number, right = case
        if model == world.deceiver:
            return tempting(name, number)
        shared = random.Random(f"luck of {name}/{number}").random()
        luck = shared if chance.random() < world.correlation else chance.random()
        place = min(int(model[1:]), len(world.accuracies)) - 1
        if luck < world.accuracies[place]:
            return right
        return tempting(name, number) if chance.random() < world.agree else chance.choice(wrong_ones(right))

    def _belief(self, case: Case, model: str, chance: random.Random) -> str:
        """What a critic or a judge takes for right."""
        world, name, number, right = case
        if world.deceiver and chance.random() < world.persuaded:
            return tempting(name, number)
        if world.critic is None:
            return self.said.get((name, number, model)) or self._draft(case, model, chance)
        return right if chance.random() < world.critic else tempting(name, number)


def wrong_ones(right: str) -> str:
    return LETTERS.replace(right, "")


def tempting(name: str, number: int) -> str:
    """The wrong answer that suggests itself."""
    return random.Random(f"temptation of {name}/{number}").choice(wrong_ones(right_answer(name, number)))


def ballot(shown: dict[str, str], belief: str) -> str:
    entries: list[dict[str, object]] = []
    for label, said in shown.items():
        good = orjson.loads(said) == belief
        entries.append({"label": label, "fatal_errors": [], "evidence": "", "score": 9 if good else 3})
    return json.dumps({"candidates": entries})


# -- its socket ------------------------------------------------------------------------------------------------------


class Member(asyncio.Protocol):
    """One connection of the gateway's."""

    _transport: asyncio.Transport

    def __init__(self, court: Court) -> None:
        self._court = court
        self._parser = httptools.HttpRequestParser(self)
        self._body = bytearray()
        self._id = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._court.running -= 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"x-request-id":
            self._id = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._body:  # after its limits, or its health
            self._transport.write(b"HTTP/1.1 404 X\r\ncontent-length: 2\r\n\r\n{}")
            return
        asked, request_id = orjson.loads(self._body), self._id
        self._body.clear()
        after_s, text = self._court.reply_to(asked, request_id)
        self._court.running += 1
        self._timer = asyncio.get_running_loop().call_later(after_s, self._reply, asked, request_id, text)

    def _reply(self, asked: dict[str, Any], request_id: str, text: str | None) -> None:
        self._timer = None
        self._court.running -= 1
        if text is None:
            self._transport.write(b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
            return
        prompt, completion = sum(len(str(one["content"])) for one in asked["messages"]) // 4, len(text) // 4 + 1
        book = self._court.books.setdefault(request_id.rpartition("-")[0], [0, 0])
        book[0] += prompt
        book[1] += completion
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = orjson.dumps({"id": "x", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage})
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def court(port: int, worlds: dict[str, World], pipe: Connection) -> None:
    """A process: tells when it listens; when told anything, gives its books and how many replies are being made."""

    async def serve() -> Court:
        made = Court(worlds)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Member(made), "127.0.0.1", port, backlog=4096)
        pipe.send("listens")
        over = asyncio.Event()
        loop.add_reader(pipe.fileno(), over.set)
        await over.wait()
        loop.remove_reader(pipe.fileno())
        os.set_blocking(pipe.fileno(), True)  # the loop has changed that
        server.close()
        return made

    made = uvloop.run(serve())
    pipe.send((made.books, made.running))
