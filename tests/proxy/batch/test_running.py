"""Batches from upload to output, over real sockets, with engines that fail."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

from sqlalchemy import Engine

from backends.fixed import FixedEndpoint
from proxy.batch.pace import START
from proxy.config import BatchesSection
from proxy.database import open_database
from proxy.keys import KeyStore
from proxy.local_control import rules_of
from proxy.projects import ProjectStore
from proxy.terms import LimitChanges, NewKey, NewProject
from tests.fakes.batch_engines import (
    AnswersSlowly,
    DiesUnderLines,
    FailsAtFirst,
    Full,
    HangsAtFirst,
    Remembers,
    WaitsToBeTold,
)
from tests.fakes.chat_engine import Engine as FakeEngine
from tests.in_process import Served, serving
from tests.waiting import until

from .running import Client, line, lines


def config(engine: FakeEngine, more: str = "") -> str:
    return f'[launcher]\nkind = "local"\n[models.m]\nengine = "vllm"\nurls = ["{engine.url}"]\n{more}'


async def until_valid(client: Client) -> None:
    """A key that was just made is known within a second."""
    async with asyncio.timeout(10):
        while (await client.http.get("/v1/models")).status_code != 200:  # noqa: ASYNC110  # HTTP tells by being asked
            await asyncio.sleep(0.05)


def database(served: Served) -> Engine:
    return open_database(served.log.parent / "state" / "slurmgate.db")


def resting(served: Served) -> bool:
    """A batch waits for its limits."""
    now = time.monotonic()
    return any(held.batch.rests_until > now for model in served.gateway.serving.runner.models() for held in model.held)


async def test_every_line_of_a_batch_has_one_answer_and_the_card_says_so(tmp_path: Path) -> None:
    async with Remembers() as engine, serving(config(engine), tmp_path) as served, Client(served) as client:
        batch_id = await client.submit(lines(300))
        card = await client.over(batch_id)
        assert card["status"] == "completed"
        assert card["request_counts"] == {"total": 300, "completed": 300, "failed": 0}
        assert (card["usage"]["input_tokens"], card["usage"]["output_tokens"]) == (7 * 300, 3 * 300)
        output, errors = await client.results(card)
        assert output.keys() == {f"id-{number}" for number in range(300)}
        assert not errors
        first = output["id-0"]
        assert first["response"]["status_code"] == 200
        assert first["response"]["body"]["choices"][0]["message"]["content"] == "Slurm is up"
        assert set(engine.asked.values()) == {1}


async def test_a_line_that_the_engine_fails_is_asked_again_and_the_others_do_not_wait(tmp_path: Path) -> None:
    async with FailsAtFirst(2, 500) as engine, serving(config(engine), tmp_path) as served, Client(served) as client:
        card = await client.over(await client.submit(lines(3)))
        output, _ = await client.results(card)
        assert len(output) == 3
        assert set(engine.asked.values()) == {3}


async def test_after_its_attempts_a_line_is_an_error_line_with_the_engines_last_word(tmp_path: Path) -> None:
    more = "[batches]\nattempts = 2\n"
    async with (
        FailsAtFirst(99, 500) as engine,
        serving(config(engine, more), tmp_path) as served,
        Client(served) as client,
    ):
        card = await client.over(await client.submit(lines(2)))
        assert card["status"] == "completed"
        assert card["output_file_id"] is None
        _, errors = await client.results(card)
        assert errors["id-0"]["response"]["status_code"] == 500
        assert errors["id-0"]["response"]["body"]["error"]["message"] == "broken"
        assert set(engine.asked.values()) == {2}


async def test_engines_that_end_under_a_line_do_not_use_up_its_attempts(tmp_path: Path) -> None:
    more = "[batches]\nattempts = 1\n"
    async with DiesUnderLines(4) as engine, serving(config(engine, more), tmp_path) as served, Client(served) as client:
        card = await client.over(await client.submit(lines(3)), timeout_s=60)
        assert card["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        assert max(engine.asked.values()) >= 5


async def test_an_engine_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """Its port is open for nobody; then it is, and the lines go through, without an attempt used."""
    engine = Remembers()
    async with engine:
        port = engine.port
    more = "[batches]\nattempts = 1\n"
    async with serving(config(engine, more), tmp_path) as served, Client(served) as client:
        batch_id = await client.submit(lines(3))
        await client.until(batch_id, lambda card: card["status"] == "in_progress")
        again = Remembers()
        again.port = port
        async with again:
            card = await client.over(batch_id, timeout_s=60)
            assert card["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


async def test_an_engine_that_is_full_is_asked_less_and_no_line_fails(tmp_path: Path) -> None:
    more = "[batches]\nattempts = 1\n"
    async with Full(3) as engine, serving(config(engine, more), tmp_path) as served, Client(served) as client:
        card = await client.over(await client.submit(lines(40)), timeout_s=60)
        assert card["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        assert engine.refused


async def test_a_429_that_names_a_time_is_waited_for(tmp_path: Path) -> None:
    engine = FailsAtFirst(1, 429, "retry-after: 1\r\n")
    more = "[batches]\nattempts = 1\n"
    async with engine, serving(config(engine, more), tmp_path) as served, Client(served) as client:
        card = await client.over(await client.submit(lines(5)))
        assert card["request_counts"]["completed"] == 5


async def test_an_engine_that_hangs_costs_an_attempt_and_not_the_batch(tmp_path: Path) -> None:
    more = "timeouts.first_byte_s = 0.5\n[batches]\nattempts = 3\n"
    async with HangsAtFirst(2) as engine, serving(config(engine, more), tmp_path) as served, Client(served) as client:
        card = await client.over(await client.submit(lines(2)))
        assert card["request_counts"]["completed"] == 2


async def test_what_is_wrong_with_a_body_fails_its_line_alone(tmp_path: Path) -> None:
    async with Remembers() as engine, serving(config(engine), tmp_path) as served, Client(served) as client:
        requests = [line(0), line(1, messages="no list"), line(2)]
        requests[2]["body"]["temperature"] = "warm"
        card = await client.over(await client.submit(requests))
        assert card["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
        output, errors = await client.results(card)
        assert output.keys() == {"id-0"}
        assert errors["id-1"]["response"]["body"]["error"]["param"] == "messages"
        assert errors["id-2"]["response"]["status_code"] == 400
        assert len(engine.asked) == 1


async def test_a_paused_batch_begins_nothing_more_and_goes_on_when_it_is_resumed(tmp_path: Path) -> None:
    more = "max_in_flight = 4\n"
    async with WaitsToBeTold() as engine, serving(config(engine, more), tmp_path) as served, Client(served) as client:
        batch_id = await client.submit(lines(50))
        await engine.request(4)
        card = await client.tell(batch_id, "pause")
        assert (card["status"], bool(card["paused_at"])) == ("in_progress", True)
        runner = served.gateway.serving.runner
        await until(lambda: not any(model.ready(time.monotonic()) for model in runner.models()))
        engine.go_on.set()
        await until(lambda: not any(model.held for model in runner.models()))
        done = (await client.card(batch_id))["request_counts"]["completed"]
        assert len(engine.requests) == done <= START, "what ran could end, and nothing more began"
        await client.tell(batch_id, "resume")
        card = await client.over(batch_id)
        assert card["request_counts"]["completed"] == 50
        assert len(engine.requests) == 50


async def test_a_batch_that_is_cancelled_keeps_what_was_done_and_asks_nothing_more(tmp_path: Path) -> None:
    more = "max_in_flight = 4\n"
    async with (
        AnswersSlowly(0.1) as engine,
        serving(config(engine, more), tmp_path) as served,
        Client(served) as client,
    ):
        batch_id = await client.submit(lines(500))
        await client.until(batch_id, lambda card: card["request_counts"]["completed"] >= 4)
        await client.tell(batch_id, "cancel")
        card = await client.over(batch_id)
        assert card["status"] == "cancelled"
        output, _ = await client.results(card)
        assert 4 <= len(output) == card["request_counts"]["completed"] == len(engine.requests) < 500


async def test_a_gateway_that_is_stopped_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    async with AnswersSlowly(0.02) as engine:
        text = config(engine, "max_in_flight = 8\n")
        async with serving(text, tmp_path) as served, Client(served) as client:
            batch_id = await client.submit(lines(300))
            await client.until(batch_id, lambda card: card["request_counts"]["completed"] >= 30)
            key = served.key
        async with serving(text, tmp_path) as served, Client(served, key) as client:
            card = await client.over(batch_id)
            assert card["request_counts"] == {"total": 300, "completed": 300, "failed": 0}
            output, _ = await client.results(card)
            assert len(output) == 300
        assert set(engine.asked.values()) == {1}, "what ran at the stop could end, so nothing runs again"


async def test_a_key_that_is_revoked_ends_its_batches_and_says_why(tmp_path: Path) -> None:
    async with AnswersSlowly(0.05) as engine, serving(config(engine, "max_in_flight = 2\n"), tmp_path) as served:
        keys = KeyStore(database(served))
        project = ProjectStore(database(served)).create(NewProject(name="p"))
        one, gone = (keys.make(NewKey(name=name, project_id=project.id)) for name in ("stays", "goes"))
        async with Client(served, gone[1]) as client, Client(served, one[1]) as other:
            await until_valid(client)
            batch_id = await client.submit(lines(3000))
            await client.until(batch_id, lambda card: card["request_counts"]["completed"] >= 2)
            keys.revoke(gone[0].id)
            card = await other.over(batch_id)
            assert card["status"] == "failed"
            assert [error["code"] for error in card["errors"]["data"]] == ["key_revoked"]
            assert len(engine.requests) < 1000


async def test_lines_wait_for_the_limits_of_their_key_and_none_fails(tmp_path: Path) -> None:
    async with Remembers() as engine, serving(config(engine), tmp_path) as served:
        keys = KeyStore(database(served))
        _, key = keys.make(NewKey(name="limited", limits=LimitChanges(concurrent_requests=2)))
        async with Client(served, key) as client:
            await until_valid(client)
            card = await client.over(await client.submit(lines(30)), timeout_s=60)
            assert card["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
            assert engine.most <= 2


async def test_over_its_budget_a_batch_waits_until_there_is_a_new_one(tmp_path: Path) -> None:
    async with Remembers() as engine, serving(config(engine), tmp_path) as served:
        keys = KeyStore(database(served))
        _, key = keys.make(NewKey(name="poor", limits=LimitChanges(tokens_per_day=1000)))
        async with Client(served, key) as client:
            await until_valid(client)
            batch_id = await client.submit(lines(200))
            await until(lambda: resting(served))
            card = await client.card(batch_id)
            assert card["status"] == "in_progress"
            assert card["request_counts"]["failed"] == 0
            assert card["request_counts"]["completed"] < 200
            assert len(engine.requests) < 200


async def test_two_projects_share_a_model_half_and_half(tmp_path: Path) -> None:
    async with AnswersSlowly(0.01) as engine, serving(config(engine, "max_in_flight = 4\n"), tmp_path) as served:
        keys = KeyStore(database(served))
        first, second = (keys.make(NewKey(name=name))[1] for name in ("first", "second"))
        async with Client(served, first) as one, Client(served, second) as other:
            await until_valid(one)
            await until_valid(other)
            large = await one.submit(lines(4000))
            small = await other.submit(lines(300))
            card = await other.over(small, timeout_s=60)
            assert card["request_counts"]["completed"] == 300
            done = (await one.card(large))["request_counts"]["completed"]
            assert done < 2000, "who came later did not wait until the other was done"
            await one.tell(large, "cancel")


async def test_outside_of_the_hours_nothing_is_asked(tmp_path: Path) -> None:
    more = "[batches]\nonly_in_hours = true\n"
    async with Remembers() as engine, serving(config(engine, more), tmp_path) as served, Client(served) as client:
        batch_id = await client.submit(lines(5))
        await client.until(batch_id, lambda card: card["status"] == "in_progress")
        served.gateway.serving.runner.wake()
        await until(lambda: served.gateway.serving.runner.looks > 2)
        assert not engine.requests
        served.gateway.serving.runner.configure(BatchesSection())
        card = await client.over(batch_id)
        assert card["request_counts"]["completed"] == 5


async def test_embeddings_completions_and_responses_run_in_batches_too(tmp_path: Path) -> None:
    async with Remembers() as engine, serving(config(engine), tmp_path) as served, Client(served) as client:
        for endpoint, body in (
            ("/v1/responses", {"model": "m", "input": "Hello", "store": False}),
            ("/v1/completions", {"model": "m", "prompt": "Hello"}),
            ("/v1/embeddings", {"model": "m", "input": "Hello"}),
        ):
            request = {"custom_id": "one", "method": "POST", "url": endpoint, "body": body}
            card = await client.over(await client.submit([request], endpoint))
            output, errors = await client.results(card)
            assert output.keys() == {"one"}, errors
            if endpoint == "/v1/responses":
                assert output["one"]["response"]["body"]["object"] == "response"


async def test_lines_are_in_the_usage_of_their_key_and_in_the_metrics(tmp_path: Path) -> None:
    async with Remembers() as engine, serving(config(engine), tmp_path) as served, Client(served) as client:
        await client.over(await client.submit(lines(20)))
        text = (await client.http.get("/metrics")).text
        assert 'slurmgate_batch_lines_total{model="m",result="completed"} 20.0' in text
        assert 'slurmgate_requests_total{endpoint="batch",model="m",status="200"} 20.0' in text
        assert "slurmgate_batch_lines_in_flight" in text


class Cold:
    """A launcher that has nothing until somebody needs it, and then what it was given, when it is told."""

    def __init__(self) -> None:
        self.needed = asyncio.Event()
        self._engines: tuple[FixedEndpoint, ...] = ()
        self._changed = asyncio.Event()

    def start(self, engine: FakeEngine) -> None:
        self._engines = (FixedEndpoint("r1", engine.host, engine.port),)
        self._changed.set()

    def endpoints(self, model: str) -> tuple[FixedEndpoint, ...]:
        return self._engines

    def need(self, model: str) -> None:
        self.needed.set()

    async def changed(self, model: str) -> None:
        await self._changed.wait()
        self._changed.clear()

    def identity(self, model: str, replica_id: str, *, ours: bool) -> None:
        """Nobody else answers there."""

    def outlook(self, model: str) -> tuple[str, float | None]:
        return f"{model} is starting.", None


async def test_batch_work_starts_a_model_that_has_no_replica_and_no_line_fails_for_the_wait(tmp_path: Path) -> None:
    cold = Cold()
    more = "timeouts.replica_wait_s = 0.3\n[batches]\nattempts = 1\n"
    async with Remembers() as engine, serving(config(engine, more), tmp_path) as served, Client(served) as client:
        control = served.gateway.control
        control.sources["m"] = cold
        control.places["m"].configure(rules_of(control.config.models["m"]), cold, "vllm")
        batch_id = await client.submit(lines(20))
        await cold.needed.wait()
        await until(lambda: control.batches.of("m").replicas == 1)
        assert control.batches.of("m").in_flight <= 8, "the queue stays free for others"
        await until(lambda: control.places["m"].snapshot().late > 0)
        assert (await client.card(batch_id))["request_counts"]["failed"] == 0
        cold.start(engine)
        card = await client.over(batch_id, timeout_s=60)
        assert card["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
        await until(lambda: control.batches.of("m").replicas == 0)


async def test_the_batch_with_less_slack_is_asked_before_one_that_came_earlier(tmp_path: Path) -> None:
    cold = Cold()
    async with Remembers() as engine, serving(config(engine), tmp_path) as served, Client(served) as client:
        runner = served.gateway.serving.runner
        runner.configure(BatchesSection(only_in_hours=True))
        control = served.gateway.control
        for window, first in (("7d", 0), ("1h", 1000)):
            batch_id = await client.submit([line(first + number) for number in range(100)], completion_window=window)
            await client.until(batch_id, lambda card: card["status"] == "in_progress")
        assert not cold.needed.is_set()
        assert not engine.requests
        assert control.batches.of("m").replicas == 0, "outside of its hours work asks for nothing"
        looks = runner.looks
        await until(lambda: runner.looks > looks + 1)
        runner.configure(BatchesSection())
        await client.over(batch_id)
        first_asked = [int(prompt.removeprefix("line ")) for prompt in list(engine.asked)[:30]]
        assert all(number >= 1000 for number in first_asked)


async def test_a_database_that_is_locked_is_waited_for_and_nothing_runs_twice(tmp_path: Path) -> None:
    async with AnswersSlowly(0.02) as engine, serving(config(engine, "max_in_flight = 4\n"), tmp_path) as served:
        async with Client(served) as client:
            batch_id = await client.submit(lines(150))
            await client.until(batch_id, lambda card: card["request_counts"]["completed"] >= 10)
            lock = sqlite3.connect(tmp_path / "state" / "slurmgate.db", isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            await until(lambda: "batches_wait_for_storage" in served.log_text(), timeout_s=40)
            asked = len(engine.requests)
            await asyncio.sleep(0.5)
            assert len(engine.requests) == asked, "nothing more is asked while results wait"
            lock.execute("ROLLBACK")
            lock.close()
            card = await client.over(batch_id, timeout_s=60)
            assert card["request_counts"] == {"total": 150, "completed": 150, "failed": 0}
        assert set(engine.asked.values()) == {1}
        assert served.log_text().count("batches_wait_for_storage") == 1
