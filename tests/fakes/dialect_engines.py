"""Engines that cannot run here, as they speak, over a real socket. Built from their sources and documentation: they
refuse what the real one refuses and err as it errs, so that a test of the gateway's repair can fail.

SpeaksTGI        text-generation-inference 3.3.7    router/src/{lib,server,chat,validation}.rs, tests' snapshots
SpeaksVLLM       vLLM 0.11                          vllm/entrypoints/openai/ (protocol.py, serving_*.py)
Transcribes      the same, for /v1/audio/transcriptions, whose requests are forms
SpeaksSGLang     SGLang 0.5                         python/sglang/srt/entrypoints/openai/ (protocol.py, serving_*.py)
SpeaksLlamaCpp   llama.cpp's server                 answers of the real one (xllamacpp 2026.10), tools/server/README.md
SpeaksTEI        text-embeddings-inference 1.8      router/src/http/{types,server}.rs, core/src/{tokenization,infer}.rs

All of them say "Slurm is up", followed by what the request asked for that a test may want to see: ` #SEED`,
` (1 image)`. A vector tells the text's length in its first number.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from tests.fakes.chat_engine import STREAM_HEAD, Engine, Request, Write, chunk, event, read_head, whole

Json = dict[str, Any]

WORDS = ("Slurm", " is", " up")
ARGUMENTS = ('{"city"', ': "Berlin"', "}")
PROMPT_TOKENS = 7
MODEL_PATH = "/models/on-the-node"
"""What an engine calls its model when it does not use the public name."""


class Refused(Exception):
    """A reply that is an error: its status, body and content type."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.kind = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json"


class Speaks(Engine):
    """A server of routes: `routes` says which method answers a path."""

    def routes(self) -> dict[str, Any]:
        raise NotImplementedError

    def not_there(self) -> Refused:
        return Refused(404, {"detail": "Not Found"})

    async def answer(self, request: Request, write: Write) -> bool:
        try:
            handler = self.routes().get(request.path)
            if handler is None:
                raise self.not_there()
            answer = handler(request.body)
        except Refused as refused:
            await write(typed(refused.status, refused.body, refused.kind))
            return True
        if isinstance(answer, Iterator):
            await write(STREAM_HEAD)
            for data in answer:
                await write(chunk(data))
            await write(b"0\r\n\r\n")
        elif isinstance(answer, str):
            await write(typed(200, answer.encode(), "text/plain; charset=utf-8"))
        else:
            await write(whole(200, json.dumps(answer).encode()))
        return True


