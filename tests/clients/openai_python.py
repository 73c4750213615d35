"""The OpenAI SDK for Python, 2.x and 3.x alike: everything it is used for, then one line of JSON about what it saw.

Run by tests/acceptance/test_clients.py, which says what must stand in that line. The environment has OPENAI_BASE_URL
and OPENAI_API_KEY of a gateway with the embedded models, TOOLS_BASE_URL and TOOLS_API_KEY of one with the engines of
tests/fakes/tool_engine.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

CHAT, EMBED = "slurmgate-guide", "slurmgate-embed"
QUESTION = [{"role": "user", "content": "What is slurmgate?"}]
TEXTS = ["What is slurmgate?", "Tell me what slurmgate is", "How do I cancel a job?"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {
    "type": "function",
    "function": {"name": "time_in", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class City(BaseModel):
    name: str
    districts: int


def chat(client: OpenAI) -> dict[str, Any]:
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=QUESTION)
    answer = raw.parse()
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "model": answer.model,
        "usage": answer.usage.to_dict(),
        "request_id": raw.headers["x-request-id"],
        "same_request_id": answer._request_id == raw.headers["x-request-id"],
    }


def chat_stream(client: OpenAI, **options: Any) -> dict[str, Any]:
    text, finish, usages, without_choices = "", None, [], 0
    for chunk in client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True, **options):
        without_choices += not chunk.choices
        usages.append(chunk.usage and chunk.usage.to_dict())
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return {"text": text, "finish": finish, "usages": usages, "without_choices": without_choices}


def completion(client: OpenAI) -> dict[str, Any]:
    answer = client.completions.create(model=CHAT, prompt="slurmgate is", max_tokens=8)
    stream = client.completions.create(model=CHAT, prompt="slurmgate is", max_tokens=8, stream=True)
    return {
        "text": answer.choices[0].text,
        "streamed": "".join(chunk.choices[0].text for chunk in stream if chunk.choices),
        "usage": answer.usage.to_dict(),
    }


def embeddings(client: OpenAI) -> dict[str, Any]:
    default = client.embeddings.create(model=EMBED, input=TEXTS)  # the SDK asks for base64 and decodes it
    floats = client.embeddings.create(model=EMBED, input=TEXTS, encoding_format="float")
    vectors = zip(default.data, floats.data, strict=True)
    numbers = [pair for one, same in vectors for pair in zip(one.embedding, same.embedding, strict=True)]
    return {
        "widths": [len(one.embedding) for one in default.data],
        "indices": [one.index for one in default.data],
        "same": all(abs(a - b) < 1e-6 for a, b in numbers),
        "usage": default.usage.to_dict(),
    }


def empty_text(client: OpenAI) -> int:
    return len(client.embeddings.create(model=EMBED, input="").data[0].embedding)


def error(call: Callable[[], Any]) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as raised:
        return [type(raised).__name__, raised.status_code, raised.type, raised.param, raised.code]
    raise AssertionError("no error")


def errors(client: OpenAI) -> dict[str, list[Any]]:
    stranger = client.with_options(api_key="sk-wrong")
    # the SDK itself refuses to leave out a field
    incomplete = {"body": {"model": CHAT}, "cast_to": object}
    return {
        "model": error(lambda: client.chat.completions.create(model="nobody/knows-it", messages=QUESTION)),
        "retrieve": error(lambda: client.models.retrieve("nobody/knows-it")),
        "key": error(lambda: stranger.chat.completions.create(model=CHAT, messages=QUESTION)),
        "field": error(lambda: client.post("/chat/completions", **incomplete)),
        "stream": error(lambda: client.chat.completions.create(model="gone", messages=QUESTION, stream=True)),
    }


def cancelled(client: OpenAI) -> dict[str, Any]:
    """Left after three chunks of an answer without an end."""
    stream = client.chat.completions.create(model="talks-on", messages=QUESTION, stream=True)
    seen = [next(stream) for _ in range(3)]
    request_id = stream.response.headers["x-request-id"]
    stream.close()
    return {"chunks": len(seen), "request_id": request_id}


async def concurrent() -> list[str]:
    """The asynchronous client: four streams at once, on its pool of connections."""
    async with AsyncOpenAI() as client:

        async def one() -> str:
            stream = await client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        return await asyncio.gather(*(one() for _ in range(4)))


def tools(client: OpenAI) -> dict[str, Any]:
    ask: dict[str, Any] = {
        "model": "calls-tools",
        "messages": [{"role": "user", "content": "What is it like in Oslo?"}],
        "tools": [WEATHER, TIME],
    }
    message = client.chat.completions.create(**ask).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in message.tool_calls]
    after = client.chat.completions.create(**{**ask, "messages": [*ask["messages"], message, *results]})
    with client.chat.completions.stream(**ask) as stream:  # the SDK's own accumulation of the fragments
        fragments = sum(piece.type == "tool_calls.function.arguments.delta" for piece in stream)
        streamed = stream.get_final_completion().choices[0]
    forced = client.chat.completions.create(**ask, tool_choice={"type": "function", "function": {"name": "time_in"}})

    def named(calls: Any) -> list[list[Any]]:
        return [[call.id, call.function.name, json.loads(call.function.arguments)] for call in calls]

    return {
        "plain": named(message.tool_calls),
        "streamed": named(streamed.message.tool_calls),
        "fragments": fragments,
        "finish": streamed.finish_reason,
        "forced": named(forced.choices[0].message.tool_calls),
        "after": after.choices[0].message.content,
    }


def structured(client: OpenAI) -> dict[str, Any]:
    ask: dict[str, Any] = {
        "model": "answers-in-json",
        "messages": [{"role": "user", "content": "Describe Oslo"}],
        "response_format": City,
    }
    parsed = client.chat.completions.parse(**ask).choices[0].message.parsed
    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    plain = client.chat.completions.create(**{**ask, "response_format": {"type": "json_object"}})
    return {
        "parsed": parsed.model_dump(),
        "streamed": streamed.model_dump(),
        "json_object": json.loads(plain.choices[0].message.content),
    }


def main() -> None:
    seen: dict[str, Any] = {"version": openai.__version__}

    def see(name: str, look: Callable[[OpenAI], Any], client: OpenAI) -> None:
        try:
            seen[name] = look(client)
        except Exception as raised:  # the other looks are worth having, and the test shows this one
            seen[name] = {"raised": repr(raised)}

    tool_url, tool_key = os.environ["TOOLS_BASE_URL"], os.environ["TOOLS_API_KEY"]
    with OpenAI() as client, OpenAI(base_url=tool_url, api_key=tool_key) as tool_client:
        see("chat", chat, client)
        see("stream", chat_stream, client)
        see("stream_usage", lambda client: chat_stream(client, stream_options={"include_usage": True}), client)
        see("completion", completion, client)
        see("embeddings", embeddings, client)
        see("empty_text", empty_text, client)
        see("models", lambda client: [model.id for model in client.models.list()], client)
        see("model", lambda client: client.models.retrieve(CHAT).id, client)
        see("errors", errors, client)
        see("cancelled", cancelled, tool_client)
        see("concurrent", lambda client: asyncio.run(concurrent()), client)
        see("tools", tools, tool_client)
        see("structured", structured, tool_client)
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
