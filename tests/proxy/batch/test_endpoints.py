"""/v1/batches over real sockets, asked by the official client and by what no client would send.

No worker runs here: batches go through their states by rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, ConflictError, NotFoundError

from proxy.batch import webhooks
from tests.in_process import Served
from tests.proxy.files.given import client_of, failed, http_of, keys

from .given import CHAT, ByHand, database, jsonl, made, request, serving

SECRET = webhooks.secret_text(bytes(32))
HOOKS = '[batches]\nwebhook_hosts = ["hooks.example.org"]\nwebhook_secret_env = "THE_WEBHOOK_SECRET"\n'
BAD = "no body is looked at"


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches stay as these tests put them."""
    monkeypatch.setattr("proxy.batch.store.BatchStore.claim_step", lambda self, worker: None)
    monkeypatch.setattr("proxy.batch.store.BatchStore.claim_window", lambda self, worker, batch_id, model=None: None)
    monkeypatch.setattr("proxy.batch.store.BatchStore._bury", lambda self, worker: None)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def openai(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(served) as openai:
        yield openai


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with http_of(served) as http:
        yield http


@pytest.fixture
async def by_hand(served: Served, tmp_path: Path) -> AsyncIterator[ByHand]:
    async with database(tmp_path) as engine:
        yield ByHand(engine)


# -- the official client ---------------------------------------------------------------------------------------------


async def test_a_new_batch_has_every_field_of_openais(openai: AsyncOpenAI) -> None:
    batch = await made(openai, metadata={"run": "7"})
    assert batch.id.startswith("batch_")
    assert abs(batch.created_at - time.time()) < 60
    assert batch.expires_at == batch.created_at + 86400
    assert batch.to_dict() == {
        "id": batch.id,
        "object": "batch",
        "endpoint": CHAT,
        "model": None,
        "errors": None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": batch.created_at,
        "in_progress_at": None,
        "expires_at": batch.expires_at,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "metadata": {"run": "7"},
        "paused_at": None,
        "estimated_completion_at": None,
    }
    assert await openai.batches.retrieve(batch.id) == batch


async def test_counts_and_usage_are_those_of_the_lines_that_are_done(openai: AsyncOpenAI, by_hand: ByHand) -> None:
    batch = await made(openai)
    by_hand.begin(batch.id, 3)
    by_hand.answer(batch.id, 2)
    by_hand.answer(batch.id, 1, ok=False)
    seen = await openai.batches.retrieve(batch.id)
    assert (seen.status, seen.model, seen.in_progress_at) == ("in_progress", "m", 1)
    assert seen.request_counts is not None
    assert seen.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 1}
    assert seen.usage is not None
    assert seen.usage.to_dict() == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 30,
    }


async def test_the_official_client_pages_through_all_batches(openai: AsyncOpenAI) -> None:
    all_of_them = [(await made(openai)).id for _ in range(5)]
    assert [batch.id async for batch in openai.batches.list(limit=2)] == all_of_them[::-1]
    page = await openai.batches.list(limit=2, after=all_of_them[3])
    told = page.to_dict()
    assert [card["id"] for card in told["data"]] == [all_of_them[2], all_of_them[1]]  # type: ignore[attr-defined]
    assert (told["first_id"], told["last_id"], told["has_more"]) == (all_of_them[2], all_of_them[1], True)
    assert (await openai.batches.list(limit=5)).has_more is False


async def test_cancelling_is_said_again_when_asked_again_and_refused_when_it_is_too_late(
    openai: AsyncOpenAI, by_hand: ByHand
) -> None:
    batch = await made(openai)
    assert (await openai.batches.cancel(batch.id)).status == "cancelling"
    assert (await openai.batches.cancel(batch.id)).cancelling_at is not None
    by_hand.set(batch.id, status="cancelled")
    assert (await openai.batches.cancel(batch.id)).status == "cancelled"
    for status in ("finalizing", "completed", "failed", "expired"):
        by_hand.set(batch.id, status=status)
        with pytest.raises(ConflictError) as caught:
            await openai.batches.cancel(batch.id)
        assert caught.value.code == "batch_not_cancellable"


