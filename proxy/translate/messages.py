"""A /v1/messages request (Anthropic's Messages API), told as a chat request. Pure.

Shapes: `MessageCreateParams` of Anthropic's SDK (anthropic 2.12, types/message_create_params.py). What has no
counterpart gets a 400 that names it: Anthropic's own tools and the blocks they leave behind, files. `thinking`,
`cache_control` and `service_tier` are hints, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from backends.errors import InvalidRequest
from proxy.shapes import ARRAY, BOOLEAN, INTEGER, NUMBER, OBJECT, STRING, STRING_OR_ARRAY, Shape, not_empty, wrong_type

from .chunks import Json

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"

_OPTIONAL = {
    "metadata": OBJECT,
    "output_config": OBJECT,
    "stop_sequences": ARRAY,
    "stream": BOOLEAN,
    "system": STRING_OR_ARRAY,
    "temperature": NUMBER,
    "thinking": OBJECT,
    "tool_choice": OBJECT,
    "tools": ARRAY,
    "top_k": INTEGER,
    "top_p": NUMBER,
}
_SHAPE = Shape(required={"model": STRING, "messages": ARRAY, "max_tokens": INTEGER}, optional=_OPTIONAL)
_COUNT_SHAPE = Shape(required={"model": STRING, "messages": ARRAY}, optional=_OPTIONAL)


def check(body: Json) -> None:
    """Raises `InvalidRequest`."""
    _SHAPE.check(body)
    if body["max_tokens"] < 1:
        raise InvalidRequest("max_tokens: must be greater than or equal to 1", param="max_tokens")
    _check_messages(body["messages"])


def check_count(body: Json) -> None:
    """The same for counting: nothing is generated, so `max_tokens` is not needed."""
    _COUNT_SHAPE.check(body)
    _check_messages(body["messages"])


def _check_messages(messages: list[Any]) -> None:
    not_empty("messages", messages)
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise wrong_type(where, OBJECT, message)
        if message.get("role") not in ("user", "assistant", "system"):
            raise InvalidRequest(f"{where}.role: must be 'user', 'assistant' or 'system'", param=f"{where}.role")
        if not STRING_OR_ARRAY.fits(message.get("content")):
            raise wrong_type(f"{where}.content", STRING_OR_ARRAY, message.get("content"))


# -- the chat request ------------------------------------------------------------------------------------------------


def to_chat(body: Json) -> Json:
    """The chat request that asks the same. Raises `InvalidRequest`."""
    chat: Json = {**conversation(body), "max_tokens": body["max_tokens"]}
    for name in ("temperature", "top_p", "top_k"):
        if body.get(name) is not None:
            chat[name] = body[name]
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if isinstance(user := (body.get("metadata") or {}).get("user_id"), str):
        chat["user"] = user
    _say_output(chat, body.get("output_config") or {})
    if body.get("stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return chat


def conversation(body: Json) -> Json:
    """Model, messages and tools: what is told to the model, and counted."""
    messages: list[Json] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _text_of(body["system"], "system")})
    for index, message in enumerate(body["messages"]):
        where = f"messages[{index}].content"
        match message["role"]:
            case "assistant":
                messages.append(_assistant(message["content"], where))
            case "system":
                messages.append({"role": "system", "content": _text_of(message["content"], where)})
            case _:
                messages += _user(message["content"], where)
    chat: Json = {"model": body["model"], "messages": messages}
    _say_tools(chat, body)
    return chat


def _say_output(chat: Json, output: Json) -> None:
    """`output_config`: how hard to try, and the JSON schema to keep to."""
    if output.get("effort") is not None:
        chat["reasoning_effort"] = output["effort"]
    match output.get("format"):
        case None:
            pass
        case {"type": "json_schema", "schema": dict(schema)}:
            chat["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "output", "schema": schema, "strict": True},
            }
        case _:
            raise InvalidRequest(
                "output_config.format: expected {'type': 'json_schema', 'schema': {...}}", param="output_config.format"
            )


def _say_tools(chat: Json, body: Json) -> None:
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.get("tools") or [])]
    if not tools:
        return
    chat["tools"] = tools
    given = body.get("tool_choice")
    match given:
        case None:
            return
        case {"type": "auto" | "none" as choice}:
            chat["tool_choice"] = choice
        case {"type": "any"}:
            chat["tool_choice"] = "required"
        case {"type": "tool", "name": str(name)}:
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        case _:
            raise InvalidRequest(
                "tool_choice: expected 'auto', 'any', 'none', or 'tool' with a name", param="tool_choice"
            )
    if given.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False


def _tool(tool: Any, where: str) -> Json:
    match tool:
        case {"name": str(name), "input_schema": dict(schema)} if tool.get("type") in (None, "custom"):
            function: Json = {"name": name, "parameters": schema}
            for key in ("description", "strict"):
                if tool.get(key) is not None:
                    function[key] = tool[key]
            return {"type": "function", "function": function}
        case {"type": str(kind)} if kind != "custom":
            raise InvalidRequest(
                f"{where}.type: the tool '{kind[:60]}' is not available here; tools with an input_schema are",
                param=f"{where}.type",
            )
        case _:
            raise InvalidRequest(f"{where}: a tool needs a name and an input_schema", param=where)


# -- what was said ---------------------------------------------------------------------------------------------------


def _blocks(content: Any, where: str) -> Iterable[tuple[str, Json]]:
    if isinstance(content, str):
        yield where, {"type": "text", "text": content}
        return
    for index, block in enumerate(content):
        at = f"{where}[{index}]"
        if not isinstance(block, dict):
            raise wrong_type(at, OBJECT, block)
        yield at, block


def _user(content: Any, where: str) -> list[Json]:
    """A user's turn: the tools' results first, each a message, as chat wants them; then the rest.

    Chat's tool messages carry text only, so images in a result come with the rest.
    """
    results: list[Json] = []
    parts: list[Json] = []
    for at, block in _blocks(content, where):
        if block.get("type") == "tool_result":
            if not isinstance(block.get("tool_use_id"), str):
                raise InvalidRequest(f"{at}.tool_use_id: Field required", param=f"{at}.tool_use_id")
            inner = [_part(b, a) for a, b in _blocks(block.get("content") or "", f"{at}.content")]
            text = "".join(part["text"] for part in inner if part["type"] == "text")
            results.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
            parts += [part for part in inner if part["type"] != "text"]
        else:
            parts.append(_part(block, at))
    if len(parts) == 1 and parts[0]["type"] == "text":
        return [*results, {"role": "user", "content": parts[0]["text"]}]
    return [*results, {"role": "user", "content": parts}] if parts or not results else results


def _part(block: Json, where: str) -> Json:
    match block:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "base64", "media_type": str(media), "data": str(data)}}:
            return {"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return {"type": "text", "text": text}
        case _:
            raise _cannot(block, where)


def _assistant(content: Any, where: str) -> Json:
    message: Json = {"role": "assistant"}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for at, block in _blocks(content, where):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking", "thinking": str(text)}:
                thoughts.append(text)
            case {"type": "redacted_thinking"}:
                pass  # nobody but Anthropic can read it
            case {"type": "tool_use", "id": str(call_id), "name": str(name)}:
                arguments = orjson.dumps(block.get("input") or {}).decode()
                calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
            case _:
                raise _cannot(block, at)
    if any(texts) or not calls:  # some engines take an empty content for the whole answer
        message["content"] = "".join(texts)
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _text_of(content: Any, where: str) -> str:
    """A system prompt: a text, or blocks of text."""
    texts = []
    for at, block in _blocks(content, where):
        if block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise _cannot(block, at)
        texts.append(block["text"])
    return "\n\n".join(texts)


def _cannot(block: Json, where: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where}: a block of type '{str(block.get('type'))[:60]}' as it is given cannot be sent to this model",
        param=where,
    )
