"""What goes to litellm and what comes from it, made into what OpenAI's API says. Pure: JSON in, JSON out.

What litellm's chunks need to be OpenAI's (seen with 1.106): the usage chunk has a choice; of several choices only one
gets its `finish_reason`; a stream that breaks off without one ends in a made-up "stop"; nulls and fields of litellm's
own are everywhere.
"""

from __future__ import annotations

import base64
import copy
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from .base import Call, Usage
from .errors import InvalidRequest
from .sse import DONE

Json = dict[str, Any]
RenderChoice = Callable[[Json], Json]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

_SAMPLING = frozenset(
    {"temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "max_tokens",
     "user"}
)  # fmt: skip
PARAMETERS: Mapping[str, frozenset[str]] = {
    CHAT: _SAMPLING
    | {"messages", "max_completion_tokens", "modalities", "prediction", "audio", "response_format", "tools",
       "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs", "functions", "function_call",
       "reasoning_effort", "verbosity", "service_tier", "safety_identifier", "prompt_cache_key", "web_search_options",
       "thinking", "top_k"},
    COMPLETIONS: _SAMPLING | {"prompt", "best_of", "echo", "logprobs", "suffix"},
    EMBEDDINGS: frozenset({"input", "dimensions", "user"}),
}  # fmt: skip
"""What is handed on. `thinking` and `top_k` are not OpenAI's, but common, and harmless in litellm's hands."""

_HANDLED_HERE = frozenset({"model", "stream", "stream_options", "encoding_format"})
_WITHOUT_EFFECT = frozenset({"metadata", "store"})
"""They label what OpenAI keeps of a request. Nothing is kept here, and in litellm `metadata` is something else."""

COMPLETIONS_ONLY = frozenset({"best_of", "echo", "logprobs", "suffix"})
"""Of text completions, what has no counterpart in chat."""


def unsupported(name: str) -> InvalidRequest:
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    return InvalidRequest(message, param=name, code="unsupported_parameter")


def arguments_for(call: Call, *, drop_unsupported: bool = False) -> Json:
    """The call's parameters, copied: litellm changes messages in place. Raises `InvalidRequest` for one unknown."""
    allowed = PARAMETERS[call.path]
    arguments: Json = {}
    for name, value in call.body.items():
        if value is None or name in _HANDLED_HERE or name in _WITHOUT_EFFECT:
            continue
        if name in allowed:
            arguments[name] = copy.deepcopy(value)
        elif not drop_unsupported:
            raise unsupported(name)
    return arguments


def chat_reply(answer: Json) -> Json:
    """litellm's chat completion as OpenAI's."""
    choices = []
    for index, choice in enumerate(answer.get("choices") or []):
        message = {"role": "assistant", "content": None, "refusal": None, **_cleaned(choice.get("message") or {})}
        choices.append(
            {
                "index": choice.get("index", index),
                "message": message,
                "logprobs": choice.get("logprobs"),
                "finish_reason": choice.get("finish_reason") or "stop",
            }
        )
    return {**_head(answer, "chat.completion"), "choices": choices, "usage": usage_object(answer.get("usage"))}


def text_reply(answer: Json) -> Json:
    choices = [text_choice({**choice, "index": choice.get("index", i)}) for i, choice in enumerate(answer["choices"])]
    return {**_head(answer, "text_completion"), "choices": choices, "usage": usage_object(answer.get("usage"))}


def embeddings_reply(answer: Json, *, base64_wanted: bool) -> Json:
    """In order, in the encoding that was asked for: little-endian 32-bit floats in base64, or numbers."""
    data = []
    for index, item in enumerate(answer.get("data") or []):
        vector = item["embedding"]
        if isinstance(vector, list) and base64_wanted:
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        elif isinstance(vector, str) and not base64_wanted:
            raw = base64.b64decode(vector)
            vector = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        data.append({"object": "embedding", "index": item.get("index", index), "embedding": vector})
    data.sort(key=lambda item: item["index"])
    usage = answer.get("usage") or {}
    counts = {name: usage.get(name) or 0 for name in ("prompt_tokens", "total_tokens")}
    return {"object": "list", "data": data, "model": "", "usage": counts}


