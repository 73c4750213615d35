"""The small fields of a multipart form, read from a body that is passed on as it is.

The parser is python-multipart, which is also vLLM's (by FastAPI): what this gateway reads in a form, the engine reads.
Files are stepped over without being copied.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from backends.errors import InvalidRequest

FIELD_BYTES = 64 * 1024
FIELDS = 100


def content_type(headers: Collection[tuple[bytes, bytes]]) -> bytes:
    """The request's content type, if it is a multipart form's. Raises `InvalidRequest`."""
    given = [value for name, value in headers if name == b"content-type"]
    if len(given) != 1 or not given[0].lower().startswith(b"multipart/form-data"):
        raise InvalidRequest("Expected a multipart/form-data request.", code="invalid_content_type")
    return given[0]


def read(kind: bytes, body: bytes) -> tuple[dict[str, str], set[str]]:
    """The text fields, and the names of the files. Raises `InvalidRequest` for what is no form, or a doubled field."""
    boundary = parse_options_header(kind)[1].get(b"boundary")
    if not boundary:
        raise _malformed()
    form = _Form()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_header_begin": form.on_header_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_part_data": form.on_part_data,
            "on_part_end": form.on_part_end,
            "on_end": form.on_end,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError):
        raise _malformed() from None
    if not form.whole:
        raise _malformed()
    return form.fields, form.files


def with_value(kind: bytes, body: bytes, name: str, value: str, instead: str) -> bytes:
    """The form with another value of a text field that has `value` now. Raises `InvalidRequest` if it is not found.

    The boundary is in no file, so what stands between two of them is a part.
    """
    boundary = parse_options_header(kind)[1].get(b"boundary", b"")
    field = (
        rb"(--%b[ \t]*\r\n(?:[^\r\n]+\r\n)*?content-disposition:[^\r\n]*;[ \t]*name=\"?%b\"?[ \t]*(?:;[^\r\n]*)?\r\n"
        rb"(?:[^\r\n]+\r\n)*\r\n)%b(?=\r\n--%b)"
    )
    parts = (boundary, name.encode(), value.encode(), boundary)
    pattern = re.compile(field % tuple(re.escape(part) for part in parts), re.IGNORECASE)
    found = pattern.search(body)
    if found is None:
        raise _malformed()
    return b"%b%b%b" % (body[: found.end(1)], instead.encode(), body[found.end() :])


class _Form:
    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.files: set[str] = set()
        self.whole = False
        self._header = self._value = b""
        self._name: str | None = None
        self._data = b""

    def on_part_begin(self) -> None:
        self._data = b""
        self._name = None

    def on_header_begin(self) -> None:
        self._header = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            if b"filename" in options:
                self.files.add(options.get(b"name", b"").decode())
            else:
                self._name = options.get(b"name", b"").decode()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            if len(self._data) + end - start > FIELD_BYTES:
                message = f"Invalid '{self._name[:100]}': more than {FIELD_BYTES} bytes."
                raise InvalidRequest(message, param=self._name[:100], code="string_above_max_length")
            self._data += data[start:end]

    def on_part_end(self) -> None:
        name = self._name
        if name is None:
            return
        # two readers may take one each; lists are written with brackets
        if name in self.fields and not name.endswith("[]"):
            message = f"Invalid '{name[:100]}': it is there twice."
            raise InvalidRequest(message, param=name[:100], code="duplicate_parameter")
        if len(self.fields) >= FIELDS:
            raise InvalidRequest(f"The form has more than {FIELDS} fields.", code="invalid_form")
        self.fields[name] = self._data.decode()

    def on_end(self) -> None:
        self.whole = True


def _malformed() -> InvalidRequest:
    return InvalidRequest("We could not read the form in the body of your request.", code="invalid_form")