def typed(status: int, body: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def usage(completion: int, prompt: int = PROMPT_TOKENS) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def images(messages: Sequence[Json]) -> int:
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    return sum(part.get("type") == "image_url" for part in parts)


def vector(text: str, size: int = 4) -> list[float]:
    return [float(len(text)), 3.0, 4.0, 0.5][:size]


def packed(numbers: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


# -- TGI -------------------------------------------------------------------------------------------------------------


class SpeaksTGI(Speaks):
    """Serde's strictness, `presence_penalty` as `repetition_penalty` + 2, adapters, grammars, and streams of tool calls
    that repeat themselves and have no finish (test_flash_llama_grammar_tools_openai.json)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []
        """What the model's template got of the last chat: role and text."""

    def routes(self) -> dict[str, Any]:
        return {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/tokenize": lambda body: self.tokens(self.field(body, "inputs", str)),
            "/chat_tokenize": self.chat_tokenize,
            "/info": lambda body: self.info(),
            "/generate": self.generate,
        }

    def not_there(self) -> Refused:
        return Refused(404, "")

    # serde

    def malformed(self, why: str) -> Refused:
        return Refused(422, f"Failed to deserialize the JSON body into the target type: {why} at line 1 column 99")

    def field(self, body: Json, name: str, kind: type | tuple[type, ...], *, option: bool = False) -> Any:
        """A field of a struct; `option` for those that may be absent or null."""
        value = body.get(name)
        if value is None and option:
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if name not in body:
            raise self.malformed(f"missing field `{name}`")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.malformed(f"{name}: invalid type: {type(value).__name__}, expected another")
        return value

    def sampling(self, body: Json) -> Json:
        """The fields that chat and completions share."""
        if "max_tokens" in body and "max_completion_tokens" in body:
            raise self.malformed("duplicate field `max_tokens`")
        stop = self.field(body, "stop", list, option=True) or []
        if not all(isinstance(text, str) for text in stop):
            raise self.malformed("stop: invalid type")
        if len(stop) > 4:
            raise self.validation(f"`stop` supports up to 4 stop sequences. Given: {len(stop)}")
        if "stream" in body:
            self.field(body, "stream", bool)
        top_p = self.field(body, "top_p", (int, float), option=True)
        if top_p is not None and not 0 < top_p < 1:
            raise self.validation("`top_p` must be > 0.0 and < 1.0")
        seed = self.field(body, "seed", int, option=True)
        if seed is not None and seed < 0:
            raise self.malformed("seed: invalid value: integer, expected u64")
        limit = body.get("max_tokens", body.get("max_completion_tokens"))
        return {"stop": stop, "seed": seed, "limit": limit}

    def validation(self, why: str, kind: str = "validation") -> Refused:
        return Refused(422, {"error": f"Input validation error: {why}", "error_type": kind})

    # chat

    def chat(self, body: Json) -> Any:
        asked = self.sampling(body)
        self.field(body, "logit_bias", list, option=True)
        self.field(body, "model", str, option=True)
        if "stream_options" in body:
            self.field(body, "stream_options", dict)
        self.seen = [self.as_text(message) for message in self.field(body, "messages", list)]
        grammar = self.grammar(body)
        top = self.field(body, "top_logprobs", int, option=True)
        if top is not None and top > 5:
            raise self.validation(f"`top_n_tokens` must be >= 0 and <= 5. Given: {top}")
        tools = self.tools(body)
        if grammar and tools is not None:
            raise Refused(422, {"error": "Tool error: Grammar and tools are mutually exclusive", "error_type": "tool"})
        model = body.get("model")
        pieces = list(WORDS)
        if model not in (None, "tgi"):
            pieces.append(f" (adapter {model})")
        if (penalty := self.field(body, "presence_penalty", (int, float), option=True)) is not None:
            pieces.append(f" (repetition_penalty {penalty + 2.0})")
        if asked["seed"] is not None:
            pieces.append(f" #{asked['seed']}")
        if count := images(body["messages"]):
            pieces.append(f" ({count} image)")
        if grammar:
            pieces = ['{"up"', ": true", "}"]
        shown = MODEL_PATH if model in (None, "tgi") else model
        if tools and not (body.get("tool_choice", "auto") == "auto" and "no tool" in self.seen[-1][1]):
            return self.call_tool(body, tools, shown)
        pieces, reason = stopped(pieces, asked)
        return self.say(body, pieces, reason, shown)

    def as_text(self, message: Json) -> tuple[str, str]:
        """`MessageBody`, untagged: content first; `tool_call_id` and `name` are dropped."""
        role = self.field(message, "role", str)
        content = message.get("content")
        if isinstance(content, str):
            return role, content
        if isinstance(content, list):
            return role, "".join(part.get("text") or f"![]({part['image_url']['url']})" for part in content)
        if isinstance(message.get("tool_calls"), list):
            return role, json.dumps(message["tool_calls"])
        raise self.malformed("messages: data did not match any variant of untagged enum MessageBody")

    def grammar(self, body: Json) -> Json | None:
        given = self.field(body, "response_format", dict, option=True)
        if given is None:
            return None
        if given.get("type") not in ("json", "json_object", "regex", "json_schema"):
            raise self.malformed(f"response_format: unknown variant `{given.get('type')}`")
        if "value" not in given:
            raise self.malformed("response_format: missing field `value`")
        if given["type"] == "regex":
            self.field(given, "value", str)
        elif "properties" not in given["value"]:
            raise self.validation("Grammar must have a 'properties' field")
        return dict(given)

    def tools(self, body: Json) -> list[Json] | None:
        tools = self.field(body, "tools", list, option=True)
        for tool in tools or ():
            if "parameters" not in tool["function"] and "arguments" not in tool["function"]:
                raise self.malformed("tools[0].function: missing field `arguments`")
        if tools is None or body.get("tool_choice") == "none":
            return None if tools is None else []
        choice = body.get("tool_choice", "auto")
        if isinstance(choice, dict):
            named = [tool for tool in tools if tool["function"]["name"] == choice["function"]["name"]]
            if not named:
                raise self.validation("Tool with name x not found", "tool")
            return named
        return list(tools)

    def call_tool(self, body: Json, tools: list[Json], model: str) -> Any:
        name = tools[0]["function"]["name"]
        if not body.get("stream"):
            function = {"description": None, "name": name, "arguments": json.dumps({"city": "Berlin"})}
            message = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]}
            return self.reply(message, "stop", model, None, 29)
        return self.stream_tool(body, name, model)

    def stream_tool(self, body: Json, name: str, model: str) -> Iterator[bytes]:
        for place, arguments in enumerate(ARGUMENTS):
            function = {"name": name if place == 0 else None, "arguments": arguments}
            call = {"index": 0, "id": "0", "type": "function", "function": function}
            yield event(self.chunk({"role": "assistant", "tool_calls": [call]}, None, model))
        yield from self.end(body, 29, model)

    def say(self, body: Json, pieces: list[str], reason: str, model: str) -> Any:
        if not body.get("stream"):
            logprobs = {"content": [self.logprob(p) for p in pieces]} if body.get("logprobs") else None
            message = {"role": "assistant", "content": "".join(pieces)}
            return self.reply(message, reason, model, logprobs, len(pieces))
        return self.stream_text(body, pieces, reason, model)

    def stream_text(self, body: Json, pieces: list[str], reason: str, model: str) -> Iterator[bytes]:
        for place, piece in enumerate(pieces):
            last = reason != "stop" and place == len(pieces) - 1
            logprobs = {"content": [self.logprob(piece)]} if body.get("logprobs") else None
            delta = {"role": "assistant", "content": piece}
            yield event(self.chunk(delta, reason if last else None, model, logprobs))
            yield b":\n\n"
        if reason == "stop":  # the end-of-sequence token, which is special: no text
            yield event(self.chunk({"role": "assistant", "content": ""}, "stop", model))
        yield from self.end(body, len(pieces), model)

    def end(self, body: Json, tokens: int, model: str) -> Iterator[bytes]:
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event({**self.chunk({}, None, model), "choices": [], "usage": usage(tokens)})
        yield event(b"[DONE]")

    def logprob(self, piece: str) -> Json:
        return {"token": piece, "logprob": -0.5, "top_logprobs": [{"token": piece, "logprob": -0.5}]}

    def head(self, kind: str, model: str) -> Json:
        return {"object": kind, "id": "", "created": 1, "model": model, "system_fingerprint": "3.3.7-native"}

    def chunk(self, delta: Json, reason: str | None, model: str, logprobs: Any = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self.head("chat.completion.chunk", model), "choices": [choice], "usage": None}

    def reply(self, message: Json, reason: str, model: str, logprobs: Any, tokens: int) -> Json:
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason}
        return {**self.head("chat.completion", model), "choices": [choice], "usage": usage(tokens)}

    # completions

    def completions(self, body: Json) -> Any:
        asked = self.sampling(body)
        prompts = self.field(body, "prompt", (str, list))
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise self.malformed("prompt: data did not match any variant of untagged enum PromptDeserializer")
        if len(prompts) > 4:
            raise Refused(
                422,
                {
                    "error": "Number of prompts exceeds the maximum allowed batch size of 4",
                    "error_type": "batch size exceeded",
                },
            )
        if body.get("suffix") is not None:
            raise Refused(422, {"error": "Suffix is not supported", "error_type": "suffix not supported"})
        pieces = [*WORDS, *([f" #{asked['seed']}"] if asked["seed"] is not None else [])]
        pieces, reason = stopped(pieces, asked)
        if body.get("stream"):
            return self.stream_completion(pieces, reason)
        choices = [
            {"index": index, "text": prompt + "".join(pieces), "logprobs": None, "finish_reason": reason}
            for index, prompt in enumerate(prompts)
        ]
        total = usage(len(pieces) * len(prompts), PROMPT_TOKENS * len(prompts))
        return {**self.head("text_completion", MODEL_PATH), "choices": choices, "usage": total}

    def stream_completion(self, pieces: list[str], reason: str) -> Iterator[bytes]:
        """The usage is on the last chunk, whether it was asked for or not; "" where nothing has finished."""
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            said = {"stop": "eos_token"}.get(reason, reason) if last else ""
            choice = {"index": 0, "text": piece, "logprobs": None, "finish_reason": said}
            more = {"usage": usage(len(pieces))} if last else {}
            yield event({**self.head("text_completion", MODEL_PATH), "choices": [choice], **more})
        yield event(b"[DONE]")

    # the rest

    def tokens(self, text: str) -> list[Json]:
        return [{"id": ord(c), "text": c, "start": i, "stop": i + 1} for i, c in enumerate(text)]

    def chat_tokenize(self, body: Json) -> Json:
        text = "".join(f"<{role}>{text}" for role, text in map(self.as_text, self.field(body, "messages", list)))
        return {"tokenize_response": self.tokens(text), "templated_text": text}

    def info(self) -> Json:
        return {
            "model_id": "org/model",
            "model_sha": "abc",
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 64,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": 4095,
            "max_total_tokens": 4096,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": "3.3.7",
            "sha": None,
            "docker_label": None,
        }

    def generate(self, body: Json) -> Json:
        self.field(body, "inputs", str)
        details = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": None, "prefill": [], "tokens": []}
        wanted = (body.get("parameters") or {}).get("details")
        return {"generated_text": "".join(WORDS), **({"details": details} if wanted else {})}


