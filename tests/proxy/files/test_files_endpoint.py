"""/v1/files over real sockets, asked by the official client and by what no client would send."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import NotFoundError

from proxy.files import values
from proxy.files.body import LEAST_BYTES
from tests.in_process import Served
from tests.waiting import until

from .given import LINE, client_of, failed, files_of, http_of, keys, left_on_disk, serving

DAY = 24 * 3600


# -- the official client ---------------------------------------------------------------------------------------------


async def test_a_file_is_kept_shown_listed_read_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai:
        made = await openai.files.create(file=("in.jsonl", LINE * 3), purpose="batch")
        assert made.id.startswith("file-")
        assert (made.object, made.bytes, made.filename, made.purpose, made.status) == (
            "file", 3 * len(LINE), "in.jsonl", "batch", "processed",
        )  # fmt: skip
        assert abs(made.created_at - time.time()) < 60
        assert made.expires_at == made.created_at + 30 * DAY
        assert await openai.files.retrieve(made.id) == made
        assert (await openai.files.list()).data == [made]
        assert (await openai.files.content(made.id)).read() == LINE * 3
        deleted = await openai.files.delete(made.id)
        assert deleted.to_dict() == {"id": made.id, "object": "file", "deleted": True}
        for gone in (openai.files.retrieve(made.id), openai.files.content(made.id), openai.files.delete(made.id)):
            with pytest.raises(NotFoundError) as caught:
                await gone
            assert caught.value.code == "not_found"
        assert (await openai.files.list()).data == []
        assert left_on_disk(files_of(served)) == {}


async def test_only_files_of_batches_end_by_themselves_and_others_as_they_are_asked_to(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai:
        made = await openai.files.create(file=("notes.txt", b"x"), purpose="user_data")
        assert made.expires_at is None
        for seconds in (3600, 30 * DAY):
            made = await openai.files.create(
                file=("in.jsonl", b""), purpose="batch", expires_after={"anchor": "created_at", "seconds": seconds}
            )
            assert (made.expires_at, made.bytes) == (made.created_at + seconds, 0)
        assert (await openai.files.content(made.id)).read() == b""


async def test_the_official_client_pages_through_all_files(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai:
        made = [
            (await openai.files.create(file=(f"{number}.jsonl", LINE), purpose=purpose)).id
            for number in range(4)
            for purpose in ("batch", "evals")
        ]
        assert [file.id async for file in openai.files.list(limit=3)] == made[::-1]
        assert [file.id async for file in openai.files.list(limit=3, order="asc")] == made
        assert [file.id async for file in openai.files.list(limit=3, purpose="evals")] == made[::-1][::2]
        page = await openai.files.list(limit=3, after=made[6])
        assert [file.id for file in page.data] == [made[5], made[4], made[3]]
        told = page.to_dict()
        assert (told["first_id"], told["last_id"], told["has_more"]) == (made[5], made[3], True)
        await openai.files.delete(made[5])
        assert [file.id for file in (await openai.files.list(limit=2, after=made[5])).data] == [made[4], made[3]]
        assert (await openai.files.list(limit=8)).has_more is False


async def test_a_file_belongs_to_its_project_and_to_nobody_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        one, also, other, alone, alone2 = await keys(served, tmp_path, "one", "one", "other", "", "")
        async with client_of(served, one) as openai:
            made = await openai.files.create(file=("in.jsonl", LINE), purpose="batch")
        async with client_of(served, also) as openai:
            assert (await openai.files.content(made.id)).read() == LINE
        async with client_of(served, alone) as openai:
            own = await openai.files.create(file=("in.jsonl", LINE), purpose="batch")
        for key, file_id in ((other, made.id), (alone, made.id), (one, own.id), (alone2, own.id)):
            async with client_of(served, key) as openai:
                assert file_id not in [file.id for file in (await openai.files.list()).data]
                for attempt in (openai.files.retrieve, openai.files.content, openai.files.delete):
                    with pytest.raises(NotFoundError):
                        await attempt(file_id)
        async with client_of(served, also) as openai:
            assert (await openai.files.delete(made.id)).deleted


# -- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "expected", "part"),
    [
        ({}, 200, b"0123456789", None),
        ({"range": "bytes=0-3"}, 206, b"0123", "bytes 0-3/10"),
        ({"range": "bytes=4-"}, 206, b"456789", "bytes 4-9/10"),
        ({"range": "bytes=-3"}, 206, b"789", "bytes 7-9/10"),
        ({"range": "bytes=8-99"}, 206, b"89", "bytes 8-9/10"),
        ({"range": "bytes=0-0"}, 206, b"0", "bytes 0-0/10"),
        ({"range": "bytes=0-1,4-5"}, 200, b"0123456789", None),
        ({"range": "lines=1-2"}, 200, b"0123456789", None),
        ({"range": "bytes=5-2"}, 200, b"0123456789", None),
        ({"range": "bytes=1-2", "if-range": '"another"'}, 200, b"0123456789", None),
    ],
)  # fmt: skip
async def test_a_range_of_the_bytes(
    tmp_path: Path, headers: dict[str, str], status: int, expected: bytes, part: str | None
) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        made = await openai.files.create(file=("ten.txt", b"0123456789"), purpose="user_data")
        for method in ("GET", "HEAD"):
            answer = await http.request(method, f"/files/{made.id}/content", headers=headers)
            assert (answer.status_code, answer.headers.get("content-range")) == (status, part)
            assert answer.content == (expected if method == "GET" else b"")
            assert answer.headers["content-length"] == str(len(expected))
            assert answer.headers["etag"] == f'"{made.id}"'
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["content-type"] == "application/octet-stream"


async def test_bytes_that_are_not_there_and_bytes_that_are_known(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        made = await openai.files.create(file=("ü \" '.txt", b"0123456789"), purpose="user_data")
        empty = await openai.files.create(file=("empty", b""), purpose="user_data")
        for file, wanted in ((made, "bytes=10-"), (made, "bytes=-0"), (empty, "bytes=0-0"), (empty, "bytes=-5")):
            answer = await http.get(f"/files/{file.id}/content", headers={"range": wanted})
            assert failed(answer) == (416, "range_not_satisfiable", None)
            assert answer.headers["content-range"] == f"bytes */{file.bytes}"
        for known in (f'"{made.id}"', f'W/"{made.id}"', f'"x", "{made.id}"', "*"):
            answer = await http.get(f"/files/{made.id}/content", headers={"if-none-match": known})
            assert (answer.status_code, answer.content) == (304, b"")
        answer = await http.get(f"/files/{made.id}/content", headers={"range": "bytes=2-3", "if-range": f'"{made.id}"'})
        assert answer.content == b"23"
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%BC%20%2522%20%27.txt"


async def test_a_large_file_comes_back_as_it_went(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        made = await openai.files.create(file=("large", data), purpose="user_data")
        assert (await openai.files.content(made.id)).read() == data
        answer = await http.get(f"/files/{made.id}/content", headers={"range": "bytes=1000000-9000000"})
        assert answer.content == data[1_000_000:9_000_001]


async def test_a_client_that_does_not_read_on_is_waited_for_and_one_that_goes_is_let_go(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        made = await openai.files.create(file=("large", bytes(30_000_000)), purpose="user_data")
        async with http.stream("GET", f"/files/{made.id}/content") as answer:
            async for _ in answer.aiter_raw(1024):
                break
            assert served.gateway.serving._metrics.in_flight == 1
        await until(lambda: served.gateway.serving._metrics.in_flight == 0)
        await until(lambda: '"error":"client_disconnected"' in served.log_text().replace(" ", ""))


async def test_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        made = await openai.files.create(file=("large", bytes(20_000_000)), purpose="user_data")
        async with http.stream("GET", f"/files/{made.id}/content") as answer:
            await openai.files.delete(made.id)
            assert sum([len(data) async for data in answer.aiter_raw()]) == 20_000_000


async def test_a_file_whose_bytes_are_gone_is_not_found_and_one_that_was_cut_breaks_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        made = await openai.files.create(file=("x", b"0123456789"), purpose="user_data")
        path = files_of(served).disk.path(made.id)
        path.write_bytes(b"01234")
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"/files/{made.id}/content")
        path.unlink()
        assert failed(await http.get(f"/files/{made.id}/content")) == (404, "not_found", "id")
        await until(lambda: "file_without_content" in served.log_text())


# -- bad input -------------------------------------------------------------------------------------------------------

FILE = ("in.jsonl", LINE)


@pytest.mark.parametrize(
    ("fields", "file", "code", "param"),
    [
        ({}, FILE, "missing_required_parameter", "purpose"),
        ({"purpose": ""}, FILE, "empty_string", "purpose"),
        ({"purpose": "batch_output"}, FILE, "invalid_value", "purpose"),
        ({"purpose": "batch"}, None, "missing_required_parameter", "file"),
        ({"purpose": "batch"}, ("in.json", LINE), "invalid_file_format", "file"),
        ({"purpose": "batch"}, ("", LINE), "invalid_value", "file"),
        ({"purpose": "vision"}, ("x" * 256, LINE), "invalid_value", "file"),
        ({"purpose": "vision"}, ("a/..", LINE), "invalid_value", "file"),
        ({"purpose": "batch", "prupose": "batch"}, FILE, "unknown_parameter", "prupose"),
        ({"purpose": "batch", "expires_after": "1"}, FILE, "invalid_type", "expires_after"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, FILE, "missing_required_parameter",
         "expires_after.anchor"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, FILE, "missing_required_parameter",
         "expires_after.seconds"),
        ({"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, FILE,
         "invalid_value", "expires_after.anchor"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, FILE,
         "integer_below_min_value", "expires_after.seconds"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}, FILE,
         "integer_above_max_value", "expires_after.seconds"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"}, FILE,
         "invalid_type", "expires_after.seconds"),
        ({"purpose": "batch", "expires_after[day]": "1"}, FILE, "unknown_parameter", "expires_after.day"),
        ({"purpose": "x" * 5000}, FILE, "string_above_max_length", "purpose"),
    ],
)  # fmt: skip
async def test_a_form_with_a_mistake_is_refused_and_leaves_nothing(
    tmp_path: Path, fields: dict[str, str], file: tuple[str, bytes] | None, code: str, param: str
) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        # the fields behind the file, too: then nothing is known while it comes
        for behind in (False, True):
            body, kind = form(fields, file, behind=behind)
            answer = await http.post("/files", content=body, headers={"content-type": kind})
            assert failed(answer) == (400, code, param), behind
        assert left_on_disk(files_of(served)) == {}
        assert (await http.get("/files")).json()["data"] == []


def form(fields: dict[str, str], file: tuple[str, bytes] | None, *, behind: bool = False) -> tuple[bytes, str]:
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    files = [b'name="file"; filename="%b"\r\n\r\n%b' % (file[0].encode(), file[1])] if file else []
    parts = [*files, *parts] if behind else [*parts, *files]
    body = b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return body, "multipart/form-data; boundary=b"


PART = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
PURPOSE = PART % (b"purpose", b"", b"batch")
JSONL = PART % (b"file", b'; filename="in.jsonl"', LINE)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_form"),
        (b"nonsense", "invalid_form"),
        (PURPOSE + JSONL, "invalid_form"),
        ((PURPOSE + JSONL)[:-30], "invalid_form"),
        (PURPOSE + PURPOSE + JSONL + b"--b--\r\n", "duplicate_parameter"),
        (PURPOSE + JSONL + JSONL + b"--b--\r\n", "duplicate_parameter"),
        (PURPOSE + JSONL + PART % (b"more", b'; filename="x"', b"") + b"--b--\r\n", "unknown_parameter"),
        (PURPOSE + PART % (b"file", b'; filename="\xff.jsonl"', b"") + b"--b--\r\n", "invalid_form"),
        (b"--b\r\n\r\nno name\r\n" + JSONL + b"--b--\r\n", "invalid_form"),
        (b"".join(PART % (b"f%d" % n, b"", b"") for n in range(101)) + JSONL + b"--b--\r\n", "invalid_form"),
        (b"--b\r\n" + b"x" * 100_000 + b": y\r\n\r\n\r\n--b--\r\n", "invalid_form"),
    ],
)  # fmt: skip
async def test_what_is_no_form_is_refused_and_leaves_nothing(tmp_path: Path, body: bytes, code: str) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        answer = await http.post("/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
        assert failed(answer)[:2] == (400, code)
        assert left_on_disk(files_of(served)) == {}


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary=" + "b" * 300]
)
async def test_what_does_not_say_that_it_is_a_form_is_refused(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        answer = await http.post("/files", content=PURPOSE + JSONL + b"--b--\r\n", headers={"content-type": kind})
        assert answer.status_code == 400


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("limit=-1", "limit"),
        ("order=up", "order"), ("after=nothing", "after"), ("after=file-%00", "after"), ("after=" + "x" * 99, "after"),
    ],
)  # fmt: skip
async def test_a_list_that_cannot_be_given_is_refused(tmp_path: Path, query: str, param: str) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        assert failed(await http.get(f"/files?{query}")) == (400, "invalid_value", param)


@pytest.mark.parametrize("name", ["x", "file-%00", "x" * 5000, "upload_1"])
async def test_ids_that_no_file_has_are_not_found(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            assert failed(await http.request(method, f"/files/{name}{path}")) == (404, "not_found", "id")


async def test_a_name_with_a_path_keeps_its_last_part(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        for name in ("../../etc/in.jsonl", "C:\\data\\in.jsonl", "/in.jsonl"):
            body, kind = form({"purpose": "batch"}, (name, LINE))
            made = (await http.post("/files", content=body, headers={"content-type": kind})).json()
            assert made["filename"] == "in.jsonl"


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_too_large_is_refused_whether_its_length_was_told_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "BATCH_BYTES", 100_000)
    async with serving(tmp_path, "max_file_bytes = 1_000_000") as served, http_of(served) as http:
        sizes = {"batch": 100_000, "user_data": 1_000_000}
        for purpose, most in sizes.items():
            for more, status in ((0, 200), (1, 413)):
                for behind in (False, True):
                    body, kind = form({"purpose": purpose}, ("in.jsonl", bytes(most + more)), behind=behind)

                    async def pieces(body: bytes = body) -> Any:
                        for start in range(0, len(body), 50_000):
                            yield body[start : start + 50_000]

                    for content in (body, pieces()):
                        answer = await http.post("/files", content=content, headers={"content-type": kind})
                        assert answer.status_code == status, (purpose, more, behind)
        body, kind = form({"purpose": "user_data"}, ("x", bytes(5_000_000)))
        assert failed(await http.post("/files", content=body, headers={"content-type": kind}))[0] == 413
        assert len(left_on_disk(files_of(served))) == 8


async def test_a_project_keeps_no_more_than_its_quota(tmp_path: Path) -> None:
    async with serving(tmp_path, "max_bytes_per_project = 1000\nmax_bytes_total = 1700") as served:
        one, also, other = await keys(served, tmp_path, "one", "one", "other")
        async with client_of(served, one) as openai, http_of(served, also) as http, http_of(served, other) as others:
            first = await openai.files.create(file=("a", bytes(900)), purpose="user_data")

            def send(size: int) -> dict[str, Any]:
                body, kind = form({"purpose": "user_data"}, ("b", bytes(size)))
                return {"content": body, "headers": {"content-type": kind}}

            assert failed(await http.post("/files", **send(101))) == (413, "storage_quota_exceeded", None)
            assert (await http.post("/files", **send(100))).status_code == 200
            upload = {"filename": "x", "purpose": "user_data", "bytes": 1, "mime_type": "text/plain"}
            assert failed(await http.post("/uploads", json=upload))[:2] == (413, "storage_quota_exceeded")
            answer = await others.post("/files", **send(701))
            assert failed(answer) == (507, "insufficient_storage", None)
            assert answer.headers["x-should-retry"] == "false"
            assert (await others.post("/files", **send(700))).status_code == 200
            await openai.files.delete(first.id)
            assert (await http.post("/uploads", json={**upload, "bytes": 900})).status_code == 200
            assert failed(await http.post("/files", **send(1))) == (413, "storage_quota_exceeded", None)
        assert sorted(left_on_disk(files_of(served)).values()) == [100, 700]


async def test_many_at_once_get_no_more_than_the_quota_together(tmp_path: Path) -> None:
    async with serving(tmp_path, "max_bytes_per_project = 100_000") as served, http_of(served) as http:
        body, kind = form({"purpose": "user_data"}, ("b", bytes(30_000)))
        answers = await asyncio.gather(
            *(http.post("/files", content=body, headers={"content-type": kind}) for _ in range(10))
        )
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [413] * 7
        assert len(left_on_disk(files_of(served))) == 3


async def test_nothing_is_taken_that_would_leave_less_free_than_is_to_stay(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        files_of(served)._shop.room._free = lambda: 1_000_000
        body, kind = form({"purpose": "user_data"}, ("b", bytes(1_100_000)))
        assert failed(await http.post("/files", content=body, headers={"content-type": kind}))[0] == 507
        assert left_on_disk(files_of(served)) == {}
        body, kind = form({"purpose": "user_data"}, ("b", bytes(900_000)))
        assert (await http.post("/files", content=body, headers={"content-type": kind})).status_code == 200


# -- slow and broken clients -----------------------------------------------------------------------------------------


async def raw(served: Served, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a form has begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
        f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {length}\r\n\r\n"
    )
    writer.write(head.encode() + PURPOSE + JSONL.removesuffix(b"\r\n"))
    return reader, writer


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        files = files_of(served)
        _, writer = await raw(served, 50_000_000)
        writer.write(bytes(5_000_000))
        await writer.drain()
        await until(lambda: sum(left_on_disk(files).values()) > 1_000_000)
        writer.close()
        await until(lambda: not left_on_disk(files))
        await until(lambda: '"error":"client_disconnected"' in served.log_text().replace(" ", ""))
        assert files._shop.room._promises == set()


async def test_a_large_file_may_take_longer_than_a_small_request_as_long_as_it_comes_on(tmp_path: Path) -> None:
    async with serving(tmp_path, server="body_timeout_s = 1.0") as served:
        reader, writer = await raw(served, 50_000_000)
        started = time.monotonic()
        while time.monotonic() - started < 3:  # three times the limit
            writer.write(bytes(LEAST_BYTES))
            await writer.drain()
            await asyncio.sleep(0.05)
        assert not reader.at_eof()
        assert left_on_disk(files_of(served)) != {}
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 30)  # it sends no more
        assert b" 408 " in answer
        await until(lambda: not left_on_disk(files_of(served)))
        writer.close()


async def test_a_file_that_is_refused_early_is_told_so_before_it_has_come(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        reader, writer = await raw(served, 600 * 1024 * 1024)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert answer.startswith(b"HTTP/1.1 413 ")
        writer.close()


# -- what is told ----------------------------------------------------------------------------------------------------


async def test_no_name_and_no_content_reaches_the_log(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        made = await openai.files.create(file=("secret-name.jsonl", b"secret content"), purpose="batch")
        await openai.files.content(made.id)
        body, kind = form({"purpose": "secret purpose"}, ("secret-name", b"secret content"))
        await http.post("/files", content=body, headers={"content-type": kind})
        await http.get("/files?purpose=secret")
    text = served.log_text()
    assert "secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line["endpoint"] for line in lines if line["event"] == "request"]
    assert requests == ["/v1/files", "/v1/files/{id}/content", "/v1/files", "/v1/files"]
