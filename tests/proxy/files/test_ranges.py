from __future__ import annotations

import pytest

from proxy.files.ranges import Wanted, wanted


@pytest.mark.parametrize(
    ("headers", "size", "expected"),
    [
        ({}, 10, Wanted(200, 0, 10)),
        ({}, 0, Wanted(200, 0, 0)),
        ({b"range": b"bytes=2-5"}, 10, Wanted(206, 2, 6)),
        ({b"range": b"Bytes = 2 - 5 "}, 10, Wanted(206, 2, 6)),
        ({b"range": b"bytes=-20"}, 10, Wanted(206, 0, 10)),
        ({b"range": b"bytes=9-"}, 10, Wanted(206, 9, 10)),
        ({b"range": b"bytes=10-"}, 10, Wanted(416, 0, 0)),
        ({b"range": b"bytes=-0"}, 10, Wanted(416, 0, 0)),
        ({b"range": b"bytes=-"}, 10, Wanted(200, 0, 10)),
        ({b"range": b"bytes=a-b"}, 10, Wanted(200, 0, 10)),
        ({b"range": b"bytes=" + b"9" * 30 + b"-"}, 10, Wanted(200, 0, 10)),
        ({b"range": b"bytes=0-0,5-6"}, 10, Wanted(200, 0, 10)),
        ({b"range": b"bytes=2-5", b"if-range": b'"t"'}, 10, Wanted(206, 2, 6)),
        ({b"range": b"bytes=2-5", b"if-range": b'W/"t"'}, 10, Wanted(200, 0, 10)),
        ({b"range": b"bytes=2-5", b"if-range": b"Sun, 22 Nov 2026 22:00:00 GMT"}, 10, Wanted(200, 0, 10)),
        ({b"range": b"bytes=2-5", b"if-none-match": b'"t"'}, 10, Wanted(304, 0, 0)),
        ({b"range": b"bytes=2-5", b"if-none-match": b'"u"'}, 10, Wanted(206, 2, 6)),
    ],
)
def test_which_bytes_are_asked_for(headers: dict[bytes, bytes], size: int, expected: Wanted) -> None:
    assert wanted(headers, size, b'"t"') == expected
