"""A log that several processes write has whole lines."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from proxy.workers.lines import SharedLines, pieces

WRITER = """
import sys
from pathlib import Path
from proxy.workers.lines import SharedLines
lines = SharedLines(1, Path(sys.argv[1]))
for number in range(400):
    lines.msg(b'{"who": %s, "number": %d, "fill": "%s"}' % (sys.argv[2].encode(), number, b"x" * (number * 37 % 9000)))
    if number % 7 == 0:
        lines.flush()
lines.flush()
"""


@given(lines=st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line)), most=st.integers(1, 100))
def test_pieces_are_whole_lines_and_not_longer_than_they_may_be(lines: list[bytes], most: int) -> None:
    cut = list(pieces(lines, most))
    assert b"".join(cut) == b"".join(line + b"\n" for line in lines)
    for piece in cut:
        assert piece.endswith(b"\n")
        assert len(piece) <= most or piece.count(b"\n") == 1


def test_lines_of_several_processes_in_one_pipe_stay_whole_long_ones_too(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "lock"), str(who)], stdout=writing)
        for who in range(3)
    ]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = [json.loads(line) for line in pipe]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for who in range(3):
        assert [line["number"] for line in lines if line["who"] == who] == list(range(400))
    assert any(len(line["fill"]) > 2 * select.PIPE_BUF for line in lines)


def test_a_log_that_nobody_reads_any_more_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = SharedLines(writing, tmp_path / "lock")
    lines.msg(b"x")
    lines.flush()
    lines.msg(b"y")
    lines.flush()
    os.close(writing)