def stopped(pieces: list[str], asked: Json) -> tuple[list[str], str]:
    """Up to a stop, which stays in the text, or to the limit. A piece is a token."""
    text = ""
    for place, piece in enumerate(pieces):
        for end in range(1, len(piece) + 1):
            if any((text + piece[:end]).endswith(stop) for stop in asked["stop"]):
                return [*pieces[:place], piece[:end]], "stop_sequence"
        text += piece
    limit = asked["limit"]
    return (pieces[:limit], "length") if limit is not None and limit < len(pieces) else (pieces, "stop")


# -- those that speak OpenAI -----------------------------------------------------------------------------------------


class SpeaksOpenAI(Speaks):
    """What vLLM, SGLang and llama.cpp share. Two tools at once where the chat says "both"."""

    def invalid(self, why: str, status: int = 400) -> Refused:
        raise NotImplementedError

    def extra(self) -> Json:
        """What an engine adds to its replies."""
        return {}

    def chat(self, body: Json) -> Any:
        n = body.get("n") or 1
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        stop = body.get("stop") or []
        stops = [stop] if isinstance(stop, str) else stop
        pieces = list(WORDS)
        if body.get("seed") is not None:
            pieces.append(f" #{body['seed']}")
        if count := images(body["messages"]):
            pieces.append(f" ({count} image)")
        if (body.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
            pieces = ['{"up"', ": true", "}"]
        text = "".join(pieces)
        for stop in stops:
            if stop in text:
                pieces, limit = [text[: text.index(stop)]], None
        reason = "stop"
        if limit is not None and limit < len(pieces):
            pieces, reason = pieces[:limit], "length"
        calls = self.calls(body)
        if body.get("stream"):
            return self.stream(body, pieces, reason, calls, n)
        choices = [self.choice(body, index, pieces, reason, calls) for index in range(n)]
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": choices,
            "usage": self.usage(len(pieces), n),
            **self.extra(),
        }

    def usage(self, tokens: int, n: int) -> Json:
        return usage(tokens * n)

    def calls(self, body: Json) -> list[Json]:
        choice = body.get("tool_choice", "auto")
        tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
        if not tools or choice == "none":
            return []
        last = str(body["messages"][-1].get("content"))
        if isinstance(choice, dict):
            tools = [choice["function"]["name"]]
        elif choice == "auto" and "no tool" in last:
            return []
        else:
            tools = tools[: 2 if "both" in last else 1]
        return [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": "".join(ARGUMENTS)}}
            for i, name in enumerate(tools)
        ]

    def choice(self, body: Json, index: int, pieces: list[str], reason: str, calls: list[Json]) -> Json:
        logprobs = {"content": [self.logprob(piece) for piece in pieces]} if body.get("logprobs") else None
        message: Json = {"role": "assistant", "content": None if calls else "".join(pieces)}
        if calls:
            message["tool_calls"] = calls
            reason = "tool_calls"
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def logprob(self, piece: str) -> Json:
        top = {"token": piece, "logprob": -0.5, "bytes": list(piece.encode())}
        return {**top, "top_logprobs": [top]}

    def stream(self, body: Json, pieces: list[str], reason: str, calls: list[Json], n: int) -> Iterator[bytes]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

        def part(index: int, delta: Json, finish: str | None = None, logprobs: Any = None) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return event({**head, "choices": [choice]})

        for index in range(n):
            yield part(index, {"role": "assistant", "content": None if calls else ""})
        for piece in () if calls else pieces:
            for index in range(n):
                logprobs = {"content": [self.logprob(piece)]} if body.get("logprobs") else None
                yield part(index, {"content": piece}, None, logprobs)
            yield b": ping\n\n"
        for place, call in enumerate(calls):
            named = {"name": call["function"]["name"], "arguments": ""}
            yield part(0, {"tool_calls": [{**call, "index": place, "function": named}]})
            for arguments in ARGUMENTS:
                yield part(0, {"tool_calls": [{"index": place, "function": {"arguments": arguments}}]})
        for index in range(n):
            yield part(index, {}, "tool_calls" if calls else reason)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event({**head, "choices": [], "usage": self.usage(len(pieces), n), **self.extra()})
        yield event(b"[DONE]")

    def completions(self, body: Json) -> Any:
        prompts = body["prompt"]
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        n = body.get("n") or 1
        pieces = [*WORDS, *([f" #{body['seed']}"] if body.get("seed") is not None else [])]
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        if body.get("stream"):
            return self.stream_completion(body, head, pieces)
        choices = [
            {
                "index": index,
                "text": f"{prompt}" + "".join(pieces),
                "logprobs": self.completion_logprobs(pieces) if body.get("logprobs") is not None else None,
                "finish_reason": "stop",
            }
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(n))
        ]
        return {**head, "choices": choices, "usage": self.usage(len(pieces), len(choices)), **self.extra()}

    def completion_logprobs(self, pieces: list[str]) -> Json:
        return {
            "tokens": pieces,
            "token_logprobs": [-0.5 for _ in pieces],
            "top_logprobs": [{piece: -0.5} for piece in pieces],
            "text_offset": [sum(map(len, pieces[:i])) for i in range(len(pieces))],
        }

    def stream_completion(self, body: Json, head: Json, pieces: list[str]) -> Iterator[bytes]:
        for place, piece in enumerate(pieces):
            finish = "stop" if place == len(pieces) - 1 else None
            yield event({**head, "choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": finish}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event({**head, "choices": [], "usage": self.usage(len(pieces), 1)})
        yield event(b"[DONE]")

    def inputs(self, body: Json) -> list[str]:
        """Texts as they are; ids as the engine's own vocabulary has them, which is another one than the client's."""
        given = body["input"]
        if isinstance(given, str):
            return [given]
        if given and isinstance(given[0], int):
            return ["ids of another vocabulary"]
        return [item if isinstance(item, str) else "ids of another vocabulary" for item in given]

    def vectors(self, body: Json, model: str, *, base64: bool, size: int = 4) -> Json:
        texts = self.inputs(body)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": packed(vector(text, size)) if base64 else vector(text, size),
            }
            for index, text in enumerate(texts)
        ]
        tokens = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return {"object": "list", "data": data, "model": model, "usage": tokens}


