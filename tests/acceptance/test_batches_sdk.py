"""Batches as the official client and the command line use them, on a whole gateway with real small engines."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Batch

from proxy.batch.webhooks import secret_text
from tests.fakes.chat_engine import Answers
from tests.fakes.faulty_servers import Answers as Receives
from tests.fakes.faulty_servers import plain
from tests.gateway_process import GatewayProcess, free_port

from .test_embedded import CHAT, EMBED, READY, printed_key

ENDPOINTS = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings", "responses": "/v1/responses"}
SECRET = secret_text(bytes(range(32)))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The one that a newcomer starts: real engines, of a few megabytes each."""
    gateway = GatewayProcess(tmp_path_factory.mktemp("batches"), None)
    gateway.start()
    try:
        gateway.until_ready(**READY)
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture
def openai(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=printed_key(gateway), max_retries=2) as client:
        yield client


def line(number: int, kind: str = "chat", **more: Any) -> dict[str, Any]:
    bodies: dict[str, dict[str, Any]] = {
        "chat": {"model": CHAT, "messages": [{"role": "user", "content": "What is slurmgate?"}], "max_tokens": 8},
        "embeddings": {"model": EMBED, "input": f"text {number}"},
        "responses": {"model": CHAT, "input": "What is slurmgate?", "max_output_tokens": 16},
    }
    body = {**bodies[kind], **more}
    return {"custom_id": f"id-{number}", "method": "POST", "url": ENDPOINTS[kind], "body": body}


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def begun(openai: OpenAI, lines: list[dict[str, Any]], endpoint: str = ENDPOINTS["chat"]) -> Batch:
    file = openai.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return openai.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]


def waited(openai: OpenAI, batch: Batch, timeout_s: float = 90.0) -> Batch:
    """The loop that everybody writes."""
    deadline = time.monotonic() + timeout_s
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = openai.batches.retrieve(batch.id)
    return batch


def read(openai: OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    if file_id is None:
        return {}
    text = openai.files.content(file_id).text
    found = [json.loads(one) for one in text.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


# -- the official client ---------------------------------------------------------------------------------------------


def test_a_file_becomes_answers(openai: OpenAI) -> None:
    batch = waited(openai, begun(openai, [line(number) for number in range(20)]))
    assert (batch.status, batch.error_file_id, batch.model) == ("completed", None, CHAT)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
    times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert list(times) == sorted(one for one in times if one is not None)
    output = read(openai, batch.output_file_id)
    assert output.keys() == {f"id-{number}" for number in range(20)}
    for one in output.values():
        assert (one["error"], one["response"]["status_code"]) == (None, 200)
        assert one["response"]["request_id"].startswith("req_")
        assert one["response"]["body"]["choices"][0]["message"]["content"]
    used = [one["response"]["body"]["usage"] for one in output.values()]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in used)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in used)
    file = openai.files.retrieve(batch.output_file_id or "")
    assert (file.purpose, file.filename.endswith(".jsonl")) == ("batch_output", True)
    assert batch.id in [one.id for one in openai.batches.list()]


def test_an_input_may_come_in_parts(openai: OpenAI) -> None:
    data = jsonl([line(number, "embeddings") for number in range(40)])
    upload = openai.uploads.upload_file_chunked(
        file=data, filename="in.jsonl", bytes=len(data), mime_type="application/jsonl", purpose="batch", part_size=1000
    )
    assert upload.file is not None
    batch = openai.batches.create(
        input_file_id=upload.file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"kind": "parts"}
    )
    batch = waited(openai, batch)
    assert (batch.status, batch.metadata) == ("completed", {"kind": "parts"})
    output = read(openai, batch.output_file_id)
    assert len(output) == 40
    assert {len(one["response"]["body"]["data"][0]["embedding"]) for one in output.values()} == {
        len(openai.embeddings.create(model=EMBED, input="text 1").data[0].embedding)
    }


def test_responses_may_be_asked_for_too(openai: OpenAI) -> None:
    batch = waited(openai, begun(openai, [line(number, "responses") for number in range(3)], ENDPOINTS["responses"]))
    assert batch.status == "completed"
    bodies = [one["response"]["body"] for one in read(openai, batch.output_file_id).values()]
    assert [body["object"] for body in bodies] == ["response"] * 3


def test_what_is_wrong_with_the_file_is_told_by_line(openai: OpenAI) -> None:
    lines = [line(0), line(0), {**line(1), "url": "/v1/embeddings"}, line(2, model="nobody"), line(3, stream=True)]
    data = jsonl(lines) + b"nonsense\n"
    file = openai.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    batch = openai.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = waited(openai, batch)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.line, error.code) for error in batch.errors.data or []] == [
        (2, "duplicate_custom_id"),
        (3, "url_mismatch"),
        (4, "model_not_found"),
        (5, "streaming_unsupported"),
        (6, "invalid_json_line"),
    ]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.failed_at is not None


def test_lines_that_fail_are_in_the_error_file_and_the_batch_is_completed(openai: OpenAI) -> None:
    lines = [line(number) if number % 2 else line(number, messages="none") for number in range(6)]
    batch = waited(openai, begun(openai, lines))
    assert batch.status == "completed"
    output, errors = read(openai, batch.output_file_id), read(openai, batch.error_file_id)
    assert output.keys() == {"id-1", "id-3", "id-5"}
    assert errors.keys() == {"id-0", "id-2", "id-4"}
    for one in errors.values():
        assert (one["error"], one["response"]["status_code"]) == (None, 400)
        assert one["response"]["body"]["error"]["param"] == "messages"
    batch = waited(openai, begun(openai, [line(0, messages="none")]))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert read(openai, batch.error_file_id).keys() == {"id-0"}


