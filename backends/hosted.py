"""Hosted models: any provider that litellm knows, as a backend.

    Call --arguments_for--> litellm.acompletion, aembedding --> the provider
                            openai.AsyncOpenAI.completions        (text completions, where the provider has them)
    Reply       <-- chat_reply, text_reply, embeddings_reply --- its answer
    EventStream <-- Chunks ------------------------------------- its chunks
    GatewayError <-- hosted_errors.translate ------------------- its failure

litellm takes seconds and 170 MB to import, so nothing here does before the first request of the first hosted model, and
then in a thread. It is told to fetch nothing, log nothing and read no `.env`.

Only parameters of OpenAI's are handed on, each by name: litellm takes `api_base`, `api_key`, `mock_response`,
`fallbacks` and more from the same keywords, and a client that could set these could have our key sent to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import warnings
from types import ModuleType
from typing import Any

import orjson

from . import cl100k
from .base import Call, EventStream, Reply, Usage
from .errors import Disconnected, EngineTimeout, GatewayError, InvalidRequest
from .hosted_errors import translate
from .hosted_shapes import (
    CHAT,
    COMPLETIONS,
    COMPLETIONS_ONLY,
    EMBEDDINGS,
    Chunks,
    Json,
    arguments_for,
    chat_choice,
    chat_reply,
    embeddings_reply,
    plain,
    text_choice,
    text_choice_of_chat,
    text_reply,
    unsupported,
)
from .transport import Timeouts

_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",  # else it reads a .env in the working directory
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # these three would be downloaded
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
}
READ_ONLY_NOTE = "Item .* is using the `ReadOnly` qualifier"
"""pydantic's note, to whoever wrote them, on some types of litellm's."""
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")


def load_litellm(*, aiohttp_transport: bool = True) -> ModuleType:
    """litellm, imported and silenced. Blocks for seconds the first time."""
    os.environ.update(_ENVIRONMENT)
    warnings.filterwarnings("ignore", READ_ONLY_NOTE, UserWarning)
    litellm = importlib.import_module("litellm")
    settings: Any = litellm
    settings.telemetry = False
    settings.suppress_debug_info = True  # prints advice to stdout with each error
    settings.turn_off_message_logging = True
    settings.drop_params = False
    settings.num_retries = None
    settings.disable_aiohttp_transport = not aiohttp_transport
    for name in _LOGGERS:
        logging.getLogger(name).disabled = True
    return litellm


class HostedBackend:
    """One model of one provider.

    name                the public name, which every answer bears
    model               litellm's: `PROVIDER/MODEL`, such as `anthropic/claude-sonnet-4-5`
    api_key             "" where the provider needs none, or litellm knows its variable
    api_base            another address than the provider's own; with `openai/...`, any server that speaks OpenAI's
    drop_unsupported    leave out what the provider cannot do instead of refusing it with a 400
    aiohttp_transport   False: httpx underneath, which respx can see
    """

    def __init__(
        self,
        name: str,
        model: str,
        *,
        api_key: str = "",
        api_base: str | None = None,
        drop_unsupported: bool = False,
        timeouts: Timeouts | None = None,
        aiohttp_transport: bool = True,
    ) -> None:
        self.name = name
        self.provider = model.partition("/")[0]
        self._model = model
        self._api_key = api_key
        self._api_base = api_base
        self._drop_unsupported = drop_unsupported
        self._timeouts = timeouts or Timeouts()
        self._aiohttp_transport = aiohttp_transport
        self._litellm: Any = None
        self._loading = asyncio.Lock()
        self._openai: Any = None
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self, call: Call) -> Reply | EventStream:
        ask = {CHAT: self._chat, COMPLETIONS: self._completions, EMBEDDINGS: self._embeddings}.get(call.path)
        if ask is None:
            message = f"The provider of this model does not serve {call.path}."
            raise InvalidRequest(message, code="unsupported_endpoint")
        arguments = arguments_for(call, drop_unsupported=self._drop_unsupported)
        await self._load()
        try:
            async with asyncio.timeout(self._timeouts.first_byte_s):
                return await ask(call, arguments)
        except TimeoutError:
            raise self.too_slow("first byte", self._timeouts.first_byte_s) from None
        except Exception as error:
            raise self.ours(error) from None  # not chained: a trace of litellm's would quote the prompt

    def in_flight(self, replica_id: str) -> int:
        """There are no replicas of ours."""
        return 0

    async def aclose(self) -> None:
        """litellm keeps its connections for the whole process, so this closes those of other hosted models as well:
        they are made anew when needed."""
        while self._closing:
            await asyncio.wait(self._closing)
        if self._openai is not None:
            await self._openai.close()
            self._openai = None
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()
            self._litellm.in_memory_llm_clients_cache.flush_cache()

    # -- what its streams need ----------------------------------------------------------------------------------------

    @property
    def idle_s(self) -> float:
        return self._timeouts.idle_s

    def ours(self, error: Exception) -> GatewayError:
        return translate(error, (self._api_key,), provider=self.provider)

    def too_slow(self, phase: str, after_s: float) -> EngineTimeout:
        detail = f"{self.provider}: {phase}, {after_s:g} s"
        return EngineTimeout("The provider did not answer in time.", detail=detail, phase=phase)

    def close_later(self, stream: Any) -> None:
        """Close a stream, which takes awaiting, from where one cannot await."""
        task = asyncio.create_task(_close(stream), name="closing a provider's stream")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        if self._litellm is None:
            async with self._loading:  # one thread waits for the import, not one a request
                if self._litellm is None:
                    self._litellm = await asyncio.to_thread(load_litellm, aiohttp_transport=self._aiohttp_transport)

    def _common(self) -> Json:
        times = self._timeouts
        httpx = importlib.import_module("httpx")  # litellm has it loaded
        return {
            "model": self._model,
            "api_key": self._api_key or None,
            "api_base": self._api_base,
            "timeout": httpx.Timeout(max(times.first_byte_s, times.idle_s), connect=times.connect_s),
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": self._drop_unsupported,
        }

    async def _ask_chat(self, arguments: Json) -> Any:
        # without the keyword, litellm looks into `tools` for its own proxy's, with a package that is not installed
        return await self._litellm.acompletion(**self._common(), **arguments, _skip_mcp_handler=True)

    async def _chat(self, call: Call, arguments: Json) -> Reply | EventStream:
        if call.stream:
            arguments |= {"stream": True, "stream_options": {"include_usage": True}}
            return HostedStream(self, await self._ask_chat(arguments), Chunks(call, chat_choice))
        answer = await self._ask_chat(arguments)
        return self._reply(call, chat_reply(plain(answer)))

    async def _completions(self, call: Call, arguments: Json) -> Reply | EventStream:
        """By the provider's own text completions where it has them: litellm's way to them loses choices and token ids,
        and does not close its streams. Else as a chat of one message."""
        native = self._native_completions()
        if native is not None:
            arguments["model"] = native
            client = self._openai_client()
            if call.stream:
                arguments |= {"stream": True, "stream_options": {"include_usage": True}}
                return HostedStream(self, await client.completions.create(**arguments), Chunks(call, text_choice))
            return self._reply(call, text_reply(plain(await client.completions.create(**arguments))))
        arguments = await self._as_chat(arguments)
        if call.stream:
            arguments |= {"stream": True, "stream_options": {"include_usage": True}}
            return HostedStream(self, await self._ask_chat(arguments), Chunks(call, text_choice_of_chat))
        answer = plain(await self._ask_chat(arguments))
        answer["choices"] = [text_choice_of_chat(choice) for choice in answer["choices"]]
        return self._reply(call, text_reply(answer))

    async def _embeddings(self, call: Call, arguments: Json) -> Reply:
        texts = arguments["input"]
        if _token_ids(texts) and not (self.provider in ("openai", "azure") and self._api_base is None):
            arguments["input"] = await _decoded(texts, "input")
        answer = await self._litellm.aembedding(**self._common(), **arguments)
        encoded = call.body.get("encoding_format") == "base64"
        return self._reply(call, embeddings_reply(plain(answer), base64_wanted=encoded))

    def _reply(self, call: Call, body: Json) -> Reply:
        body["model"] = call.model
        usage = body["usage"] or {}
        counted = Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
        return Reply(200, b"application/json", orjson.dumps(body), counted, self.provider)

    def _native_completions(self) -> str | None:
        """The provider's name of the model, if it has /completions and we know how to reach them."""
        model = self._model.partition("/")[2]
        if self.provider in ("openai", "text-completion-openai", "hosted_vllm") and (
            self._api_base is not None
            or (self.provider != "hosted_vllm" and model not in self._litellm.open_ai_chat_completion_models)
        ):
            return model
        return None

    def _openai_client(self) -> Any:
        if self._openai is None:
            openai = importlib.import_module("openai")  # litellm has it loaded
            common = self._common()
            key = self._api_key or os.environ.get("OPENAI_API_KEY") or "none"
            self._openai = openai.AsyncOpenAI(
                api_key=key, base_url=self._api_base, timeout=common["timeout"], max_retries=0
            )
        return self._openai

    async def _as_chat(self, arguments: Json) -> Json:
        for name in COMPLETIONS_ONLY & arguments.keys():
            if not self._drop_unsupported:
                raise unsupported(name)
            del arguments[name]
        prompt = arguments.pop("prompt")
        if _token_ids(prompt):
            prompt = await _decoded(prompt, "prompt")
        if isinstance(prompt, list):
            if len(prompt) != 1:
                raise InvalidRequest("With this model, a request takes one prompt.", param="prompt")
            prompt = prompt[0]
        return {**arguments, "messages": [{"role": "user", "content": prompt}]}


