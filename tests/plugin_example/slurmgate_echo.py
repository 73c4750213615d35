"""An example of a plugin: a model that says what it is told, and an engine that serves parrots.

[models.echo]
backend = "echo"
options = { shout = true }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from backends.base import Backend, Call, EventStream, Reply, Usage
from backends.dialects import Dialect
from backends.errors import InvalidRequest
from backends.sse import DONE
from slurm_launcher.engines import Engine
from slurm_launcher.spec import ModelSpec


class Echo:
    """A Backend: `run` and `aclose`."""

    def __init__(self, name: str, *, shout: bool) -> None:
        self._name = name
        self._shout = shout

    async def run(self, call: Call) -> Reply | EventStream:
        if call.path != "/v1/chat/completions":
            raise InvalidRequest(f"The echo does not serve {call.path}.", code="unsupported_endpoint")
        content = str(call.body["messages"][-1].get("content"))
        text = content.upper() if self._shout else content
        usage = Usage(len(content.split()), len(text.split()))
        head = {"id": "chatcmpl-echo", "created": 0, "model": self._name}
        if call.stream:
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
            return EchoStream({**head, "object": "chat.completion.chunk", "choices": [choice]}, usage)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        body = {**head, "object": "chat.completion", "choices": [choice]}
        body["usage"] = {**counts, "total_tokens": sum(counts.values())}
        return Reply(200, b"application/json", orjson.dumps(body), usage, "echo")

    def in_flight(self, replica_id: str) -> int:
        return 0

    async def aclose(self) -> None:
        pass


class EchoStream(EventStream):
    def __init__(self, chunk: dict[str, Any], usage: Usage) -> None:
        super().__init__("echo")
        self._events = [b"data: %s\n\n" % orjson.dumps(chunk), DONE]
        self._usage = usage

    async def __anext__(self) -> bytes:
        if not self._events:
            raise StopAsyncIteration
        return self._events.pop(0)

    def close(self) -> None:
        self.usage = self._usage


def make_backend(name: str, options: Mapping[str, Any]) -> Backend:
    unknown = sorted(options.keys() - {"shout"})
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}, known are: shout")
    shout = options.get("shout", False)
    if not isinstance(shout, bool):
        raise ValueError(f"shout: found {shout!r}, expected true or false")
    return Echo(name, shout=shout)


def _arguments(spec: ModelSpec) -> list[str]:
    return ["--model", spec.source, "--listen", "{host}:{port}"]


def _without_logprobs(call: Call, drop_unsupported: bool) -> Call:
    if "logprobs" not in call.body:
        return call
    if not drop_unsupported:
        raise InvalidRequest("Parrots have no logprobs.", param="logprobs", code="unsupported_parameter")
    return call.with_body({name: value for name, value in call.body.items() if name != "logprobs"})


ENGINE = Engine(
    name="parrot", program=("parrot-server",), arguments=_arguments, key_variable="PARROT_KEY", embeds=False
)
DIALECT = Dialect("parrot", paths=frozenset({"/v1/chat/completions"}), prepare=_without_logprobs)
