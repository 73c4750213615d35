"""A mock engine, fast enough that whatever stands before it is what gets measured.

    python -m bench.mock_engine PORT [--chunks N] [--interval-ms MS] [--answer-ms MS] [--backlog N]

It answers chat completions and completions (plain and streamed), embeddings, `/v1/models` and `/health`, in bytes as
vLLM writes them: a first chunk with the role, one chunk a token with words of different length, a chunk with the finish
reason, a usage chunk where `stream_options.include_usage` asks for it, then `[DONE]`. A stream goes out at a steady
pace, as from an engine that decodes; whole answers come at once, or after --answer-ms. Every answer is made once,
before the port opens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import orjson
import uvloop

MODEL = "m"
PROMPT_TOKENS = 20
_ID = "8c1f0e6b2f7d4a3c9b5e1d0a7f6c4b2e"
_CREATED = 1_700_000_000
_WORDS = (
    " the", " of", " an", "swer", " is", " forty", "-", "two", ",", " as", " every", " traveller", " knows", ".", "\n",
    "Nobody", " has", " found", " out", " what", ' "', "question", '"', " it", " belongs", " to", " \u2014", " yet",
)  # fmt: skip

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"
_NOT_FOUND = {"error": {"message": "Not Found", "type": "NotFoundError", "param": None, "code": 404}}


def answer(body: Any, status: bytes = b"200 OK") -> bytes:
    """A whole JSON response."""
    data = orjson.dumps(body)
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(data))
    return head + data


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(body: Any) -> bytes:
    """One server-sent event, as one chunk."""
    return chunked(b"data: " + orjson.dumps(body) + b"\n\n")


def words(count: int) -> list[str]:
    """As many tokens of text."""
    return [_WORDS[index % len(_WORDS)] for index in range(count)]


def usage(tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + tokens,
        "completion_tokens": tokens,
        "prompt_tokens_details": None,
    }


@dataclass(frozen=True, slots=True)
class Script:
    """What one endpoint says: the whole answer, or the pieces of a stream in the order in which they are written."""

    plain: bytes
    opening: bytes
    tokens: tuple[bytes, ...]
    usage: bytes

    @property
    def ending(self) -> bytes:
        return chunked(b"data: [DONE]\n\n") + _LAST_CHUNK


def chat(chunks: int) -> Script:
    identity = {"id": f"chatcmpl-{_ID}", "object": "chat.completion.chunk", "created": _CREATED, "model": MODEL}

    def piece(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**identity, "choices": [choice]})

    message: dict[str, Any] = {
        "role": "assistant",
        "reasoning_content": None,
        "content": "".join(words(64)),
        "tool_calls": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    return Script(
        plain=answer({**identity, "object": "chat.completion", "choices": [choice], "usage": usage(64)}),
        opening=piece({"role": "assistant", "content": ""}),
        tokens=(*(piece({"content": word}) for word in words(chunks)), piece({"content": ""}, "stop")),
        usage=event({**identity, "choices": [], "usage": usage(chunks)}),
    )


def completions(chunks: int) -> Script:
    identity = {"id": f"cmpl-{_ID}", "object": "text_completion", "created": _CREATED, "model": MODEL}

    def choice(text: str, finish: str | None = None) -> dict[str, Any]:
        only = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        return {**identity, "choices": [only]}

    return Script(
        plain=answer({**choice("".join(words(64)), "stop"), "usage": usage(64)}),
        opening=b"",
        tokens=(*(event(choice(word)) for word in words(chunks)), event(choice("", "stop"))),
        usage=event({**identity, "choices": [], "usage": usage(chunks)}),
    )


def embeddings(dimensions: int = 384) -> bytes:
    vector = [round((index * 37 % 1000) / 1000 - 0.5, 6) for index in range(dimensions)]
    data = [{"index": 0, "object": "embedding", "embedding": vector}]
    used = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS, "completion_tokens": 0}
    return answer({"id": f"embd-{_ID}", "object": "list", "model": MODEL, "data": data, "usage": used})


class Engine:
    """Everything that the engine says, made once."""

    def __init__(self, chunks: int, interval_s: float, answer_s: float = 0.0) -> None:
        self.interval_s = interval_s
        self.answer_s = answer_s
        self.scripts = {b"/v1/chat/completions": chat(chunks), b"/v1/completions": completions(chunks)}
        card = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "vllm", "max_model_len": 8192}
        self.fixed = {
            b"/v1/embeddings": embeddings(),
            b"/v1/models": answer({"object": "list", "data": [card]}),
            b"/health": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            # what routers ask of an engine when they take it up
            b"/get_model_info": answer({"model_path": MODEL, "is_generation": True}),
        }
        self.unknown = answer(_NOT_FOUND, b"404 Not Found")

    def __call__(self) -> Connection:
        return Connection(self)


class Connection(asyncio.Protocol):
    """One client. Requests come one after the other, as from every proxy's connection pool."""

    _transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self._pieces: Iterable[bytes] = ()
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # -- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        engine = self._engine
        path = self._url.partition(b"?")[0]
        script = engine.scripts.get(path)
        if script is None:
            self._transport.write(engine.fixed.get(path, engine.unknown))
        elif b'"stream":true' in self._body or b'"stream": true' in self._body:
            asks = b'"include_usage":true' in self._body or b'"include_usage": true' in self._body
            self._stream(script, with_usage=asks)
        elif engine.answer_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(engine.answer_s, self._transport.write, script.plain)
        else:
            self._transport.write(script.plain)

    # -- streams ------------------------------------------------------------------------------------------------------

    def _stream(self, script: Script, *, with_usage: bool) -> None:
        ending = script.usage + script.ending if with_usage else script.ending
        pieces = iter((script.opening + script.tokens[0], *script.tokens[1:-1]))
        last = script.tokens[-1]
        interval_s = self._engine.interval_s
        loop = asyncio.get_running_loop()
        again: Callable[[Callable[[], None]], asyncio.Handle] = (
            (lambda step: loop.call_later(interval_s, step)) if interval_s else loop.call_soon
        )

        def step() -> None:
            piece = next(pieces, None)
            if piece is None:
                self._timer = None
                self._transport.write(last)
                self._transport.write(ending)
                return
            self._transport.write(piece)
            self._timer = again(step)

        self._transport.write(_STREAM_HEAD)
        self._timer = again(step)


async def serve(port: int, engine: Engine, backlog: int) -> None:
    server = await asyncio.get_running_loop().create_server(engine, "127.0.0.1", port, backlog=backlog)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--chunks", type=int, default=100, help="tokens in a stream (100)")
    parser.add_argument("--interval-ms", type=float, default=20.0, help="between two of them, 0 for none (20)")
    parser.add_argument("--answer-ms", type=float, default=0.0, help="before an answer that is no stream (0)")
    parser.add_argument("--backlog", type=int, default=4096, help="connections that wait to be accepted (4096)")
    options = parser.parse_args()
    engine = Engine(max(1, options.chunks), options.interval_ms / 1000, options.answer_ms / 1000)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(options.port, engine, options.backlog))


if __name__ == "__main__":
    main()
