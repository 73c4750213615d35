"""Which lines are put into a window together, and where they stand in the file."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.batch import input as batch_input
from proxy.batch.input import Index, windows_of
from proxy.batch.values import NewWindow
from proxy.files.batch_lines import Line, Lines

CHAT = "/v1/chat/completions"


def line(custom_id: str, model: str = "m", system: str = "", user: str = "", **more: Any) -> bytes:
    messages = [{"role": "system", "content": system}] if system else []
    body = {"model": model, "messages": [*messages, {"role": "user", "content": user or custom_id}], **more}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).encode()


def read(path: Path, endpoint: str) -> Iterator[NewWindow]:
    index = Index(endpoint)
    for line in lines_of(path):
        assert line.data is not None
        index.take(line, json.loads(line.data))
    return windows_of(path, index, lambda seconds: None)


def lines_of(path: Path) -> Iterator[Line]:
    """As `check_file` has them; not all lines of these tests would be good ones for it."""
    lines = Lines()
    with path.open("rb") as file:
        while data := file.read(65536):
            yield from lines.feed(data)
    yield from lines.end()


def made(path: Path, data: bytes, endpoint: str = CHAT) -> list[NewWindow]:
    path = path / "input"
    path.write_bytes(data)
    windows = list(read(path, endpoint))
    for window in windows:
        assert [one.line_no for one in window.lines] == sorted(one.line_no for one in window.lines)
        for one in window.lines:
            request = json.loads(data[one.offset : one.offset + one.size])
            assert (request["custom_id"], request["body"]["model"]) == (one.custom_id, window.model)
    assert [window.window_no for window in windows] == list(range(len(windows)))
    return windows


def ids(windows: Sequence[NewWindow]) -> list[list[str]]:
    return [[one.custom_id for one in window.lines] for window in windows]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "WINDOW_LINES", 2)


@pytest.mark.usefixtures("small")
def test_lines_that_share_nothing_stay_in_order(tmp_path: Path) -> None:
    data = b"\n".join(line(name) for name in "abcde")
    assert ids(made(tmp_path, data)) == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.usefixtures("small")
def test_lines_with_the_same_beginning_come_together(tmp_path: Path) -> None:
    one, other = "one " * 300, "other " * 300
    data = b"\n".join(line(name, system=one if name.islower() else other) for name in "aAbBcCdD")
    assert ids(made(tmp_path, data)) == [["a", "b"], ["c", "d"], ["A", "B"], ["C", "D"]]


@pytest.mark.usefixtures("small")
def test_among_those_the_ones_that_share_more(tmp_path: Path) -> None:
    common = "common " * 300
    data = b"\n".join(
        line(name, system=common, user=("u" if name in "ace" else "v") * 4000 + name) for name in "abcdef"
    )
    assert ids(made(tmp_path, data)) == [["a", "c"], ["b", "e"], ["d", "f"]]


def test_a_window_is_of_one_model(tmp_path: Path) -> None:
    data = b"\n".join(line(name, model="m" if name in "ac" else "n") for name in "abcd")
    found = made(tmp_path, data)
    assert (ids(found), [window.model for window in found]) == ([["a", "c"], ["b", "d"]], ["m", "n"])


def test_a_window_has_not_too_many_tokens(tmp_path: Path) -> None:
    data = b"\n".join(line(name, max_tokens=200_000) for name in "abcde")
    assert ids(made(tmp_path, data)) == [["a", "b"], ["c", "d"], ["e"]]
    data = b"\n".join(line(name, max_tokens=900_000) for name in "abc")
    assert ids(made(tmp_path, data)) == [["a"], ["b"], ["c"]]


def test_lines_are_found_whatever_ends_them(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + line("a") + b"\r\n\n  \n" + line("b") + b"\n" + line("c", user="ü")
    assert ids(made(tmp_path, data)) == [["a", "b", "c"]]
    assert [one.line_no for one in made(tmp_path, data)[0].lines] == [1, 4, 5]
    assert ids(made(tmp_path, b"\xef\xbb\xbf\n" + line("a") + b"\n")) == [["a"]]


def test_other_endpoints_have_prompts_elsewhere(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [{"prompt": "x"}, {"input": [[1, 2]]}, {"instructions": "be", "input": "y"}]
    requests = ({"custom_id": f"{number}", "body": {"model": "m", **body}} for number, body in enumerate(bodies))
    data = b"\n".join(json.dumps(request).encode() for request in requests)
    for endpoint in ("/v1/completions", "/v1/embeddings", "/v1/responses"):
        assert ids(made(tmp_path, data, endpoint)) == [["0", "1", "2"]]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "input"
    with path.open("wb") as file:
        for number in range(3000):
            file.write(line(f"custom {number}", user=f"{number} " + "x" * 10_000) + b"\n")
    tracemalloc.start()
    try:
        count = sum(len(window.lines) for window in read(path, CHAT))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 3000
    assert peak < 6 * 1024 * 1024 < path.stat().st_size / 4