class SpeaksVLLM(SpeaksOpenAI):
    """Errors are nested and their code is a number; with `flat_errors` as in releases before 0.10. Reranking shows its
    documents always; `dimensions` is refused for models that are not `matryoshka`."""

    def __init__(self, *, flat_errors: bool = False, matryoshka: bool = False) -> None:
        super().__init__()
        self.flat_errors = flat_errors
        self.matryoshka = matryoshka

    def routes(self) -> dict[str, Any]:
        return {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/v1/embeddings": self.embeddings,
            "/v1/rerank": self.rerank,
            "/tokenize": self.tokenize,
        }

    def invalid(self, why: str, status: int = 400) -> Refused:
        error = {"message": why, "type": "BadRequestError", "param": None, "code": status}
        return Refused(status, {"object": "error", **error} if self.flat_errors else {"error": error})

    def extra(self) -> Json:
        return {"prompt_logprobs": None, "kv_transfer_params": None}

    def choice(self, body: Json, index: int, pieces: list[str], reason: str, calls: list[Json]) -> Json:
        choice = super().choice(body, index, pieces, reason, calls)
        choice["message"]["reasoning"] = None
        return {**choice, "stop_reason": None}

    def chat(self, body: Json) -> Any:
        if len(json.dumps(body["messages"])) > 5000:
            raise self.invalid(
                "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
            )
        return super().chat(body)

    def embeddings(self, body: Json) -> Json:
        size = body.get("dimensions")
        if size is not None and not self.matryoshka:
            raise self.invalid(
                f'Model "{body["model"]}" does not support matryoshka representation, '
                "changing output dimensions will lead to poor results."
            )
        return self.vectors(body, body["model"], base64=body.get("encoding_format") == "base64", size=size or 4)

    def rerank(self, body: Json) -> Json:
        if not all(isinstance(document, str) for document in body["documents"]):
            raise self.invalid("documents: Input should be a valid string")
        results: list[Json] = [
            {"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": len(text) / 100}
            for index, text in enumerate(body["documents"])
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        tokens = {"prompt_tokens": 9, "total_tokens": 9}
        return {
            "id": "rerank-1",
            "model": body["model"],
            "usage": tokens,
            "results": results[: body.get("top_n") or len(results)],
        }

    def tokenize(self, body: Json) -> Json:
        text = body["prompt"] if "prompt" in body else "".join(m["content"] for m in body["messages"])
        return {"count": len(text), "max_model_len": 4096, "tokens": [ord(c) for c in text], "token_strs": None}


class Transcribes(Engine):
    """Tells the form's own bytes, by their number, as the text. `requests` have them in `raw`."""

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (head := await read_head(reader)) is not None:
            path, headers = head
            raw = await reader.readexactly(int(headers["content-length"]))
            self.requests.append(Request(path, headers, {}, raw))
            text = f"{len(raw)} bytes"
            if b'name="stream"\r\n\r\ntrue' in raw:
                delta = {"object": "transcription.chunk", "choices": [{"delta": {"content": text}}]}
                writer.write(STREAM_HEAD + chunk(event(delta)) + chunk(event(b"[DONE]")) + b"0\r\n\r\n")
            elif b'name="response_format"\r\n\r\ntext' in raw:
                writer.write(typed(200, text.encode(), "text/plain; charset=utf-8"))
            else:
                writer.write(whole(200, json.dumps({"text": text}).encode()))
        writer.close()


class SpeaksSGLang(SpeaksOpenAI):
    """Flat errors; embeddings under the model's path and never in base64; a bare list of ranks."""

    def routes(self) -> dict[str, Any]:
        return {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/v1/embeddings": self.embeddings,
            "/v1/rerank": self.rerank,
            "/tokenize": self.tokenize,
        }

    def invalid(self, why: str, status: int = 400) -> Refused:
        error = {"message": why, "type": "BadRequest", "param": None, "code": status}
        return Refused(status, {"object": "error", **error})

    def embeddings(self, body: Json) -> Json:
        if any(not text.strip() for text in self.inputs(body)):
            raise self.invalid("Input cannot be empty or whitespace only")
        return self.vectors(body, MODEL_PATH, base64=False)

    def rerank(self, body: Json) -> Any:
        if any(not isinstance(document, str) or not document.strip() for document in body["documents"]):
            raise self.invalid("Each document must be a non-empty string")
        ranks = [
            {"score": len(text) / 100, "document": text, "index": index, "meta_info": {"prompt_tokens": 3}}
            for index, text in enumerate(body["documents"])
        ]
        return sorted(ranks, key=lambda rank: -rank["score"])

    def tokenize(self, body: Json) -> Json:
        if not isinstance(body.get("prompt"), str):
            raise self.invalid("prompt: Field required")
        tokens = [ord(c) for c in body["prompt"]]
        return {"tokens": tokens, "count": len(tokens), "max_model_len": 4096}


class SpeaksLlamaCpp(SpeaksOpenAI):
    """At most as many choices as slots, and one choice's tokens in `usage`; `timings`; comments as pings; logprobs of
    completions as those of chat; `dimensions` ignored; no empty text."""

    slots = 4

    def routes(self) -> dict[str, Any]:
        return {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/v1/embeddings": self.embeddings,
            "/v1/rerank": self.rerank,
            "/tokenize": self.tokenize,
            "/apply-template": lambda body: {
                "prompt": "".join(f"<{m['role']}>{m['content']}" for m in body["messages"])
            },
        }

    def invalid(self, why: str, status: int = 400) -> Refused:
        return Refused(status, {"error": {"code": status, "message": why, "type": "invalid_request_error"}})

    def extra(self) -> Json:
        return {"timings": {"prompt_n": 1, "predicted_ms": 1.5}}

    def usage(self, tokens: int, n: int) -> Json:
        return {**usage(tokens), "prompt_tokens_details": {"cached_tokens": 3}}

    def checked(self, body: Json) -> Json:
        n = body.get("n")
        if n is not None and not 1 <= n <= self.slots:
            raise self.invalid(f"Field 'n': Value must be between 1 <= value <= {self.slots}, but got {n}")
        return body

    def chat(self, body: Json) -> Any:
        if body.get("top_logprobs") and not body.get("logprobs"):
            raise self.invalid("top_logprobs requires logprobs to be set to true")
        return super().chat(self.checked(body))

    def completions(self, body: Json) -> Any:
        return super().completions(self.checked(body))

    def completion_logprobs(self, pieces: list[str]) -> Json:
        return {"content": [{"id": 1, **self.logprob(piece)} for piece in pieces]}

    def stream_completion(self, body: Json, head: Json, pieces: list[str]) -> Iterator[bytes]:
        wanted = body.get("logprobs") is not None
        for piece in pieces:
            logprobs = self.completion_logprobs([piece]) if wanted else None
            yield event({**head, "choices": [{"index": 0, "text": piece, "logprobs": logprobs, "finish_reason": None}]})
            yield b":\n\n"
        last = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
        yield event({**head, "choices": [last], "usage": self.usage(len(pieces), 1), **self.extra()})
        yield event(b"[DONE]")

    def embeddings(self, body: Json) -> Json:
        if any(not text for text in self.inputs(body)):
            raise self.invalid("Input content cannot be empty")
        return self.vectors(body, body["model"], base64=body.get("encoding_format") == "base64")

    def rerank(self, body: Json) -> Json:
        results: list[Json] = [
            {"index": index, "relevance_score": len(text) / 100} for index, text in enumerate(body["documents"])
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        tokens = {"prompt_tokens": 9, "total_tokens": 9}
        shown = results[: body.get("top_n") or len(results)]
        return {"model": body["model"], "object": "list", "usage": tokens, "results": shown}

    def tokenize(self, body: Json) -> Json:
        ids = [*([1] if body.get("add_special") else []), *map(ord, body["content"])]
        if body.get("with_pieces"):
            return {"tokens": [{"id": number, "piece": chr(number)} for number in ids]}
        return {"tokens": ids}


class SpeaksTEI(SpeaksOpenAI):
    """At most 32 texts, none of them empty; two shapes of error; a bare list of ranks; lists of lists of tokens."""

    most = 32

    def routes(self) -> dict[str, Any]:
        return {
            "/v1/embeddings": self.embeddings,
            "/rerank": self.rerank,
            "/tokenize": self.tokenize,
        }

    def not_there(self) -> Refused:
        return Refused(404, "")

    def flat(self, why: str, kind: str, status: int) -> Refused:
        return Refused(status, {"error": why, "error_type": kind})

    def embeddings(self, body: Json) -> Json:
        texts = self.inputs(body)
        if len(texts) > self.most:
            why = f"batch size {len(texts)} > maximum allowed batch size {self.most}"
            raise Refused(422, {"message": why, "code": 422, "type": "Validation"})
        if "" in texts:
            raise Refused(422, {"message": "`inputs` cannot be empty", "code": 422, "type": "Validation"})
        return self.vectors(body, body["model"], base64=body.get("encoding_format") == "base64")

    def rerank(self, body: Json) -> Any:
        if not isinstance(body.get("texts"), list):
            raise Refused(422, "Failed to deserialize the JSON body into the target type: missing field `texts`")
        if len(body["texts"]) > self.most:
            raise self.flat(f"batch size {len(body['texts'])} > maximum allowed batch size 32", "Validation", 422)
        factor = 1 if body.get("raw_scores") else 100
        ranks: list[Json] = [{"index": index, "score": len(text) / factor} for index, text in enumerate(body["texts"])]
        return sorted(ranks, key=lambda rank: -rank["score"])

    def tokenize(self, body: Json) -> Any:
        if "inputs" not in body:
            raise Refused(422, "Failed to deserialize the JSON body into the target type: missing field `inputs`")
        special = [{"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}]
        pieces = [
            {"id": ord(c), "text": c, "special": False, "start": i, "stop": i + 1} for i, c in enumerate(body["inputs"])
        ]
        return [[*(special if body.get("add_special_tokens", True) else []), *pieces]]
