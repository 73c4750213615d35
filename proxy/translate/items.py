"""The Responses API's items: given ids, kept, and told as chat messages. Pure.

Shapes: `ResponseInputItem` and `ResponseItem` of the official SDK (openai/types/responses). An item is what was said by
someone, a tool call, a tool's result, or reasoning; chat has calls and reasoning inside the assistant's message, so
items that follow each other become one message where they are one turn.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from backends.errors import InvalidRequest, NotFound
from proxy.bodies import kind_of
from proxy.shapes import OBJECT, STRING, STRING_OR_ARRAY, Kind, wrong_type

from .chunks import Json

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_ROLES = ("user", "assistant", "system", "developer")
_ID = Kind("a string of at most 200 characters", lambda value: isinstance(value, str) and len(value) <= 200)


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


def as_items(given: Any) -> list[Json]:
    """A request's `input` as a list of items whose types are known. Raises `InvalidRequest` naming what is wrong."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    items = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise wrong_type(where, OBJECT, item)
        kind = item.get("type")
        if kind is None:  # the SDK's EasyInputMessage and ItemReference may leave it out
            kind = "item_reference" if "id" in item and "role" not in item else "message"
        _check_item(item, kind, where)
        items.append({**item, "type": kind})
    return items


def _check_item(item: Json, kind: Any, where: str) -> None:
    match kind:
        case "message":
            _need(item, where, {"role": STRING, "content": STRING_OR_ARRAY})
            if item["role"] not in _ROLES:
                expected = "', '".join(_ROLES)
                raise InvalidRequest(
                    f"Invalid value for '{where}.role': expected one of '{expected}'.",
                    param=f"{where}.role",
                    code="invalid_value",
                )
        case "function_call":
            _need(item, where, {"call_id": STRING, "name": STRING, "arguments": STRING})
        case "function_call_output":
            _need(item, where, {"call_id": STRING, "output": STRING_OR_ARRAY})
        case "item_reference":
            _need(item, where, {"id": STRING})
        case "reasoning":
            pass
        case _:
            raise InvalidRequest(
                f"Items of type '{str(kind)[:60]}' are not supported here: the tools they belong to are OpenAI's own.",
                param=f"{where}.type",
                code="unsupported_value",
            )
    if item.get("id") is not None and not _ID.fits(item["id"]):
        raise wrong_type(f"{where}.id", _ID, item["id"])


def _need(item: Json, where: str, fields: Mapping[str, Kind]) -> None:
    for name, kind in fields.items():
        if name not in item:
            raise InvalidRequest(
                f"Missing required parameter: '{where}.{name}'.",
                param=f"{where}.{name}",
                code="missing_required_parameter",
            )
        if not kind.fits(item[name]):
            raise wrong_type(f"{where}.{name}", kind, item[name])


# -- references ------------------------------------------------------------------------------------------------------


def references(items: Iterable[Json]) -> list[str]:
    """The ids of stored items that are named and not given."""
    return [item["id"] for item in items if item["type"] == "item_reference"]


def resolved(items: Iterable[Json], found: Mapping[str, Json]) -> list[Json]:
    """The items with what was found for each reference. Raises `NotFound` for one that was not."""
    out = []
    for item in items:
        if item["type"] != "item_reference":
            out.append(item)
        elif (kept := found.get(item["id"])) is not None:
            out.append(kept)
        else:
            raise NotFound(f"Item with id '{item['id'][:80]}' not found.", param="input")
    return out


# -- kept ------------------------------------------------------------------------------------------------------------


def kept(items: Iterable[Json]) -> list[Json]:
    """The items as they are stored and listed: each with an id and a status, a message's content in parts."""
    out = []
    for item in items:
        kind = item["type"]
        known = {**item, "id": item.get("id") or new_id(_PREFIXES.get(kind, "item"))}
        if kind == "message":
            content = item["content"]
            if isinstance(content, str):
                known["content"] = [_text_part(item["role"], content)]
        if kind != "reasoning":
            known["status"] = item.get("status") or "completed"
        else:
            known["summary"] = item.get("summary") or []
        out.append(known)
    return out


