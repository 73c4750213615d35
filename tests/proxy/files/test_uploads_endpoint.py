"""/v1/uploads over real sockets, asked by the official client and by what no client would send."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from proxy.files import values
from proxy.files.uploads import MOST_PARTS

from .given import client_of, failed, files_of, http_of, keys, left_on_disk, serving

UPLOAD: dict[str, Any] = {"filename": "in.jsonl", "purpose": "batch", "bytes": 9, "mime_type": "application/jsonl"}


async def parts_of(openai: AsyncOpenAI, upload_id: str, *pieces: bytes) -> list[str]:
    return [(await openai.uploads.parts.create(upload_id, data=piece)).id for piece in pieces]


async def test_parts_in_their_order_are_a_file(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai:
        upload = await openai.uploads.create(**UPLOAD)
        assert upload.id.startswith("upload_")
        assert (upload.object, upload.status, upload.bytes, upload.filename, upload.purpose, upload.file) == (
            "upload", "pending", 9, "in.jsonl", "batch", None,
        )  # fmt: skip
        assert upload.expires_at == upload.created_at + 3600
        part = await openai.uploads.parts.create(upload.id, data=b"456")
        assert (part.object, part.upload_id) == ("upload.part", upload.id)
        assert part.id.startswith("part_")
        first, last = await parts_of(openai, upload.id, b"123", b"789")
        assert (await openai.files.list()).data == []
        done = await openai.uploads.complete(upload.id, part_ids=[first, part.id, last])
        assert done.status == "completed"
        assert done.file is not None
        assert (done.file.bytes, done.file.filename, done.file.purpose, done.file.status) == (
            9, "in.jsonl", "batch", "processed",
        )  # fmt: skip
        assert done.file.expires_at == done.file.created_at + 30 * 24 * 3600
        assert (await openai.files.content(done.file.id)).read() == b"123456789"
        assert await openai.files.retrieve(done.file.id) == done.file
        assert left_on_disk(files_of(served)) == {done.file.id: 9}


async def test_the_official_client_sends_a_file_in_chunks(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(1_000_003)
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    async with serving(tmp_path) as served, client_of(served) as openai:
        ways: list[dict[str, Any]] = [{"file": path}, {"file": data, "filename": "data.bin", "bytes": len(data)}]
        for way in ways:
            done = await openai.uploads.upload_file_chunked(
                mime_type="application/octet-stream",
                purpose="user_data",
                part_size=300_000,
                md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
                **way,
            )
            assert done.file is not None
            assert (await openai.files.content(done.file.id)).read() == data


async def test_parts_may_come_all_at_once(tmp_path: Path) -> None:
    pieces = [bytes([number]) * 100_000 for number in range(20)]
    async with serving(tmp_path) as served, client_of(served) as openai:
        upload = await openai.uploads.create(**{**UPLOAD, "bytes": 2_000_000})
        made = await asyncio.gather(*(openai.uploads.parts.create(upload.id, data=piece) for piece in pieces))
        done = await openai.uploads.complete(upload.id, part_ids=[part.id for part in made])
        assert done.file is not None
        assert (await openai.files.content(done.file.id)).read() == b"".join(pieces)


async def test_who_lost_the_answer_gets_it_again_and_who_asks_for_something_else_does_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai:
        upload = await openai.uploads.create(**UPLOAD)
        lost, first, second = await parts_of(openai, upload.id, b"12345", b"12345", b"6789")  # the first was sent twice
        done = await openai.uploads.complete(upload.id, part_ids=[first, second])
        assert await openai.uploads.complete(upload.id, part_ids=[first, second]) == done
        with pytest.raises(BadRequestError) as caught:
            await openai.uploads.complete(upload.id, part_ids=[lost, second])
        assert caught.value.code == "upload_completed"
        assert len(left_on_disk(files_of(served))) == 1


async def test_of_many_who_complete_at_once_all_get_the_same_file(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        upload = await openai.uploads.create(**UPLOAD)
        made = await parts_of(openai, upload.id, b"12345", b"6789")
        url = f"/uploads/{upload.id}/complete"
        answers = await asyncio.gather(*(http.post(url, json={"part_ids": made}) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        files = {answer.json()["file"]["id"] for answer in answers}
        assert len(files) == 1
        assert left_on_disk(files_of(served)) == {files.pop(): 9}


async def test_an_upload_that_was_cancelled_takes_nothing_more_and_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        upload = await openai.uploads.create(**UPLOAD)
        made = await parts_of(openai, upload.id, b"12345", b"6789")
        cancelled = await openai.uploads.cancel(upload.id)
        assert (cancelled.status, cancelled.id, cancelled.file) == ("cancelled", upload.id, None)
        assert left_on_disk(files_of(served)) == {}
        url = f"/uploads/{upload.id}"
        for answer in (
            await http.post(f"{url}/parts", files={"data": b"x"}),
            await http.post(f"{url}/complete", json={"part_ids": made}),
            await http.post(f"{url}/cancel"),
        ):
            assert failed(answer) == (400, "upload_cancelled", "upload_id")


async def test_an_upload_past_its_time_takes_nothing_more_and_is_swept(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        upload = await openai.uploads.create(**UPLOAD)
        made = await parts_of(openai, upload.id, b"12345", b"6789")
        files = files_of(served)
        files.uploads.store._now = lambda: upload.expires_at
        url = f"/uploads/{upload.id}"
        for answer in (
            await http.post(f"{url}/parts", files={"data": b"x"}),
            await http.post(f"{url}/complete", json={"part_ids": made}),
            await http.post(f"{url}/cancel"),
        ):
            assert failed(answer) == (400, "upload_expired", "upload_id")
        assert len(left_on_disk(files)) == 2
        assert await asyncio.to_thread(files._sweeper.expired) == 2
        assert left_on_disk(files) == {}


async def test_an_upload_belongs_to_its_project(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        one, also, other = await keys(served, tmp_path, "one", "one", "other")
        async with client_of(served, one) as openai:
            upload = await openai.uploads.create(**UPLOAD)
        async with client_of(served, also) as openai:
            made = await parts_of(openai, upload.id, b"12345", b"6789")
        async with client_of(served, other) as openai:
            for attempt in (
                openai.uploads.parts.create(upload.id, data=b"x"),
                openai.uploads.complete(upload.id, part_ids=made),
                openai.uploads.cancel(upload.id),
            ):
                with pytest.raises(NotFoundError):
                    await attempt
            theirs = await openai.uploads.create(**UPLOAD)
            with pytest.raises(BadRequestError) as caught:
                await openai.uploads.complete(theirs.id, part_ids=made)
            assert caught.value.code == "part_not_found"


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"filename": None}, "missing_required_parameter", "filename"),
        ({"filename": ""}, "empty_string", "filename"),
        ({"filename": 1}, "invalid_type", "filename"),
        ({"filename": "in.txt"}, "invalid_file_format", "filename"),
        ({"filename": "a\nb"}, "invalid_value", "filename"),
        ({"purpose": None}, "missing_required_parameter", "purpose"),
        ({"purpose": "nothing"}, "invalid_value", "purpose"),
        ({"bytes": None}, "missing_required_parameter", "bytes"),
        ({"bytes": "9"}, "invalid_type", "bytes"),
        ({"bytes": True}, "invalid_type", "bytes"),
        ({"bytes": 1.5}, "invalid_type", "bytes"),
        ({"bytes": -1}, "integer_below_min_value", "bytes"),
        ({"bytes": values.BATCH_BYTES + 1}, "integer_above_max_value", "bytes"),
        ({"bytes": values.UPLOAD_BYTES + 1, "purpose": "evals"}, "integer_above_max_value", "bytes"),
        ({"mime_type": None}, "missing_required_parameter", "mime_type"),
        ({"mime_type": 1}, "invalid_type", "mime_type"),
        ({"expires_after": 3600}, "invalid_type", "expires_after"),
        ({"expires_after": {"anchor": "created_at", "seconds": 10}}, "integer_below_min_value",
         "expires_after.seconds"),
        ({"size": 9}, "unknown_parameter", "size"),
    ],
)  # fmt: skip
async def test_an_upload_with_a_mistake_is_refused(
    tmp_path: Path, changes: dict[str, Any], code: str, param: str
) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        given = {key: value for key, value in {**UPLOAD, **changes}.items() if value is not None}
        assert failed(await http.post("/uploads", json=given)) == (400, code, param)


async def test_the_largest_uploads_can_be_begun(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai:
        await openai.uploads.create(**{**UPLOAD, "bytes": values.BATCH_BYTES})
        await openai.uploads.create(**{**UPLOAD, "bytes": values.UPLOAD_BYTES, "purpose": "evals"})


async def test_a_part_with_a_mistake_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "PART_BYTES", 50_000)
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        upload = await openai.uploads.create(**{**UPLOAD, "bytes": 100_000})
        url = f"/uploads/{upload.id}/parts"

        async def sent(**options: Any) -> httpx.Response:
            return await http.post(url, **options)

        assert failed(await sent(json={})) == (400, "invalid_content_type", None)
        assert failed(await sent(files={"file": b"x"})) == (400, "unknown_parameter", "file")
        assert failed(await sent(files={"data": b"x"}, data={"more": "1"})) == (400, "unknown_parameter", "more")
        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert failed(await sent(content=b"--b--\r\n", headers=headers)) == (400, "missing_required_parameter", "data")
        assert failed(await sent(content=b"--b\r\n", headers=headers)) == (400, "invalid_form", None)
        assert failed(await sent(files={"data": bytes(50_001)})) == (413, "request_too_large", "data")
        assert failed(await sent(files={"data": bytes(90_000)})) == (413, "request_too_large", "data")
        assert left_on_disk(files_of(served)) == {}
        assert (await sent(files={"data": bytes(50_000)})).status_code == 200


async def test_parts_that_cannot_be_needed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.files.uploads.PART_BYTES", 0)
    monkeypatch.setattr("proxy.files.uploads.MIB", 0)
    monkeypatch.setattr("proxy.files.uploads.MOST_PARTS", 3)
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        upload = await openai.uploads.create(**UPLOAD)
        await parts_of(openai, upload.id, b"123456789", b"123456789")  # once sent again
        url = f"/uploads/{upload.id}/parts"
        assert failed(await http.post(url, files={"data": b"x"})) == (400, "too_many_bytes", "data")
        await parts_of(openai, upload.id, b"")
        assert failed(await http.post(url, files={"data": b""})) == (400, "too_many_bytes", "data")
        assert len(left_on_disk(files_of(served))) == 3
    assert MOST_PARTS == 10_000


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({}, "missing_required_parameter", "part_ids"),
        ({"part_ids": "x"}, "invalid_type", "part_ids"),
        ({"part_ids": [1]}, "invalid_type", "part_ids"),
        ({"part_ids": ["x"]}, "part_not_found", "part_ids"),
        ({"part_ids": []}, "bytes_mismatch", "part_ids"),
        ({"part_ids": [0]}, "bytes_mismatch", "part_ids"),
        ({"part_ids": [0, 1, 2]}, "bytes_mismatch", "part_ids"),
        ({"part_ids": [0, 0]}, "invalid_value", "part_ids"),
        ({"part_ids": [0, 1], "md5": "0" * 32}, "md5_mismatch", "md5"),
        ({"part_ids": [0, 1], "md5": "x" * 32}, "invalid_value", "md5"),
        ({"part_ids": [0, 1], "md5": 5}, "invalid_type", "md5"),
        ({"part_ids": [0, 1], "sha": "x"}, "unknown_parameter", "sha"),
    ],
)
async def test_a_completion_with_a_mistake_is_refused_and_can_be_made_good(
    tmp_path: Path, given: dict[str, Any], code: str, param: str
) -> None:
    async with serving(tmp_path) as served, client_of(served) as openai, http_of(served) as http:
        upload = await openai.uploads.create(**UPLOAD)
        made = await parts_of(openai, upload.id, b"12345", b"6789", b"more")
        if isinstance(ids := given.get("part_ids"), list) and ids != [1]:
            given = {**given, "part_ids": [made[one] if isinstance(one, int) else one for one in ids]}
        answer = await http.post(f"/uploads/{upload.id}/complete", json=given)
        assert failed(answer) == (400, code, param)
        digest = hashlib.md5(b"123456789", usedforsecurity=False).hexdigest().upper()
        done = await openai.uploads.complete(upload.id, part_ids=made[:2], md5=digest)
        assert done.status == "completed"


@pytest.mark.parametrize("name", ["x", "upload_%00", "x" * 5000])
async def test_ids_that_no_upload_has_are_not_found(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path) as served, http_of(served) as http:
        assert failed(await http.post(f"/uploads/{name}/parts", files={"data": b"x"})) == (404, "not_found", "id")
        assert failed(await http.post(f"/uploads/{name}/complete", json={"part_ids": []}))[0] == 404
        assert failed(await http.post(f"/uploads/{name}/cancel"))[0] == 404
