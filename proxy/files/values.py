"""Files, uploads and parts as values, and the rules for what clients say of them. Pure."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from backends.errors import InvalidRequest
from proxy.bodies import kind_of
from proxy.principals import Principal

Json = dict[str, Any]

MIB = 1024 * 1024
BATCH_BYTES = 200 * MIB
FILE_BYTES = 512 * MIB
"""What `POST /v1/files` takes; larger ones come as uploads."""
UPLOAD_BYTES = 8 * 1024 * MIB
PART_BYTES = 64 * MIB

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""What clients may give; `batch_output` is made here."""
BATCH_OUTPUT = "batch_output"

BATCH_KEPT_S = 30 * 24 * 3600
"""Input files of batches; others are kept until they are deleted, unless `expires_after` says otherwise."""
UPLOAD_KEPT_S = 3600
KEEP_LEAST_S, KEEP_MOST_S = 3600, 2_592_000
NAME_LENGTH = 255


@dataclass(frozen=True, slots=True)
class File:
    """Times are seconds since the epoch; `expires_at` is None for never."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None

    def card(self) -> Json:
        """OpenAI's file object. `status` is deprecated there and says nothing: nothing is done to files later."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True)
class Upload:
    """status   pending, completed, cancelled or expired
    bytes       of the whole file, as announced
    keep_s      how long its file is kept; None for its purpose's default
    file        what it became, once completed and while that is there
    part_ids    what it was completed with
    """

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    status: str
    created_at: int
    expires_at: int
    keep_s: int | None = None
    file: File | None = None
    part_ids: tuple[str, ...] = ()

    def card(self) -> Json:
        """OpenAI's upload object."""
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "file": self.file.card() if self.file is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Part:
    id: str
    upload_id: str
    bytes: int
    created_at: int

    def card(self) -> Json:
        return {
            "id": self.id,
            "object": "upload.part",
            "created_at": self.created_at,
            "upload_id": self.upload_id,
        }


def owner_of(principal: Principal) -> str:
    """Whose the files are that come with a key: its project's, or its own; "" where no key is needed.

    A key that changes its project leaves its files where they are.
    """
    return principal.project_id or principal.key_id


def new_id(prefix: str) -> str:
    """An id that grows with time, to the millisecond: lists are in its order."""
    return f"{prefix}{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


# -- what clients say ------------------------------------------------------------------------------------------------


def missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def wrong(name: str, expected: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{name}': expected {expected}.", param=name, code=code)


def only_known(given: Json, known: tuple[str, ...]) -> None:
    """Raises `InvalidRequest` for a field that there is not: one that is mistyped would be missed too late."""
    for name in given:
        if name not in known:
            raise InvalidRequest(f"Unknown parameter: '{name[:80]}'.", param=name[:80], code="unknown_parameter")


def text_of(given: Json, name: str) -> str:
    value = given.get(name)
    if value is None:
        raise missing(name)
    if not isinstance(value, str):
        message = f"Invalid type for '{name}': expected a string, but got {kind_of(value)} instead."
        raise InvalidRequest(message, param=name, code="invalid_type")
    if not value:
        raise InvalidRequest(f"Invalid '{name}': empty string.", param=name, code="empty_string")
    return value


def integer_of(given: Json, name: str, least: int, most: int) -> int:
    value = given.get(name.rpartition(".")[2])
    if value is None:
        raise missing(name)
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"Invalid type for '{name}': expected an integer, but got {kind_of(value)} instead."
        raise InvalidRequest(message, param=name, code="invalid_type")
    if not least <= value <= most:
        code = "integer_below_min_value" if value < least else "integer_above_max_value"
        message = f"Invalid '{name}': expected an integer from {least} to {most}."
        raise InvalidRequest(message, param=name, code=code)
    return value


def purpose_of(given: Json) -> str:
    """Raises `InvalidRequest`."""
    purpose = text_of(given, "purpose")
    if purpose not in PURPOSES:
        raise wrong("purpose", "one of " + ", ".join(f"'{name}'" for name in PURPOSES))
    return purpose


def plain_name(filename: str, param: str) -> str:
    """The last part of a path, which some clients send. Raises `InvalidRequest`."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    if not name or name in (".", ".."):
        raise wrong(param, "a file with a name")
    if len(name) > NAME_LENGTH or not name.isprintable():
        raise wrong(param, f"a name of at most {NAME_LENGTH} printable characters")
    return name


def check_name(filename: str, purpose: str, param: str) -> None:
    """Raises `InvalidRequest` for a batch's file that is not called so."""
    if purpose == "batch" and not filename.lower().endswith(".jsonl"):
        raise InvalidRequest(
            "Invalid file format: the name of a file with purpose 'batch' ends in '.jsonl'.",
            param=param,
            code="invalid_file_format",
        )


def keep_s_of(given: Json) -> int | None:
    """`expires_after` -> seconds; None where it is not given. Raises `InvalidRequest`."""
    asked = given.get("expires_after")
    if asked is None:
        return None
    if not isinstance(asked, dict):
        message = f"Invalid type for 'expires_after': expected an object, but got {kind_of(asked)} instead."
        raise InvalidRequest(message, param="expires_after", code="invalid_type")
    for name in asked:
        only_known({f"expires_after.{name}": 0}, ("expires_after.anchor", "expires_after.seconds"))
    if asked.get("anchor") is None:
        raise missing("expires_after.anchor")
    if asked["anchor"] != "created_at":
        raise wrong("expires_after.anchor", "'created_at'")
    return integer_of(asked, "expires_after.seconds", KEEP_LEAST_S, KEEP_MOST_S)


def expiry_of(purpose: str, created_at: int, keep_s: int | None) -> int | None:
    if keep_s is None:
        keep_s = BATCH_KEPT_S if purpose == "batch" else None
    return None if keep_s is None else created_at + keep_s


def most_bytes(purpose: str, most: int) -> int:
    """How large a file of a purpose may be, where files may have `most` bytes."""
    return min(most, BATCH_BYTES) if purpose == "batch" else most
