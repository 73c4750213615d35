"""What a client asks for when it creates a batch: the body of `POST /v1/batches`, checked whole. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import orjson

from backends.errors import InvalidRequest
from proxy.bodies import kind_of
from proxy.files import values as files
from proxy.files.batch_lines import ENDPOINTS

Json = dict[str, Any]

HOUR_S, DAY_S = 3600, 24 * 3600
WINDOW_LEAST_S, WINDOW_MOST_S = HOUR_S, 7 * DAY_S
METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512
IDEMPOTENCY_KEY_LENGTH = 255
FIELDS = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
    "mixed_models",
    "webhook",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """window     as it was written
    output_keep_s  how long output files are kept; None for good
    mixed_models   lines may ask several models
    webhook        where the end is told; None for nowhere. Its host is looked at elsewhere
    """

    input_file_id: str
    endpoint: str
    window: str
    window_s: int
    metadata: dict[str, str] | None
    output_keep_s: int | None
    mixed_models: bool
    webhook: str | None


def asked_of(given: Json) -> Asked:
    """Raises `InvalidRequest` for the first field that is missing, wrong or unknown."""
    files.only_known(given, FIELDS)
    input_file_id = files.text_of(given, "input_file_id")
    endpoint = files.text_of(given, "endpoint")
    if endpoint not in ENDPOINTS:
        raise files.wrong("endpoint", "one of " + ", ".join(f"'{name}'" for name in ENDPOINTS))
    window = files.text_of(given, "completion_window")
    return Asked(
        input_file_id=input_file_id,
        endpoint=endpoint,
        window=window,
        window_s=window_s_of(window),
        metadata=_metadata(given.get("metadata")),
        output_keep_s=_output_keep_s(given.get("output_expires_after")),
        mixed_models=_switch(given, "mixed_models"),
        webhook=files.text_of(given, "webhook") if given.get("webhook") is not None else None,
    )


def window_s_of(text: str) -> int:
    """`"24h"`, `"7d"` -> seconds. Raises `InvalidRequest`."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})([hd])", text)
    seconds = int(match[1]) * {"h": HOUR_S, "d": DAY_S}[match[2]] if match else 0
    if not WINDOW_LEAST_S <= seconds <= WINDOW_MOST_S:
        raise files.wrong("completion_window", "hours or days from '1h' to '7d', such as '24h'")
    return seconds


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise _type("metadata", "an object", given)
    if len(given) > METADATA_PAIRS:
        raise InvalidRequest(
            f"Invalid 'metadata': expected at most {METADATA_PAIRS} pairs, but got {len(given)}.",
            param="metadata",
            code="object_above_max_properties",
        )
    for name, value in given.items():
        if len(name) > METADATA_KEY:
            raise InvalidRequest(
                f"Invalid 'metadata': a key is longer than {METADATA_KEY} characters.",
                param="metadata",
                code="string_above_max_length",
            )
        if not isinstance(value, str):
            raise _type(f"metadata.{name}", "a string", value)
        if len(value) > METADATA_VALUE:
            raise InvalidRequest(
                f"Invalid 'metadata.{name}': longer than {METADATA_VALUE} characters.",
                param=f"metadata.{name}",
                code="string_above_max_length",
            )
    return given


def _output_keep_s(given: Any) -> int | None:
    """As `expires_after` of a file, under its own name in what is told."""
    if given is None:
        return None
    try:
        return files.keep_s_of({"expires_after": given})
    except InvalidRequest as error:
        name, param = "output_expires_after", error.param or ""
        message = error.message.replace("'expires_after", f"'{name}")
        raise InvalidRequest(message, param=param.replace("expires_after", name, 1), code=error.code) from None


def _switch(given: Json, name: str) -> bool:
    value = given.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _type(name, "a boolean", value)
    return value


def _type(name: str, expected: str, value: Any) -> InvalidRequest:
    message = f"Invalid type for '{name}': expected {expected}, but got {kind_of(value)} instead."
    return InvalidRequest(message, param=name, code="invalid_type")


def idempotency_of(header: bytes | None, given: Json) -> tuple[str, str] | None:
    """The `Idempotency-Key`, and a digest of what was asked with it, in which the order of fields does not count.

    Raises `InvalidRequest`.
    """
    if header is None:
        return None
    key = header.decode("latin-1")
    if not (0 < len(key) <= IDEMPOTENCY_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Invalid 'Idempotency-Key': expected 1 to {IDEMPOTENCY_KEY_LENGTH} printable ASCII characters.",
            param="Idempotency-Key",
            code="invalid_value",
        )
    asked = {name: value for name, value in given.items() if value is not None}
    return key, hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
