"""text-embeddings-inference 1.x. Read in `router/src/http/types.rs` and `server.rs`, `core/src/infer.rs` (1.8).

Its embeddings are OpenAI's, base64 included. `dimensions` it cuts off blindly (1.8) or ignores (before), so
embeddings.py does not leave that to it. An empty text is refused: "`inputs` cannot be empty".
"""

from __future__ import annotations

from functools import partial

from backends.base import Call

from .rerank import from_scores
from .seam import EMBEDDINGS, RERANK, TOKENIZE, Dialect, Json, ReplyRepair, unsupported
from .tokens import from_pieces

BATCH = 32
"""`--max-client-batch-size`, by default."""


def prepare(call: Call, drop_unsupported: bool) -> Call:
    if call.path == RERANK:
        body: Json = {"query": call.body["query"], "texts": call.body["documents"]}
        # a truth value each; TEI's default is the engine's own `--auto-truncate`
        body |= {name: call.body[name] for name in ("raw_scores", "truncate") if call.body.get(name) is not None}
        return call.with_body(body, "/rerank")
    if call.path == TOKENIZE:
        if call.body.get("messages") is not None:
            raise unsupported("messages", "The engine of this model tokenizes text only: send 'prompt'.")
        body = {"inputs": call.body["prompt"]}
        if call.body.get("add_special_tokens") is not None:
            body["add_special_tokens"] = call.body["add_special_tokens"]
        return call.with_body(body)
    return call


def repair_reply(call: Call) -> ReplyRepair | None:
    if call.path == RERANK:
        return partial(from_scores, call)
    return from_pieces if call.path == TOKENIZE else None


TEI = Dialect(
    "tei",
    paths=frozenset({EMBEDDINGS, RERANK, TOKENIZE}),
    prepare=prepare,
    repair_reply=repair_reply,
    max_inputs=BATCH,
    empty_input=" ",
)
