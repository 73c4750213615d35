"""text-generation-inference 3.x. Read in v3.3.7, in `router/src/`: `lib.rs` (types), `server.rs` (routes), `chat.rs`
(streams), `validation.rs` (limits), `infer/tool_grammar.rs`, `infer/chat_template.rs`.

TGI parses with serde: a field of another type than it expects, or null where it has no Option, is a plain-text 422.
What it does not know it ignores without a word, so what would be ignored is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from backends.base import Call
from backends.errors import InvalidRequest

from .json_mode import ANY_OBJECT
from .seam import CHAT, COMPLETIONS, TOKENIZE, ChunkRepair, Dialect, Json, ReplyRepair, unsupported
from .tgi_replies import ChatChunks, CompletionChunks, repair_reply
from .tokens import from_pieces

MODEL = "tgi"
"""Any other name is taken for that of a LoRA adapter; an unknown one silently gets the base model."""

STOPS = 4
TOP_LOGPROBS = 5
"""`--max-stop-sequences` and `--max-top-n-tokens`, by default."""

_IGNORED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    # what TGI does not look at: where it is used ("" for everywhere), and which of its values ask for nothing
    "functions": (CHAT, lambda value: value == []),
    "function_call": (CHAT, lambda value: value == "none"),
    "modalities": (CHAT, lambda value: value == ["text"]),
    "audio": (CHAT, lambda value: False),
    "logprobs": (COMPLETIONS, lambda value: value is False),  # always null there
    "echo": (COMPLETIONS, lambda value: value is False),
    "best_of": (COMPLETIONS, lambda value: value == 1),
    "suffix": (COMPLETIONS, lambda value: value == ""),  # an error even if empty
    "logit_bias": ("", lambda value: value == {}),  # would have to be a list of numbers, and is ignored all the same
    # becomes repetition_penalty = x + 2.0, so that 0 punishes nearly every repetition
    "presence_penalty": ("", lambda value: value == 0),
}


def prepare(call: Call, drop_unsupported: bool) -> Call:
    if call.path == TOKENIZE:
        return _tokenize(call)
    body = {name: value for name, value in call.body.items() if value is not None}
    body["model"] = MODEL
    body.pop("n", None)  # ignored; fanout.py asks n times
    for name, (path, asks_nothing) in _IGNORED.items():
        if name in body and path in ("", call.path):
            if not (drop_unsupported or asks_nothing(body[name])):
                raise unsupported(name)
            del body[name]
    _sampling(body)
    if call.path == CHAT:
        _chat(body, drop_unsupported)
    else:
        _completion(body)
    return call.with_body(body)


def _sampling(body: Json) -> None:
    stop = body.get("stop")
    if isinstance(stop, str):
        body["stop"] = [stop]
    elif isinstance(stop, list) and len(stop) > STOPS:
        message = f"Invalid 'stop': array too long. Expected an array with maximum length {STOPS}."
        raise InvalidRequest(message, param="stop", code="array_above_max_length")
    # another name of `max_tokens` since 3.1, so that both at once are a doubled field
    if (limit := body.pop("max_completion_tokens", None)) is not None:
        body["max_tokens"] = limit
    top_p = body.get("top_p")  # must be inside (0, 1), while OpenAI's default is 1
    if isinstance(top_p, int | float):
        if top_p >= 1:
            del body["top_p"]
        elif top_p <= 0:  # only the likeliest token
            del body["top_p"]
            body["temperature"] = 0
    if isinstance(seed := body.get("seed"), int) and seed < 0:
        body["seed"] = seed % 2**63  # it is an u64


def _completion(body: Json) -> None:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise unsupported("prompt", "The engine of this model takes text, not token ids.")


def _chat(body: Json, drop_unsupported: bool) -> None:
    body["messages"] = _messages(body["messages"])
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    elif isinstance(top := body.get("top_logprobs"), int) and top > TOP_LOGPROBS:
        if not drop_unsupported:
            raise unsupported("top_logprobs", f"The engine of this model has at most {TOP_LOGPROBS}.")
        body["top_logprobs"] = TOP_LOGPROBS
    if not body.get("tools") or body.get("tool_choice") == "none":
        body.pop("tools", None)
        body.pop("tool_choice", None)
    else:
        body["tools"] = [_tool(tool) for tool in body["tools"]]
    grammar = _grammar(body.pop("response_format", None))
    if grammar is not None and "tools" in body:
        if not drop_unsupported:
            raise unsupported("response_format", "The engine of this model cannot have it together with 'tools'.")
    elif grammar is not None:
        body["response_format"] = grammar


def _grammar(response_format: Any) -> Json | None:
    """OpenAI's `response_format` as TGI's: a schema beside `json_object`, or a regular expression."""
    if not isinstance(response_format, dict):
        return None
    match response_format.get("type"):
        case "json_schema":
            wrapped = response_format.get("json_schema")
            schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
            if not isinstance(schema, dict):
                param = "response_format.json_schema.schema"
                message = f"Missing required parameter: '{param}'."
                raise InvalidRequest(message, param=param, code="missing_required_parameter")
            if "properties" in schema:
                return {"type": "json_object", "value": schema}
            if schema.keys() & {"$ref", "anyOf", "oneOf", "allOf"} or schema.get("type") != "object":
                raise unsupported("response_format", "The engine of this model needs 'properties' at a schema's root.")
            return {"type": "regex", "value": ANY_OBJECT}
        case "json_object" if "value" not in response_format:
            return {"type": "regex", "value": ANY_OBJECT}
        case "text":
            return None
        case _:  # TGI's own
            return response_format


def _tool(tool: Any) -> Any:
    """OpenAI's `parameters` may be left out, TGI's may not; what else a function has, TGI does not know."""
    if isinstance(tool, dict) and isinstance(function := tool.get("function"), dict):
        known = {name: value for name, value in function.items() if name in ("name", "description") and value}
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        return {"type": "function", "function": {**known, "parameters": parameters}}
    return tool


def _messages(messages: list[Any]) -> list[Any]:
    return [_message(message) for message in _results_in_order(messages)]


def _message(message: Any) -> Any:
    """To TGI a message with content is text, whatever else it has; one without must have tool calls."""
    if not isinstance(message, dict):
        return message
    role = "system" if message.get("role") == "developer" else message.get("role")  # a role that no template knows
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        return {"role": role, "tool_calls": [_tool_call(call) for call in calls]}
    content = message.get("content")
    return {"role": role, "content": "" if content is None else content}


def _tool_call(call: Any) -> Any:
    if isinstance(call, dict) and isinstance(function := call.get("function"), dict):
        known = {"name": function.get("name", ""), "arguments": function.get("arguments", "")}
        return {"id": call.get("id", ""), "type": "function", "function": known}
    return call


def _results_in_order(messages: list[Any]) -> list[Any]:
    """TGI drops `tool_call_id`: what tells the results of several calls apart is their order, so it is made theirs."""
    ordered: list[Any] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        ordered.append(message)
        at += 1
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        if isinstance(calls, list):
            end = at
            while end < len(messages) and isinstance(messages[end], dict) and messages[end].get("role") == "tool":
                end += 1
            ids = [call.get("id") for call in calls if isinstance(call, dict)]
            ordered += sorted(messages[at:end], key=partial(_place, ids))
            at = end
    return ordered


def _place(ids: list[Any], result: Json) -> int:
    call_id = result.get("tool_call_id")
    return ids.index(call_id) if call_id in ids else len(ids)


def _tokenize(call: Call) -> Call:
    """`/tokenize` takes what /generate takes, `/chat_tokenize` a chat request; only the former adds special tokens."""
    if call.body.get("messages") is None:
        if call.body.get("add_special_tokens") is False:
            raise unsupported("add_special_tokens", "The engine of this model always adds them.")
        return call.with_body({"inputs": call.body["prompt"]})
    body: Json = {"model": MODEL, "messages": _messages(call.body["messages"])}
    if tools := call.body.get("tools"):
        body["tools"] = [_tool(tool) for tool in tools]
    return call.with_body(body, "/chat_tokenize")


def _repair_reply(call: Call) -> ReplyRepair:
    return from_pieces if call.path == TOKENIZE else partial(repair_reply, call)


def _repair_chunks(call: Call) -> ChunkRepair:
    return ChatChunks(call) if call.path == CHAT else CompletionChunks(call)


TGI = Dialect(
    "tgi",
    paths=frozenset({CHAT, COMPLETIONS, TOKENIZE}),
    prepare=prepare,
    repair_reply=_repair_reply,
    repair_chunks=_repair_chunks,
    one_choice=True,
)
