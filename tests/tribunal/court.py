"""A gateway with a tribunal, on a real socket, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from sqlalchemy import select

from proxy import database as db
from tests.in_process import Served, serving
from tests.waiting import until

from .members import Member, Site

Json = dict[str, Any]
QUESTION: list[Any] = [{"role": "user", "content": "How many?"}]


@dataclass
class Court:
    served: Served
    members: dict[str, Member]
    openai: AsyncOpenAI
    http: httpx.AsyncClient

    async def ask(self, **options: Any) -> ChatCompletion:
        asked = {"model": "tribunal", "messages": QUESTION, **options}
        answer: ChatCompletion = await self.openai.chat.completions.create(**asked)
        return answer

    async def stream(self, **options: Any) -> list[ChatCompletionChunk]:
        stream = await self.openai.chat.completions.create(
            **{"model": "tribunal", "messages": QUESTION, "stream": True, **options}
        )
        return [chunk async for chunk in stream]

    async def post(self, **options: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json={"model": "tribunal", "messages": QUESTION, **options})

    async def deliberation(self, answer: httpx.Response) -> Json:
        id = answer.headers["x-slurmgate-deliberation"]
        shown = await self.http.get(f"/v1/tribunal/deliberations/{id}")
        assert shown.status_code == 200, shown.text
        told: Json = shown.json()
        return told

    @property
    def calls(self) -> int:
        return sum(len(member.requests) for member in self.members.values())

    @property
    def used(self) -> tuple[int, int]:
        """(prompt, completion) tokens that the members have said they used."""
        used = [member.used for member in self.members.values()]
        return sum(one.prompt for one in used), sum(one.completion for one in used)

    async def in_the_table(self) -> dict[str, tuple[int, int, int, int]]:
        """Model -> (requests, failed, prompt, completion) of the usage table."""
        gateway = self.served.gateway
        await gateway.serving._accounting.flush()
        with gateway.serving._database.connect() as connection:
            rows = connection.execute(select(db.usage)).all()
        return {row.model: (row.requests, row.failed, row.prompt_tokens, row.completion_tokens) for row in rows}

    async def at_rest(self) -> None:
        """Every child that was ever begun has ended, at the engines too."""
        await until(lambda: not any(member.open for member in self.members.values()))


@asynccontextmanager
async def court(
    directory: Path, members: dict[str, Member], tribunal: str, *, more: str = "", options: dict[str, str] | None = None
) -> AsyncIterator[Court]:
    """These members, by name, behind this `[tribunal]`."""
    for member in members.values():
        await member.__aenter__()
    try:
        config = Site(members, tribunal, more, options or {}).text()
        async with (
            serving(config, directory) as served,
            AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=2, timeout=60) as openai,
            httpx.AsyncClient(base_url=served.url, headers=served.headers, timeout=60) as http,
        ):
            yield Court(served, members, openai, http)
    finally:
        for member in members.values():
            await member.__aexit__(None, None, None)
