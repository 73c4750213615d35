"""Engines whose model knows tools and schemas, as the embedded one does not. The request says what they answer.

CallsTools      calls each of `tools` once, or the one that `tool_choice` forces; given results, it tells them
AnswersInJSON   a value of the `response_format`'s schema, an object for json_object, else text

    with serving(CallsTools(), AnswersInJSON()) as (tools, json_engine): ...   # from tests without an event loop
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from .chat_engine import STREAM_HEAD, USAGE, Engine, Request, Write, chunk, delta, event, whole

Json = dict[str, Any]
FRAGMENT = 7  # characters of arguments or text in each chunk


def value_of(schema: Json, subject: str, definitions: Json) -> Any:
    """A value that fits; strings are the subject."""
    value: Any = subject
    match schema:
        case {"$ref": name}:
            value = value_of(definitions[name.rsplit("/", 1)[1]], subject, definitions)
        case {"anyOf": [first, *_]}:
            value = value_of(first, subject, definitions)
        case {"enum": [first, *_]}:
            value = first
        case {"type": "integer"}:
            value = 7
        case {"type": "number"}:
            value = 0.5
        case {"type": "boolean"}:
            value = True
        case {"type": "array", "items": items}:
            value = [value_of(items, subject, definitions)]
        case {"type": "object"}:
            fields = schema.get("properties", {})
            value = {name: value_of(field, subject, definitions) for name, field in fields.items()}
    return value


def arguments_for(schema: Json, subject: str) -> str:
    return json.dumps(value_of(schema, subject, schema.get("$defs", {})))


def text_of(message: Json) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def subject_of(body: Json) -> str:
    """The last word of the last thing that the user said."""
    said = [text_of(message) for message in body["messages"] if message["role"] == "user"]
    return said[-1].split()[-1].strip("?!.,")


class _Engine(Engine):
    """An answer is a text or calls; how it is sent is the same for both."""

    def reply(self, body: Json) -> str | list[Json]:
        """The text, or `tool_calls` as a plain reply has them."""
        raise NotImplementedError

    async def answer(self, request: Request, write: Write) -> bool:
        body = request.body
        reply = self.reply(body)
        finish = "stop" if isinstance(reply, str) else "tool_calls"
        if not body.get("stream"):
            content = {"content": reply} if isinstance(reply, str) else {"content": None, "tool_calls": reply}
            choice = {"index": 0, "message": {"role": "assistant", **content}, "finish_reason": finish}
            head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
            await write(whole(200, json.dumps({**head, "choices": [choice], "usage": USAGE}).encode()))
            return True
        deltas = text_deltas(reply) if isinstance(reply, str) else call_deltas(reply)
        await write(STREAM_HEAD)
        for number, part in enumerate(deltas):
            value = delta(body["model"], None)
            value["choices"][0]["delta"] = {"role": "assistant", **part} if number == 0 else part
            await write(chunk(event(value)))
        await write(chunk(event(delta(body["model"], None, finish))))
        if (body.get("stream_options") or {}).get("include_usage"):
            await write(chunk(event({**delta(body["model"], None), "choices": [], "usage": USAGE})))
        await write(chunk(event(b"[DONE]")) + b"0\r\n\r\n")
        return True


def fragments(text: str) -> Iterator[str]:
    return (text[start : start + FRAGMENT] for start in range(0, len(text), FRAGMENT))


def text_deltas(text: str) -> Iterator[Json]:
    return ({"content": fragment} for fragment in fragments(text))


def call_deltas(calls: Sequence[Json]) -> Iterator[Json]:
    """As OpenAI streams calls: who is called first, then pieces of the arguments, one call after the other."""
    for index, call in enumerate(calls):
        named = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield {"tool_calls": [{"index": index, **named}]}
        for fragment in fragments(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}


class CallsTools(_Engine):
    def reply(self, body: Json) -> str | list[Json]:
        results = [text_of(message) for message in body["messages"] if message["role"] == "tool"]
        choice = body.get("tool_choice", "auto")
        if results:
            return f"The tools say: {', '.join(results)}"
        if not body.get("tools") or choice == "none":
            return "There is no tool to call."
        functions = [tool["function"] for tool in body["tools"]]
        if isinstance(choice, dict):
            functions = [function for function in functions if function["name"] == choice["function"]["name"]]
        if body.get("parallel_tool_calls") is False:
            functions = functions[:1]
        subject = subject_of(body)
        return [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {
                    "name": function["name"],
                    "arguments": arguments_for(function.get("parameters", {"type": "object"}), subject),
                },
            }
            for number, function in enumerate(functions, 1)
        ]


class AnswersInJSON(_Engine):
    def reply(self, body: Json) -> str:
        form = body.get("response_format") or {"type": "text"}
        subject = subject_of(body)
        match form["type"]:
            case "json_schema":
                return arguments_for(form["json_schema"]["schema"], subject)
            case "json_object":
                return json.dumps({"subject": subject})
            case _:
                return subject


@contextmanager
def serving(*engines: Engine) -> Iterator[tuple[Engine, ...]]:
    """The engines on an event loop of their own, in a thread, until the block ends."""
    started, ending = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with AsyncExitStack() as stack:
            for engine in engines:
                await stack.enter_async_context(engine)
            started.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="engines")
    thread.start()
    try:
        assert started.wait(10)
        yield engines
    finally:
        loops[0].call_soon_threadsafe(ending.set)
        thread.join()
