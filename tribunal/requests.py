"""A chat request -> what a deliberation needs of it. Pure.

Messages are kept as they are, whatever is in them: the plan only ever adds to them. What means nothing for an answer
that several models have made is refused, and so is what only one of them could understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.errors import InvalidRequest

from .moves import Question
from .profile import Kind, Profile, overridden
from .response_format import format_of, refused

PATH: Final = "/v1/chat/completions"
MOST_CHOICES = 16

_OWN: Final = frozenset(
    {"model", "messages", "stream", "stream_options", "n", "seed", "max_tokens", "max_completion_tokens",
     "response_format", "tribunal", "logprobs", "top_logprobs", "logit_bias", "store", "metadata", "service_tier",
     "user", "safety_identifier", "prompt_cache_key", "modalities"}
)  # fmt: skip
"""What is read here, and what is said to the service and not to a model. All else is for the models."""

_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


@dataclass(frozen=True, slots=True)
class Asked:
    """seed            the client's; None for none
    include_usage   the client of a stream wants the chunk with the usage
    redact          nothing that was said is kept
    """

    profile: Profile
    question: Question
    seed: int | None
    include_usage: bool
    redact: bool


def asked_of(profile: Profile, body: Mapping[str, Any], *, stream: bool) -> Asked:
    """Raises `InvalidRequest` naming the field."""
    _refuse(body)
    profile = overridden(profile, body.get("tribunal"))
    response_format, valid = format_of(body.get("response_format"))
    options = body.get("stream_options")
    question = Question(
        messages=body["messages"],
        kind=Kind.AUTO if response_format is None or profile.kind is not Kind.AUTO else Kind.JSON,
        max_tokens=_most_tokens(body),
        response_format=response_format,
        valid=valid,
        tools=_tools(body),
        params={name: value for name, value in body.items() if _for_models(name) and value is not None},
        n=_choices(body),
        stream=stream,
    )
    return Asked(
        profile=profile,
        question=question,
        seed=_seed(body),
        include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        redact=profile.redact or body.get("store") is False,
    )


def _for_models(name: str) -> bool:
    return name not in _OWN and name not in _TOOLS


def _refuse(body: Mapping[str, Any]) -> None:
    """What several models together cannot give."""
    for name in ("logprobs", "top_logprobs"):
        if body.get(name):
            raise _unsupported(name, "an answer that several models have made has no log probabilities")
    if body.get("logit_bias"):
        raise _unsupported("logit_bias", "its numbers are tokens of one model's vocabulary")
    if body.get("modalities") not in (None, ["text"]):
        raise _unsupported("modalities", "a tribunal answers by text")


def _unsupported(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unsupported parameter: '{name}' cannot be used with this model: {why}.",
        param=name,
        code="unsupported_parameter",
    )


def _most_tokens(body: Mapping[str, Any]) -> int | None:
    """`max_completion_tokens`, or the older `max_tokens`: of the answer that is seen."""
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := body.get(name)) is not None:
            return _whole(name, value, 1, None)
    return None


def _choices(body: Mapping[str, Any]) -> int:
    value = body.get("n")
    return 1 if value is None else _whole("n", value, 1, MOST_CHOICES)


def _seed(body: Mapping[str, Any]) -> int | None:
    value = body.get("seed")
    return None if value is None else _whole("seed", value, None, None)


def _whole(name: str, value: Any, least: int | None, most: int | None) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise refused(name, "expected an integer")
    if (least is not None and value < least) or (most is not None and value > most):
        raise refused(name, f"expected {least} or more" if most is None else f"expected {least} to {most}")
    return value


def _tools(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """For the final call: none without tools, or where the client wants no call."""
    given = {name: value for name in _TOOLS if (value := body.get(name)) is not None}
    return given if given.get("tools") or given.get("functions") else {}
