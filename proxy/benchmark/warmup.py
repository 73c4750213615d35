"""Before anything is measured: a first answer of every engine and of the gateway, and how many tokens words are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from backends.errors import TransportError
from proxy.terminal import Mistake

from .asking import CHAT, Client, kind_of, refusal
from .load import Clients, Plan
from .prompts import WordCount, fitted, sample_words, text_of
from .targets import GATEWAY, Place, Target

_TOKENIZE_S = 10.0
_FEW, _MANY = 50, 450
"""Words of the two prompts by which tokens are measured."""


async def first_answer(plan: Plan, target: Target, place: Place, client: Client) -> None:
    """One short request, so that connections, caches and a model that has to start are no part of the measurement.

    Raises `Mistake`: one sentence on what is wrong, and where it can be mended.
    """
    body: dict[str, Any] = {
        "model": plan.model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 1,
        "temperature": 0,
    }
    url = place.url
    try:
        async with asyncio.timeout(plan.timeout_s):
            answer = await client.send("POST", CHAT, orjson.dumps({**body, **plan.extra}))
            try:
                status, data = answer.status, await answer.read()
            finally:
                answer.close()
    except TimeoutError:
        raise Mistake(f"{url} gave no answer within {plan.timeout_s:g} s") from None
    except TransportError as error:
        kind = kind_of(error)
        if kind == "no connection":
            hint = ": is the gateway running? --url names another address" if target.name == GATEWAY else ""
            raise Mistake(f"nothing listens on {url}{hint}") from None
        raise Mistake(f"{url} gave no answer: {kind}") from None
    if status == 200:
        if _parsed(data).get("choices"):
            return
        raise Mistake(f"what {url} answered is no chat completion: is it an OpenAI-compatible server?")
    told = refusal(status, data)
    if status in (401, 403):
        variable = target.key_env or "none"
        option = "--key-env" if target.name == GATEWAY else "--direct-key-env"
        what = "refused the key" if place.key else "wants a key"
        raise Mistake(f"{url} {what} ({status}); it is read from an environment variable ({variable}): {option} NAME")
    if status == 404:
        served = await models(client)
        if served and plan.model not in served:
            raise Mistake(f"{url} serves no model {plan.model!r}; it serves: {', '.join(served)}")
    raise Mistake(f"{url} answered {told.kind}{f': {told.message}' if told.message else ''}")


async def models(client: Client) -> list[str]:
    """What a server says it serves; nothing if it does not say."""
    parsed = await _exchange(client, "GET", "/v1/models", b"")
    listed = parsed.get("data")
    if not isinstance(listed, list):
        return []
    return [str(card["id"]) for card in listed if isinstance(card, dict) and "id" in card]


async def word_count(plan: Plan, opened: Sequence[Clients]) -> WordCount:
    """How many tokens words are, by the first `/tokenize` that answers as vLLM's does; else the assumption."""
    for clients in opened:
        counted = []
        for words in (_FEW, _MANY):
            text = text_of(sample_words(f"{plan.prompts.seed}/tokenize/{words}", words))
            body = {"model": plan.model, "messages": [{"role": "user", "content": text}]}
            told = await _exchange(clients.each[0], "POST", "/tokenize", orjson.dumps(body))
            counted.append((words, told.get("count")))
        (few, t0), (many, t1) = counted
        if isinstance(t0, int) and isinstance(t1, int) and (count := fitted((few, t0), (many, t1))) is not None:
            return count
    return WordCount()


async def _exchange(client: Client, method: str, path: str, body: bytes) -> dict[str, Any]:
    """A small JSON object, empty if there is none."""
    try:
        async with asyncio.timeout(_TOKENIZE_S):
            answer = await client.send(method, path, body)
            try:
                data = await answer.read()
            finally:
                answer.close()
    except (TimeoutError, TransportError):
        return {}
    return _parsed(data) if answer.status == 200 else {}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
