"""Files of a gateway in a process of its own: its memory, its end in the middle, its disk full, its workers."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from proxy.database import open_database
from proxy.files.quota import Quota
from proxy.files.store import FileStore
from tests.gateway_process import GatewayProcess
from tests.waiting import until_sync

from .given import CONFIG, on_disk

SIZE = 200 * 1024 * 1024


@contextlib.contextmanager
def running(directory: Path, config: str = CONFIG) -> Iterator[tuple[GatewayProcess, str]]:
    gateway = GatewayProcess(directory, config)
    key = gateway.key()  # before the start: until a gateway has heard of its first key, everybody is nobody
    gateway.start()
    try:
        yield gateway, key
    finally:
        gateway.stop(signal.SIGKILL)


def client_of(gateway: GatewayProcess, key: str) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def resident_bytes(gateway: GatewayProcess, what: str = "VmRSS") -> int:
    assert gateway.process is not None
    text = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(what))) * 1024


def half_a_file(gateway: GatewayProcess, key: str, size: int) -> socket.socket:
    """A connection over which so many bytes of a larger file have been sent."""
    begun = socket.create_connection(("127.0.0.1", gateway.port))
    begun.sendall(
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {SIZE}\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'.encode()
    )
    begun.sendall(bytes(size))
    return begun


# -- memory ----------------------------------------------------------------------------------------------------------


async def test_a_file_of_200_mb_adds_less_than_50_mb_to_the_gateway(tmp_path: Path) -> None:
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\r\n'
    piece = line * (1024 * 1024 // len(line))
    with running(tmp_path) as (gateway, key):
        before = resident_bytes(gateway)
        kind = {"content-type": "multipart/form-data; boundary=b", "authorization": f"Bearer {key}"}
        sent = 0

        async def form() -> AsyncIterator[bytes]:
            nonlocal sent
            yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
            while sent + len(piece) <= SIZE:
                sent += len(piece)
                yield piece
            yield b"\r\n--b--\r\n"

        async with httpx.AsyncClient(base_url=gateway.url, headers=kind, timeout=100) as http:
            answer = await http.post("/v1/files", content=form())
            assert answer.status_code == 200, answer.text
            made = answer.json()
            assert made["bytes"] == sent > SIZE - len(piece)
            got = 0
            async with http.stream("GET", f"/v1/files/{made['id']}/content") as content:
                async for data in content.aiter_raw():
                    got += len(data)
            assert got == sent
        assert resident_bytes(gateway, "VmHWM") - before < 50_000_000


# -- the end in the middle -------------------------------------------------------------------------------------------


def test_a_gateway_that_is_killed_leaves_whole_files_and_no_halves(tmp_path: Path) -> None:
    files = tmp_path / "state" / "files"
    with running(tmp_path) as (gateway, key):
        with client_of(gateway, key) as openai:
            whole = openai.files.create(file=("in.jsonl", b"whole\n"), purpose="batch")
            upload = openai.uploads.create(filename="x", purpose="evals", bytes=8, mime_type="text/plain")
            first = openai.uploads.parts.create(upload.id, data=b"1234")
        with half_a_file(gateway, key, 3_000_000):
            until_sync(lambda: sum(path.stat().st_size for path in on_disk(files)) > 1_000_000)
            gateway.stop(signal.SIGKILL)
        assert len(on_disk(files)) == 3
        # as if it had been killed between the rename and the row
        orphan = files / "content" / "aa" / "file-aa"
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"no row")
        gateway.start()
        until_sync(lambda: len(on_disk(files)) == 2)
        with client_of(gateway, key) as openai:
            assert openai.files.list().data == [whole]
            assert openai.files.content(whole.id).read() == b"whole\n"
            second = openai.uploads.parts.create(upload.id, data=b"5678")
            done = openai.uploads.complete(upload.id, part_ids=[first.id, second.id])
            assert done.file is not None
            assert openai.files.content(done.file.id).read() == b"12345678"
        until_sync(lambda: [event["count"] for event in gateway.events("files_swept")] == [2])


def test_whenever_it_is_killed_each_row_has_its_bytes(tmp_path: Path) -> None:
    """Clients upload as fast as they can; the gateway is killed under them, again and again."""
    data = b"0123456789" * 10_000
    promised: list[str] = []
    with running(tmp_path) as (gateway, key):
        for number in range(4):
            with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}) as http:
                for _ in range(5 + 7 * number):
                    made = http.post("/v1/files", data={"purpose": "evals"}, files={"file": ("x", data)})
                    promised.append(made.json()["id"])
                begun = [half_a_file(gateway, key, 100_000 * one) for one in range(3)]
                gateway.stop(signal.SIGKILL)
                for one in begun:
                    one.close()
            gateway.start()
        engine = open_database(tmp_path / "state" / "slurmgate.db")
        store = FileStore(engine, Quota())
        with client_of(gateway, key) as openai:
            there = openai.files.list().data
            assert [file.id for file in there] == promised[::-1]
            for file in there[::10]:
                assert openai.files.content(file.id).read() == data
        files = tmp_path / "state" / "files"
        until_sync(lambda: {path.name for path in on_disk(files)} == set(promised))
        assert store.known(promised) == set(promised)
        engine.dispose()


# -- a full disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own, where one may be mounted; it is not on the machine's disk."""
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    full = tmp_path / "small"
    with small_disk(full, 8), running(tmp_path, f'{CONFIG}directory = "{full}"') as (gateway, key):
        headers = {"authorization": f"Bearer {key}"}
        with client_of(gateway, key) as openai, httpx.Client(base_url=gateway.url, headers=headers) as http:
            first = openai.files.create(file=("x", bytes(5_000_000)), purpose="evals")
            for length_told in (True, False):
                request = http.build_request(
                    "POST", "/v1/files", data={"purpose": "evals"}, files={"file": ("x", bytes(6_000_000))}
                )
                body = request.read()
                kind = {"content-type": request.headers["content-type"]}
                answer = http.post("/v1/files", content=body if length_told else iter([body]), headers=kind)
                assert answer.status_code == 507, answer.text
                assert answer.json()["error"]["code"] == "insufficient_storage"
                assert answer.headers["x-should-retry"] == "false"
                until_sync(lambda: [path.name for path in on_disk(full)] == [first.id])
            assert len(openai.files.content(first.id).read()) == 5_000_000
            openai.files.delete(first.id)
            assert openai.files.create(file=("x", bytes(6_000_000)), purpose="evals").bytes == 6_000_000
        assert gateway.get("/health") == {"status": "ok"}


