"""What the batch benchmark asks of a gateway: files up, batches made and waited for, every line of output looked at."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .load import chat_request
from .mock_engine import MODEL
from .targets import Target

Card = dict[str, Any]
ENDPOINT = "/v1/chat/completions"
OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_BOUNDARY = "bench-5f1c"
_CHUNK = 256 * 1024


class BatchError(Exception):
    """The gateway did something else than it was asked for."""


@dataclass(frozen=True, slots=True)
class Times:
    """Of a batch, in seconds from its creation, as its card was seen."""

    validated: float
    answered: float
    over: float

    @property
    def running_s(self) -> float:
        return self.answered - self.validated

    @property
    def finalizing_s(self) -> float:
        return self.over - self.answered


def write_input(path: Path, lines: int, size: int = 0, *, first: int = 0) -> Path:
    """As many chat requests, the body of each as `load.chat_request` has it. With `size`, prompts fill lines up to so
    many bytes, and no two of them are alike."""
    body = orjson.loads(chat_request(MODEL, "", stream=False).partition(b"\r\n\r\n")[2])
    del body["stream"]  # False anyway
    with path.open("wb") as file:
        for number in range(first, first + lines):
            line = {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body}
            if size:
                missing = size - len(orjson.dumps(line)) - 1
                text = f"{number} and more of it, " * (max(0, missing) // len(f"{number} and more of it, "))
                user = {"role": "user", "content": body["messages"][1]["content"] + text}
                line["body"] = {**body, "messages": [body["messages"][0], user]}
            file.write(orjson.dumps(line) + b"\n")
    return path


class Client:
    """Blocking; one connection for each call, so that threads may share it. Raises `BatchError`."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def upload(self, path: Path) -> str:
        """A batch input, streamed from disk. Its id."""
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{_BOUNDARY}\r\n'
            f'Content-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode()
        tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
        length = len(head) + path.stat().st_size + len(tail)
        headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}", "content-length": str(length)}

        def body() -> Iterator[bytes]:
            yield head
            with path.open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
            yield tail

        return str(self._ask("POST", "/v1/files", body(), headers)["id"])

    def create(self, file_id: str) -> Card:
        asked = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
        return self._ask("POST", "/v1/batches", json.dumps(asked).encode(), {"content-type": "application/json"})

    def card(self, batch_id: str) -> Card:
        return self._ask("GET", f"/v1/batches/{batch_id}")

    def tell(self, batch_id: str, verb: str) -> Card:
        """`pause`, `resume` or `cancel`."""
        return self._ask("POST", f"/v1/batches/{batch_id}/{verb}")

    def delete(self, file_id: str) -> None:
        self._ask("DELETE", f"/v1/files/{file_id}")

    def until(
        self, batch_id: str, seen: Callable[[Card], bool], patience_s: float = 600.0, every_s: float = 0.1
    ) -> Card:
        deadline = time.monotonic() + patience_s
        while not seen(card := self.card(batch_id)):
            if time.monotonic() > deadline or card["status"] in OVER:
                raise BatchError(f"the batch is {card['status']}, {card['request_counts']}, {card['errors']}")
            time.sleep(every_s)
        return card

    def run(self, file_id: str) -> tuple[Card, Times]:
        """A batch from its creation to its end."""
        begun = time.monotonic()
        batch_id = self.create(file_id)["id"]
        self.until(batch_id, lambda card: card["status"] != "validating")
        validated = time.monotonic() - begun
        self.until(batch_id, lambda card: done(card) >= card["request_counts"]["total"] > 0)
        answered = time.monotonic() - begun
        card = self.until(batch_id, lambda card: card["status"] in OVER)
        return card, Times(validated, answered, time.monotonic() - begun)

    def cancelled(self, batch_id: str) -> None:
        self.tell(batch_id, "cancel")
        self.until(batch_id, lambda card: card["status"] in OVER)

    def check_output(self, card: Card, lines: int, *, first: int = 0) -> None:
        """One output line for each input line, whole and well."""
        counts = {"total": lines, "completed": lines, "failed": 0}
        if card["status"] != "completed" or card["request_counts"] != counts or card["error_file_id"] is not None:
            raise BatchError(f"the batch ended as {card}")
        seen = bytearray(lines)
        connection, answer = self._open("GET", f"/v1/files/{card['output_file_id']}/content")
        try:
            for text in answer:
                line = orjson.loads(text)
                number = int(line["custom_id"].removeprefix("line-")) - first
                if seen[number] or line["error"] is not None or line["response"]["status_code"] != 200:
                    raise BatchError(f"line {number} is there twice, or is not well")
                if not line["response"]["body"]["choices"]:
                    raise BatchError(f"line {number} has no answer")
                seen[number] = 1
        finally:
            connection.close()
        if sum(seen) != lines:
            raise BatchError(f"{lines - sum(seen)} lines are missing")

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, body: Iterator[bytes] | bytes | None = None, headers: dict[str, str] | None = None
    ) -> Card:
        connection, answer = self._open(method, path, body, headers)
        try:
            card: Card = json.loads(answer.read())
            return card
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, body: Iterator[bytes] | bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._target.port, timeout=300)
        given = {"authorization": f"Bearer {self._target.key}", **(headers or {})}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        if answer.status != 200:
            told = answer.read(1000)
            connection.close()
            raise BatchError(f"{method} {path}: {answer.status} {told!r}")
        return connection, answer


def done(card: Card) -> int:
    counts: dict[str, int] = card["request_counts"]
    return counts["completed"] + counts["failed"]
