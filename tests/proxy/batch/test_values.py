"""A batch's states and its card."""

from __future__ import annotations

from dataclasses import replace

from proxy.batch.values import LIVE, STEPS, Status, before
from proxy.files.batch_lines import Mistake

from .rows_given import NOW, batch


def test_every_state_leads_to_an_end() -> None:
    for status in Status:
        seen, at = set(), {status}
        while at:
            seen |= at
            at = {after for one in at for after in STEPS[one]} - seen
        assert any(one.over for one in seen)
    assert {Status(one) for one in LIVE} == {status for status in Status if not status.over}
    assert before(Status.CANCELLING) == ["in_progress", "validating"]
    assert Status.COMPLETED.over
    assert f"batch.{Status.COMPLETED}" == "batch.completed"


def test_a_card_has_openais_fields() -> None:
    mistake = Mistake("empty_file", "Empty.", None, 3)
    made = batch(output_file_id="file-1", prompt_tokens=7, completion_tokens=5, cached_tokens=3, metadata={"a": "b"})
    card = made.card()
    assert (card["object"], card["errors"], card["output_file_id"]) == ("batch", None, None)
    assert card["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }
    over = replace(made, status=Status.FAILED, failed_at=NOW, errors=(mistake,)).card()
    assert over["output_file_id"] == "file-1"
    assert over["errors"] == {
        "object": "list",
        "data": [{"code": "empty_file", "message": "Empty.", "param": None, "line": 3}],
    }
