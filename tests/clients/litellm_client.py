"""litellm's SDK with its `openai/` provider: what openai_python.py does, as far as litellm has it.

Run in the project's own environment, which has litellm for hosted models.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import litellm

litellm.suppress_debug_info = True  # no advice on stdout
CHAT, EMBED = "openai/slurmgate-guide", "openai/slurmgate-embed"
QUESTION = [{"role": "user", "content": "What is slurmgate?"}]
TEXTS = ["What is slurmgate?", "Tell me what slurmgate is", "How do I cancel a job?"]
AT = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
TOOLS_AT = {"api_base": os.environ["TOOLS_BASE_URL"], "api_key": os.environ["TOOLS_API_KEY"]}
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "districts": {"type": "integer"}},
    "required": ["name", "districts"],
    "additionalProperties": False,
}


def chat() -> dict[str, Any]:
    answer = litellm.completion(model=CHAT, messages=QUESTION, **AT)
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "model": answer.model,
        "usage": plain_usage(answer.usage),
    }


def plain_usage(usage: Any) -> dict[str, int]:
    return {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def chat_stream(**options: Any) -> dict[str, Any]:
    chunks = list(litellm.completion(model=CHAT, messages=QUESTION, stream=True, **options, **AT))
    usages = [getattr(chunk, "usage", None) for chunk in chunks]
    return {
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "finish": next(filter(None, (chunk.choices[0].finish_reason for chunk in chunks))),
        "usages": [usage and plain_usage(usage) for usage in usages],
    }


def completion() -> dict[str, Any]:
    ask = {"model": "text-completion-" + CHAT, "prompt": "slurmgate is", "max_tokens": 8, **AT}
    stream = litellm.text_completion(**ask, stream=True)
    return {
        "text": litellm.text_completion(**ask).choices[0].text,
        "streamed": "".join(chunk.choices[0].text or "" for chunk in stream),
    }


def embeddings() -> dict[str, Any]:
    data = litellm.embedding(model=EMBED, input=TEXTS, **AT).data
    floats = litellm.embedding(model=EMBED, input=TEXTS, encoding_format="float", **AT).data
    vectors = zip(data, floats, strict=True)
    numbers = [pair for one, same in vectors for pair in zip(one["embedding"], same["embedding"], strict=True)]
    return {
        "widths": [len(one["embedding"]) for one in data],
        "indices": [one["index"] for one in data],
        "same": all(abs(a - b) < 1e-6 for a, b in numbers),
    }


def models() -> list[str]:
    names = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_key=AT["api_key"], api_base=AT["api_base"]
    )
    return [name.removeprefix("openai/") for name in names]


def error(**ask: Any) -> list[Any]:
    """litellm's errors are the OpenAI SDK's, with less in them."""
    try:
        list(litellm.completion(**{**AT, "model": CHAT, "messages": QUESTION, **ask}))
    except Exception as raised:
        return [type(raised).__name__, raised.status_code]
    raise AssertionError("no error")


def errors() -> dict[str, list[Any]]:
    return {
        "model": error(model="openai/nobody/knows-it"),
        "key": error(api_key="sk-wrong"),
        "field": error(messages=[]),
        "stream": error(model="openai/gone", stream=True),
    }


def cancelled() -> dict[str, Any]:
    stream = litellm.completion(model="openai/talks-on", messages=QUESTION, stream=True, **TOOLS_AT)
    seen = [next(stream) for _ in range(3)]
    request_id = stream._hidden_params["additional_headers"]["llm_provider-x-request-id"]
    stream.completion_stream.close()
    return {"chunks": len(seen), "request_id": request_id}


def tools() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    ask: dict[str, Any] = {
        "model": "openai/calls-tools",
        "messages": [{"role": "user", "content": "What is it like in Oslo?"}],
        "tools": [
            {"type": "function", "function": {"name": name, "parameters": parameters}}
            for name in ("weather", "time_in")
        ],
        # 1.106 imports its MCP proxy, and that a package which litellm does not require, for any tools at all
        "_skip_mcp_handler": True,
        **TOOLS_AT,
    }
    message = litellm.completion(**ask).choices[0].message
    chunks = list(litellm.completion(**ask, stream=True))
    streamed = litellm.stream_chunk_builder(chunks).choices[0]
    forced = litellm.completion(**ask, tool_choice={"type": "function", "function": {"name": "time_in"}})
    results = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in message.tool_calls]
    after = litellm.completion(**{**ask, "messages": [*ask["messages"], message, *results]})

    def named(calls: Any) -> list[list[Any]]:
        return [[call.id, call.function.name, json.loads(call.function.arguments)] for call in calls]

    return {
        "plain": named(message.tool_calls),
        "streamed": named(streamed.message.tool_calls),
        "fragments": sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks),
        "finish": streamed.finish_reason,
        "forced": named(forced.choices[0].message.tool_calls),
        "after": after.choices[0].message.content,
    }


def structured() -> dict[str, Any]:
    def described(form: dict[str, Any]) -> Any:
        messages = [{"role": "user", "content": "Describe Oslo"}]
        answer = litellm.completion(model="openai/answers-in-json", messages=messages, response_format=form, **TOOLS_AT)
        return json.loads(answer.choices[0].message.content)

    schema = {"name": "City", "strict": True, "schema": CITY}
    return {
        "parsed": described({"type": "json_schema", "json_schema": schema}),
        "json_object": described({"type": "json_object"}),
    }


LOOKS: dict[str, Callable[[], Any]] = {
    "chat": chat,
    "stream": chat_stream,
    "stream_usage": lambda: chat_stream(stream_options={"include_usage": True}),
    "completion": completion,
    "embeddings": embeddings,
    "models": models,
    "errors": errors,
    "cancelled": cancelled,
    "tools": tools,
    "structured": structured,
}


def main() -> None:
    seen: dict[str, Any] = {"version": version("litellm")}
    for name, look in LOOKS.items():
        try:
            seen[name] = look()
        except Exception as raised:  # the other looks are worth having, and the test shows this one
            seen[name] = {"raised": repr(raised)}
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
