"""llama.cpp's server. Tried on the engine itself (xllamacpp 2026.10, llama-server's own code) and read in
`tools/server/README.md`.

Chat and embeddings go through as they are (`timings` is an extra field, pings are sse.py's). What differs:
  n                     at most as many as it has slots (older releases: one), and `usage` counts the tokens of one
                        choice; that of one prompt, where there are several
  logprobs              those of /v1/completions come in the shape of chat
  usage                 in a stream of /v1/completions on the last chunk, that has a choice
  dimensions            ignored, so embeddings.py does not leave it to the engine
  input: ""             "Input content cannot be empty"
  /tokenize             takes `content`; messages are rendered by /apply-template
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backends.base import Call

from .seam import COMPLETIONS, EVERYWHERE, RERANK, TOKENIZE, ChunkRepair, Dialect, Json, ReplyRepair
from .tokens import from_ids

TEMPLATE = "/apply-template"


def prepare(call: Call, drop_unsupported: bool) -> Call:
    if call.path != TOKENIZE:
        return call
    body: Json = {"content": call.body["prompt"], "add_special": call.body.get("add_special_tokens") is not False}
    if call.body.get("return_token_strs"):
        body["with_pieces"] = True
    return call.with_body(body)


def repair_reply(call: Call) -> ReplyRepair | None:
    if call.path == TOKENIZE:
        return from_ids
    return _completion if call.path == COMPLETIONS and call.body.get("logprobs") is not None else None


def repair_chunks(call: Call) -> ChunkRepair | None:
    """Of completions alone; sse.py then takes the usage off the last choice."""
    return _Completion() if call.path == COMPLETIONS else None


def _completion(reply: Any) -> Json:
    for choice in reply.get("choices") or ():
        _logprobs(choice, 0)
    repaired: Json = reply
    return repaired


class _Completion:
    def __init__(self) -> None:
        self._length = 0

    def __call__(self, chunk: Json) -> Sequence[Json]:
        for choice in chunk.get("choices") or ():
            _logprobs(choice, self._length)
            self._length += len(choice.get("text") or "")
        return (chunk,)


def _logprobs(choice: Json, offset: int) -> None:
    """`{"content": [{"token", "logprob", "top_logprobs"}]}` -> what /v1/completions has, offsets in characters."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return
    offsets = []
    for token in content:
        offsets.append(offset)
        offset += len(token["token"])
    choice["logprobs"] = {
        "tokens": [token["token"] for token in content],
        "token_logprobs": [token["logprob"] for token in content],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in token.get("top_logprobs") or ()} for token in content
        ],
        "text_offset": offsets,
    }


LLAMACPP = Dialect(
    "llamacpp",
    paths=EVERYWHERE | {RERANK, TOKENIZE, TEMPLATE},
    prepare=prepare,
    repair_reply=repair_reply,
    repair_chunks=repair_chunks,
    one_choice=True,
    empty_input=" ",
    template_path=TEMPLATE,
)
