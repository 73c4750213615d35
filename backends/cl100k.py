"""Token ids of OpenAI's cl100k_base vocabulary -> text: LangChain sends ids of it to every embedding model.

The vocabulary (1.7 MB, `BASE64 RANK` a line) ships inside litellm's package, as a tiktoken cache whose files are named
by the SHA-1 of their address. It is read as what it is: tiktoken would want an environment variable, which belongs to
the whole process, and downloads what it does not find. Decoding is joining bytes, so no tiktoken is needed for it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path

FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
SPECIAL = {
    # tiktoken_ext/openai_public.py
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}

_loading = threading.Lock()
_pieces: dict[int, bytes] = {}


class NoVocabulary(Exception):
    """The vocabulary is not where this release of litellm should have it."""


class UnknownToken(Exception):
    """`index`: which of the inputs has an id that is none."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


async def decode(inputs: Sequence[Sequence[int]]) -> list[str]:
    """Texts of lists of ids. Loads the vocabulary at the first call. Raises `UnknownToken`, `NoVocabulary`."""
    return await asyncio.to_thread(decode_now, inputs)


def decode_now(inputs: Sequence[Sequence[int]]) -> list[str]:
    pieces = _vocabulary()
    texts = []
    for index, ids in enumerate(inputs):
        try:
            text = b"".join([pieces[token] for token in ids])
        except KeyError:
            raise UnknownToken(index) from None
        texts.append(text.decode("utf-8", "replace"))
    return texts


def _vocabulary() -> dict[int, bytes]:
    with _loading:
        if not _pieces:
            content = _read()
            lines = (line.split() for line in content.splitlines())
            pieces = {int(rank): base64.b64decode(piece) for piece, rank in lines}
            _pieces.update(pieces | SPECIAL)
    return _pieces


def _read() -> bytes:
    """The file, found without importing litellm, which takes seconds."""
    spec = importlib.util.find_spec("litellm")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(root) / "litellm_core_utils" / "tokenizers" / FILE
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == SHA256:
                return content
    raise NoVocabulary
