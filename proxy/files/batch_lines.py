"""A batch's input, checked line by line: every mistake with its line and code, up to a limit.

    Lines      bytes, as they come -> numbered lines; who runs a batch reads it by the same, so that both see the same
    Checker    lines -> `Findings`
    check_file   a file -> `Findings`, in a thread that lets others run; the rest is pure

Only what makes a batch impossible is looked for: whether an engine takes a body shows when its line runs, and is that
line's own failure. Memory does not grow with the file: a line at a time, and 16 bytes for each `custom_id`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from backends.errors import InvalidRequest
from proxy.bodies import kind_of

Json = dict[str, Any]

MOST_LINES = 50_000
MOST_INPUTS = 50_000
"""Texts to embed, of all lines together."""
LINE_BYTES = 8 * 1024 * 1024
"""A line is parsed at once, which holds the interpreter: twice this would be felt by others."""
CUSTOM_ID_LENGTH = 512
MOST_TOLD = 100
READ_BYTES = 256 * 1024
PAUSE_EVERY_BYTES, PAUSE_EVERY_LINES = 64 * 1024, 32
PAUSE_S = 0.0001
"""Asleep, a thread gives the interpreter away for certain; without that it keeps it for 5 ms at a time."""

EMBEDDINGS = "/v1/embeddings"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", EMBEDDINGS, "/v1/responses")


# -- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mistake:
    """As in a batch's `errors.data`. `line` counts from 1; None for the file as a whole. Messages quote no content but
    ids, names of models and URLs."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def card(self) -> Json:
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


@dataclass(frozen=True, slots=True)
class Rules:
    """endpoint    the batch's; each line's `url` is the same
    why_not        why a model cannot be asked for by this batch: code and message; None if it can
    mixed_models   lines may ask several models
    """

    endpoint: str
    why_not: Callable[[str], tuple[str, str] | None] = lambda model: None
    mixed_models: bool = False
    line_bytes: int = LINE_BYTES
    most_lines: int = MOST_LINES
    most_told: int = MOST_TOLD


@dataclass(slots=True)
class Findings:
    """mistakes   the first of them, `Rules.most_told` at most, in the order of lines
    count         of all mistakes
    lines         requests in the file
    models        that they ask, in the order of their first lines
    """

    mistakes: list[Mistake] = field(default_factory=list)
    count: int = 0
    lines: int = 0
    models: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.count


# -- lines -----------------------------------------------------------------------------------------------------------

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """number   from 1, empty lines counted
    offset      of its first byte in the file
    data        None for a line that is too long
    """

    number: int
    offset: int
    data: bytes | None


class Lines:
    """Cuts what comes into lines. They end in LF or CRLF; the last one need not. Empty ones, and a byte order mark at
    the beginning, are left out: editors make them."""

    def __init__(self, most: int = LINE_BYTES) -> None:
        self._most = most
        self._parts: list[bytes] = []
        self._held = 0
        self._number = 0
        self._offset = 0

    def feed(self, data: bytes) -> Iterator[Line]:
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._keep(data[start:end])
            start = end + 1
            if line := self._cut(ended=True):
                yield line
        self._keep(data[start:])

    def end(self) -> Iterator[Line]:
        """After the last bytes."""
        if self._held and (line := self._cut(ended=False)):
            yield line

    def _keep(self, data: bytes) -> None:
        self._held += len(data)
        if self._held <= self._most + 1:  # a CR more
            self._parts.append(data)
        else:
            self._parts.clear()

    def _cut(self, *, ended: bool) -> Line | None:
        data, size = b"".join(self._parts), self._held
        offset = self._offset
        self._parts.clear()
        self._held = 0
        self._number += 1
        self._offset += size + ended
        if size > self._most + 1:
            return Line(self._number, offset, None)
        data = data.removesuffix(b"\r")
        if self._number == 1:
            data = data.removeprefix(_BOM)
        if len(data) > self._most:
            return Line(self._number, offset, None)
        return Line(self._number, offset, data) if data.strip() else None


# -- checking --------------------------------------------------------------------------------------------------------


