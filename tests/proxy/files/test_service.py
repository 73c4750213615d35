"""What happens to files when the disk is slow, the database is away, or the client leaves at a bad moment."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.errors import NotFound
from proxy import database as db
from proxy.config import ConfigError, parse
from proxy.files import assembly
from proxy.files.disk import Incoming
from proxy.files.errors import InsufficientStorage, disk_errors
from proxy.stored_responses import StorageFailed
from tests.waiting import until

from .given import CONFIG, client_of, failed, files_of, http_of, left_on_disk, serving

FORM: dict[str, Any] = {"data": {"purpose": "evals"}, "files": {"file": ("x", b"0123456789")}}


class Stuck:
    """A disk that does not answer until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()
        write = Incoming.write

        def stuck(incoming: Incoming, data: bytes | memoryview) -> None:
            self.reached.set()
            assert self.let_go.wait(60)
            write(incoming, data)

        monkeypatch.setattr(Incoming, "write", stuck)


async def test_a_disk_that_hangs_keeps_nobody_else_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck(monkeypatch)
    async with serving(tmp_path) as served, http_of(served) as http:
        sent = [asyncio.create_task(http.post("/files", **FORM), name=f"send {number}") for number in range(20)]
        await until(stuck.reached.is_set)
        async with httpx.AsyncClient() as others:
            for _ in range(20):
                assert (await others.get(f"{served.url}/health")).status_code == 200
                assert (await http.get("/models")).status_code == 200
        stuck.let_go.set()
        assert {answer.status_code for answer in await asyncio.gather(*sent)} == {200}


async def test_who_leaves_while_an_upload_is_completed_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "COPY_AT_ONCE_BYTES", 2)
    async with serving(tmp_path) as served, client_of(served) as openai:
        upload = await openai.uploads.create(filename="x", purpose="evals", bytes=10, mime_type="text/plain")
        part = await openai.uploads.parts.create(upload.id, data=b"0123456789")
        with monkeypatch.context() as patch:
            stuck = Stuck(patch)
            completing = asyncio.create_task(openai.uploads.complete(upload.id, part_ids=[part.id]), name="complete")
            await until(stuck.reached.is_set)
            completing.cancel()
            await asyncio.gather(completing, return_exceptions=True)
            stuck.let_go.set()
            await until(lambda: left_on_disk(files_of(served)) == {part.id: 10})
        assert files_of(served)._shop.room._promises == set()
        assert (await openai.uploads.complete(upload.id, part_ids=[part.id])).status == "completed"


async def test_a_database_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        upload = await openai.uploads.create(filename="x", purpose="evals", bytes=10, mime_type="text/plain")
        engine = files_of(served).store._engine
        for table in (db.upload_parts, db.files):
            table.drop(engine)
        for answer in (
            await http.post("/files", **FORM),
            await http.post(f"/uploads/{upload.id}/parts", files={"data": b"x"}),
            await http.get("/files"),
            await http.get("/files/file-1"),
            await http.get("/files/file-1/content"),
            await http.delete("/files/file-1"),
        ):
            assert failed(answer)[:2] == (503, "storage_failed")
            assert answer.headers["retry-after"] == "5"
        assert left_on_disk(files_of(served)) == {}


async def test_files_that_are_made_here_can_be_made_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai:
        files = files_of(served)
        owner = next(iter(served.gateway.serving._keys._valid.values())).key_id

        def make() -> Any:
            incoming = files.begin()
            incoming.write(b"line\n")
            return files.put(owner, incoming, "batch_1_output.jsonl", "batch_output", keep_s=3600, file_id="file-fixed")

        first = await asyncio.to_thread(make)
        assert await asyncio.to_thread(make) == first
        assert files.path_of(first).read_bytes() == b"line\n"
        shown = await openai.files.retrieve("file-fixed")
        assert (shown.purpose, shown.bytes, shown.expires_at) == ("batch_output", 5, shown.created_at + 3600)
        assert left_on_disk(files) == {"file-fixed": 5}
        with pytest.raises(NotFound):
            await files.find("another", "file-fixed")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, InsufficientStorage),
        (errno.EDQUOT, InsufficientStorage),
        (errno.EFBIG, InsufficientStorage),
        (errno.EIO, StorageFailed),
        (errno.ESTALE, StorageFailed),
    ],
)
def test_what_the_disk_says_becomes_an_error_of_ours_without_a_path(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, disk_errors():
        raise OSError(number, os.strerror(number), "/secret/path")
    assert "secret" not in str(caught.value)


# -- configuration ---------------------------------------------------------------------------------------------------


def test_sizes_are_numbers_of_bytes_or_texts() -> None:
    section = parse(f'{CONFIG}max_bytes_total = "2T"\nmax_bytes_per_project = 5_000\nmax_file_bytes = "200M"').files
    assert (section.max_bytes_total, section.max_bytes_per_project) == (2 * 1024**4, 5000)
    assert (section.max_file_bytes, section.keep_free_bytes) == (200 * 1024**2, 0)


@pytest.mark.parametrize("value", ['"5"', '"5 G"', "-1", "true", "1.5", '"G"'])
def test_a_size_that_is_none_is_told(value: str) -> None:
    with pytest.raises(ConfigError, match=r"files\.max_file_bytes: .*expected a number of bytes"):
        parse(f"{CONFIG}max_file_bytes = {value}")


def test_a_mistyped_name_is_told_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_file_bytes'"):
        parse(f"{CONFIG}max_file_byte = 1")
