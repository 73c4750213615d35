"""TGI's control side, by huggingface-hub: what an engine says of itself (`/info`), and its native `/generate`.

Off the hot path and imported by nobody on it: huggingface-hub brings httpx and takes a third of a second to import, so
that is done when something is asked. Its client is made for each call, since it keeps streams open until it is closed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.errors import ConnectFailed, EngineTimeout, MalformedResponse, TransportError

if TYPE_CHECKING:
    from huggingface_hub import AsyncInferenceClient, TextGenerationOutput

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Info:
    """`/info` of TGI 3.x (`router/src/lib.rs`, `Info`). None for what a release does not tell.

    max_concurrent_requests   beyond them it answers 429, so fewer should be admitted
    max_total_tokens          the context length: of the prompt and the answer
    max_client_batch_size     prompts of one completions request
    """

    model_id: str
    version: str | None = None
    max_concurrent_requests: int | None = None
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_stop_sequences: int | None = None
    max_best_of: int | None = None
    max_client_batch_size: int | None = None
    validation_workers: int | None = None
    model_sha: str | None = None
    model_pipeline_tag: str | None = None
    docker_label: str | None = None


class Control:
    """One engine. `url` is its root; `key` its own, "" for none. All of it raises `TransportError`."""

    def __init__(self, url: str, key: str = "", *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._timeout_s = timeout_s

    async def info(self) -> Info:
        """The engine's limits."""
        try:
            async with asyncio.timeout(self._timeout_s), self._client() as client:
                return parse(await client.get_endpoint_info())
        except Exception as error:
            raise translated(error, self._url) from error

    async def generate(self, prompt: str, **parameters: Any) -> TextGenerationOutput:
        """`/generate`, with details. `parameters` are those of huggingface-hub's `text_generation`."""
        try:
            async with asyncio.timeout(self._timeout_s), self._client() as client:
                output: TextGenerationOutput = await client.text_generation(
                    prompt, model=f"{self._url}/generate", details=True, **parameters
                )
                return output
        except Exception as error:
            raise translated(error, self._url) from error

    def _client(self) -> AsyncInferenceClient:
        from huggingface_hub import AsyncInferenceClient  # noqa: PLC0415  # see above

        # without one it would send the user's own Hugging Face token
        token = self._key or "none"
        return AsyncInferenceClient(self._url, provider="hf-inference", token=token, timeout=self._timeout_s)


def parse(info: Any) -> Info:
    """Raises `MalformedResponse` for what is no TGI's."""
    if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
        raise MalformedResponse("The engine's /info is not TGI's.")
    told: dict[str, Any] = {name: info.get(name) for name in Info.__slots__}
    return Info(**told)


def translated(error: Exception, url: str) -> TransportError:
    """What huggingface-hub and httpx raise, as ours: this is the one seam."""
    import httpx  # noqa: PLC0415  # huggingface-hub has imported it already
    from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError  # noqa: PLC0415

    match error:
        case TransportError():
            return error
        case TimeoutError() | InferenceTimeoutError() | httpx.TimeoutException():
            return EngineTimeout("The engine did not answer in time.", detail=f"{url}: {error!r}", phase="control")
        case httpx.TransportError():
            return ConnectFailed("The engine cannot be reached.", detail=f"{url}: {error!r}")
        case HfHubHTTPError():
            status = error.response.status_code
            return TransportError("The engine refused its control request.", detail=f"{url}: status {status}")
        case _:
            return MalformedResponse("The engine's answer cannot be read.", detail=f"{url}: {type(error).__name__}")
