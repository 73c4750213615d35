"""People who never stop asking: streams and plain requests through a gateway, every failure kept."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

QUESTION = [{"role": "user", "content": "What happens at the wall time?"}]


@dataclass
class Load:
    """`with Load(url, key, model) as load: ...`

    answered, streamed   requests and streams that were whole
    failed               what went wrong: a status and a body, an exception, a stream's error event
    """

    url: str
    key: str
    model: str
    streams: int = 3
    plain: int = 2
    answered: int = 0
    streamed: int = 0
    failed: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number in range(self.streams + self.plain):
            work = self._stream if number < self.streams else self._ask
            thread = threading.Thread(target=self._again_and_again, args=(work,), name=f"load {number}")
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def whole(self) -> int:
        return self.answered + self.streamed

    def _again_and_again(self, work: Any) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=60) as client:
            while not self._over.is_set():
                try:
                    work(client)
                except (httpx.HTTPError, AssertionError) as error:
                    self.failed.append(f"{time.strftime('%H:%M:%S')} {work.__name__}: {error!r}")
                    self._over.wait(0.2)

    def _body(self, *, stream: bool) -> dict[str, Any]:
        return {"model": self.model, "messages": QUESTION, "max_tokens": 24, "stream": stream}

    def _ask(self, client: httpx.Client) -> None:
        answer = client.post("/v1/chat/completions", json=self._body(stream=False))
        assert answer.status_code == 200, answer.text
        self.answered += 1

    def _stream(self, client: httpx.Client) -> None:
        with client.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as answer:
            text = answer.read().decode()
        assert answer.status_code == 200, text
        assert '"error"' not in text, text[-500:]
        assert text.endswith("data: [DONE]\n\n"), text[-200:]
        self.streamed += 1
