"""What the tests of batches share: a gateway, input files, and the store to drive a batch by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from openai import AsyncOpenAI
from openai.types import Batch as Card
from sqlalchemy import Engine, select, update

from proxy import database as db
from proxy.batch.store import BatchStore
from proxy.batch.values import Done
from proxy.database import open_database
from tests.in_process import Served
from tests.in_process import serving as gateway

CONFIG = '[models."m"]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]\n[files]\nkeep_free_bytes = 0\n'
CHAT: Final = "/v1/chat/completions"


def request(number: int, model: str = "m", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body, **more}


def jsonl(requests: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in requests)


@asynccontextmanager
async def serving(directory: Path, more: str = "") -> AsyncIterator[Served]:
    """With more of a configuration."""
    async with gateway(CONFIG + more, directory) as served:
        yield served


@asynccontextmanager
async def database(directory: Path) -> AsyncIterator[Engine]:
    """The one of that gateway."""
    engine = open_database(directory / "state" / "slurmgate.db")
    try:
        yield engine
    finally:
        engine.dispose()


async def made(openai: AsyncOpenAI, data: bytes | None = None, **more: Any) -> Card:
    """A new batch."""
    file = await openai.files.create(file=("in.jsonl", data or jsonl([request(1)])), purpose="batch")
    given: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **more}
    return await openai.batches.create(input_file_id=file.id, **given)


class ByHand:
    """Takes a batch through its states by rows alone, as no worker would."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store = BatchStore(engine)

    def set(self, batch_id: str, **values: Any) -> None:
        with db.writing(self.engine) as connection:
            connection.execute(update(db.batches).where(db.batches.c.id == batch_id).values(**values))

    def begin(self, batch_id: str, total: int) -> None:
        """It is in progress, with lines in one window that is claimed."""
        row = {"batch_id": batch_id, "window_no": 0, "offset": 0, "size": 1, "attempts": 0, "state": 0}
        with db.writing(self.engine) as connection:
            window = {"model": "m", "lines": total, "lines_left": total, "tokens": 100, "worker": "w", "epoch": 1}
            connection.execute(db.batch_windows.insert().values(batch_id=batch_id, window_no=0, not_before=0, **window))
            lines = [{**row, "line_no": number, "custom_id": f"line-{number}"} for number in range(1, total + 1)]
            connection.execute(db.batch_lines.insert(), lines)
        self.set(batch_id, status="in_progress", in_progress_at=1, total=total, model="m")

    def answer(self, batch_id: str, *numbers: int, ok: bool = True) -> None:
        """Lines have their results now."""
        done = [
            Done(
                batch_id, 0, 1, number, ok, orjson.dumps({"custom_id": f"line-{number}"}),
                prompt_tokens=10, cached_tokens=4, completion_tokens=5, reasoning_tokens=2,
            )
            for number in numbers
        ]  # fmt: skip
        assert self.store.commit(done).lines == len(numbers)

    def owner_of(self, batch_id: str) -> str:
        with self.engine.connect() as connection:
            return str(connection.execute(select(db.batches.c.owner).where(db.batches.c.id == batch_id)).scalar_one())