class Checker:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._found = Findings()
        self._seen: dict[bytes, int] = {}
        self._judged: dict[str, tuple[str, str] | None] = {}
        self._inputs = 0

    def take(self, line: Line) -> Json | None:
        """The request, where nothing is wrong so far."""
        found, rules = self._found, self._rules
        found.lines += 1
        if found.lines == rules.most_lines + 1:
            self._tell("too_many_tasks", f"A batch has at most {rules.most_lines} requests.", None, line.number)
        if found.lines > rules.most_lines:
            return None  # counted, and not looked at: what is wrong is known
        try:
            request = self._parsed(line)
        except InvalidRequest as error:
            self._tell(error.code or "", error.message, error.param, line.number)
            return None
        self._custom_id(request, line.number)
        self._method(request, line.number)
        self._url(request, line.number)
        self._body(request, line.number)
        return request if not found.count else None

    def end(self) -> Findings:
        if not self._found.lines:
            self._tell("empty_file", "The file has no requests.", None, None)
        return self._found

    def _tell(self, code: str, message: str, param: str | None, line: int | None) -> None:
        self._found.count += 1
        if len(self._found.mistakes) < self._rules.most_told:
            self._found.mistakes.append(Mistake(code, message, param, line))

    def _parsed(self, line: Line) -> Json:
        """Raises `InvalidRequest`."""
        if line.data is None:
            raise InvalidRequest(f"The line is longer than {self._rules.line_bytes} bytes.", code="line_too_long")
        try:
            request = orjson.loads(line.data)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"This line is not parseable as valid JSON{_where(line.data, error)}.",
                                 code="invalid_json_line") from None  # fmt: skip
        if not isinstance(request, dict):
            raise InvalidRequest(
                f"Expected an object in this line, but got {kind_of(request)} instead.", code="invalid_json_line"
            )
        return request

    def _text(self, given: Json, name: str, param: str, line: int) -> str | None:
        """A field that is to be a text that is not empty; None where it is not, and that is told."""
        value = given.get(name)
        if value is None:
            self._tell("missing_required_parameter", f"Missing required parameter: '{param}'.", param, line)
        elif not isinstance(value, str):
            told = f"Invalid type for '{param}': expected a string, but got {kind_of(value)} instead."
            self._tell("invalid_type", told, param, line)
        elif not value:
            self._tell("empty_string", f"Invalid '{param}': empty string.", param, line)
        else:
            return value
        return None

    def _custom_id(self, request: Json, line: int) -> None:
        custom_id = self._text(request, "custom_id", "custom_id", line)
        if custom_id is None:
            return
        if len(custom_id) > CUSTOM_ID_LENGTH:
            told = f"Invalid 'custom_id': longer than {CUSTOM_ID_LENGTH} characters."
            self._tell("string_above_max_length", told, "custom_id", line)
            return
        if "\0" in custom_id:
            self._tell("invalid_value", "Invalid value for 'custom_id': it has a NUL in it.", "custom_id", line)
            return
        digest = blake2b(custom_id.encode(), digest_size=16).digest()
        first = self._seen.setdefault(digest, line)
        if first != line:
            told = f"The custom_id '{custom_id[:80]}' is in line {first} already."
            self._tell("duplicate_custom_id", told, "custom_id", line)

    def _method(self, request: Json, line: int) -> None:
        method = self._text(request, "method", "method", line)
        if method is not None and method != "POST":
            self._tell("invalid_method", "The only method for requests of a batch is 'POST'.", "method", line)

    def _url(self, request: Json, line: int) -> None:
        url = self._text(request, "url", "url", line)
        if url is None or url == self._rules.endpoint:
            return
        if url in ENDPOINTS:
            told = f"The url '{url}' is not the batch's endpoint, '{self._rules.endpoint}'."
            self._tell("url_mismatch", told, "url", line)
        else:
            told = f"Invalid url: expected the batch's endpoint, '{self._rules.endpoint}'."
            self._tell("invalid_url", told, "url", line)

    def _body(self, request: Json, line: int) -> None:
        body = request.get("body")
        if body is None:
            self._tell("missing_required_parameter", "Missing required parameter: 'body'.", "body", line)
            return
        if not isinstance(body, dict):
            told = f"Invalid type for 'body': expected an object, but got {kind_of(body)} instead."
            self._tell("invalid_type", told, "body", line)
            return
        model = self._text(body, "model", "body.model", line)
        if model is not None:
            self._model(model, line)
        if body.get("stream"):
            told = "Requests of a batch cannot be streamed: leave 'stream' out."
            self._tell("streaming_unsupported", told, "body.stream", line)
        if self._rules.endpoint == EMBEDDINGS:
            self._count_inputs(body.get("input"), line)

    def _model(self, model: str, line: int) -> None:
        if model not in self._judged:
            if len(self._judged) >= self._rules.most_told:  # all of them wrong, and enough told
                self._judged.clear()
            self._judged[model] = self._rules.why_not(model)
        if (problem := self._judged[model]) is not None:
            self._tell(problem[0], problem[1], "body.model", line)
            return
        models = self._found.models
        if model in models:
            return
        if models and not self._rules.mixed_models:
            told = f"The model '{model[:80]}' is another than that of the lines before, '{models[0][:80]}'."
            self._tell("mismatched_model", told, "body.model", line)
            return
        models.append(model)

    def _count_inputs(self, given: Any, line: int) -> None:
        before = self._inputs
        tokens = isinstance(given, list) and bool(given) and isinstance(given[0], int)
        self._inputs += len(given) if isinstance(given, list) and not tokens else 1
        if before <= MOST_INPUTS < self._inputs:
            told = f"The requests of a batch have at most {MOST_INPUTS} inputs to embed together."
            self._tell("too_many_tasks", told, "body.input", line)


def _where(data: bytes, error: orjson.JSONDecodeError) -> str:
    """Where it goes wrong; the parser's own message may quote what is there."""
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        return f": it is not UTF-8 (byte {wrong.start})"
    return f" (column {error.colno})"


# -- a file ----------------------------------------------------------------------------------------------------------


def check_file(
    path: Path,
    rules: Rules,
    pause: Callable[[float], None] = time.sleep,
    seen: Callable[[Line, Json], None] = lambda line, request: None,
) -> Findings:
    """To be called in a thread. It pauses again and again, so that the event loop has the interpreter when it wants it.

    seen   is told of each request until the first mistake

    Raises `OSError`.
    """
    lines, checker = Lines(rules.line_bytes), Checker(rules)
    worked = taken = 0

    def take(line: Line) -> None:
        if (request := checker.take(line)) is not None:
            seen(line, request)

    with path.open("rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            for line in lines.feed(data):
                take(line)
                worked += len(line.data or b"")
                taken += 1
                if worked >= PAUSE_EVERY_BYTES or taken >= PAUSE_EVERY_LINES:
                    worked = taken = 0
                    pause(PAUSE_S)
    for line in lines.end():
        take(line)
    return checker.end()
