"""A multipart form, read piece by piece: small fields into memory, its one file to wherever it is to be written.

The parser is python-multipart, which keeps nothing of what it is fed. `feed` runs in a thread: it parses and writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from backends.errors import InvalidRequest, RequestTooLarge
from proxy.forms import FIELDS

FIELD_BYTES = 4096
"""Of a field that is no file: they are words and numbers here."""


class Sink(Protocol):
    size: int

    def write(self, data: memoryview) -> None: ...


class Form:
    """name    of the part that is the file; that a client gave it no filename does not matter to the parser
    sink       where the file goes
    begins     called when the file begins, with its filename and the fields before it; gives the limit of its bytes
    grows      called with the file's size after each piece of it

    fields     of the others, when they have come
    filename   None until the file has begun; "" if the client gave it none
    whole      the form has ended
    """

    def __init__(
        self,
        kind: bytes,
        name: str,
        sink: Sink,
        begins: Callable[[str, dict[str, str]], int],
        grows: Callable[[int], None] = lambda size: None,
    ) -> None:
        boundary = parse_options_header(kind)[1].get(b"boundary")
        if not boundary:
            raise malformed()
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.whole = False
        self._expected = name
        self._sink = sink
        self._begins = begins
        self._grows = grows
        self._limit = 0
        self._size_told = 0
        self._header = self._value = b""
        self._name: str | None = None
        self._in_file = False
        self._data = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_begin": self._header_begins,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_ends,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise malformed() from None

    def feed(self, data: bytes) -> None:
        """Raises `InvalidRequest`, and what `sink`, `begins` and `grows` raise."""
        if self.whole:
            return  # what comes after the last boundary means nothing
        try:
            self._parser.write(data)
        except (FormParserError, UnicodeDecodeError):
            raise malformed() from None
        if self.filename is not None and self._sink.size > self._size_told:
            self._size_told = self._sink.size
            self._grows(self._sink.size)

    def end(self) -> str:
        """The file's name. Raises `InvalidRequest` for a form that is not whole, or has no file."""
        if not self.whole:
            raise malformed()
        if self.filename is None:
            name = self._expected
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
        return self.filename

    # -- what the parser tells ----------------------------------------------------------------------------------------

    def _part_begins(self) -> None:
        self._data = b""
        self._name = None
        self._in_file = False
        self._given_filename: str | None = None

    def _header_begins(self) -> None:
        self._header = self._value = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            self._name = options.get(b"name", b"").decode()
            self._given_filename = options[b"filename"].decode() if b"filename" in options else None

    def _headers_end(self) -> None:
        name = self._name
        if not name:
            raise malformed()
        if (name in self.fields and not name.endswith("[]")) or (name == self._expected and self.filename is not None):
            raise InvalidRequest(
                f"Invalid '{name[:100]}': it is there twice.", param=name[:100], code="duplicate_parameter"
            )
        if name == self._expected:
            self._in_file = True
            self.filename = self._given_filename or ""
            self._limit = self._begins(self.filename, self.fields)
        elif self._given_filename is not None:
            raise InvalidRequest(f"Unknown parameter: '{name[:80]}'.", param=name[:80], code="unknown_parameter")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        size = end - start
        if self._in_file:
            if self._sink.size + size > self._limit:
                raise RequestTooLarge(f"The file is larger than {self._limit} bytes, the limit here.", param=self._name)
            self._sink.write(memoryview(data)[start:end])
            return
        if len(self._data) + size > FIELD_BYTES:
            name = (self._name or "")[:100]
            message = f"Invalid '{name}': more than {FIELD_BYTES} bytes."
            raise InvalidRequest(message, param=name, code="string_above_max_length")
        self._data += data[start:end]

    def _part_ends(self) -> None:
        if self._in_file or self._name is None:
            return
        if len(self.fields) >= FIELDS:
            raise InvalidRequest(f"The form has more than {FIELDS} fields.", code="invalid_form")
        self.fields[self._name] = self._data.decode()

    def _end(self) -> None:
        self.whole = True


def malformed() -> InvalidRequest:
    return InvalidRequest("We could not read the form in the body of your request.", code="invalid_form")