def _text_part(role: str, text: str) -> Json:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


# -- as chat messages ------------------------------------------------------------------------------------------------


def chat_messages(items: Iterable[Json], instructions: str | None = None) -> list[Json]:
    """The conversation as chat messages.

    `developer` is told as `system`, which every chat template knows; what stands at the beginning is one message, since
    many templates take no second one. Raises `InvalidRequest` for content that chat cannot carry.
    """
    messages: list[Json] = []
    beginning = [instructions] if instructions else []
    reasoning = ""
    for item in items:
        match item["type"]:
            case "message" if item["role"] in ("system", "developer"):
                text = _plain(item["content"])
                if messages:
                    messages.append({"role": "system", "content": text})
                else:
                    beginning.append(text)
            case "message" if item["role"] == "user":
                messages.append({"role": "user", "content": _parts(item["content"])})
            case "message":
                turn = _assistant(messages, reasoning)
                text = _plain(item["content"])
                turn["content"] = f"{turn['content']}\n\n{text}" if turn.get("content") else text
                reasoning = ""
            case "function_call":
                turn = _assistant(messages, reasoning)
                call = {"name": item["name"], "arguments": item["arguments"]}
                calls = turn.setdefault("tool_calls", [])
                if turn.get("content") == "":  # some engines take an empty content for the whole answer
                    del turn["content"]
                calls.append({"id": item["call_id"], "type": "function", "function": call})
                reasoning = ""
            case "function_call_output":
                output = item["output"]
                content = output if isinstance(output, str) else _parts(output)
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
            case "reasoning":
                reasoning += _reasoning_text(item)
    if beginning:
        messages.insert(0, {"role": "system", "content": "\n\n".join(beginning)})
    return messages


def _assistant(messages: list[Json], reasoning: str) -> Json:
    """The assistant's turn that goes on, or a new one. New reasoning begins a new one."""
    if messages and messages[-1]["role"] == "assistant" and not reasoning:
        return messages[-1]
    turn: Json = {"role": "assistant"}
    if reasoning:
        turn["reasoning_content"] = reasoning
    messages.append(turn)
    return turn


def _reasoning_text(item: Json) -> str:
    """What was thought, where it is readable: OpenAI's own is encrypted."""
    for name in ("content", "summary"):
        if isinstance(parts := item.get(name), list):
            known = (part.get("text") for part in parts if isinstance(part, dict))
            if text := "".join(text for text in known if isinstance(text, str)):
                return text
    return ""


def _plain(content: Any) -> str:
    """Content of which only the text can be told (a system message, an assistant's)."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        chat = _part(part)
        if chat["type"] != "text":
            raise _cannot(part.get("type"))
        texts.append(chat["text"])
    return "".join(texts)


def _parts(content: Any) -> str | list[Json]:
    """Content as chat has it; one text alone is a string, which every engine takes."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: Any) -> Json:
    if not isinstance(part, dict):
        raise InvalidRequest(
            f"Invalid type for a part of 'input': expected {OBJECT.words}, but got {kind_of(part)} instead.",
            param="input",
            code="invalid_type",
        )
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            image: Json = {"url": url}
            if isinstance(part.get("detail"), str):
                image["detail"] = part["detail"]
            return {"type": "image_url", "image_url": image}
        case {"type": "input_audio", "input_audio": dict(audio)}:
            return {"type": "input_audio", "input_audio": audio}
        case {"type": "input_file", "file_data": str(data)}:
            return {"type": "file", "file": {"filename": str(part.get("filename") or "file"), "file_data": data}}
        case _:
            raise _cannot(part.get("type"))


def _cannot(kind: Any) -> InvalidRequest:
    return InvalidRequest(
        f"A part of type '{str(kind)[:60]}' as it is given in 'input' cannot be sent to this model: texts, images by"
        " `image_url`, audio and files by `file_data` can.",
        param="input",
        code="unsupported_value",
    )
