"""What the batch benchmark sends, and how it judges what comes back."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, cast

import pytest

from bench.batch_client import ENDPOINT, BatchError, Client, Times, write_input
from bench.batch_latency import Interactive, Latencies
from bench.batches import Cost, Memory
from bench.targets import Target
from proxy.files.batch_lines import Rules, check_file


@pytest.mark.parametrize("size", [0, 4100, 50_000])
def test_its_input_is_a_good_one_with_lines_of_the_size_asked_for(tmp_path: Path, size: int) -> None:
    path = write_input(tmp_path / "in.jsonl", 20, size)
    found = check_file(path, Rules(ENDPOINT), lambda seconds: None)
    assert (found.good, found.lines) == (True, 20)
    if size:
        assert all(size - 100 < len(line) < size for line in path.read_bytes().splitlines())


class Says(Client):
    """A gateway whose output file has these lines."""

    def __init__(self, numbers: Sequence[int], status: int = 200) -> None:
        super().__init__(Target("nobody", 0))
        body: dict[str, Any] = {"choices": [{}]}
        lines = [
            {"custom_id": f"line-{number}", "response": {"status_code": status, "body": body}, "error": None}
            for number in numbers
        ]
        self._text = "".join(json.dumps(line) + "\n" for line in lines).encode()

    def _open(self, *_: Any) -> tuple[HTTPConnection, HTTPResponse]:
        return HTTPConnection("127.0.0.1"), cast(HTTPResponse, io.BytesIO(self._text))


CARD = {
    "status": "completed",
    "request_counts": {"total": 3, "completed": 3, "failed": 0},
    "output_file_id": "file-1",
    "error_file_id": None,
}


def test_every_line_of_output_is_looked_at() -> None:
    Says([2, 0, 1]).check_output(CARD, 3)
    for wrong, told in ((Says([0, 1, 1]), "twice"), (Says([0, 1]), "missing"), (Says([0, 1, 2], 500), "not well")):
        with pytest.raises(BatchError, match=told):
            wrong.check_output(CARD, 3)
    with pytest.raises(BatchError, match="ended as"):
        Says([0, 1, 2]).check_output({**CARD, "status": "expired"}, 3)


def test_a_target_that_is_missed_is_told() -> None:
    times = Times(1.0, 3.0, 4.0)
    cheap, dear = (Cost([cost] * 8, [100.0] * 8, 1000, cost, times, 0) for cost in (190.0, 210.0))
    assert (cheap.passed, dear.passed) == (True, False)
    assert "1.90 (1.90 to 1.90)" in cheap.told()
    assert "missed" in dear.told()
    small, large = (Memory(10, 10, 90.0, {"run": 90.0 + grown}) for grown in (40.0, 49.0))
    assert (small.passed, large.passed) == (True, False)  # MiB and MB are not the same
    same = Latencies("plain requests", [[0.1] * 10] * 3, [[0.1] * 10] * 3)
    slower = Latencies("first tokens", [[0.1] * 10] * 3, [[0.14] * 10] * 3)
    assert Interactive(same, same, same, 10.0, 0).passed
    assert not Interactive(same, slower, same, 10.0, 0).passed
    assert not Interactive(same, same, same, 10.0, 1).passed
