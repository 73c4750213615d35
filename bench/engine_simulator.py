"""An OpenAI-compatible engine that computes nothing: its tokens come when the engine model says that they would.

    python -m bench.engine_simulator --profile llama-8b [--port 0] [--speed 1] [--model NAME]

It prints the port that it listens on. `POST /v1/chat/completions` (streamed and whole), `POST /tokenize`, `/v1/models`
and `/health` answer as vLLM's do. A word is a token; answers are exactly `max_tokens` long, as with `ignore_eos`. Two
ways of its own: `GET /simulator` tells counts and peaks (the peaks begin anew), and `--speed 10` lets the simulated
world run ten times as fast as the clock on the wall, so that every latency of it is a tenth.

The model's clock is kept: a step that ended late, because this machine had other things to do, does not delay the next
one. How late the latest one was stands in `/simulator` as `late_ms`: above a few milliseconds, look at the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import selectors
from dataclasses import asdict, dataclass
from typing import Any, cast

import httptools
import orjson

from .engine_model import EngineModel, Job, QueueIsFull, Speeds, TooLong
from .engine_profiles import PROFILES
from .mock_engine import answer, chunked, event, words

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_END = chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_DEFAULT_OUTPUT_TOKENS = 128
_TEMPLATE_TOKENS = 10
_WORDS = words(64)
_CREATED = 1_700_000_000


def refusal(status: bytes, message: str, kind: str) -> bytes:
    code = int(status.split()[0])
    return answer({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def tokens_of(body: dict[str, Any]) -> int:
    """A word is a token; the chat template's own are added once."""
    if isinstance(body.get("prompt"), str):
        return len(body["prompt"].split())
    texts = [message.get("content") for message in body.get("messages") or () if isinstance(message, dict)]
    return _TEMPLATE_TOKENS + sum(len(text.split()) for text in texts if isinstance(text, str))


@dataclass(slots=True)
class Wanted:
    """One request that is being answered. `pieces`: chunks of its stream, the same for every token but the text."""

    connection: Connection
    job: Job
    stream: bool
    with_usage: bool
    before: bytes
    after: bytes
    identity: dict[str, Any]

    @property
    def usage(self) -> dict[str, int]:
        prompt, output = self.job.prompt_tokens, self.job.output_tokens
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def token(self, index: int, *, last: bool) -> bytes:
        data = chunked(self.before + orjson.dumps(_WORDS[index % len(_WORDS)]) + self.after)
        if index == 0:
            data = _STREAM_HEAD + self._chunk({"role": "assistant", "content": ""}) + data
        if not last:
            return data
        data += self._chunk({"content": ""}, "length")
        if self.with_usage:
            data += event({**self.identity, "choices": [], "usage": self.usage})
        return data + _END

    def whole(self) -> bytes:
        text = "".join(_WORDS[index % len(_WORDS)] for index in range(self.job.output_tokens))
        message = {"role": "assistant", "content": text, "tool_calls": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        return answer({**self.identity, "object": "chat.completion", "choices": [choice], "usage": self.usage})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self.identity, "choices": [choice]})


