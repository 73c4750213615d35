"""128 deliberations at once, whose members fail, hang and die at random: an answer or a proper error for each, no child
left, and not a token that is counted twice or not at all. And a profile that changes under them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from proxy.config import parse
from tests.fakes.chat_engine import Request
from tests.tribunal.court import QUESTION, Court, court
from tests.tribunal.members import (
    Dies,
    DiesMidway,
    Garbage,
    Hangs,
    Member,
    Said,
    Site,
    Status,
    phase_of,
    preferring,
    scoring,
)
from tests.waiting import until

AT_ONCE = 128
CONFIG = 'members = ["a", "b", "c"]\njudge = "b"\nalternate = "c"\ndeadline_s = 6\ngrace_s = 0.3\n'
ROOM = "max_in_flight = 1000\n"


def unreliable(seed: int) -> Member:
    """In each phase it may do as it should, or anything else."""
    dice = random.Random(seed)

    def what(well: Any) -> Any:
        def say(request: Request) -> Said:
            bad: list[Said] = [Status(500), Status(400), Dies(), DiesMidway(), Garbage(), Hangs(), "", "garbage {"]
            weights = [70, 4, 2, 4, 4, 2, 4, 4, 6]
            [said] = dice.choices([None, *bad], weights)
            if said is not None:
                return said
            good: Said = well(request) if callable(well) else well
            return good

        return say

    return Member(
        {
            "draft": what(lambda request: f"It is {dice.randrange(3)} of them."),
            "critique": what(scoring(lambda text: float(len(text) % 10))),
            "repair": what("{}"),
            "refine": what("It is 7 of them."),
            "judge": what(preferring("")),
            "verdict": what("It is all of them, in the end."),
        },
        delay_s=0.005,
    )


async def outcome(c: Court, number: int, stream: bool) -> tuple[str, dict[str, Any]]:
    """How a request ended, in a word, and its usage."""
    body = {"model": "tribunal", "messages": [{"role": "user", "content": f"How many are {number}?"}], "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    response = await c.http.post("/v1/chat/completions", json=body, timeout=60)
    if not stream:
        told = response.json()
        if response.status_code == 200:
            assert told["choices"][0]["message"]["content"]
            return "answered", told["usage"]
        assert response.status_code in (400, 502, 503, 504), told
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert response.headers["x-should-retry"] == "false"
        return "failed", {}
    assert response.status_code == 200
    events = [event.removeprefix("data: ") for event in response.text.strip().split("\n\n") if event[0] != ":"]
    if events[-1] == "[DONE]":
        chunks = [json.loads(event) for event in events[:-1]]
        assert any(c["choices"] and c["choices"][0]["delta"].get("content") for c in chunks)
        return "answered", chunks[-1]["usage"]
    assert set(json.loads(events[-1])["error"]) == {"message", "type", "param", "code"}
    return "failed", {}


async def test_every_one_of_many_deliberations_ends_and_every_token_is_counted_once(tmp_path: Path) -> None:
    members = {name: unreliable(seed) for seed, name in enumerate("abc")}
    async with court(tmp_path, members, CONFIG, options=dict.fromkeys(members, ROOM)) as c:
        asked = [outcome(c, number, stream=number % 2 == 1) for number in range(AT_ONCE)]
        limits = httpx.Limits(max_connections=AT_ONCE)
        c.http = httpx.AsyncClient(base_url=c.served.url, headers=c.served.headers, limits=limits)
        async with c.http, asyncio.timeout(60):
            ended = await asyncio.gather(*asked)
        outcomes = Counter(word for word, _ in ended)
        assert outcomes.total() == AT_ONCE
        assert outcomes["answered"] > AT_ONCE // 2

        await c.at_rest()
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("tribunal")])
        serving = c.served.gateway.serving
        assert all(serving.backends[name].in_flight(f"{m.host}:{m.port}") == 0 for name, m in members.items())

        serving._lines.flush()
        lines = [json.loads(line) for line in c.served.log_text().splitlines()]
        requests = {line["id"]: line for line in lines if line["event"] == "request" and "calls" in line}
        calls = [line for line in lines if line["event"] == "tribunal_call"]
        assert len(requests) == AT_ONCE
        for kind in ("prompt_tokens", "completion_tokens"):
            by_request: Counter[str] = Counter()
            for line in calls:
                by_request[line["id"].rsplit("-", 1)[0]] += line[kind]
            assert all(line[f"calls_{kind}"] == by_request[id] for id, line in requests.items())
        table = await c.in_the_table()
        assert table["tribunal"] == (AT_ONCE, outcomes["failed"], 0, 0)
        assert sum(row[2] for row in table.values()) == sum(line["prompt_tokens"] for line in calls)
        assert sum(row[3] for row in table.values()) == sum(line["completion_tokens"] for line in calls)
        assert sum(row[0] for name, row in table.items() if name != "tribunal") <= len(calls)

        told = sum(usage.get("total_tokens", 0) for _, usage in ended)
        answered = [line for line in requests.values() if not line.get("error")]
        assert told == sum(line["calls_prompt_tokens"] + line["calls_completion_tokens"] for line in answered)


async def test_clients_that_leave_at_any_moment_leave_no_child(tmp_path: Path) -> None:
    members = {name: unreliable(seed + 7) for seed, name in enumerate("abc")}
    async with court(tmp_path, members, CONFIG, options=dict.fromkeys(members, ROOM)) as c:
        dice = random.Random(3)

        async def leave(number: int) -> None:
            async with httpx.AsyncClient(base_url=c.served.url, headers=c.served.headers) as http:
                body = {"model": "tribunal", "messages": QUESTION, "stream": number % 2 == 1}
                try:
                    async with asyncio.timeout(dice.random() * 0.4):
                        await http.post("/v1/chat/completions", json=body)
                except TimeoutError:
                    pass

        await asyncio.gather(*[leave(number) for number in range(64)])
        await c.at_rest()
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("tribunal")])
        limits: Any = c.served.gateway.control.limits
        assert limits.in_flight == 0


async def test_a_profile_changes_while_deliberations_run(tmp_path: Path) -> None:
    members = {name: Member({"draft": f"It is {name}.", "critique": scoring(lambda text: 5.0)}) for name in "abc"}
    held = members["a"]
    async with court(tmp_path, members, CONFIG + 'verdict = "select"\nclose = 0\n') as c:
        before = (await c.ask()).system_fingerprint
        held.delay_s = 0.5
        count = len(held.requests)
        asking = asyncio.create_task(c.ask(), name="under way")
        await held.request(count + 1)
        changed = 'members = ["b", "c"]\nrounds = 0\nverdict = "select"\nclose = 0\n[tribunal.profiles.more]\n'
        config = parse(Site(members, changed).text())
        c.served.gateway._reread = lambda: config
        done = await c.served.gateway.reload()
        assert (done.added, done.changed) == (("tribunal/more",), ("tribunal",))
        after = (await c.ask()).system_fingerprint
        assert after != before
        assert (await asking).system_fingerprint == before
        count = len(held.requests)
        await c.ask()
        assert len(held.requests) == count
        assert (await c.ask(model="tribunal/more")).choices[0].message.content
        assert {phase_of(request.body) for request in held.requests} >= {"draft"}
