"""Gateways of real processes: sums are right, deaths are made good, ends are orderly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from proxy import operator_socket
from proxy.database import open_database
from tests.fakes.chat_engine import Answers, Engine
from tests.waiting import until

from .processes import BODY, CHAT, MODELS, AnswersSlowlyAndCounts, Many, StreamsUntilTold, alive, client, kill


def config(engine: Engine, more: str = "", *, workers: int = 2, grace_s: float = 10.0) -> str:
    return f"""
[server]
workers = {workers}
shutdown_grace_s = {grace_s}
[launcher]
kind = "local"
[models.m]
engine = "vllm"
urls = ["{engine.url}"]
{more}
"""


async def ask(asking: httpx.AsyncClient, count: int) -> Counter[int]:
    """How many answers had which status."""
    answers = await asyncio.gather(*(asking.post(CHAT, json=BODY) for _ in range(count)))
    return Counter(answer.status_code for answer in answers)


# -- sums ------------------------------------------------------------------------------------------------------------


async def test_a_replicas_limit_holds_over_all_workers_and_all_of_them_serve(tmp_path: Path) -> None:
    async with AnswersSlowlyAndCounts() as engine, Many(tmp_path, config(engine, "max_in_flight = 4")) as gateway:
        async with client(gateway) as asking:
            assert await ask(asking, 300) == {200: 300}
        assert engine.most == 4, "never more, and no less than it takes"
        assert len(gateway.pids) == len(set(gateway.pids)) == 2
        await until(lambda: gateway.served_by().total() == 300)
        assert len(gateway.served_by()) == 2


async def test_the_limit_holds_where_workers_are_lent_seats_and_run_out_of_them(tmp_path: Path) -> None:
    async with AnswersSlowlyAndCounts(0.05) as engine, Many(tmp_path, config(engine, "max_in_flight = 24")) as gateway:
        async with client(gateway) as asking:
            for _ in range(3):  # few, of lent seats; then more than there is room for; then few again
                assert await ask(asking, 8) == {200: 8}
                assert engine.most <= 24
                assert await ask(asking, 100) == {200: 100}
            assert engine.most == 24


async def test_the_concurrency_of_a_key_holds_over_all_workers(tmp_path: Path) -> None:
    async with AnswersSlowlyAndCounts(0.05) as engine:
        gateway = Many(tmp_path, config(engine))
        key = gateway.key(concurrent_requests=4)
        async with gateway, client(gateway, headers=key) as asking:
            told = await ask(asking, 64)
            assert engine.most == 4
            assert told[200] >= 4
            assert told == {200: told[200], 429: 64 - told[200]}
            one = await asking.post(CHAT, json=BODY)
            assert one.status_code == 200, "all that was taken has come back"


async def test_the_requests_per_minute_of_a_key_are_counted_over_all_workers(tmp_path: Path) -> None:
    async with Answers() as engine:
        gateway = Many(tmp_path, config(engine))
        key = gateway.key(requests_per_minute=20)
        async with gateway, client(gateway, headers=key) as asking:
            told = await ask(asking, 64)
        assert 20 <= told[200] <= 22, "twenty, and what comes back while it takes"
        assert told == {200: told[200], 429: 64 - told[200]}
        assert len(engine.requests) == told[200]


async def test_a_revoked_key_stops_working_in_every_worker(tmp_path: Path) -> None:
    async with Answers() as engine:
        gateway = Many(tmp_path, config(engine))
        key = gateway.key()

        async def told() -> set[int]:
            """What many new connections, which the kernel spreads over the workers, are told."""
            async with client(gateway, headers=key) as asking:
                return {answer.status_code for answer in await asyncio.gather(*(asking.get(MODELS) for _ in range(32)))}

        async with gateway:
            assert await told() == {200}
            await until(lambda: len(gateway.served_by()) == 2)
            gateway.revoke("tests")
            while await told() != {401}:
                assert gateway.process.poll() is None


async def test_usage_of_all_workers_adds_up(tmp_path: Path) -> None:
    async with Answers() as engine, Many(tmp_path, config(engine)) as gateway:
        async with client(gateway) as asking:
            assert await ask(asking, 200) == {200: 200}
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        database = open_database(gateway.state.database)
        with database.connect() as connection:
            row = connection.execute(
                text("SELECT sum(requests), sum(prompt_tokens), sum(completion_tokens) FROM usage")
            )
            assert tuple(row.one()) == (200, 200 * 7, 200 * 3)
        database.dispose()
        assert gateway.served_by().total() == 200
        assert len(gateway.served_by()) == 2


async def test_models_and_their_states_are_shown_by_every_worker(tmp_path: Path) -> None:
    async with Answers() as engine, Many(tmp_path, config(engine, "context_length = 4096")) as gateway:
        async with client(gateway) as asking:
            answers = await asyncio.gather(*(asking.get("/v1/models") for _ in range(32)))
            cards = [answer.json()["data"][0] for answer in answers]
            assert {(card["state"], card["max_model_len"]) for card in cards} == {("ready", 4096)}
            ready = await asyncio.gather(*(asking.get("/ready") for _ in range(32)))
            assert {answer.text for answer in ready} == {'{"status":"ready","models":{"m":1}}'}


async def test_a_reload_asked_for_at_the_operators_socket_reaches_every_worker(tmp_path: Path) -> None:
    async with Answers() as engine, Many(tmp_path, config(engine)) as gateway:
        gateway.write_config(config(engine, 'aliases = ["other"]'))
        async with client(gateway) as asking:
            await asyncio.gather(*(asking.get("/ready") for _ in range(64)))
            done = await asyncio.to_thread(operator_socket.ask, gateway.state.operator_socket, "POST", "/admin/reload")
            assert done["changed"] == ["m"]
            answers = await asyncio.gather(*(asking.post(CHAT, json={**BODY, "model": "other"}) for _ in range(64)))
            assert {answer.status_code for answer in answers} == {200}
            gateway.write_config("[models]")
            with pytest.raises(operator_socket.OperatorError, match="Nothing was changed"):
                await asyncio.to_thread(operator_socket.ask, gateway.state.operator_socket, "POST", "/admin/reload")
            assert await ask(asking, 32) == {200: 32}


# -- deaths ----------------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_killed_under_load_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    async with AnswersSlowlyAndCounts() as engine, Many(tmp_path, config(engine, "max_in_flight = 4")) as gateway:
        statuses: Counter[str] = Counter()
        stop = asyncio.Event()

        async def keep_asking() -> None:
            async with client(gateway, 1) as asking:
                while not stop.is_set():
                    try:
                        statuses[str((await asking.post(CHAT, json=BODY)).status_code)] += 1
                    except httpx.TransportError:  # the connection of a request that died with its worker
                        statuses["broken"] += 1

        users = [asyncio.create_task(keep_asking(), name=f"user {number}") for number in range(32)]
        await until(lambda: statuses["200"] > 100)
        kill(gateway.pids[0])
        await until(lambda: gateway.events("worker_died"))
        served = statuses["200"]
        await until(lambda: statuses["200"] > served + 300)
        stop.set()
        await asyncio.gather(*users)
        assert set(statuses) <= {"200", "broken"}
        assert statuses["broken"] <= 32, "each user at most once, and those of the other worker not at all"
        assert engine.most <= 8, "what the dead worker had may still run there when its seats are taken anew"
        assert alive(gateway.pids[1])
        died = gateway.events("worker_died")
        assert [(event["worker"], event["status"]) for event in died] == [(1, -signal.SIGKILL)]
        await until(lambda: len(gateway.served_by()) == 3)
        async with client(gateway) as asking:
            engine.most = 0
            await until(lambda: engine.now == 0)
            assert await ask(asking, 100) == {200: 100}
        assert engine.most == 4, "all seats of the dead worker have come back, and no more than they were"


async def test_a_connection_that_waits_at_a_dead_workers_socket_is_served_by_the_next_one(tmp_path: Path) -> None:
    async with Answers() as engine, Many(tmp_path, config(engine, workers=1)) as gateway:
        kill(gateway.pids[0])
        async with client(gateway) as asking:
            assert await ask(asking, 8) == {200: 8}


async def test_workers_that_die_at_their_start_end_the_gateway_with_a_message(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "import sys; sys.exit(7)"]
    async with Answers() as engine:
        gateway = Many(tmp_path, config(engine), command=dying)
        gateway.begin()
        assert await gateway.ended() == 1
        assert "slurmgate: worker processes end as soon as they have started: 5 in a row" in gateway.log.read_text()
        assert {event["status"] for event in gateway.events("worker_died")} == {7}
        assert len(gateway.events("worker_died")) <= 10


async def test_workers_do_not_outlive_a_main_that_is_killed_and_the_port_is_free_at_once(tmp_path: Path) -> None:
    async with Answers() as engine:
        async with Many(tmp_path, config(engine)) as gateway:
            pids = gateway.pids
            async with client(gateway) as asking:
                assert await ask(asking, 32) == {200: 32}
                kill(gateway.process.pid)
                gateway.process.wait()
                await until(lambda: not any(map(alive, pids)), timeout_s=5)
            gateway.begin()
            assert set(await gateway.serving()).isdisjoint(pids)
            async with client(gateway) as asking:
                assert await ask(asking, 32) == {200: 32}
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.ended() == 0


async def test_a_stream_outlives_a_main_that_is_killed_only_by_the_grace(tmp_path: Path) -> None:
    async with StreamsUntilTold() as engine:
        async with Many(tmp_path, config(engine, grace_s=1.0)) as gateway, client(gateway) as asking:
            async with asking.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
                assert "Slurm" in await anext(answer.aiter_text())
                kill(gateway.process.pid)
                gateway.process.wait()
                with pytest.raises(httpx.ConnectError):
                    await until_refused(gateway)
                await until(lambda: not any(map(alive, gateway.pids)), timeout_s=10)


# -- the end ---------------------------------------------------------------------------------------------------------


async def until_refused(gateway: Many) -> None:
    """Raises `ConnectError` when the port does not take connections any more."""
    for _ in range(1000):
        async with client(gateway) as asking:
            # one that was never accepted is reset when its socket is closed
            with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                await asking.get("/health")


def to_main(gateway: Many) -> None:
    gateway.process.send_signal(signal.SIGTERM)


def to_the_group_as_a_terminal_does(gateway: Many) -> None:
    os.killpg(gateway.process.pid, signal.SIGINT)


def to_every_process_as_a_service_manager_does(gateway: Many) -> None:
    for pid in (*gateway.pids, gateway.process.pid):
        kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("tell", [to_main, to_the_group_as_a_terminal_does, to_every_process_as_a_service_manager_does])
async def test_streams_finish_before_the_gateway_ends(tmp_path: Path, tell: Callable[[Many], None]) -> None:
    async with StreamsUntilTold() as engine, Many(tmp_path, config(engine, grace_s=30.0)) as gateway:

        async def stream(streaming: httpx.AsyncClient) -> str:
            async with streaming.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
                return "".join([piece async for piece in answer.aiter_text()])

        async with client(gateway) as asking:
            streams = [asyncio.create_task(stream(asking), name=f"stream {number}") for number in range(16)]
            await until(lambda: len(engine.requests) == 16)
            tell(gateway)
            with pytest.raises(httpx.ConnectError):
                await until_refused(gateway)
            assert gateway.process.poll() is None
            assert all(map(alive, gateway.pids))
            engine.go_on.set()
            for whole in await asyncio.gather(*streams):
                assert " is up" in whole
                assert whole.endswith("data: [DONE]\n\n")
        assert await gateway.ended() == 0
        assert not any(map(alive, gateway.pids))
        assert gateway.events("worker_died") == []
        assert [line["status"] for line in gateway.events("request") if line["stream"]] == [200] * 16


async def test_a_second_signal_does_not_wait_for_streams(tmp_path: Path) -> None:
    async with StreamsUntilTold() as engine, Many(tmp_path, config(engine, grace_s=60.0)) as gateway:
        async with client(gateway) as asking, asking.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
            assert "Slurm" in await anext(answer.aiter_text())
            gateway.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.ConnectError):
                await until_refused(gateway)
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.ended(timeout_s=10) == 0
        assert not any(map(alive, gateway.pids))


async def test_a_worker_that_does_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    async with Answers() as engine, Many(tmp_path, config(engine, grace_s=0.0)) as gateway:
        kill(gateway.pids[0], signal.SIGSTOP)
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        assert not any(map(alive, gateway.pids))


async def test_a_second_gateway_does_not_join_the_port(tmp_path: Path) -> None:
    async with Answers() as engine, Many(tmp_path, config(engine)) as gateway:
        (tmp_path / "other").mkdir()
        other = Many(tmp_path / "other", config(engine))
        other.port = gateway.port
        other.begin()
        assert await other.ended() == 1
        assert "Address already in use" in other.log.read_text()