async def _decoded(tokens: list[Any], param: str) -> list[str]:
    """Token ids of OpenAI's, as LangChain sends them, to text: other models have other vocabularies."""
    rows = tokens if isinstance(tokens[0], list) else [tokens]
    try:
        return await cl100k.decode(rows)
    except (cl100k.UnknownToken, TypeError):  # TypeError: an id that is a table or a list
        message = f"Invalid '{param}': not token ids of cl100k_base, OpenAI's vocabulary."
        raise InvalidRequest(message, param=param, code="invalid_tokens") from None


async def _close(stream: Any) -> None:
    with contextlib.suppress(Exception):  # whatever it was, the stream is gone
        await (stream.aclose() if hasattr(stream, "aclose") else stream.close())


def _token_ids(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return isinstance(value[0], int) or (isinstance(value[0], list) and all(isinstance(row, list) for row in value))


class HostedStream(EventStream):
    """A provider's stream while it arrives."""

    __slots__ = ("_backend", "_chunks", "_over", "_stream")

    def __init__(self, backend: HostedBackend, stream: Any, chunks: Chunks) -> None:
        super().__init__(backend.provider)
        self._backend = backend
        self._stream = stream
        self._chunks = chunks
        self._over = False

    async def __anext__(self) -> bytes:
        if self._over or self._stream is None:
            raise StopAsyncIteration
        backend = self._backend
        try:
            async with asyncio.timeout(backend.idle_s):
                while True:
                    chunk = await anext(self._stream, None)
                    if chunk is None:
                        return self._end()
                    self._check(chunk)
                    if event := self._chunks.take(plain(chunk)):
                        return event
        except TimeoutError:
            raise backend.too_slow("idle", backend.idle_s) from None
        except Exception as error:
            raise backend.ours(error) from None

    def _end(self) -> bytes:
        self._over = True
        if not self._chunks.finished:
            raise _broken_off()
        return self._chunks.end()

    def _check(self, chunk: Any) -> None:
        """litellm makes up a "stop" for a stream that just ended. It keeps what it really received in two fields."""
        if hasattr(self._stream, "received_finish_reason") and any(choice.finish_reason for choice in chunk.choices):
            stream = self._stream
            if not (stream.received_finish_reason or getattr(stream, "intermittent_finish_reason", None)):
                raise _broken_off()

    def close(self) -> None:
        self.usage = self._chunks.usage
        stream, self._stream = self._stream, None
        if stream is not None:
            self._backend.close_later(stream)


def _broken_off() -> Disconnected:
    return Disconnected("The provider closed the stream before its end.", received=True)
