"""What each child is sent: the conversation as it is, and after it what is wanted of this phase.

The conversation comes first and unchanged in every prompt of a deliberation, so that engines find its prefix in their
caches. What other models have said is data: without the tokens that chat templates are made of, cut to a length, as one
JSON string, between delimiters with a nonce that no member knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from .moves import Message
from .profile import Profile
from .templates import fill

_TEMPLATE_TOKENS = re.compile(
    "|".join(
        (
            # ChatML, Llama 3, Phi, gpt-oss, DeepSeek (full-width bars): <|...|>
            r"[<\uff1c][|\uff5c][^|\uff5c<>\uff1c\uff1e\r\n]{0,64}[|\uff5c][>\uff1e]",
            # Llama 2 and Mistral; in brackets only as they are written, since `x[mask]` is code
            r"</?s>|<</?sys>>|(?-i:\[/?INST\])",
            r"(?-i:\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|IMG_BREAK|IMG_END)\])",
            r"(?-i:\[(?:PREFIX|SUFFIX|MIDDLE|gMASK|sMASK|MASK|CLS|SEP|PAD|UNK|BOS|EOS)\])",
            # Gemma
            r"</?(?:start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token)>",
            # Qwen, GLM, Granite, Cohere, T5 and what many share
            r"</?(?:think|tool_call|tool_response|tools)>|<(?:bos|eos|pad|unk|cls|sep|sop|eop|eod|mask|image)>",
            r"<end_of_utterance>|<fake_token_around_image>|<(?:extra_id_|unused|reserved_)\d{1,4}>",
            r"<(?:start|end)_of_(?:role|text)>|(?-i:<[A-Z_]{3,40}_TOKEN>)",
        )
    ),
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_ODD = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_PASSES = 8


def without_thoughts(text: str) -> str:
    """Without a leading `<think>...</think>`, which some engines leave in the text."""
    if "</think>" not in text.lower():
        return text
    return _THOUGHT.sub("", text, count=1)


def defused(text: str) -> str:
    """Without chat-template tokens, invisible characters and control characters.

    Taking a token out can join the halves of another one, so it is done until nothing changes; what is left after some
    passes was made to outlast them, and then loses every angle bracket.
    """
    text = _ODD.sub("", text)
    for _ in range(_PASSES):
        shorter = _TEMPLATE_TOKENS.sub("", text)
        if shorter == text:
            return text
        text = shorter
    return re.sub(r"[<>\uff1c\uff1e\[\]|\uff5c]", " ", text)


def capped(text: str, most: int) -> str:
    """At most `most` characters of the text, from both ends: what was concluded stands at the end."""
    if len(text) <= most:
        return text
    head = most * 3 // 4
    tail = most - head
    return f"{text[:head]} [... {len(text) - most} characters left out ...] {text[len(text) - tail :] if tail else ''}"


def as_data(label: str, value: str, nonce: str, most: int) -> str:
    """A text by a model, between delimiters, as one JSON string."""
    # first the cut, so that a megabyte is not looked at as a whole; twice as much as is kept, since tokens go
    text = capped(defused(capped(without_thoughts(value), 2 * most)), most).replace(nonce, "")
    return f"[{nonce} {label}]\n{orjson.dumps(text, default=str).decode()}\n[{nonce} end of {label}]"


def clean(text: str) -> str:
    """Lone surrogates, which no JSON can carry, replaced."""
    return text.encode("utf-8", "replace").decode()


# -- the phases' messages -------------------------------------------------------------------------


def with_system(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """A system prompt before the conversation's own, in one message: many chat templates take only one."""
    if not system:
        return messages
    if messages and messages[0].get("role") in ("system", "developer"):
        first = messages[0]
        content = first.get("content")
        merged: Any = (
            [{"type": "text", "text": system}, *content]
            if isinstance(content, list)
            else f"{system}\n\n{content or ''}"
        )
        return [{**first, "content": merged}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def followed_by(messages: Sequence[Message], task: str) -> list[Message]:
    """The conversation, then the task. It joins the last message if that is the user's: roles must alternate."""
    last = messages[-1] if messages else {}
    if last.get("role") != "user":
        return [*messages, {"role": "user", "content": task}]
    content = last.get("content")
    joined: Any = (
        [*content, {"type": "text", "text": "\n\n" + task}]
        if isinstance(content, list)
        else f"{content or ''}\n\n---\n\n{task}"
    )
    return [*messages[:-1], {**last, "content": joined}]


def listed(texts: Mapping[str, str], nonce: str, most: int) -> str:
    """Candidates under their labels, in the order of the mapping."""
    return "\n\n".join(as_data(label, text, nonce, most) for label, text in texts.items())


def remarks(errors: Iterable[tuple[str, Sequence[str]]], nonce: str) -> str:
    """What critics said: (label, errors) -> data; "None." if there is nothing."""
    lines = [{"label": label, "error": defused(error)} for label, said in errors for error in said]
    if not lines:
        return "None."
    text = orjson.dumps(lines).decode().replace(nonce, "")
    return f"[{nonce} remarks]\n{text}\n[{nonce} end of remarks]"


class Prompts:
    """The messages of one deliberation."""

    __slots__ = ("_messages", "_most", "_nonce", "_templates")

    def __init__(self, profile: Profile, messages: Sequence[Message], nonce: str) -> None:
        self._templates = profile.templates
        self._messages = messages
        self._most = profile.candidate_max_chars
        self._nonce = nonce

    def draft(self, system: str | None) -> Sequence[Message]:
        return with_system(self._messages, system)

    def critique(self, shown: Mapping[str, str], system: str | None) -> list[Message]:
        """`shown`: label -> text, in the critic's own order."""
        return self._task(
            self._templates.critique,
            system,
            candidates=listed(shown, self._nonce, self._most),
            labels=", ".join(shown),
        )

    def repair(self, asked: Sequence[Message], said: str, problem: str, labels: Iterable[str]) -> list[Message]:
        """The critic's own prompt and reply, then what was wrong with it."""
        task = fill(self._templates.repair, {"problem": problem, "labels": ", ".join(labels)})
        reply = capped(defused(capped(said, 4000)), 2000).replace(self._nonce, "")
        return [*asked, {"role": "assistant", "content": reply or "(nothing)"}, {"role": "user", "content": task}]

    def refine(self, text: str, errors: Sequence[str], system: str | None) -> list[Message]:
        return self._task(
            self._templates.refine,
            system,
            candidate=as_data("C1", text, self._nonce, self._most),
            errors=remarks([("C1", errors)], self._nonce),
        )

    def judge(
        self, shown: Mapping[str, str], errors: Iterable[tuple[str, Sequence[str]]], system: str | None
    ) -> list[Message]:
        return self._task(
            self._templates.judge,
            system,
            candidates=listed(shown, self._nonce, self._most),
            labels=" or ".join(shown),
            critiques=remarks(errors, self._nonce),
        )

    def synthesise(
        self,
        shown: Mapping[str, str],
        errors: Iterable[tuple[str, Sequence[str]]],
        dissents: Sequence[str],
        system: str | None,
    ) -> list[Message]:
        """`dissents`: labels of candidates that stand alone with their answer."""
        alone = f"These differ from what most say: {', '.join(dissents)}." if dissents else ""
        return self._task(
            self._templates.synthesise,
            system,
            candidates=listed(shown, self._nonce, self._most),
            critiques=remarks(errors, self._nonce),
            dissents=alone,
        )

    def _task(self, template: str, system: str | None, **values: str) -> list[Message]:
        task = fill(template, {**values, "nonce": self._nonce})
        return followed_by(with_system(self._messages, system), task)
