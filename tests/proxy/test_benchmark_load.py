"""Users of `slurmgate bench` against engines that fail, each in its way; and where they find what to measure."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from proxy.benchmark.asking import client_for
from proxy.benchmark.figures import Sample
from proxy.benchmark.load import Cell, Clients, Plan, measure
from proxy.benchmark.progress import Bar
from proxy.benchmark.prompts import Lengths, Prompts
from proxy.benchmark.session import allow_connections
from proxy.benchmark.targets import Place, Target, direct_target, gateway_target
from proxy.benchmark.warmup import first_answer, word_count
from proxy.config import parse
from proxy.database import open_database
from proxy.state import StateDir
from proxy.terminal import Mistake
from slurm_launcher.spec import Secrets
from slurm_launcher.states import Replica, Status
from slurm_launcher.store import ReplicaStore
from tests.fakes.chat_engine import (
    Answers,
    AnswersWith,
    BreaksInItsStream,
    DiesMidStream,
    DiesOnRequests,
    Engine,
    NeverBegins,
    Request,
    Write,
)
from tests.fakes.scripted_engine import Says, tool_call
from tests.gateway_process import free_port


class Unwatched:
    def turn_begins(self, cell: Cell, turn: int) -> None: ...
    def answered(self, cell: Cell, sample: Sample, elapsed_s: float) -> None: ...
    def turn_ended(self, cell: Cell) -> None: ...


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {"users": (2,), "requests": 2, "error_pause_s": 0.0, "timeout_s": 20.0, **changes}
    return Plan("m", Prompts(1, Lengths(30, 40), Lengths(3, 3)), **values)  # type: ignore[arg-type]


async def samples_of(engine: Engine, asked: Plan) -> list[Sample]:
    return (await cells_of([engine], asked))[0].samples


async def cells_of(engines: Sequence[Engine], asked: Plan) -> list[Cell]:
    cells: list[Cell] = []
    targets = [
        Clients(Target(f"target{number}", (Place(engine.host, engine.port),)), asked.timeout_s)
        for number, engine in enumerate(engines)
    ]
    try:
        await measure(asked, targets, cells, Unwatched())
    finally:
        for clients in targets:
            await clients.aclose()
    return cells


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_a_stream_is_timed_and_its_tokens_are_the_servers_count() -> None:
    async with Answers() as engine:
        samples = await samples_of(engine, plan())
    assert len(samples) == 4
    for sample in samples:
        assert sample.error is None
        assert sample.ttft_s is not None
        assert 0 < sample.ttft_s <= sample.e2e_s
        assert (sample.events, len(sample.gaps_s)) == (3, 2)
        assert (sample.prompt_tokens, sample.output_tokens) == (7, 3)
    body = engine.requests[0].body
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 3, True)
    assert len({request.body["messages"][0]["content"] for request in engine.requests}) == 4


async def test_whole_answers_have_an_end_and_no_first_token() -> None:
    async with Answers() as engine:
        samples = await samples_of(engine, plan(stream=False))
    assert {(sample.error, sample.ttft_s, sample.output_tokens) for sample in samples} == {(None, None, 3)}


async def test_a_chunk_with_the_role_alone_is_no_token() -> None:
    async with Says({"role": "assistant", "content": ""}, {"content": "Slurm"}, {"reasoning_content": "?"}) as engine:
        samples = await samples_of(engine, plan())
    assert {sample.events for sample in samples} == {2}


async def test_a_tool_call_is_tokens_too() -> None:
    async with Says(*tool_call(0, "submit", "{", "}")) as engine:
        samples = await samples_of(engine, plan())
    assert {(sample.error, sample.events) for sample in samples} == {(None, 3)}


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        (AnswersWith(429, b'{"error":"Model is overloaded","error_type":"overloaded"}'), "429"),
        (
            AnswersWith(429, b'{"error":{"message":"slow down","code":"rate_limit_exceeded"}}'),
            "429 rate_limit_exceeded",
        ),
        (AnswersWith(500, b"<html>"), "500"),
        (AnswersWith(200, b"<html>"), "stream ended early"),
        (DiesMidStream(), "connection closed"),
        (DiesOnRequests(), "connection closed"),
        (BreaksInItsStream({"error": {"message": "out of memory", "type": "generation"}}), "in the stream: generation"),
        (Says(), "answer without tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_what_goes_wrong_is_counted_by_its_kind(engine: Engine, kind: str) -> None:
    async with engine:
        samples = await samples_of(engine, plan())
    assert [sample.error for sample in samples] == [kind] * 4


async def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    async with NeverBegins() as engine:
        samples = await samples_of(engine, plan(timeout_s=0.05, requests=1, turns=1))
    assert [sample.error for sample in samples] == ["timeout"] * 2


async def test_an_engine_that_is_gone_is_no_connection() -> None:
    async with Answers() as engine:
        pass
    assert {sample.error for sample in await samples_of(engine, plan())} == {"no connection"}


async def test_whole_answers_that_are_no_completions_are_errors() -> None:
    async with AnswersWith(200, b"{}") as engine:
        samples = await samples_of(engine, plan(stream=False))
    assert {sample.error for sample in samples} == {"answer that is not OpenAI's"}


# -- users and turns -------------------------------------------------------------------------------------------------


class CountsUsers(Answers):
    """How many requests it has at once, and who asked in which order."""

    def __init__(self, order: list[str], name: str) -> None:
        super().__init__()
        self.now = self.most = 0
        self.order, self.name = order, name
        self.together = asyncio.Event()

    async def answer(self, request: Request, write: Write) -> bool:
        self.order.append(self.name)
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == 3:
            self.together.set()
        await self.together.wait()  # nobody is answered before all are there
        self.now -= 1
        return await super().answer(request, write)


async def test_as_many_requests_are_open_as_there_are_users_and_targets_take_turns() -> None:
    order: list[str] = []
    async with CountsUsers(order, "a") as a, CountsUsers(order, "b") as b:
        cells = await cells_of([a, b], plan(users=(3,), requests=4))
    assert (a.most, b.most) == (3, 3)
    assert order == ["a"] * 6 + ["b"] * 6 + ["b"] * 6 + ["a"] * 6
    assert [(cell.target, cell.users, len(cell.samples), cell.complete) for cell in cells] == [
        ("target0", 3, 12, True),
        ("target1", 3, 12, True),
    ]


async def test_users_are_spread_over_the_engines_of_a_target() -> None:
    async with Answers() as one, Answers() as other:
        clients = Clients(Target("direct", (Place(one.host, one.port), Place(other.host, other.port))), 20.0)
        await measure(plan(users=(4,), requests=1, turns=1), [clients], [], Unwatched())
        await clients.aclose()
    assert (len(one.requests), len(other.requests)) == (2, 2)


async def test_time_ends_a_turn_when_it_is_up_and_not_before_one_answer_each() -> None:
    async with Answers() as engine:
        cells = await cells_of([engine], plan(requests=None, duration_s=0.02))
    assert len(cells[0].samples) >= 4
    assert cells[0].wall_s >= 0.02


async def test_a_measurement_that_is_stopped_keeps_what_it_has() -> None:
    cells: list[Cell] = []
    stop = asyncio.Event()

    class StopsAfterThree(Unwatched):
        def answered(self, cell: Cell, sample: Sample, elapsed_s: float) -> None:
            if len(cell.samples) == 3:
                stop.set()

    async with Answers() as engine:
        clients = Clients(Target("direct", (Place(engine.host, engine.port),)), 20.0)
        asked = plan(users=(1,), requests=1_000_000, turns=1)
        task = asyncio.create_task(measure(asked, [clients], cells, StopsAfterThree()), name="measure")
        await stop.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await clients.aclose()
    assert len(cells[0].samples) >= 3
    assert cells[0].wall_s > 0
    assert not cells[0].complete


def test_requests_are_shared_out_among_turns() -> None:
    asked = plan(requests=5, turns=2)
    assert [asked.requests_in(turn) for turn in (0, 1)] == [3, 2]


@pytest.mark.parametrize(("changes", "unit"), [({}, "requests"), ({"requests": None, "duration_s": 1.0}, "s ")])
def test_the_progress_bar_says_who_is_measured_and_how_far_it_is(changes: dict[str, object], unit: str) -> None:
    written = StringIO()
    console = Console(file=written, force_terminal=True, width=120, color_system=None)
    cell = Cell(2, "gateway")
    with Bar(plan(**changes), 1, console) as bar:
        bar.turn_begins(cell, 0)
        bar.answered(cell, Sample(0.1, error="timeout"), 1.0)
        bar.turn_ended(cell)
        bar.turn_begins(cell, 1)
        bar.answered(cell, Sample(0.1), 1.0)
    text = written.getvalue()
    assert "2 users, gateway, turn 2 of 2, 1 failed" in text
    assert unit in text


# -- the first answer ------------------------------------------------------------------------------------------------


async def mistake(place: Place, name: str = "gateway", key_env: str = "OPENAI_API_KEY") -> str:
    client = client_for(place, 5.0)
    try:
        with pytest.raises(Mistake) as caught:
            await first_answer(plan(timeout_s=5.0), Target(name, (place,), key_env), place, client)
    finally:
        await client.aclose()
    return str(caught.value)


async def test_nobody_there_is_said_with_the_address() -> None:
    place = Place("127.0.0.1", free_port())
    assert await mistake(place) == (
        f"nothing listens on {place.url}: is the gateway running? --url names another address"
    )
    assert await mistake(place, "direct") == f"nothing listens on {place.url}"


async def test_a_key_that_is_refused_is_said_with_its_variable_and_never_shown() -> None:
    async with AnswersWith(401, b'{"error":{"message":"bad key sk-secret","code":"invalid_api_key"}}') as engine:
        place = Place(engine.host, engine.port, key="sk-secret")
        told = await mistake(place, key_env="MY_KEY")
        assert told == (
            f"{place.url} refused the key (401); it is read from an environment variable (MY_KEY): --key-env NAME"
        )
        told = await mistake(Place(engine.host, engine.port), "direct", "")
        assert "wants a key (401)" in told
        assert "--direct-key-env" in told


async def test_an_error_is_told_in_the_servers_words() -> None:
    async with AnswersWith(503, b'{"error":{"message":"No replica is ready.","code":"model_unavailable"}}') as engine:
        told = await mistake(Place(engine.host, engine.port))
    assert told.endswith("answered 503 model_unavailable: No replica is ready.")


async def test_a_server_that_is_none_of_ours_is_said_to_be_so() -> None:
    async with AnswersWith(200, b"<html>hello</html>") as engine:
        assert "is no chat completion" in await mistake(Place(engine.host, engine.port))


async def test_a_server_that_closes_is_said_to() -> None:
    async with DiesOnRequests() as engine:
        assert (await mistake(Place(engine.host, engine.port))).endswith("gave no answer: connection closed")


async def test_tokens_are_assumed_to_be_words_where_nobody_counts_them() -> None:
    async with AnswersWith(404, b"{}") as engine:
        clients = Clients(Target("direct", (Place(engine.host, engine.port),)), 5.0)
        assert not (await word_count(plan(), [clients])).exact
        await clients.aclose()


def test_more_connections_than_the_system_allows_are_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    with pytest.raises(Mistake, match="ulimit"):
        allow_connections(2000)


# -- https -----------------------------------------------------------------------------------------------------------


async def test_an_https_address_is_asked_by_httpx_with_the_same_errors() -> None:
    place = Place("127.0.0.1", free_port(), tls=True)
    client = client_for(place, 5.0)
    assert type(client).__name__ == "TlsClient"
    await client.aclose()
    assert (await mistake(place)).startswith(f"nothing listens on {place.url}")


async def test_httpx_reads_streams_as_our_own_client_does() -> None:
    from proxy.benchmark.asking import ask
    from proxy.benchmark.https import TlsClient

    async with Answers() as engine:
        client = TlsClient(Place(engine.host, engine.port), 5.0)
        sample = await ask(client, b'{"stream":true,"stream_options":{"include_usage":true}}', stream=True, timeout_s=5)
        whole = await ask(client, b"{}", stream=False, timeout_s=5)
        await client.aclose()
    assert (sample.error, sample.events, sample.output_tokens) == (None, 3, 3)
    assert (whole.error, whole.output_tokens) == (None, 3)
    async with DiesMidStream() as engine:
        client = TlsClient(Place(engine.host, engine.port), 5.0)
        assert (await ask(client, b"{}", stream=True, timeout_s=5)).error == "connection closed"
        await client.aclose()


# -- targets ---------------------------------------------------------------------------------------------------------

CONFIG = """
[server]
host = "0.0.0.0"
port = 8123
[models.m]
engine = "vllm"
urls = ["http://a:1", "http://b:2"]
api_key_env = "ENGINE_KEY"
aliases = ["other-name"]
[models.launched]
engine = "vllm"
source = "/models/m"
"""


@pytest.mark.parametrize("name", ["m", "other-name"])
def test_the_engines_of_a_model_with_urls_are_measured_directly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "sk-engine")
    target = direct_target(parse(CONFIG), None, None, model=name, urls=[], key_env=None)
    assert target is not None
    assert target.urls == ["http://a:1", "http://b:2"]
    assert {place.key for place in target.places} == {"sk-engine"}


def test_the_gateway_is_where_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert gateway_target(parse(CONFIG), None, None).urls == ["http://127.0.0.1:8123"]
    assert gateway_target(parse(CONFIG), "https://llm.example/v1", None).urls == ["https://llm.example:443"]
    assert gateway_target(None, None, None).urls == ["http://127.0.0.1:8000"]


def test_a_variable_that_was_named_must_hold_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(Mistake, match="no key in the environment variable NO_SUCH_KEY"):
        gateway_target(None, None, "NO_SUCH_KEY")
    monkeypatch.setenv("NO_SUCH_KEY", "sk\r\nx: y")
    with pytest.raises(Mistake, match="is no key") as caught:
        gateway_target(None, None, "NO_SUCH_KEY")
    assert "sk" not in str(caught.value)


def test_the_replicas_of_a_launched_model_are_found_with_their_keys(tmp_path: Path) -> None:
    config = parse(CONFIG)
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    state = StateDir(tmp_path / "state")
    assert direct_target(config, file, state.path, model="launched", urls=[], key_env=None) is None
    state.lock()
    database = open_database(state.database)
    ready = Replica("r1", "launched", "hash", 0.0, status=Status.READY, host="node7", port=12000)
    starting = Replica("r2", "launched", "hash", 0.0, status=Status.STARTING, host="node8", port=12000)
    ReplicaStore(database, state.identity).save([ready, starting])
    target = direct_target(config, file, state.path, model="launched", urls=[], key_env=None)
    database.dispose()
    state.unlock()
    assert target is not None
    assert target.places == (Place("node7", 12000, key=Secrets(state.secret()).engine_key("r1")),)
