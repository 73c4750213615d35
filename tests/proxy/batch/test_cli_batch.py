"""`slurmgate batch`, as a user types it, against a gateway on a real socket; batches advance by rows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from proxy import cli_batch, cli_batch_submit, cli_client
from proxy.batch_progress import Bar, Speed, mistakes_of, span, summary
from proxy.cli_batch import mount
from proxy.cli_batch_submit import endpoint_of
from proxy.gateway_client import GatewayClient, NoAnswer, Refused
from proxy.terminal import Mistake
from tests.gateway_process import SLURMGATE
from tests.in_process import Served
from tests.waiting import until

from .given import ByHand, database, jsonl, request, serving

Run = Callable[..., Any]
PROMPTS = jsonl([request(number) for number in range(1, 4)])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker, and no long waits between looks."""
    monkeypatch.setattr("proxy.batch.store.BatchStore.claim_step", lambda self, worker: None)
    monkeypatch.setattr("proxy.batch.store.BatchStore.claim_window", lambda self, worker, batch_id, model=None: None)
    monkeypatch.setattr("proxy.batch.store.BatchStore._bury", lambda self, worker: None)
    monkeypatch.setattr(cli_client, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(cli_batch_submit, "LOOK_AGAIN_S", 0.02)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "SLURMGATE_CONFIG", "SLURMGATE_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def by_hand(served: Served, tmp_path: Path) -> AsyncIterator[ByHand]:
    async with database(tmp_path) as engine:
        yield ByHand(engine)


@pytest.fixture
def run(served: Served, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command, in a thread since the gateway is in this one; its result. A mistake is raised."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", served.key)
    app = typer.Typer()
    mount(app)

    async def run(*arguments: str, status: int = 0) -> Any:
        done = await asyncio.to_thread(CliRunner().invoke, app, ["batch", *arguments])
        if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == status, done.output
        return done

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(PROMPTS)
    return path


def content_of(served: Served, file_id: str) -> bytes:
    """What the gateway has of a file."""
    return served.gateway.serving._files.disk.path(file_id).read_bytes()


async def submitted(run: Run, file: Path, *options: str) -> str:
    done = await run("submit", str(file), *options)
    batch_id: str = done.stdout.strip()
    assert done.stdout == f"{batch_id}\n"
    assert batch_id.startswith("batch_")
    return batch_id


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The paths that commands ask for from now on."""
    whole, seen = getattr(GatewayClient, name), []

    def counted(self: GatewayClient, path: str, *more: Any) -> Any:
        seen.append(path)
        return whole(self, path, *more)

    monkeypatch.setattr(GatewayClient, name, counted)
    return seen


# -- submitting ------------------------------------------------------------------------------------------------------


async def test_a_file_is_uploaded_and_becomes_a_batch(run: Run, file: Path, served: Served) -> None:
    options = ("--window", "7d", "--metadata", "run=7", "--metadata", "who=a=b", "--mixed-models")
    batch_id = await submitted(run, file, *options)
    card = json.loads((await run("show", batch_id, "--json")).stdout)
    assert (card["completion_window"], card["metadata"]) == ("7d", {"run": "7", "who": "a=b"})
    assert (card["endpoint"], card["status"]) == ("/v1/chat/completions", "validating")
    assert content_of(served, card["input_file_id"]) == PROMPTS


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        (b'{"url": "/v1/embeddings"}\n', "/v1/embeddings"),
        (b"nonsense", "/v1/chat/completions"),
        (b"[]", "/v1/chat/completions"),
        (b'{"url": 5}', "/v1/chat/completions"),
    ],
)
def test_the_endpoint_is_that_of_the_first_line(line: bytes, endpoint: str) -> None:
    assert endpoint_of(line) == endpoint


async def test_a_large_file_and_one_with_an_odd_name(run: Run, tmp_path: Path, served: Served) -> None:
    path = tmp_path / 'ü "odd" näme.jsonl'
    data = b"\n" + jsonl([request(1, pad="x" * 3_000_000), request(2)])
    path.write_bytes(data)
    batch_id = await submitted(run, path)
    card = json.loads((await run("show", batch_id, "--json")).stdout)
    assert content_of(served, card["input_file_id"]) == data


# -- waiting ---------------------------------------------------------------------------------------------------------


async def test_waiting_lasts_until_the_batch_has_ended(
    run: Run, file: Path, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await submitted(run, file)
    looks = count_calls(monkeypatch, "get")
    waiting = asyncio.create_task(run("wait", batch_id), name="wait")
    by_hand.begin(batch_id, 3)
    by_hand.answer(batch_id, 1, 2)
    seen = len(looks)
    await until(lambda: len(looks) > seen + 2)
    assert not waiting.done()
    by_hand.answer(batch_id, 3, ok=False)
    by_hand.set(batch_id, status="completed")
    done = await waiting
    assert f"{batch_id} is completed: 3 of 3 lines done, 1 of them failed" in done.stderr
    assert done.stdout == ""


async def test_a_batch_that_did_not_get_done_ends_with_a_status_and_its_mistakes(
    run: Run, file: Path, by_hand: ByHand
) -> None:
    batch_id = await submitted(run, file)
    errors = [{"code": "invalid_url", "message": "Invalid url.", "param": "url", "line": 2}]
    by_hand.set(batch_id, status="failed", errors=json.dumps(errors))
    done = await run("wait", batch_id, status=1)
    assert "is failed: 0 of 0 lines done" in done.stderr
    assert "line 2: Invalid url. (invalid_url)" in done.stderr
    assert "line 2: Invalid url. (invalid_url)" in (await run("show", batch_id)).stdout


async def test_a_gateway_that_starts_anew_is_asked_again(
    run: Run, file: Path, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await submitted(run, file)
    troubles: list[Exception] = [NoAnswer("it does not run"), Refused(503, "The database is away."), NoAnswer("gone")]
    whole, looks = GatewayClient.get, 0

    def get(self: GatewayClient, path: str, query: Any = None) -> Any:
        nonlocal looks
        looks += 1
        if looks > 1 and troubles:
            raise troubles.pop()
        if not troubles:
            by_hand.set(batch_id, status="completed")
        return whole(self, path, query)

    monkeypatch.setattr(GatewayClient, "get", get)
    done = await run("wait", batch_id)
    assert "asking again" in done.stderr
    assert "is completed" in done.stderr


@pytest.mark.parametrize("command", ["wait", "submit"])
async def test_ctrl_c_leaves_the_batch_running_and_says_how_to_come_back(
    served: Served, file: Path, by_hand: ByHand, tmp_path: Path, command: str
) -> None:
    """As a process of its own, which gets the signal."""
    address = ("--url", f"{served.url}/v1", "--key-env", "THE_KEY")
    environment = {"THE_KEY": served.key, "PATH": "", "HOME": str(tmp_path)}

    def begin(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*SLURMGATE, "batch", *arguments, *address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(cli_batch.__file__).parent.parent,
        )

    process = begin("submit", str(file), *(["--wait"] if command == "submit" else []))
    assert process.stdout is not None
    batch_id = (await asyncio.to_thread(process.stdout.readline)).strip()
    if command == "wait":
        await asyncio.to_thread(process.communicate)
        process = begin("wait", batch_id)
    assert process.stderr is not None
    assert "validating" in await asyncio.to_thread(process.stderr.readline)  # it has looked
    process.send_signal(signal.SIGINT)
    _, told = await asyncio.to_thread(process.communicate)
    assert process.returncode == 130
    assert told == f"{batch_id} goes on; come back to it with `slurmgate batch wait {batch_id}`\n"
    with contextlib.closing(by_hand.engine.raw_connection()) as connection:
        [[status]] = connection.cursor().execute("SELECT status FROM batches").fetchall()
    assert status == "validating"


async def test_with_an_output_the_results_are_there_at_the_end(
    run: Run, file: Path, by_hand: ByHand, served: Served, tmp_path: Path
) -> None:
    batch_id = await submitted(run, file)
    await over(by_hand, served, batch_id)
    for command in (("wait", batch_id, "-o"), ("results", batch_id, "--output")):
        output = tmp_path / f"{command[0]}.jsonl"
        output.write_text("old")
        await run(*command, str(output))
        assert output.read_bytes() == b'{"custom_id":"line-1"}\n{"custom_id":"line-2"}\n'
    assert not [name for name in os.listdir(tmp_path) if "part" in name]
    done = await run("wait", batch_id)
    assert f"`slurmgate batch results {batch_id} -o FILE`" in done.stderr


async def over(by_hand: ByHand, served: Served, batch_id: str) -> None:
    """The batch is completed, with an output and an error file."""
    openai_files = served.gateway.serving._files
    owner = by_hand.owner_of(batch_id)
    ids = []
    for name, data in (("out", b'{"custom_id":"line-1"}\n'), ("err", b'{"custom_id":"line-2"}\n')):
        incoming = openai_files.begin()
        incoming.write(data)
        made = await asyncio.to_thread(openai_files.put, owner, incoming, f"{name}.jsonl", "batch_output")
        ids.append(made.id)
    by_hand.set(batch_id, status="completed", output_file_id=ids[0], error_file_id=ids[1])


# -- results ---------------------------------------------------------------------------------------------------------


async def test_results_may_be_had_while_it_runs_and_followed(
    run: Run, file: Path, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await submitted(run, file)
    by_hand.begin(batch_id, 3)
    by_hand.answer(batch_id, 2)
    line = '{{"custom_id":"line-{}"}}\n'.format
    assert (await run("results", batch_id)).stdout == line(2)
    looks = count_calls(monkeypatch, "lines")
    following = asyncio.create_task(run("results", batch_id, "--follow"), name="follow")
    await until(lambda: len(looks) > 2)  # it has what there is, and has looked again
    by_hand.answer(batch_id, 3, 1)
    by_hand.set(batch_id, status="finalizing")
    seen = len(looks)
    await until(lambda: len(looks) > seen + 2)
    assert not following.done()
    by_hand.set(batch_id, status="completed")
    assert (await following).stdout == line(2) + line(3) + line(1)


async def test_results_of_a_batch_without_any(run: Run, file: Path, by_hand: ByHand) -> None:
    batch_id = await submitted(run, file)
    by_hand.set(batch_id, status="failed")
    with pytest.raises(Mistake, match="is failed and has no results"):
        await run("results", batch_id)


# -- looking and telling ---------------------------------------------------------------------------------------------


async def test_batches_are_listed_and_shown(run: Run, file: Path, by_hand: ByHand) -> None:
    assert (await run("list")).stdout == "no batches\n"
    first, second = [await submitted(run, file) for _ in range(2)]
    by_hand.begin(first, 3)
    by_hand.answer(first, 1)
    listed = (await run("list")).stdout
    assert listed.index(second) < listed.index(first)
    for word in ("in_progress", "validating", "lines", "failed"):
        assert word in listed
    assert [card["id"] for card in json.loads((await run("list", "--json", "-n", "1")).stdout)] == [second]
    shown = (await run("show", first)).stdout
    for words in ("state       in_progress", "lines       3, 1 done, 0 of them failed", "tokens      10 in, 5 out"):
        assert words in shown


async def test_a_batch_is_paused_resumed_and_cancelled(run: Run, file: Path) -> None:
    batch_id = await submitted(run, file)
    assert "is paused" in (await run("pause", batch_id)).stdout
    assert (await run("resume", batch_id)).stdout == f"{batch_id} goes on\n"
    assert (await run("cancel", batch_id)).stdout == f"{batch_id} is cancelling\n"
    with pytest.raises(Mistake, match="Cannot resume a batch with status 'cancelling'"):
        await run("resume", batch_id)


# -- mistakes --------------------------------------------------------------------------------------------------------


async def test_mistakes_give_one_sentence(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    (tmp_path / "data.txt").write_bytes(PROMPTS)
    for arguments, told in (
        (("submit", str(tmp_path / "none.jsonl")), "cannot be read: No such file"),
        (("submit", str(tmp_path)), "cannot be read: Is a directory"),
        (("submit", str(tmp_path / "empty.jsonl")), "has no requests"),
        (("submit", str(tmp_path / "data.txt")), "ends in '.jsonl'"),
        (("submit", str(file), "--window", "9d"), "Invalid value for 'completion_window'"),
        (("submit", str(file), "--endpoint", "/v1/none"), "Invalid value for 'endpoint'"),
        (("submit", str(file), "--metadata", "x"), "--metadata: expected NAME=VALUE, found 'x'"),
        (("submit", str(file), "-o", "x"), "--output takes --wait"),
        (("submit", str(file), "--webhook", "https://a.b/"), "takes no webhooks"),
        (("show", "batch_none"), "batch_none"),
        (("show", "../files"), "files"),
        (("wait", "batch_none"), "batch_none"),
        (("results", "batch_none"), "batch_none"),
        (("list", "--key-env", "NOT_SET"), "no key in the environment variable NOT_SET"),
        (("list", "--url", "nonsense"), "expected an address such as"),
        (("list", "--url", "http://127.0.0.1:1"), "the gateway at http://127.0.0.1:1 does not run"),
    ):
        with pytest.raises(Mistake) as caught:
            await run(*arguments)
        assert told in str(caught.value), arguments
        assert "\n" not in str(caught.value)


async def test_a_key_that_is_missing_or_wrong(run: Run, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncio.to_thread(served.gateway.serving._keys.refresh)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(Mistake, match="needs a key: put yours into the environment variable OPENAI_API_KEY"):
        await run("list")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(Mistake, match="Incorrect API key") as caught:
        await run("list")
    assert "sk-wrong" not in str(caught.value)


async def test_without_an_address_it_is_the_gateway_of_the_state_directory(
    run: Run, served: Served, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL")
    state = ("--state-dir", str(tmp_path / "state"))
    with pytest.raises(Mistake, match="does not run, or cannot be reached"):
        await run("list", *state)
    with pytest.raises(Mistake, match="does not run"):
        await run("submit", str(file), *state)


# -- speed and the bar -----------------------------------------------------------------------------------------------


def a_card(completed: int, failed: int, total: int, tokens: int, **more: Any) -> dict[str, Any]:
    counts = {"completed": completed, "failed": failed, "total": total}
    return {
        "id": "batch_1", "status": "in_progress", "request_counts": counts, "usage": {"total_tokens": tokens}, **more,
    }  # fmt: skip


def test_speed_is_that_of_the_last_minute() -> None:
    speed = Speed()
    speed.look(a_card(0, 0, 1000, 0), 0)
    assert speed.tokens_per_s() is None
    speed.look(a_card(90, 10, 1000, 5000), 10)
    assert (speed.tokens_per_s(), speed.left_s(a_card(90, 10, 1000, 5000))) == (500, 90)
    for second in range(20, 400, 10):  # then it stands still
        speed.look(a_card(90, 10, 1000, 5000), second)
    assert speed.tokens_per_s() == 0
    assert speed.left_s(a_card(90, 10, 1000, 5000)) is None


def test_the_bar_says_done_failed_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    with Bar(Console(file=sys.stderr, force_terminal=True, width=120)) as bar:
        bar.show(a_card(0, 0, 1000, 0), 0, 0)
        card = a_card(90, 10, 1000, 5000)
        bar.show(card, 10, 0)
        assert bar.words(card, 0) == ["10 failed", "500 tokens/s", "1 min 30 s left"]
        assert bar.words({**card, "estimated_completion_at": 4000}, 100)[2] == "1 h 05 min left"
        assert bar.words({**card, "paused_at": 5}, 0) == ["10 failed", "500 tokens/s"]
        bar._progress.refresh()
    drawn = capsys.readouterr().err
    for words in ("100/1000", "10 failed", "500 tokens/s", "1 min 30 s left"):
        assert words in drawn


def test_words() -> None:
    assert [span(seconds) for seconds in (0, 59, 60, 3599, 3600, 90000)] == [
        "0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 00 min",
    ]  # fmt: skip
    assert summary(a_card(1, 0, 3, 0, paused_at=5)) == "batch_1 is paused: 1 of 3 lines done"
    assert mistakes_of({"errors": None}) == []
    assert mistakes_of({"errors": {"data": [{"line": None, "message": "No requests.", "code": "empty_file"}]}}) == [
        "No requests. (empty_file)"
    ]
