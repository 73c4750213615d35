"""What is kept of deliberations: whose, how long, with what in it; and what a terminal shows of one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from typer.testing import CliRunner

from backends.base import Call
from backends.errors import NotFound
from proxy import database as db
from proxy import deliberations as module
from proxy.cli import app
from proxy.cli_tribunal import shortened
from proxy.deliberations import Deliberations
from tests.proxy.batch.running import Client, line
from tests.proxy.test_tribunal import SYNTHESIS, THREE, three
from tests.tribunal.court import court
from tests.tribunal.members import Member, Site, Status
from tribunal.backend import Deliberated
from tribunal.profile import Member as Voice
from tribunal.profile import Profile
from tribunal.trace import CallTrace, Trace


def over(
    id: str, key_id: str = "key_a", *, text: str = "secret", redact: bool = False, keep_s: float = 60.0
) -> Deliberated:
    profile = Profile(name="", members=(Voice("a", "a"),), keep_s=keep_s)
    trace = Trace("tribunal", 1, outcome="answered", calls=[CallTrace(1, "draft", "a", "a", 0.0, text=text)])
    trace.exits.append(("draft", "agreed", 1.0))
    call = Call("req_1", "/v1/chat/completions", "tribunal", {}, b"{}", key_id=key_id)
    return Deliberated(id, call, profile, trace, 0.0, 1.5, redact)


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(db.deliberations)).scalar_one())


async def test_it_can_be_read_at_once_and_after_it_was_written(database: Engine) -> None:
    kept = Deliberations(database, now=lambda: 1000.0)
    kept.keep(over("delib_1"))
    before = await kept.show("key_a", "delib_1")
    await kept.flush()
    assert rows(database) == 1
    assert await kept.show("key_a", "delib_1") == before
    assert (before["created_at"], before["expires_at"], before["redacted"]) == (998, 1060, False)
    assert before["calls"][0]["text"] == "secret"
    await kept.flush()
    assert rows(database) == 1


async def test_it_is_its_keys_alone(database: Engine) -> None:
    kept = Deliberations(database)
    kept.keep(over("delib_1"))
    for _ in range(2):
        with pytest.raises(NotFound):
            await kept.show("key_b", "delib_1")
        with pytest.raises(NotFound):
            await kept.show("", "delib_1")
        assert (await kept.show("key_a", "delib_1"))["id"] == "delib_1"
        await kept.flush()
    for id in ("delib_2", "x" * 100, "a\0b", ""):
        with pytest.raises(NotFound):
            await kept.show("key_a", id)


async def test_it_is_gone_when_its_time_is_over(database: Engine) -> None:
    now = 1000.0
    kept = Deliberations(database, now=lambda: now)
    kept.keep(over("delib_1", keep_s=60))
    kept.keep(over("delib_2", keep_s=600))
    kept.keep(over("delib_3", keep_s=0))
    await kept.flush()
    assert rows(database) == 2
    now = 1061.0
    with pytest.raises(NotFound):
        await kept.show("key_a", "delib_1")
    assert kept.sweep() == 1
    assert (await kept.show("key_a", "delib_2"))["id"] == "delib_2"


async def test_one_that_is_redacted_or_too_large_has_no_texts(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Deliberations(database)
    kept.keep(over("delib_1", redact=True))
    monkeypatch.setattr(module, "MOST_BYTES", 5000)
    kept.keep(over("delib_2", text="secret" * 2000))
    for id in ("delib_1", "delib_2"):
        told = await kept.show("key_a", id)
        assert told["redacted"] is True
        assert "secret" not in json.dumps(told)


async def test_while_the_database_is_away_nothing_is_lost(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    kept = Deliberations(database)
    kept.keep(over("delib_1"))
    good = Deliberations._write

    def away(self: Deliberations, those: Any) -> None:
        raise OperationalError("insert", {}, Exception("locked"))

    monkeypatch.setattr(Deliberations, "_write", away)
    with pytest.raises(OperationalError):
        await kept.flush()
    assert (await kept.show("key_a", "delib_1"))["id"] == "delib_1"
    monkeypatch.setattr(Deliberations, "_write", good)
    await kept.flush()
    assert rows(database) == 1


# -- the command line ------------------------------------------------------------------------------------------------


async def test_a_terminal_shows_what_a_tribunal_did(tmp_path: Path) -> None:
    async with court(tmp_path, three(a=dict(three()["a"].script) | {"critique": Status(500)}), THREE) as c:
        response = await c.post()
        id = response.headers["x-slurmgate-deliberation"]
        arguments = ["tribunal", "show", id, "--url", f"{c.served.url}/v1", "--key-env", "KEY"]
        environment = {"KEY": c.served.key, "COLUMNS": "200"}
        done = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
        assert done.exit_code == 0, done.output
        for word in (id, "answered", "synthesise", "critique", "failed", "Five apples.", "tally"):
            assert word in done.output
        told = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--json"], env=environment)
        assert json.loads(told.output)["id"] == id
        arguments[2] = "delib_0"
        missing = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
        assert missing.exit_code != 0


def test_a_terminal_shows_the_profiles_of_a_configuration(tmp_path: Path) -> None:
    members = {"a": Member("x"), "b": Member("x")}
    for member in members.values():
        member.port = 1
    config = tmp_path / "c.toml"
    config.write_text(Site(members, 'members = ["a", "b"]\n[tribunal.profiles.maths]\nanswer = "number"').text())
    done = CliRunner().invoke(app, ["tribunal", "profiles", "--config", str(config)])
    assert done.exit_code == 0, done.output
    assert "tribunal/maths" in done.output


def test_what_a_model_said_cannot_move_a_terminals_cursor() -> None:
    assert shortened("a\x1b[2Jb\n\u202ec", None) == "a?[2Jb\n?c"
    assert shortened("abcdef", 3) == "abc [3 more characters]"


# -- batches and spans -----------------------------------------------------------------------------------------------


async def test_a_batch_asks_tribunals_like_any_other_model(tmp_path: Path) -> None:
    members = three()
    more = '[launcher]\nkind = "local"\n'
    async with court(tmp_path, members, THREE, more=more) as c, Client(c.served) as client:
        card = await client.over(await client.submit([line(n, "tribunal") for n in range(6)]))
        assert card["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
        output, _ = await client.results(card)
        bodies = [one["response"]["body"] for one in output.values()]
        assert {body["choices"][0]["message"]["content"] for body in bodies} == {SYNTHESIS}
        usage = card["usage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == c.used
        assert usage["output_tokens_details"]["reasoning_tokens"] > 0
        metrics = (await c.http.get("/metrics")).text
        assert 'slurmgate_queue_length{class="batch",model="a"}' in metrics


async def test_phases_and_their_calls_are_spans_of_the_request(tmp_path: Path) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from proxy.middleware import Edge
    from proxy.spans import Tracing

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with court(tmp_path, three(), THREE) as c:
        layer: Any = c.served.gateway.serving._app
        while not isinstance(layer, Edge):
            layer = layer._app
        layer._tracing = Tracing(provider)
        await c.ask()
        traceparents = {r.headers["traceparent"] for m in c.members.values() for r in m.requests}
    spans = exporter.get_finished_spans()
    [request] = [span for span in spans if span.name == "chat tribunal"]
    phases = [span for span in spans if span.name.startswith("tribunal ")]
    assert [span.name.split()[1] for span in phases if span.name != "tribunal refine"] == [
        "draft",
        "critique",
        "verdict",
    ]
    assert request.context is not None
    assert all(span.parent is not None and span.parent.span_id == request.context.span_id for span in phases)
    calls = [span for span in spans if span.name in ("chat a", "chat b", "chat c")]
    assert len(calls) == 7
    own = {span.context.span_id for span in phases if span.context is not None}
    assert {span.parent.span_id for span in calls if span.parent is not None} <= own
    for span in (*phases, *calls):
        assert span.start_time is not None and span.end_time is not None and request.start_time is not None  # noqa: PT018
        assert request.start_time - 1_000_000 <= span.start_time <= span.end_time
    assert len(traceparents) == 1  # the engines' own spans hang under the request's