def test_a_batch_that_is_cancelled_keeps_what_was_done(gateway: GatewayProcess, openai: OpenAI) -> None:
    batch = begun(openai, [line(number, max_tokens=40) for number in range(3000)])
    headers = {"authorization": f"Bearer {printed_key(gateway)}"}
    with httpx.Client(base_url=f"{gateway.url}/v1", headers=headers, timeout=30) as http:
        seen: list[str] = []
        while len(seen) < 10:  # its results while it runs
            answer = http.get(f"/batches/{batch.id}/results", params={"after_line": len(seen)})
            assert answer.status_code == 200
            seen += [json.loads(one)["custom_id"] for one in answer.content.splitlines()]
        batch = openai.batches.cancel(batch.id)
        assert batch.status in ("cancelling", "cancelled")
        batch = waited(openai, batch)
        output = read(openai, batch.output_file_id)
        while http.get(f"/batches/{batch.id}/results", params={"after_line": len(seen)}).content:
            answer = http.get(f"/batches/{batch.id}/results", params={"after_line": len(seen)})
            seen += [json.loads(one)["custom_id"] for one in answer.content.splitlines()]
    assert (batch.status, batch.cancelled_at is not None) == ("cancelled", True)
    assert batch.request_counts is not None
    assert 10 <= len(output) == batch.request_counts.completed < 3000
    assert set(seen) >= output.keys()
    assert len(seen) == len(set(seen))


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_takes_a_file_there_and_its_answers_back(gateway: GatewayProcess, tmp_path: Path) -> None:
    """Over the socket in the state directory, as on the gateway's own machine."""
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_bytes(jsonl([line(number) for number in range(8)]))
    gateway._environment["OPENAI_API_KEY"] = printed_key(gateway)
    done = gateway.run("batch", "submit", str(prompts), "--window", "1h", "--wait", "-o", str(answers))
    batch_id = done.stdout.strip()
    assert f"{batch_id} is completed: 8 of 8 lines done" in done.stderr
    found = [json.loads(one)["custom_id"] for one in answers.read_text().splitlines()]
    assert sorted(found) == [f"id-{number}" for number in range(8)]
    assert batch_id in gateway.run("batch", "list").stdout
    assert "state       completed" in gateway.run("batch", "show", batch_id).stdout
    assert gateway.run("batch", "results", batch_id).stdout == answers.read_text()
    refused = gateway.run("batch", "cancel", batch_id, check=False)
    assert (refused.returncode, refused.stderr) == (
        1, "slurmgate: Cannot cancel a batch with status 'completed'.\n",
    )  # fmt: skip


# -- webhooks --------------------------------------------------------------------------------------------------------


async def test_a_webhook_is_delivered_though_the_gateway_was_killed(tmp_path: Path) -> None:
    port = free_port()
    async with Answers() as engine:
        config = (
            f'[models."m"]\nengine = "vllm"\nurls = ["{engine.url}"]\n'
            f'[batches]\nwebhook_secret_env = "THE_SECRET"\nwebhook_urls = ["http://127.0.0.1:{port}/hook"]\n'
        )
        gateway = GatewayProcess(tmp_path, config, {**os.environ, "THE_SECRET": SECRET})
        key = await asyncio.to_thread(gateway.key)
        try:
            await asyncio.to_thread(gateway.start)
            async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key) as openai:
                data = jsonl([line(number, model="m") for number in range(5)])
                file = await openai.files.create(file=("in.jsonl", data), purpose="batch")
                batch = await openai.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
                async with asyncio.timeout(60):
                    while batch.status != "completed" or not gateway.events("webhook_failed"):
                        await asyncio.sleep(0.05)
                        batch = await openai.batches.retrieve(batch.id)
                await asyncio.to_thread(gateway.stop, signal.SIGKILL)  # nobody listens there yet
                receiver = Receives(plain(b""))
                receiver.listens_at = port
                async with receiver:
                    await asyncio.to_thread(gateway.start)
                    async with asyncio.timeout(60):
                        await receiver.wait_for_requests()
                head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
                lines = (one.partition(":") for one in head.decode().split("\r\n")[1:])
                headers = {name: value.strip() for name, _, value in lines}
                event = openai.webhooks.unwrap(body, headers, secret=SECRET)
            assert event.type == "batch.completed"
            assert event.data.id == batch.id
            assert SECRET not in gateway.log_path.read_text() + gateway.out_path.read_text()
        finally:
            await asyncio.to_thread(gateway.stop, signal.SIGKILL)


def test_webhook_settings_that_cannot_work_stop_the_start(tmp_path: Path) -> None:
    model = '[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]\n'
    gateway = GatewayProcess(tmp_path, f'{model}[batches]\nwebhook_urls = ["x"]\n')
    with pytest.raises(AssertionError, match="slurmgate ended with 1"):
        gateway.start()
    told = gateway.log_path.read_text()
    assert "batches.webhook_urls[0]: expected an address" in told
    assert "Traceback" not in told
