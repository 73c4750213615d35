"""What an engine says of itself: how many requests it takes at once, how long a context it has.

tgi        GET /info               max_concurrent_requests, max_total_tokens     by huggingface-hub (tgi_control.py)
tei        GET /info               max_concurrent_requests, max_input_length     router/src/lib.rs
llamacpp   GET /props              total_slots                                   tools/server/README.md
sglang     GET /get_server_info    max_running_requests                          srt/entrypoints/http_server.py
vllm       says neither

Asked once for each replica, off the hot path. An engine that does not say is not asked again: releases differ in what
they tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from .base import Endpoint
from .dialects.tgi_control import Control
from .errors import MalformedResponse
from .transport import Limits, Pool, Timeouts

ASKABLE = frozenset({"tgi", "tei", "llamacpp", "sglang"})

_ROUTES = {"tei": b"/info", "llamacpp": b"/props", "sglang": b"/get_server_info"}
_TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=10.0, idle_s=10.0)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """`takes`: requests at once. `context_length`: tokens, prompt and answer together. None for what it did not say."""

    takes: int | None = None
    context_length: int | None = None


async def ask(engine: str, endpoint: Endpoint) -> EngineInfo:
    """Raises `TransportError` for an engine that does not answer, or not with what it should; it may be asked again."""
    if engine == "tgi":
        info = await Control(f"http://{_origin(endpoint)}", endpoint.api_key).info()
        return EngineInfo(_count(info.max_concurrent_requests), _count(info.max_total_tokens))
    route = _ROUTES.get(engine)
    return EngineInfo() if route is None else parse(engine, *await _get(endpoint, route))


def parse(engine: str, status: int, body: bytes) -> EngineInfo:
    """An engine's answer; one that refuses has nothing to say. Raises `MalformedResponse` for what is no object."""
    if status == 503:  # llama.cpp while it loads
        raise MalformedResponse("The engine is not ready to say what it can do.")
    if status >= 300:
        return EngineInfo()
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        raise MalformedResponse("What the engine says of itself is no JSON object.")
    match engine:
        case "tei":
            return EngineInfo(_count(told.get("max_concurrent_requests")), _count(told.get("max_input_length")))
        case "llamacpp":
            return EngineInfo(_count(told.get("total_slots")))
        case "sglang":
            return EngineInfo(_count(told.get("max_running_requests")))
    return EngineInfo()


async def _get(endpoint: Endpoint, route: bytes) -> tuple[int, bytes]:
    pool = Pool(endpoint.host, endpoint.port, timeouts=_TIMEOUTS, limits=Limits(body_bytes=4 * 1024 * 1024))
    headers = b"authorization: Bearer %s\r\n" % endpoint.api_key.encode() if endpoint.api_key else b""
    try:
        response = await pool.request(b"GET", route, headers)
        try:
            return response.status, await response.read()
        finally:
            response.close()
    finally:
        pool.close_idle()


def _origin(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
