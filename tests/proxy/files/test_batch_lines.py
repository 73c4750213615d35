from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from proxy.files import batch_lines
from proxy.files.batch_lines import Checker, Findings, Line, Lines, Rules, check_file

CHAT = "/v1/chat/completions"


def request(name: str = "a", **changes: Any) -> dict[str, Any]:
    whole = {"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "m", "messages": []}, **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def line(name: str = "a", **changes: Any) -> bytes:
    return json.dumps(request(name, **changes)).encode() + b"\n"


def checked(data: bytes, rules: Rules | None = None, piece: int = 1 << 20) -> Findings:
    rules = rules or Rules(CHAT)
    lines, checker = Lines(rules.line_bytes), Checker(rules)
    for start in range(0, len(data), piece):
        for one in lines.feed(data[start : start + piece]):
            checker.take(one)
    for one in lines.end():
        checker.take(one)
    return checker.end()


def told(found: Findings) -> list[tuple[int | None, str]]:
    return [(mistake.line, mistake.code) for mistake in found.mistakes]


# -- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_lines_are_the_same_however_they_come(piece: int) -> None:
    data = b"\xef\xbb\xbfone\r\n\n  \r\ntwo\n" + b"x" * 9 + b"\n" + b"12345678\r\nlast"
    lines = Lines(8)
    found = [one for start in range(0, len(data), piece) for one in lines.feed(data[start : start + piece])]
    found += lines.end()
    assert [(one.number, one.data) for one in found] == [
        (1, b"one"), (4, b"two"), (5, None), (6, b"12345678"), (7, b"last"),
    ]  # fmt: skip
    assert [one.offset for one in found] == [0, 13, 17, 27, 37]


def test_a_line_without_an_end_is_not_kept() -> None:
    lines = Lines(100)
    for _ in range(1000):
        assert list(lines.feed(b"x" * 1000)) == []
        assert sum(map(len, lines._parts)) <= 101
    assert list(lines.end()) == [Line(1, 0, None)]


# -- content ---------------------------------------------------------------------------------------------------------


def test_good_lines_are_counted_and_their_model_is_told() -> None:
    found = checked(line("a") + b"\n" + line("b") + line("c").rstrip())
    assert (found.good, found.lines, found.models, found.mistakes) == (True, 3, ["m"], [])


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": ...}, "missing_required_parameter", "custom_id"),
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 7}, "invalid_type", "custom_id"),
        ({"custom_id": ""}, "empty_string", "custom_id"),
        ({"custom_id": "x" * 513}, "string_above_max_length", "custom_id"),
        ({"custom_id": "a\0b"}, "invalid_value", "custom_id"),
        ({"method": ...}, "missing_required_parameter", "method"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"method": "post"}, "invalid_method", "method"),
        ({"url": ...}, "missing_required_parameter", "url"),
        ({"url": "/v1/embeddings"}, "url_mismatch", "url"),
        ({"url": "https://example.org/v1/chat/completions"}, "invalid_url", "url"),
        ({"url": ["/v1"]}, "invalid_type", "url"),
        ({"body": ...}, "missing_required_parameter", "body"),
        ({"body": "{}"}, "invalid_type", "body"),
        ({"body": {}}, "missing_required_parameter", "body.model"),
        ({"body": {"model": 1}}, "invalid_type", "body.model"),
        ({"body": {"model": "m", "stream": True}}, "streaming_unsupported", "body.stream"),
        ({"body": {"model": "unknown"}}, "model_not_found", "body.model"),
        ({"body": {"model": "other"}}, "mismatched_model", "body.model"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_its_code_and_its_field(changes: dict[str, Any], code: str, param: str) -> None:
    rules = Rules(CHAT, lambda model: ("model_not_found", "No such model.") if model == "unknown" else None)
    found = checked(line("first") + line("second", **changes), rules)
    assert [mistake.card() for mistake in found.mistakes] == [
        {"code": code, "message": found.mistakes[0].message, "param": param, "line": 2}
    ]


@pytest.mark.parametrize(
    "data", [b"{", b"nonsense", b'{"custom_id": "\xff"}', b"[]", b"1", b"null", b'"text"', b"{}{}", b'{"a": "\\ud800"}']
)
def test_what_is_no_object_of_json_is_told_by_its_line(data: bytes) -> None:
    found = checked(line("a") + data + b"\n" + line("b"))
    assert told(found) == [(2, "invalid_json_line")]
    assert "nonsense" not in found.mistakes[0].message
    assert found.lines == 3


def test_a_line_that_is_not_utf_8_is_told_where() -> None:
    found = checked(line("a") + b'{"custom_id": "\xff"}\n')
    assert found.mistakes[0].message.endswith("it is not UTF-8 (byte 15).")


def test_all_mistakes_of_a_line_are_told() -> None:
    found = checked(line("", method="GET", url="/x", body={"stream": True}))
    assert [code for _, code in told(found)] == [
        "empty_string", "invalid_method", "invalid_url", "missing_required_parameter", "streaming_unsupported",
    ]  # fmt: skip


def test_a_custom_id_that_comes_again_49_999_lines_later_is_found() -> None:
    data = b"".join(line(f"n{number}") for number in range(49_999)) + line("n0")
    found = checked(data)
    assert told(found) == [(50_000, "duplicate_custom_id")]
    assert "line 1 " in found.mistakes[0].message
    assert found.lines == 50_000


def test_one_line_too_many_is_told_once_and_all_are_counted() -> None:
    rules = Rules(CHAT, most_lines=10)
    assert checked(b"".join(line(str(number)) for number in range(10)), rules).good
    found = checked(b"".join(line(str(number)) for number in range(15)), rules)
    assert (told(found), found.lines) == ([(11, "too_many_tasks")], 15)
    assert Rules(CHAT).most_lines == 50_000


def test_a_line_of_10_mb_is_told_and_what_follows_is_read() -> None:
    long = line("long", body={"model": "m", "messages": [{"role": "user", "content": "x" * 10_000_000}]})
    found = checked(line("a") + long + line("a"), piece=100_000)
    assert told(found) == [(2, "line_too_long"), (3, "duplicate_custom_id")]


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n \n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_is_empty(data: bytes) -> None:
    assert told(checked(data)) == [(None, "empty_file")]


def test_mistakes_are_told_up_to_a_limit_and_counted_beyond_it() -> None:
    found = checked(b"x\n" * 1000, Rules(CHAT, most_told=7))
    assert (len(found.mistakes), found.count, found.lines) == (7, 1000, 1000)


def test_several_models_are_taken_where_that_is_allowed() -> None:
    data = line("a") + line("b", body={"model": "n"}) + line("c")
    assert checked(data, Rules(CHAT, mixed_models=True)).models == ["m", "n"]


def test_whether_a_model_can_be_asked_is_asked_once_for_each() -> None:
    asked: list[str] = []

    def why_not(model: str) -> None:
        asked.append(model)

    checked(b"".join(line(str(number)) for number in range(100)), Rules(CHAT, why_not))
    assert asked == ["m"]


def test_texts_to_embed_are_counted_over_all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "MOST_INPUTS", 6)
    rules = Rules("/v1/embeddings")

    def embedding(name: str, given: Any) -> bytes:
        return line(name, url="/v1/embeddings", body={"model": "m", "input": given})

    fits = embedding("a", "text") + embedding("b", ["x", "y"]) + embedding("c", [1, 2, 3]) + embedding("d", [[1], [2]])
    assert checked(fits, rules).good
    assert told(checked(fits + embedding("e", "one more") + embedding("f", "x"), rules)) == [(5, "too_many_tasks")]


# -- a file ----------------------------------------------------------------------------------------------------------


async def test_a_file_is_checked_beside_the_event_loop_which_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"".join(line(f"n{number}") for number in range(20_000)))
    threads: set[int] = set()
    loop = asyncio.get_running_loop()

    def pause(_seconds: float) -> None:
        """As long as the loop needs to come round."""
        threads.add(threading.get_ident())
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(60)

    found = await asyncio.to_thread(check_file, path, Rules(CHAT), pause)
    assert (found.good, found.lines) == (True, 20_000)
    assert threads
    assert threading.get_ident() not in threads


def test_a_file_is_paused_over_often_whatever_its_lines_are(tmp_path: Path) -> None:
    for count, size in ((1000, 10), (100, 10_000), (3, 1_000_000)):
        path = tmp_path / "input.jsonl"
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * size}]}
        path.write_bytes(b"".join(line(f"n{number}", body=body) for number in range(count)))
        pauses: list[float] = []
        check_file(path, Rules(CHAT), pauses.append)
        assert len(pauses) >= max(count // 32, count * size // (64 * 1024 + size))
