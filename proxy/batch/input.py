"""A validated input -> windows of lines that belong together: of one model, with a shared beginning of their prompts.

Engines keep what they have computed for a prompt's beginning; lines that share it run one after the other, so it is
still there. Among lines that share nothing the order of the file stays.

Memory does not grow with the file: for each line some numbers are kept, 56 bytes in all, while it is checked, and
its text is read again when its window is made. Everything blocks, and pauses as `batch_lines.check_file` does.
"""

from __future__ import annotations

import heapq
import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from backends.base import Call
from proxy.files import batch_lines
from proxy.limits.estimates import requested_tokens

from .values import NewLine, NewWindow

Json = dict[str, Any]

_BOM = b"\xef\xbb\xbf"

WINDOW_LINES = 128
WINDOW_TOKENS = 512 * 1024
"""A window is what one worker takes at once: several share a batch, and a dead one leaves little to do again."""

DEPTHS: Final = (512, 4096)
"""Bytes of a prompt's beginning by which lines are put together: roughly, and among those more exactly."""

SORTED_AT_ONCE = 512
"""A sort keeps the interpreter from everybody else for as long as it takes."""

_PROMPT = ("instructions", "tools", "messages", "prompt", "input")
"""Fields, in the order in which templates put them."""


@dataclass(slots=True)
class Index:
    """Of every line, in the order of the file. `starts` are hashes of a model with a prompt's beginning, one for each
    depth: good for as long as this process lives.

    name_of   a model's name, where a line may use an alias
    """

    endpoint: str
    name_of: Callable[[str], str] = lambda model: model
    numbers: array[int] = field(default_factory=lambda: array("L"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("L"))
    tokens: array[int] = field(default_factory=lambda: array("Q"))
    models: array[int] = field(default_factory=lambda: array("L"))
    starts: tuple[array[int], ...] = field(default_factory=lambda: tuple(array("q") for _ in DEPTHS))
    names: dict[str, int] = field(default_factory=dict)

    def take(self, line: batch_lines.Line, request: Json) -> None:
        data = line.data
        assert data is not None  # noqa: S101  # what was parsed has bytes
        body: Json = request["body"]
        name = self.name_of(body["model"])
        model = self.names.setdefault(name, len(self.names))
        self.numbers.append(line.number)
        self.offsets.append(line.offset)
        self.sizes.append(len(data))
        self.tokens.append(requested_tokens(Call("", self.endpoint, name, body, data)))
        self.models.append(model)
        start = _start(body) if self.endpoint != batch_lines.EMBEDDINGS else b""
        for depth, starts in zip(DEPTHS, self.starts, strict=True):
            starts.append(hash((model, start[:depth])))

    def order(self, pause: Callable[[float], None]) -> Iterator[int]:
        """Indices of lines, those together that belong together: a group comes where its first line does, inside the
        larger group that it is of."""
        count = len(self.numbers)
        bits = count.bit_length()
        levels: list[tuple[array[int], dict[int, int]]] = [(keys, {}) for keys in (self.models, *self.starts)]
        runs = []
        for begin in range(0, count, SORTED_AT_ONCE):
            run = []
            for at in range(begin, min(begin + SORTED_AT_ONCE, count)):
                place = 0  # first lines of its groups, from the largest on, and its own index
                for keys, firsts in levels:
                    place = place << bits | firsts.setdefault(keys[at], at)
                run.append(place << bits | at)
            run.sort()
            runs.append(run)
            pause(batch_lines.PAUSE_S)
        mask = (1 << bits) - 1
        return (place & mask for place in heapq.merge(*runs))


def _start(body: Json) -> bytes:
    """The beginning of what the engine will read, as far as the deepest depth."""
    start = b""
    for name in _PROMPT:
        if name in body and len(start) < DEPTHS[-1]:
            start += orjson.dumps(body[name])
    return start


def windows_of(path: Path, index: Index, pause: Callable[[float], None] = time.sleep) -> Iterator[NewWindow]:
    """Windows of a file in which `check_file` has found no mistake, and told the index. Raises `OSError`."""
    names = list(index.names)
    window: list[int] = []
    tokens = count = 0
    with path.open("rb", buffering=0) as file:
        if index.numbers and index.numbers[0] == 1 and os.pread(file.fileno(), len(_BOM), 0) == _BOM:
            index.offsets[0] = len(_BOM)  # which is no part of the line, and stands in front of it
        for at in index.order(pause):
            full = len(window) >= WINDOW_LINES or tokens + index.tokens[at] > WINDOW_TOKENS
            if window and (full or index.models[at] != index.models[window[0]]):
                yield _window(count, names, index, window, file.fileno())
                pause(batch_lines.PAUSE_S)
                count += 1
                window.clear()
                tokens = 0
            window.append(at)
            tokens += index.tokens[at]
        if window:
            yield _window(count, names, index, window, file.fileno())


def _window(number: int, names: list[str], index: Index, ats: list[int], file: int) -> NewWindow:
    lines = []
    for at in sorted(ats):
        line = orjson.loads(os.pread(file, index.sizes[at], index.offsets[at]))
        offset, size, tokens = index.offsets[at], index.sizes[at], index.tokens[at]
        lines.append(NewLine(index.numbers[at], offset, size, line["custom_id"], tokens))
    return NewWindow(number, names[index.models[ats[0]]], tuple(lines))
