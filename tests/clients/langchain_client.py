"""langchain-openai: chat, streams, tools, structured output, embeddings; then one line of JSON about what it saw.

The environment is that of openai_python.py, and TIKTOKEN_CACHE_DIR: a folder with the cl100k vocabulary, which
OpenAIEmbeddings would otherwise download.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import openai
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

CHAT, EMBED = "slurmgate-guide", "slurmgate-embed"
QUESTION = "What is slurmgate?"
TEXTS = [QUESTION, "Tell me what slurmgate is", "How do I cancel a job?"]
TOOLS_AT = {"base_url": os.environ["TOOLS_BASE_URL"], "api_key": os.environ["TOOLS_API_KEY"]}


class City(BaseModel):
    """A city."""

    name: str
    districts: int


@tool
def weather(city: str) -> str:
    """What the weather is like in a city."""
    return f"fine in {city}"


@tool
def time_in(city: str) -> str:
    """What time it is in a city."""
    return f"noon in {city}"


def chat() -> dict[str, Any]:
    answer = ChatOpenAI(model=CHAT).invoke(QUESTION)
    metadata = answer.response_metadata
    return {
        "text": answer.content,
        "finish": metadata["finish_reason"],
        "model": metadata["model_name"],
        "usage": {name: answer.usage_metadata[name] for name in ("input_tokens", "output_tokens", "total_tokens")},
    }


def chat_stream(**options: Any) -> dict[str, Any]:
    chunks = list(ChatOpenAI(model=CHAT, **options).stream(QUESTION))
    whole = sum(chunks[1:], chunks[0])
    usage = whole.usage_metadata
    return {
        "text": whole.content,
        "chunks": len(chunks),
        "finish": whole.response_metadata["finish_reason"],
        "total_tokens": usage and usage["total_tokens"],
    }


def chain() -> list[str]:
    """Prompt and model, asked several times at once by LangChain's own batching."""
    prompt = ChatPromptTemplate([("system", "You are a helpful assistant."), ("human", "{question}")])
    model = prompt | ChatOpenAI(model=CHAT)
    return [answer.content for answer in model.batch([{"question": QUESTION}] * 4)]


async def chat_events() -> str:
    pieces = [piece.content async for piece in ChatOpenAI(model=CHAT).astream(QUESTION)]
    return "".join(pieces)


def completion() -> dict[str, Any]:
    model = OpenAI(model=CHAT, max_tokens=8)
    return {"text": model.invoke("slurmgate is"), "streamed": "".join(model.stream("slurmgate is"))}


def embeddings() -> dict[str, Any]:
    model = OpenAIEmbeddings(model=EMBED, check_embedding_ctx_length=False)  # texts, not token ids
    vectors = model.embed_documents(TEXTS)
    return {"widths": [len(vector) for vector in vectors], "same": close(model.embed_query(TEXTS[0]), vectors[0])}


def token_embeddings() -> dict[str, Any]:
    """LangChain's default: cl100k token ids, many to a call."""
    texts = OpenAIEmbeddings(model=EMBED, check_embedding_ctx_length=False).embed_documents(TEXTS)
    tokens = OpenAIEmbeddings(model=EMBED).embed_documents(TEXTS)
    return {"same": [close(a, b) for a, b in zip(texts, tokens, strict=True)]}


def close(one: list[float], other: list[float]) -> bool:
    return all(abs(a - b) < 1e-5 for a, b in zip(one, other, strict=True))


def error(call: Callable[[], Any]) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as raised:
        # LangChain derives classes of its own for some, a context that is too long, say
        kind = next(kind for kind in type(raised).__mro__ if kind.__module__.startswith("openai"))
        return [kind.__name__, raised.status_code, raised.type, raised.param, raised.code]
    raise AssertionError("no error")


def errors() -> dict[str, list[Any]]:
    return {
        "model": error(lambda: ChatOpenAI(model="nobody/knows-it").invoke(QUESTION)),
        "key": error(lambda: ChatOpenAI(model=CHAT, api_key="sk-wrong").invoke(QUESTION)),
        "stream": error(lambda: list(ChatOpenAI(model="gone").stream(QUESTION))),
    }


def cancelled() -> dict[str, Any]:
    model = ChatOpenAI(model="talks-on", include_response_headers=True, **TOOLS_AT)
    stream = model.stream(QUESTION)
    seen = [next(stream) for _ in range(3)]
    stream.close()
    request_id = next(filter(None, (chunk.response_metadata.get("headers", {}).get("x-request-id") for chunk in seen)))
    return {"chunks": len(seen), "request_id": request_id}


def tools() -> dict[str, Any]:
    model = ChatOpenAI(model="calls-tools", **TOOLS_AT)
    bound = model.bind_tools([weather, time_in])
    messages: list[BaseMessage] = [HumanMessage("What is it like in Oslo?")]
    plain = bound.invoke(messages)
    chunks = list(bound.stream(messages))
    streamed = sum(chunks[1:], chunks[0])
    forced = model.bind_tools([weather, time_in], tool_choice="time_in").invoke(messages)
    functions = {"weather": weather, "time_in": time_in}
    results = [functions[call["name"]].invoke(call) for call in plain.tool_calls]
    assert all(isinstance(result, ToolMessage) for result in results)

    def named(message: Any) -> list[list[Any]]:
        return [[call["id"], call["name"], call["args"]] for call in message.tool_calls]

    return {
        "plain": named(plain),
        "streamed": named(streamed),
        "fragments": sum(bool(chunk.tool_call_chunks) for chunk in chunks),
        "finish": streamed.response_metadata["finish_reason"],
        "forced": named(forced),
        "after": bound.invoke([*messages, plain, *results]).content,
    }


def structured() -> dict[str, Any]:
    def described(model: str, method: str, schema: Any = City) -> Any:
        runnable = ChatOpenAI(model=model, **TOOLS_AT).with_structured_output(schema, method=method)
        answer = runnable.invoke("Describe Oslo, in JSON")
        return answer.model_dump() if isinstance(answer, BaseModel) else answer

    return {
        "parsed": described("answers-in-json", "json_schema"),
        "by_tool": described("calls-tools", "function_calling"),
        "json_object": described("answers-in-json", "json_mode", {"title": "Subject", "type": "object"}),
    }


LOOKS: dict[str, Callable[[], Any]] = {
    "chat": chat,
    "stream": chat_stream,
    "stream_usage": lambda: chat_stream(stream_usage=True),
    "chain": chain,
    "asynchronous": lambda: asyncio.run(chat_events()),
    "completion": completion,
    "embeddings": embeddings,
    "token_embeddings": token_embeddings,
    "errors": errors,
    "cancelled": cancelled,
    "tools": tools,
    "structured": structured,
}


def main() -> None:
    seen: dict[str, Any] = {"version": version("langchain-openai")}
    for name, look in LOOKS.items():
        try:
            seen[name] = look()
        except Exception as raised:  # the other looks are worth having, and the test shows this one
            seen[name] = {"raised": repr(raised)}
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