async def test_a_batch_belongs_to_its_project_and_to_nobody_else(served: Served, tmp_path: Path) -> None:
    one, also, other, alone, alone2 = await keys(served, tmp_path, "one", "one", "other", "", "")
    async with client_of(served, one) as openai:
        batch = await made(openai)
    async with client_of(served, also) as openai:
        assert await openai.batches.retrieve(batch.id) == batch
        with pytest.raises(NotFoundError):
            await openai.batches.retrieve("batch_none")
    async with client_of(served, alone) as openai:
        own = await made(openai)
    for key, batch_id, file_id in ((other, batch.id, batch.input_file_id), (alone2, own.id, own.input_file_id)):
        async with client_of(served, key) as openai, http_of(served, key) as http:
            assert (await openai.batches.list()).data == []
            for attempt in (openai.batches.retrieve, openai.batches.cancel):
                with pytest.raises(NotFoundError) as caught:
                    await attempt(batch_id)
                assert caught.value.code == "not_found"
            for verb in ("pause", "resume"):
                assert failed(await http.post(f"/batches/{batch_id}/{verb}"))[0] == 404
            assert failed(await http.get(f"/batches/{batch_id}/results"))[0] == 404
            with pytest.raises(BadRequestError) as refused:
                await openai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
            assert (refused.value.code, refused.value.param) == ("file_not_found", "input_file_id")


# -- creating --------------------------------------------------------------------------------------------------------


async def test_a_window_is_as_long_as_it_says(openai: AsyncOpenAI) -> None:
    for window, seconds in (("1h", 3600), ("7d", 7 * 86400)):
        batch = await made(openai, extra_body={"completion_window": window})
        assert (batch.completion_window, batch.expires_at) == (window, batch.created_at + seconds)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"endpoint": None}, "missing_required_parameter", "endpoint"),
        ({"completion_window": "30d"}, "invalid_value", "completion_window"),
        ({"input_file_id": "file-none"}, "file_not_found", "input_file_id"),
        ({"input_file_id": "file-\0"}, "file_not_found", "input_file_id"),
        ({"input_file_id": "x" * 100_000}, "file_not_found", "input_file_id"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
        ({"unheard": 1}, "unknown_parameter", "unheard"),
        ({"webhook": "https://hooks.example.org/"}, "webhooks_not_allowed", "webhook"),
    ],
)
async def test_what_is_wrong_is_told_at_once(
    openai: AsyncOpenAI, http: httpx.AsyncClient, change: dict[str, Any], code: str, param: str
) -> None:
    file = await openai.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    given = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **change}
    assert failed(await http.post("/batches", json=given)) == (400, code, param)
    assert (await openai.batches.list()).data == []