def test_what_the_kernel_will_not_write_is_told_as_a_full_disk(tmp_path: Path) -> None:
    """Where nobody may mount anything: files of this process, and of no other, may not be large."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000));"
        "from proxy.cli import main; sys.exit(main())"
    )
    gateway = GatewayProcess(tmp_path, CONFIG)
    key = gateway.key()
    command = [sys.executable, "-c", code, "serve", *gateway._common(), "--port", str(gateway.port)]
    with (tmp_path / "out").open("wb") as out:
        gateway.process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        until_sync(gateway._answers)
        files = tmp_path / "state" / "files"
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=gateway.url, headers=headers) as http:
            answer = http.post("/v1/files", data={"purpose": "evals"}, files={"file": ("x", bytes(4_000_000))})
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
            assert on_disk(files) == []
            answer = http.post("/v1/files", data={"purpose": "evals"}, files={"file": ("x", bytes(2_000_000))})
            assert answer.status_code == 200
    finally:
        gateway.stop(signal.SIGKILL)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3_000_000


def test_a_directory_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    gateway = GatewayProcess(tmp_path, f'{CONFIG}directory = "{tmp_path / "taken" / "files"}"')
    with pytest.raises(AssertionError, match="slurmgate ended with"):
        gateway.start()
    told = gateway.log_path.read_text() + gateway.out_path.read_text()
    assert "files.directory" in told
    assert "Not a directory" in told
    assert "Traceback" not in told


# -- several processes -----------------------------------------------------------------------------------------------


async def test_parts_may_go_to_any_worker(tmp_path: Path) -> None:
    pieces = [bytes([number]) * 50_000 for number in range(12)]
    with running(tmp_path, f"{CONFIG}[server]\nworkers = 2\n") as (gateway, key):
        headers = {"authorization": f"Bearer {key}"}
        upload = {"filename": "x", "purpose": "evals", "bytes": 600_000, "mime_type": "text/plain"}
        async with httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=headers, timeout=60) as http:
            made = (await http.post("/uploads", json=upload)).json()["id"]

            async def send(piece: bytes) -> str:
                async with httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=headers, timeout=60) as own:
                    part: str = (await own.post(f"/uploads/{made}/parts", files={"data": piece})).json()["id"]
                    return part

            parts = await asyncio.gather(*map(send, pieces))
            done = (await http.post(f"/uploads/{made}/complete", json={"part_ids": parts})).json()
            content = await http.get(f"/files/{done['file']['id']}/content")
            assert content.content == b"".join(pieces)
        incoming = [path for path in (tmp_path / "state" / "files" / "incoming").iterdir() if path.is_dir()]
        assert len(incoming) == 2
