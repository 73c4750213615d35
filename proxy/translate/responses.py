"""A /v1/responses request: checked, told as a chat request, echoed in the response object. Pure.

Shapes: `ResponseCreateParams` and `Response` of the official SDK (openai/types/responses), values as OpenAI's API gives
them. What a self-hosted engine has no counterpart for gets a 400 that names it, never a silent loss: OpenAI's built-in
tools, conversations, background mode, prompt templates. Hints (`truncation: auto`, `service_tier`) may be given; the
response says what was done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backends.errors import InvalidRequest
from proxy.shapes import ARRAY, BOOLEAN, INTEGER, NUMBER, OBJECT, STRING, STRING_OR_ARRAY, Shape, not_empty, wrong_type

from .chunks import Json
from .items import chat_messages

PATH = "/v1/responses"
CHAT = "/v1/chat/completions"

_SHAPE = Shape(
    required={"model": STRING, "input": STRING_OR_ARRAY},
    optional={
        "background": BOOLEAN,
        "include": ARRAY,
        "instructions": STRING,
        "max_output_tokens": INTEGER,
        "max_tool_calls": INTEGER,
        "metadata": OBJECT,
        "parallel_tool_calls": BOOLEAN,
        "previous_response_id": STRING,
        "prompt_cache_key": STRING,
        "reasoning": OBJECT,
        "safety_identifier": STRING,
        "service_tier": STRING,
        "store": BOOLEAN,
        "stream": BOOLEAN,
        "stream_options": OBJECT,
        "temperature": NUMBER,
        "text": OBJECT,
        "tools": ARRAY,
        "top_logprobs": INTEGER,
        "top_p": NUMBER,
        "truncation": STRING,
        "user": STRING,
    },
)
_UNSUPPORTED = {
    "conversation": "Conversations are not kept here: use 'previous_response_id'.",
    "prompt": "Prompt templates are not kept here: use 'instructions' and 'input'.",
}
_METADATA_PAIRS, _METADATA_KEY_CHARS, _METADATA_VALUE_CHARS = 16, 64, 512
_TOP_LOGPROBS = 20
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = {
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    _LOGPROBS,
}


def check(body: Json) -> None:
    """What must be right whoever answers. Raises `InvalidRequest`."""
    _SHAPE.check(body)
    if isinstance(body["input"], list) and not body.get("previous_response_id"):
        not_empty("input", body["input"])
    for name, why in _UNSUPPORTED.items():
        if body.get(name) is not None:
            raise InvalidRequest(why, param=name, code="unsupported_parameter")
    if body.get("background"):
        raise InvalidRequest(
            "Responses are not made in the background here.", param="background", code="unsupported_parameter"
        )
    _one_of(body, "truncation", ("auto", "disabled"))
    _check_metadata(body.get("metadata") or {})


def _check_metadata(metadata: Json) -> None:
    if len(metadata) > _METADATA_PAIRS:
        raise InvalidRequest(
            f"Invalid 'metadata': too many properties. Expected at most {_METADATA_PAIRS}, but got {len(metadata)}.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in metadata.items():
        if len(key) > _METADATA_KEY_CHARS:
            raise InvalidRequest(
                f"Invalid 'metadata': a key is longer than {_METADATA_KEY_CHARS} characters.",
                param="metadata",
                code="string_above_max_length",
            )
        if not isinstance(value, str):
            raise wrong_type(f"metadata.{key}", STRING, value)
        if len(value) > _METADATA_VALUE_CHARS:
            raise InvalidRequest(
                f"Invalid 'metadata.{key}': string too long. Expected at most {_METADATA_VALUE_CHARS} characters.",
                param=f"metadata.{key}",
                code="string_above_max_length",
            )


def _one_of(values: Json, name: str, allowed: Iterable[str], where: str = "") -> None:
    if values.get(name) is not None and values[name] not in allowed:
        expected = "', '".join(allowed)
        raise InvalidRequest(
            f"Invalid value for '{where}{name}': expected one of '{expected}'.",
            param=where + name,
            code="invalid_value",
        )


# -- the chat request ------------------------------------------------------------------------------------------------


def to_chat(body: Json, items: Iterable[Json]) -> Json:
    """The chat request that asks the same. `items` is the whole conversation. Raises `InvalidRequest`."""
    chat: Json = {"model": body["model"], "messages": chat_messages(items, body.get("instructions"))}
    for name in ("temperature", "top_p", "user"):
        if body.get(name) is not None:
            chat[name] = body[name]
    if body.get("max_output_tokens") is not None:
        if body["max_output_tokens"] < 1:
            raise InvalidRequest(
                "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 1.",
                param="max_output_tokens",
                code="integer_below_min_value",
            )
        chat["max_tokens"] = body["max_output_tokens"]  # the name that every engine knows
    _say_format(chat, body.get("text") or {})
    _say_tools(chat, body)
    _say_logprobs(chat, body)
    if effort := (body.get("reasoning") or {}).get("effort"):
        chat["reasoning_effort"] = effort
    if body.get("tribunal") is not None:
        chat["tribunal"] = body["tribunal"]  # ours, as in chat
    if body.get("service_tier") == "flex":
        chat["service_tier"] = "flex"  # for the gateway itself (dispatch.py)
    if body.get("stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return chat


def _say_format(chat: Json, text: Json) -> None:
    match text.get("format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            chat["response_format"] = {"type": "json_object"}
        case {"type": "json_schema", "name": str(), "schema": dict()} as given:
            names = ("name", "description", "schema", "strict")
            schema = {name: given[name] for name in names if given.get(name) is not None}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        case {"type": "json_schema"} as given:
            missing = "text.format.schema" if isinstance(given.get("name"), str) else "text.format.name"
            raise InvalidRequest(
                f"Missing required parameter: '{missing}'.", param=missing, code="missing_required_parameter"
            )
        case _:
            raise InvalidRequest(
                "Invalid value for 'text.format.type': expected one of 'text', 'json_object', 'json_schema'.",
                param="text.format.type",
                code="invalid_value",
            )
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]


def _say_tools(chat: Json, body: Json) -> None:
    tools = [_chat_tool(tool, index) for index, tool in enumerate(body.get("tools") or [])]
    choice = body.get("tool_choice")
    match choice:
        case None | "auto" | "none" | "required":
            pass
        case {"type": "function", "name": str(name)}:
            choice = {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(allowed)}:
            names = [tool.get("name") for tool in allowed if isinstance(tool, dict)]
            tools = [tool for tool in tools if tool["function"]["name"] in names]
            choice = mode
        case _:
            raise InvalidRequest(
                "Invalid value for 'tool_choice': expected 'none', 'auto', 'required', a function or allowed_tools.",
                param="tool_choice",
                code="invalid_value",
            )
    if not tools:
        return
    chat["tools"] = tools
    if choice is not None:
        chat["tool_choice"] = choice
    if body.get("parallel_tool_calls") is not None:
        chat["parallel_tool_calls"] = body["parallel_tool_calls"]


def _chat_tool(tool: Any, index: int) -> Json:
    where = f"tools[{index}]"
    if not isinstance(tool, dict):
        raise wrong_type(where, OBJECT, tool)
    if tool.get("type") != "function":
        raise InvalidRequest(
            f"The tool type '{str(tool.get('type'))[:60]}' is not available here; functions are.",
            param=f"{where}.type",
            code="unsupported_value",
        )
    if not isinstance(tool.get("name"), str):
        raise InvalidRequest(
            f"Missing required parameter: '{where}.name'.", param=f"{where}.name", code="missing_required_parameter"
        )
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _say_logprobs(chat: Json, body: Json) -> None:
    include = body.get("include") or []
    for value in include:
        if not isinstance(value, str) or value not in _INCLUDABLE:
            raise InvalidRequest(
                f"Invalid value for 'include': '{str(value)[:80]}'.", param="include", code="invalid_value"
            )
    most = body.get("top_logprobs")
    if most is not None and not 0 <= most <= _TOP_LOGPROBS:
        raise InvalidRequest(
            f"Invalid 'top_logprobs': expected a value from 0 to {_TOP_LOGPROBS}.",
            param="top_logprobs",
            code="invalid_value",
        )
    if most or _LOGPROBS in include:
        chat["logprobs"] = True
        if most:
            chat["top_logprobs"] = most


# -- the response object ---------------------------------------------------------------------------------------------


def skeleton(body: Json, response_id: str, created_at: int) -> Json:
    """The response before anything was said: every field of the SDK's `Response`, defaults as OpenAI gives them."""
    text = body.get("text") or {}
    reasoning = body.get("reasoning") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "conversation": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": body.get("metadata") or {},
        "model": body["model"],
        "moderation": None,
        "output": [],
        "parallel_tool_calls": _or(body.get("parallel_tool_calls"), True),
        "previous_response_id": body.get("previous_response_id"),
        "prompt": None,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "prompt_cache_options": None,
        "prompt_cache_retention": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": stored(body),
        "temperature": _or(body.get("temperature"), 1.0),
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": _or(body.get("tool_choice"), "auto"),
        "tools": [_echoed(tool) for tool in body.get("tools") or []],
        "top_logprobs": _or(body.get("top_logprobs"), 0),
        "top_p": _or(body.get("top_p"), 1.0),
        "truncation": "disabled",
        "usage": None,
        "user": body.get("user"),
    }


def stored(body: Json) -> bool:
    """OpenAI stores unless told not to."""
    return body.get("store") is not False


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _echoed(tool: Json) -> Json:
    """A function as OpenAI echoes it: with all its fields."""
    return {"description": None, "parameters": None, "strict": None, **tool}
