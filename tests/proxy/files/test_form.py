from __future__ import annotations

import pytest

from backends.errors import InvalidRequest, RequestTooLarge
from proxy.files.form import Form

KIND = b'multipart/form-data; boundary="b"'
TRICKY = b"\r\n--\r\n--bb\r\n--b\r-\r\n-" + bytes(range(256)) + b"\r\n--b-\r\n"


class Kept:
    def __init__(self) -> None:
        self.size = 0
        self.data = b""

    def write(self, data: memoryview) -> None:
        self.data += bytes(data)
        self.size += len(data)


def part(disposition: str, data: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"


def boundary_free(data: bytes) -> bytes:
    return data.replace(b"\r\n--b", b"\r\n--c")


WHOLE = (
    part('name="purpose"', b"batch")
    + part('name="file"; filename="\u00fc.jsonl"', boundary_free(TRICKY))
    + part('name="expires_after[anchor]"', b"created_at")
    + b"--b--\r\nwhat comes behind means nothing"
)


@pytest.mark.parametrize("piece", [*range(1, 20), 100, 1000])
def test_a_form_is_the_same_however_it_comes(piece: int) -> None:
    kept = Kept()
    grown: list[int] = []
    known: dict[str, dict[str, str]] = {}

    def begins(filename: str, fields: dict[str, str]) -> int:
        known[filename] = dict(fields)
        return 10_000

    form = Form(KIND, "file", kept, begins, grown.append)
    for start in range(0, len(WHOLE), piece):
        form.feed(WHOLE[start : start + piece])
    assert form.end() == "\u00fc.jsonl"
    assert kept.data == boundary_free(TRICKY)
    assert form.fields == {"purpose": "batch", "expires_after[anchor]": "created_at"}
    assert known == {"\u00fc.jsonl": {"purpose": "batch"}}
    assert grown == sorted(set(grown))
    assert grown[-1] == kept.size


@pytest.mark.parametrize("end", range(len(WHOLE) - len(b"--\r\nwhat comes behind means nothing")))
def test_a_form_that_is_cut_anywhere_is_none(end: int) -> None:
    form = Form(KIND, "file", Kept(), lambda filename, fields: 10_000)
    form.feed(WHOLE[:end])
    with pytest.raises(InvalidRequest) as caught:
        form.end()
    assert caught.value.code == "invalid_form"


def test_nothing_is_written_beyond_the_limit() -> None:
    kept = Kept()
    form = Form(KIND, "file", kept, lambda filename, fields: 100)
    with pytest.raises(RequestTooLarge):
        for start in range(0, len(WHOLE), 7):
            form.feed(WHOLE[start : start + 7])
    assert 90 < kept.size <= 100