def usage_object(usage: Json | None) -> Json | None:
    """OpenAI's fields of it; litellm adds prices and others."""
    if not usage:
        return None
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    kept = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        if usage.get(name):
            kept[name] = usage[name]
    return kept


def chat_choice(choice: Json) -> Json:
    """One choice of a chunk."""
    kept = {"index": choice.get("index", 0), "delta": _cleaned(choice.get("delta") or {})}
    if choice.get("logprobs"):
        kept["logprobs"] = choice["logprobs"]
    return {**kept, "finish_reason": choice.get("finish_reason")}


def text_choice(choice: Json) -> Json:
    return {
        "index": choice.get("index", 0),
        "text": choice.get("text") or "",
        "logprobs": choice.get("logprobs"),
        "finish_reason": choice.get("finish_reason"),
    }


def text_choice_of_chat(choice: Json) -> Json:
    """The same, whole or in a chunk, from a chat's choice."""
    said = choice.get("delta") or choice.get("message") or {}
    return text_choice({**choice, "text": said.get("content"), "logprobs": None})


def _cleaned(message: Json) -> Json:
    return {name: value for name, value in message.items() if name != "provider_specific_fields"}


def _head(answer: Json, kind: str) -> Json:
    head = {"id": answer.get("id", ""), "object": kind, "created": answer.get("created", 0), "model": ""}
    for name in ("system_fingerprint", "service_tier"):
        if answer.get(name):
            head[name] = answer[name]
    return head


class Chunks:
    """The chunks of one stream, made into OpenAI's.

    render     one choice of the provider's chunk -> one of the client's
    usage      what the usage chunk said, None until then
    finished   a choice has had its `finish_reason`
    """

    def __init__(self, call: Call, render: RenderChoice) -> None:
        options = call.body.get("stream_options")
        self._shows_usage = isinstance(options, dict) and options.get("include_usage") is True
        self._render = render
        self._model = call.model
        self._kind = "chat.completion.chunk" if call.path == CHAT else "text_completion"
        self._last: Json = {}
        self._usage: Json | None = None
        self._reasons: dict[int, str | None] = {}
        self.usage: Usage | None = None

    @property
    def finished(self) -> bool:
        return any(self._reasons.values())

    def take(self, chunk: Json) -> bytes:
        """The event for a chunk, b"" for none."""
        self._last = chunk
        if usage := usage_object(chunk.get("usage")):
            self._usage = usage
            self.usage = Usage(usage["prompt_tokens"], usage["completion_tokens"])
        choices = []
        for choice in map(self._render, chunk.get("choices") or []):
            if usage and not (choice.get("text") or choice.get("delta") or choice["finish_reason"]):
                continue  # the usage chunk's, which has none in OpenAI's
            self._reasons[choice["index"]] = choice["finish_reason"] or self._reasons.get(choice["index"])
            choices.append(choice)
        return self._event(choices) if choices else b""

    def end(self) -> bytes:
        """What is owed at the end: the reasons of choices that got none, usage, `[DONE]`."""
        out = []
        reason = next(filter(None, self._reasons.values()), "stop")
        for index in sorted(index for index, had in self._reasons.items() if had is None):
            choice = {"index": index, "delta": {}, "text": "", "finish_reason": reason}
            out.append(self._event([self._render(choice)]))
        if self._shows_usage:
            out.append(self._event([], self._usage))
        return b"".join([*out, DONE])

    def _event(self, choices: Iterable[Json], usage: Json | None = None) -> bytes:
        chunk = {**_head(self._last, self._kind), "model": self._model, "choices": choices}
        if self._shows_usage:
            chunk["usage"] = usage
        return b"data: %s\n\n" % orjson.dumps(chunk)


def plain(answer: Any) -> Json:
    """A pydantic value of litellm's or openai's as JSON, without what is null. `warnings`: providers' replies do not
    always fit the types declared for them, which is nothing to tell an operator."""
    json: Json = answer.model_dump(mode="json", exclude_none=True, warnings=False)
    return json
