"""A batch over HTTP: uploaded, created, waited for, read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from tests.in_process import Served

CHAT = "/v1/chat/completions"


def line(number: int, model: str = "m", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"line {number}"}]
    return {
        "custom_id": f"id-{number}",
        "method": "POST",
        "url": CHAT,
        "body": {"model": model, "messages": messages, **body},
    }


def lines(count: int, model: str = "m") -> list[dict[str, Any]]:
    return [line(number, model) for number in range(count)]


class Client:
    """One key's."""

    def __init__(self, served: Served, key: str = "") -> None:
        headers = {"authorization": f"Bearer {key or served.key}"}
        self.http = httpx.AsyncClient(base_url=served.url, headers=headers, timeout=30)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def submit(self, requests: Iterable[dict[str, Any]], endpoint: str = CHAT, **given: Any) -> str:
        """The new batch's id."""
        data = "".join(json.dumps(request) + "\n" for request in requests).encode()
        sent = await self.http.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"})
        assert sent.status_code == 200, sent.text
        asked = {"input_file_id": sent.json()["id"], "endpoint": endpoint, "completion_window": "24h", **given}
        made = await self.http.post("/v1/batches", json=asked)
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    async def card(self, batch_id: str) -> dict[str, Any]:
        found = await self.http.get(f"/v1/batches/{batch_id}")
        assert found.status_code == 200, found.text
        card: dict[str, Any] = found.json()
        return card

    async def tell(self, batch_id: str, verb: str) -> dict[str, Any]:
        told = await self.http.post(f"/v1/batches/{batch_id}/{verb}")
        assert told.status_code == 200, told.text
        card: dict[str, Any] = told.json()
        return card

    async def until(
        self, batch_id: str, condition: Callable[[dict[str, Any]], Any], timeout_s: float = 30.0
    ) -> dict[str, Any]:
        card: dict[str, Any] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(card := await self.card(batch_id)):  # noqa: ASYNC110  # HTTP tells by being asked
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s:g} s: {card}") from None
        return card

    async def over(self, batch_id: str, timeout_s: float = 30.0) -> dict[str, Any]:
        ends = ("completed", "failed", "expired", "cancelled")
        return await self.until(batch_id, lambda card: card["status"] in ends, timeout_s)

    async def read(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """The lines of an output or error file, by their custom_id; each there once."""
        if file_id is None:
            return {}
        content = await self.http.get(f"/v1/files/{file_id}/content")
        assert content.status_code == 200
        found = [json.loads(text) for text in content.text.splitlines()]
        by_id = {one["custom_id"]: one for one in found}
        assert len(by_id) == len(found)
        return by_id

    async def results(self, card: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of a batch that is over: output and errors, as many as its card says."""
        output, errors = await self.read(card["output_file_id"]), await self.read(card["error_file_id"])
        counts = card["request_counts"]
        if card["status"] == "completed":
            assert (len(output), len(errors)) == (counts["completed"], counts["failed"])
            assert len(output) + len(errors) == counts["total"]
            assert not output.keys() & errors.keys()
        return output, errors
