"""The body of `POST /v1/batches`: what is taken, and what is refused with which param and code."""

from __future__ import annotations

from typing import Any

import pytest

from backends.errors import InvalidRequest
from proxy.batch.asked import asked_of, idempotency_of

GOOD = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
HOUR, DAY = 3600, 24 * 3600


def test_a_body_with_everything() -> None:
    asked = asked_of(
        {
            **GOOD,
            "metadata": {"a": "b"},
            "output_expires_after": {"anchor": "created_at", "seconds": 3600},
            "mixed_models": True,
            "webhook": "https://hooks.example.org/",
        }
    )
    assert (asked.input_file_id, asked.endpoint) == ("file-1", "/v1/chat/completions")
    assert (asked.window, asked.window_s) == ("24h", DAY)
    assert (asked.metadata, asked.output_keep_s) == ({"a": "b"}, 3600)
    assert (asked.mixed_models, asked.webhook) == (True, "https://hooks.example.org/")


def test_what_may_be_left_out_may_be_null() -> None:
    optional = ("metadata", "output_expires_after", "mixed_models", "webhook")
    assert asked_of(GOOD) == asked_of({**GOOD, **dict.fromkeys(optional)})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h", HOUR), ("24h", DAY), ("168h", 7 * DAY), ("1d", DAY), ("7d", 7 * DAY), ("36h", 36 * HOUR)],
)
def test_windows_from_an_hour_to_a_week(text: str, seconds: int) -> None:
    assert asked_of({**GOOD, "completion_window": text}).window_s == seconds


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_endpoints(endpoint: str) -> None:
    assert asked_of({**GOOD, "endpoint": endpoint}).endpoint == endpoint


def metadata(**given: Any) -> dict[str, Any]:
    return {"metadata": given}


EXPIRY = "output_expires_after"
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input_file_id": None}, "missing_required_parameter", "input_file_id"),
    ({"endpoint": None}, "missing_required_parameter", "endpoint"),
    ({"completion_window": None}, "missing_required_parameter", "completion_window"),
    ({"input_file_id": 5}, "invalid_type", "input_file_id"),
    ({"input_file_id": ""}, "empty_string", "input_file_id"),
    ({"endpoint": "/v1/moderations"}, "invalid_value", "endpoint"),
    ({"endpoint": ["/v1/embeddings"]}, "invalid_type", "endpoint"),
    ({"completion_window": "59m"}, "invalid_value", "completion_window"),
    ({"completion_window": "0h"}, "invalid_value", "completion_window"),
    ({"completion_window": "169h"}, "invalid_value", "completion_window"),
    ({"completion_window": "8d"}, "invalid_value", "completion_window"),
    ({"completion_window": "24"}, "invalid_value", "completion_window"),
    ({"completion_window": "24h\n"}, "invalid_value", "completion_window"),
    ({"completion_window": "٢h"}, "invalid_value", "completion_window"),
    ({"completion_window": "9" * 5000 + "h"}, "invalid_value", "completion_window"),
    ({"completion_window": 24}, "invalid_type", "completion_window"),
    ({"metadata": []}, "invalid_type", "metadata"),
    ({"metadata": "a"}, "invalid_type", "metadata"),
    ({"metadata": {str(number): "" for number in range(17)}}, "object_above_max_properties", "metadata"),
    ({"metadata": {"x" * 65: ""}}, "string_above_max_length", "metadata"),
    (metadata(a="x" * 513), "string_above_max_length", "metadata.a"),
    (metadata(a=5), "invalid_type", "metadata.a"),
    (metadata(a=None), "invalid_type", "metadata.a"),
    ({EXPIRY: 3600}, "invalid_type", EXPIRY),
    ({EXPIRY: {}}, "missing_required_parameter", f"{EXPIRY}.anchor"),
    ({EXPIRY: {"anchor": "now", "seconds": 3600}}, "invalid_value", f"{EXPIRY}.anchor"),
    ({EXPIRY: {"anchor": "created_at"}}, "missing_required_parameter", f"{EXPIRY}.seconds"),
    ({EXPIRY: {"anchor": "created_at", "seconds": 3599}}, "integer_below_min_value", f"{EXPIRY}.seconds"),
    ({EXPIRY: {"anchor": "created_at", "seconds": 2_592_001}}, "integer_above_max_value", f"{EXPIRY}.seconds"),
    ({EXPIRY: {"anchor": "created_at", "seconds": 3600, "x": 1}}, "unknown_parameter", f"{EXPIRY}.x"),
    ({"mixed_models": 1}, "invalid_type", "mixed_models"),
    ({"mixed_models": "true"}, "invalid_type", "mixed_models"),
    ({"webhook": 1}, "invalid_type", "webhook"),
    ({"webhook": ""}, "empty_string", "webhook"),
    ({"completion_windows": "24h"}, "unknown_parameter", "completion_windows"),
]


@pytest.mark.parametrize(("given", "code", "param"), REFUSED, ids=lambda given: str(given)[:40])
def test_what_is_wrong_is_told_with_its_field(given: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked_of({**GOOD, **given})
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert "'expires_after" not in caught.value.message


# -- idempotency -----------------------------------------------------------------------------------------------------


def test_the_same_request_has_the_same_digest_however_it_is_written() -> None:
    first = idempotency_of(b"k", GOOD)
    assert first is not None
    assert first[0] == "k"
    assert idempotency_of(b"k", {**dict(reversed(GOOD.items())), "metadata": None}) == first
    assert idempotency_of(b"k", {**GOOD, "endpoint": "/v1/embeddings"}) != first
    assert idempotency_of(None, GOOD) is None


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a\tb", "schlüssel".encode()])
def test_keys_that_are_none(key: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        idempotency_of(key, GOOD)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "Idempotency-Key")