async def test_a_file_of_another_purpose_or_one_that_was_deleted_is_no_input(openai: AsyncOpenAI) -> None:
    other = await openai.files.create(file=("in.jsonl", b"{}"), purpose="user_data")
    gone = await openai.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    await openai.files.delete(gone.id)
    for file_id, code in ((other.id, "invalid_file_purpose"), (gone.id, "file_not_found")):
        with pytest.raises(BadRequestError) as caught:
            await openai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        assert (caught.value.code, caught.value.param) == (code, "input_file_id")


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff", b"{" * 1000])
async def test_what_is_no_json_object_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    status, code, _ = failed(await http.post("/batches", content=body))
    assert (status, code) in ((400, "invalid_json"), (400, "invalid_type"))


async def test_a_creation_that_is_sent_again_with_its_key_makes_no_second_batch(
    openai: AsyncOpenAI, by_hand: ByHand
) -> None:
    once: dict[str, Any] = {"extra_headers": {"Idempotency-Key": "mine"}}
    file = await openai.files.create(file=("in.jsonl", jsonl([request(1)])), purpose="batch")
    given: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    first = await openai.batches.create(**given, **once)
    assert (await openai.batches.create(**given, metadata=None, **once)).id == first.id
    with pytest.raises(ConflictError) as caught:
        await openai.batches.create(**given, metadata={"a": "b"}, **once)
    assert caught.value.code == "idempotency_key_reused"
    by_hand.set(first.id, status="completed")
    await openai.files.delete(file.id)
    again = await openai.batches.create(**given, **once)  # though its file is gone
    assert (again.id, again.status) == (first.id, "completed")
    assert len((await openai.batches.list()).data) == 1


async def test_another_projects_idempotency_key_is_another(served: Served, tmp_path: Path) -> None:
    ids = set()
    for key in await keys(served, tmp_path, "one", "other"):
        async with client_of(served, key) as openai:
            ids.add((await made(openai, extra_headers={"Idempotency-Key": "k"})).id)
    assert len(ids) == 2


async def test_the_input_of_a_batch_that_has_not_ended_stays(openai: AsyncOpenAI, by_hand: ByHand) -> None:
    batch = await made(openai)
    for status in ("validating", "in_progress", "finalizing", "cancelling"):
        by_hand.set(batch.id, status=status)
        with pytest.raises(ConflictError) as caught:
            await openai.files.delete(batch.input_file_id)
        assert caught.value.code == "file_in_use"
    assert (await openai.files.retrieve(batch.input_file_id)).id == batch.input_file_id
    by_hand.set(batch.id, status="completed")
    assert (await openai.files.delete(batch.input_file_id)).deleted


async def test_the_input_of_a_batch_that_has_not_ended_is_not_swept(
    served: Served, openai: AsyncOpenAI, by_hand: ByHand
) -> None:
    from proxy import database as db

    batch = await made(openai)
    with db.writing(by_hand.engine) as connection:
        connection.execute(db.files.update().values(expires_at=1))
    store = served.gateway.serving._files.store
    assert store.forget_expired() == []
    by_hand.set(batch.id, status="expired")
    assert store.forget_expired() == [batch.input_file_id]


async def test_a_webhook_may_lead_where_the_operator_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_WEBHOOK_SECRET", SECRET)
    async with serving(tmp_path, HOOKS) as served, client_of(served) as openai:
        batch = await made(openai, extra_body={"webhook": "https://hooks.example.org/x"})
        secret = batch.to_dict()["webhook_secret"]
        assert isinstance(secret, str)
        assert len(webhooks.secret_of(secret)) == 32
        assert secret != SECRET
        assert "webhook_secret" not in (await openai.batches.retrieve(batch.id)).to_dict()
        with pytest.raises(BadRequestError) as caught:
            await made(openai, extra_body={"webhook": "https://elsewhere.example.org/"})
        assert (caught.value.code, caught.value.param) == ("webhook_host_not_allowed", "webhook")
        assert SECRET not in served.log_text()


# -- pausing ---------------------------------------------------------------------------------------------------------


async def test_a_batch_is_paused_and_resumed(openai: AsyncOpenAI, http: httpx.AsyncClient, by_hand: ByHand) -> None:
    batch = await made(openai)
    by_hand.begin(batch.id, 2)
    paused = (await http.post(f"/batches/{batch.id}/pause")).json()
    assert paused["status"] == "in_progress"
    assert abs(paused["paused_at"] - time.time()) < 60
    again = (await http.post(f"/batches/{batch.id}/pause")).json()
    assert again["paused_at"] == paused["paused_at"]
    resumed = (await http.post(f"/batches/{batch.id}/resume", content=BAD)).json()
    assert (resumed["status"], resumed["paused_at"]) == ("in_progress", None)
    assert (await http.post(f"/batches/{batch.id}/resume")).status_code == 200
    for status in ("finalizing", "cancelling", "completed"):
        by_hand.set(batch.id, status=status)
        for verb in ("pause", "resume"):
            code = f"batch_not_{verb.removesuffix('e')}able"
            assert failed(await http.post(f"/batches/{batch.id}/{verb}"))[:2] == (409, code)


async def test_when_it_will_be_done_is_told_as_long_as_it_runs(
    served: Served, openai: AsyncOpenAI, http: httpx.AsyncClient, by_hand: ByHand
) -> None:
    served.gateway.serving._batches._done_at = lambda batch_id, done, total, began_at: 1000.0 * done + total
    batch = await made(openai)

    async def expected() -> Any:
        return (await http.get(f"/batches/{batch.id}")).json()["estimated_completion_at"]

    assert await expected() is None
    by_hand.begin(batch.id, 4)
    by_hand.answer(batch.id, 1, 2)
    assert await expected() == 2004
    await http.post(f"/batches/{batch.id}/pause")
    assert await expected() is None


# -- results ---------------------------------------------------------------------------------------------------------


def ids_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/jsonl"
    return [json.loads(line)["custom_id"] for line in answer.content.splitlines()]


async def test_results_are_there_while_it_runs_each_once_however_late_its_line(
    openai: AsyncOpenAI, http: httpx.AsyncClient, by_hand: ByHand
) -> None:
    batch = await made(openai)
    path = f"/batches/{batch.id}/results"

    async def after(line: int | str, **more: int) -> tuple[list[str], str, str]:
        answer = await http.get(path, params={"after_line": line, **more})
        return ids_of(answer), answer.headers["x-slurmgate-next-line"], answer.headers["x-slurmgate-over"]

    assert await after(0) == ([], "0", "false")
    by_hand.begin(batch.id, 5)
    by_hand.answer(batch.id, 3, 5)
    assert await after(0) == (["line-3", "line-5"], "2", "false")
    assert await after(2) == ([], "2", "false")
    by_hand.answer(batch.id, 1, ok=False)
    assert await after(2) == (["line-1"], "3", "false")
    by_hand.answer(batch.id, 2, 4)
    assert await after(0, limit=2) == (["line-3", "line-5"], "2", "false")
    assert await after(4, limit=1) == (["line-4"], "5", "false")
    by_hand.set(batch.id, status="completed")
    assert await after(3) == (["line-2", "line-4"], "5", "true")
    assert await after(4, limit=1) == (["line-4"], "5", "false")
    assert await after(5) == ([], "5", "true")
    assert await after(99) == ([], "99", "true")


async def test_many_results_come_in_several_answers(
    openai: AsyncOpenAI, http: httpx.AsyncClient, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.batch.service.RESULTS_BYTES", 2000)
    batch = await made(openai)
    by_hand.begin(batch.id, 300)
    by_hand.answer(batch.id, *range(1, 301))
    by_hand.set(batch.id, status="completed")
    seen: list[str] = []
    over = False
    answers = 0
    while not over:
        answer = await http.get(f"/batches/{batch.id}/results", params={"after_line": len(seen)})
        seen += ids_of(answer)
        assert answer.headers["x-slurmgate-next-line"] == str(len(seen))
        over = answer.headers["x-slurmgate-over"] == "true"
        answers += 1
    assert seen == [f"line-{number}" for number in range(1, 301)]
    assert answers > 2


async def test_results_of_long_ago_are_in_the_files_only(
    openai: AsyncOpenAI, http: httpx.AsyncClient, by_hand: ByHand
) -> None:
    batch = await made(openai)
    by_hand.set(batch.id, status="completed", total=2, completed=2, cleared=1)
    assert failed(await http.get(f"/batches/{batch.id}/results")) == (410, "results_gone", None)
    assert ids_of(await http.get(f"/batches/{batch.id}/results", params={"after_line": 2})) == []


@pytest.mark.parametrize(
    ("target", "param"),
    [
        ("?limit=0", "limit"), ("?limit=101", "limit"), ("?limit=x", "limit"), ("?limit=-1", "limit"),
        ("?limit=1.5", "limit"), ("?limit=%D9%A2", "limit"), ("?after=file-1", "after"),
        ("?after=" + "x" * 500, "after"),
        ("/ID/results?after_line=-1", "after_line"), ("/ID/results?after_line=9999999999999999", "after_line"),
        ("/ID/results?limit=1001", "limit"),
    ],
)  # fmt: skip
async def test_a_query_that_makes_no_sense(
    openai: AsyncOpenAI, http: httpx.AsyncClient, target: str, param: str
) -> None:
    batch = await made(openai)
    answer = await http.get("/batches" + target.replace("ID", batch.id))
    assert failed(answer) == (400, "invalid_value", param)


@pytest.mark.parametrize("batch_id", ["batch_none", "x", "batch_%00", "batch_" + "x" * 500, "%F0%9F%90%8C"])
async def test_a_batch_that_there_is_not(http: httpx.AsyncClient, batch_id: str) -> None:
    for method, more in (
        ("GET", ""),
        ("GET", "/results"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
    ):
        assert failed(await http.request(method, f"/batches/{batch_id}{more}")) == (404, "not_found", "id")


async def test_a_method_that_there_is_not(http: httpx.AsyncClient) -> None:
    for method, path in (("DELETE", "/batches/batch_1"), ("PUT", "/batches"), ("GET", "/batches/batch_1/cancel")):
        answer = await http.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


# -- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "secret", "told"),
    [
        ('webhook_urls = ["nonsense"]\nwebhook_secret_env = "S"', SECRET, r"batches\.webhook_urls\[0\]: expected an"),
        (
            'webhook_hosts = ["a.b/c"]\nwebhook_secret_env = "S"',
            SECRET,
            r"batches\.webhook_hosts\[0\]: expected a host",
        ),
        ('webhook_urls = ["https://a.b/"]', SECRET, r"batches\.webhook_secret_env: required"),
        ('webhook_secret_env = "S"', "", "environment variable S is not set"),
        ('webhook_secret_env = "S"', "whsec_c2hvcnQ=", "environment variable S: expected whsec_"),
    ],
)
def test_webhook_settings_that_cannot_work_stop_the_start(section: str, secret: str, told: str) -> None:
    from proxy.config import ConfigError, parse

    config = parse(f'[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]\n[batches]\n{section}\n')
    with pytest.raises(ConfigError, match=told) as caught:
        webhooks.settings_of(config.batches, {"S": secret})
    assert "c2hvcnQ" not in str(caught.value)