class Simulator:
    """One engine: the model, and the clock that drives it."""

    def __init__(self, speeds: Speeds, *, model: str, speed: float = 1.0) -> None:
        self.engine = EngineModel(speeds)
        self.name = model
        self._speed = speed
        self._wanted: dict[int, Wanted] = {}
        self._next_id = 0
        self._ends = 0.0  # of the step that is under way, on the wall's clock
        self._timer: asyncio.TimerHandle | None = None
        self._late_s = 0.0

    def __call__(self) -> Connection:
        return Connection(self)

    def chat(self, connection: Connection, body: dict[str, Any]) -> int | None:
        """The job's id; None if it was refused, and answered so."""
        if body.get("model") != self.name:
            message = f"The model `{body.get('model')}` does not exist."
            connection.write(refusal(b"404 Not Found", message, "NotFoundError"))
            return None
        output = body.get("max_completion_tokens") or body.get("max_tokens") or _DEFAULT_OUTPUT_TOKENS
        if not isinstance(output, int) or output < 1:
            connection.write(refusal(b"400 Bad Request", "max_tokens must be at least 1.", "BadRequestError"))
            return None
        job = Job(self._next_id, tokens_of(body), output)
        try:
            self.engine.submit(job)
        except QueueIsFull:
            connection.write(refusal(b"429 Too Many Requests", "Model is overloaded", "overloaded"))
            return None
        except TooLong:
            message = "This model's maximum context length is exceeded."
            connection.write(refusal(b"400 Bad Request", message, "BadRequestError"))
            return None
        self._next_id += 1
        self._wanted[job.id] = self._want(connection, job, body)
        if self._timer is None:
            self._ends = asyncio.get_running_loop().time()
            self._begin()
        return job.id

    def _want(self, connection: Connection, job: Job, body: dict[str, Any]) -> Wanted:
        identity = {
            "id": f"chatcmpl-{job.id:032x}",
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": self.name,
        }
        mark = "\x00"
        choice = {"index": 0, "delta": {"content": mark}, "logprobs": None, "finish_reason": None}
        before, after = orjson.dumps({**identity, "choices": [choice]}).split(orjson.dumps(mark))
        options = body.get("stream_options")
        with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        stream = bool(body.get("stream"))
        return Wanted(connection, job, stream, with_usage, b"data: " + before, after + b"\n\n", identity)

    def gone(self, job_id: int) -> None:
        """Its client has closed the connection."""
        if self._wanted.pop(job_id, None) is not None:
            self.engine.cancel(job_id)

    def state(self) -> dict[str, Any]:
        """Counts so far, and peaks since it was last asked."""
        counts = self.engine.counts
        told = {
            **asdict(counts),
            "waiting": self.engine.waiting,
            "running": self.engine.running,
            "cache_tokens": self.engine.speeds.cache_tokens,
            "speed": self._speed,
            "late_ms": self._late_s * 1e3,
        }
        counts.peaks_again()
        self._late_s = 0.0
        return told

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        took = self.engine.begin()
        if took is None:
            self._timer = None
            return
        self._ends += took / self._speed
        self._timer = loop.call_at(self._ends, self._finish)

    def _finish(self) -> None:
        self._late_s = max(self._late_s, asyncio.get_running_loop().time() - self._ends)
        for token in self.engine.finish():
            wanted = self._wanted[token.job_id]
            if wanted.stream:
                wanted.connection.write(wanted.token(token.index, last=token.last))
            elif token.last:
                wanted.connection.write(wanted.whole())
            if token.last:
                del self._wanted[token.job_id]
                wanted.connection.answered()
        self._begin()


class Connection(asyncio.Protocol):
    """One client. Its requests come one after the other, as from every connection pool."""

    _transport: asyncio.Transport

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._job_id: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._job_id is not None:
            self._simulator.gone(self._job_id)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def answered(self) -> None:
        self._job_id = None

    # -- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        simulator = self._simulator
        match self._url.partition(b"?")[0]:
            case b"/v1/chat/completions":
                if (body := self._json()) is not None:
                    self._job_id = simulator.chat(self, body)
            case b"/tokenize":
                if (body := self._json()) is not None:
                    count = tokens_of(body)
                    room = simulator.engine.speeds.cache_tokens
                    self.write(answer({"count": count, "max_model_len": room, "tokens": list(range(count))}))
            case b"/v1/models":
                room = simulator.engine.speeds.cache_tokens
                card = {"id": simulator.name, "object": "model", "created": _CREATED, "owned_by": "simulator"}
                self.write(answer({"object": "list", "data": [{**card, "max_model_len": room}]}))
            case b"/health":
                self.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            case b"/simulator":
                self.write(answer(simulator.state()))
            case _:
                self.write(refusal(b"404 Not Found", "Not Found", "NotFoundError"))

    def _json(self) -> dict[str, Any] | None:
        """The body; None if it is no JSON object, which is answered."""
        try:
            body = orjson.loads(b"".join(self._body))
        except orjson.JSONDecodeError:
            body = None
        if isinstance(body, dict):
            return body
        self.write(refusal(b"400 Bad Request", "The body is no JSON object.", "BadRequestError"))
        return None


async def serve(simulator: Simulator, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(simulator, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def precise_loop() -> asyncio.AbstractEventLoop:
    """The timers of uvloop and of epoll count milliseconds, and a step is a few of those. select() takes microseconds;
    it also takes no more than a thousand connections."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("expected a number above 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="llama-8b")
    parser.add_argument("--port", type=int, default=0, help="0 for any free one (0)")
    parser.add_argument("--model", help="the model's name (the profile's)")
    parser.add_argument("--speed", type=positive, default=1.0, help="of the simulated world (1)")
    options = parser.parse_args()
    simulator = Simulator(PROFILES[options.profile].speeds, model=options.model or options.profile, speed=options.speed)
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(serve(simulator, options.port))


if __name__ == "__main__":
    main()
