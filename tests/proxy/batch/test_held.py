"""A window that is worked on: reading stretches of the file, what is next, what comes again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.batch.held import STRETCH_BYTES, STRETCH_LINES, Batch, Held, read
from proxy.batch.line import Asker
from proxy.batch.values import LineRef, Window
from proxy.principals import ANYBODY


def held(lines: list[LineRef]) -> Held:
    batch = Batch(Asker("batch_1", "/v1/chat/completions", ANYBODY), "", -1)
    return Held(Window("batch_1", 0, "m", 1, tuple(lines)), batch)


def refs(count: int, size: int = 10) -> list[LineRef]:
    return [LineRef(number + 1, number * (size + 1), size) for number in range(count)]


def test_lines_are_read_as_they_stand_whatever_lies_between_them(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"one\ntwo\r\n\nfour\nleft out by this window\nsix")
    file = os.open(path, os.O_RDONLY)
    found = read(file, [LineRef(1, 0, 3), LineRef(2, 4, 3), LineRef(4, 10, 4), LineRef(6, 39, 3)])
    assert found == [b"one", b"two", b"four", b"six"]
    with pytest.raises(OSError, match="shorter"):
        read(file, [LineRef(7, 40, 300)])
    os.close(file)


def test_a_stretch_is_bounded_in_bytes_and_in_lines_and_has_one_line_at_least() -> None:
    assert len(held(refs(1000)).to_read()) == STRETCH_LINES
    large = held(refs(3, STRETCH_BYTES - 1))
    assert [line.line_no for line in large.to_read()] == [1]
    assert len(held(refs(1, 8 * 1024 * 1024)).to_read()) == 1


def test_lines_come_in_order_and_those_whose_time_has_come_before_the_others() -> None:
    window = held(refs(3))
    lines = window.to_read()
    window.have_read(lines, [b"1", b"2", b"3"])
    first = window.next()
    assert first == (lines[0], b"1")
    window.again(lines[0], due=5.0)
    window.wake(4.9)
    assert window.to_read() == []
    window.wake(5.0)
    assert window.to_read() == [lines[0]]
    assert window.next() == (lines[1], b"2")


def test_long_lines_are_not_read_further_ahead_than_some_bytes() -> None:
    window = held(refs(100, STRETCH_BYTES // 4))
    seen = [window.hungry]
    lines = window.to_read()
    window.have_read(lines, [bytes(line.size) for line in lines])
    seen.append(window.hungry)
    found = window.next()
    seen.append(window.hungry)
    assert found is not None
    window.put_back(*found)
    seen.append(window.hungry)
    assert (len(lines), seen) == (4, [True, False, True, False])


def test_short_lines_are_not_read_further_ahead_than_some_lines() -> None:
    window = held(refs(1000))
    lines = window.to_read()
    window.have_read(lines, [b"0123456789"] * len(lines))
    seen = [window.hungry]
    for _ in range(len(lines) // 2 + 1):
        window.next()
    assert [*seen, window.hungry] == [False, True]


def test_a_stretch_that_could_not_be_read_is_read_again() -> None:
    window = held(refs(3))
    lines = window.to_read()
    began = window.reading
    window.not_read(lines)
    assert (began, window.reading) == (True, False)
    assert window.to_read() == lines


def test_attempts_go_on_from_those_before_and_engines_that_ended_are_counted_apart() -> None:
    window = held([LineRef(1, 0, 1, attempts=2)])
    [line] = window.to_read()
    assert window.lost_engine(line) == 1
    assert window.failed(line) == 3
    assert window.attempts == {1: 3}
