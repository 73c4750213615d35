"""What the tests of files share: a gateway, its official client, requests that no client would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from proxy.database import open_database
from proxy.files.service import Files
from proxy.keys import KeyStore
from proxy.projects import ProjectStore
from proxy.terms import NewKey, NewProject
from tests.in_process import Served
from tests.in_process import serving as gateway

CONFIG = '[models."m"]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]\n[files]\nkeep_free_bytes = 0\n'
LINE = b'{"custom_id": "a"}\n'


@asynccontextmanager
async def serving(directory: Path, files: str = "", server: str = "") -> AsyncIterator[Served]:
    """With more in `[files]` and `[server]`."""
    async with gateway(f"{CONFIG}{files}\n[server]\n{server}\n", directory) as served:
        yield served


@asynccontextmanager
async def client_of(served: Served, key: str | None = None) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key or served.key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def http_of(served: Served, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key or served.key}"}
    async with httpx.AsyncClient(base_url=f"{served.url}/v1", headers=headers, timeout=60) as http:
        yield http


def files_of(served: Served) -> Files:
    return served.gateway.serving._files


async def keys(served: Served, directory: Path, *projects: str) -> list[str]:
    """A key for each of these projects, of none for ""; known to the gateway."""
    engine = open_database(directory / "state" / "slurmgate.db")
    made: list[str] = []
    ids: dict[str, str] = {}
    for project in projects:
        if project and project not in ids:
            ids[project] = ProjectStore(engine).create(NewProject(name=project)).id
        given = NewKey(name=f"key {len(made)}", project_id=ids.get(project))
        made.append(KeyStore(engine).make(given)[1])
    engine.dispose()
    await asyncio.to_thread(served.gateway.serving._keys.refresh)
    return made


def on_disk(directory: Path) -> list[Path]:
    """All files but locks, while others come and go."""
    return [Path(where) / name for where, _, names in os.walk(directory) for name in names if name != "lock"]


def left_on_disk(files: Files) -> dict[str, int]:
    """Names and sizes."""
    sizes: dict[str, int] = {}
    for path in on_disk(files.disk.directory):
        with contextlib.suppress(FileNotFoundError):
            sizes[path.name] = path.stat().st_size
    return sizes


def failed(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, code and param of an error in the OpenAI shape."""
    error: dict[str, Any] = json.loads(answer.content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]
