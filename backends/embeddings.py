"""/v1/embeddings as OpenAI's clients ask for them, for engines that know a part of it.

    input        token ids -> text (cl100k.py)       checked item by item       "" where the engine refuses it
       |
    batches      of what the engine takes, a few at a time
       |
    vectors      re-joined in order, base64 or float, cut to `dimensions` where the model was trained for it

What the engine can do as it is, and that is text in one batch, goes through as the same bytes, both ways.

LangChain's `OpenAIEmbeddings` sends lists of cl100k ids, up to 1000 a call, and the SDK asks for base64. These ids mean
nothing to a model with another vocabulary, also where the engine would take them.
"""

from __future__ import annotations

import base64
import math
import re
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import orjson

from . import cl100k
from .base import Backend, Call, EventStream, Reply, Usage
from .dialects.seam import Dialect, Json, unsupported
from .errors import GatewayError, InvalidRequest, MalformedResponse
from .together import replies, served_by

AT_ONCE = 4
"""Batches of one request that are asked for at the same time: more would take the engine from the others."""

FORMATS = ("float", "base64")


class Embeddings:
    """A Backend around a Backend.

    matryoshka         the model's vectors may be cut (it was trained so that their beginnings mean something)
    own_vocabulary     token ids are the engine's own, not cl100k's: they are passed on
    max_inputs         texts that the engine takes at once, where it is not the dialect's number
    drop_unsupported   leave out what cannot be done, instead of refusing the request
    """

    def __init__(
        self,
        inner: Backend,
        dialect: Dialect,
        *,
        matryoshka: bool = False,
        own_vocabulary: bool = False,
        max_inputs: int | None = None,
        drop_unsupported: bool = False,
    ) -> None:
        self._inner = inner
        self._dialect = dialect
        self._matryoshka = matryoshka
        self._own_vocabulary = own_vocabulary
        self._max_inputs = max_inputs or dialect.max_inputs
        self._drop_unsupported = drop_unsupported

    async def run(self, call: Call) -> Reply | EventStream:
        """The vectors. Raises `InvalidRequest` naming `input[i]` or what else is wrong."""
        body = dict(call.body)
        wanted = _format(body)
        size = self._size(body)
        if body.get("n") is not None:
            if not self._drop_unsupported:
                raise unsupported("n", "Embeddings have no choices.")
            del body["n"]
        texts = await self._texts(body["input"])
        batches = self._batches(body["input"], texts)
        if size is not None:
            body["encoding_format"] = "float"  # to be cut
        calls = [self._part(call, body, batch) for batch in batches]
        answers = await replies(self._inner, calls, at_once=AT_ONCE)
        if len(answers) == 1 and size is None and has_format(answers[0].body, wanted):
            return answers[0]
        return joined(answers, [_count(batch) for batch in batches], wanted, size)

    def in_flight(self, replica_id: str) -> int:
        return self._inner.in_flight(replica_id)

    async def aclose(self) -> None:
        await self._inner.aclose()

    # -- the request --------------------------------------------------------------------------------------------------

    def _size(self, body: Json) -> int | None:
        """`dimensions`, if it is for us to cut the vectors; it is then no longer in the body."""
        size = body.get("dimensions")
        if size is None:
            return None
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            message = "Invalid 'dimensions': expected an integer of at least 1."
            raise InvalidRequest(message, param="dimensions", code="invalid_value")
        if self._matryoshka:
            del body["dimensions"]
            return size
        if not self._dialect.judges_dimensions:
            if not self._drop_unsupported:
                raise unsupported("dimensions", "The vectors of this model cannot be cut.")
            del body["dimensions"]
        return None

    async def _texts(self, given: Any) -> list[Any] | None:
        """The inputs as the engine shall get them; None where they are right as they are."""
        empty = self._dialect.empty_input
        if isinstance(given, str):
            return [empty] if not given and empty is not None else None
        kind = _kind(given)
        if kind is str:
            if empty is None or "" not in given:
                return None
            return [text or empty for text in given]
        if self._own_vocabulary:
            return None
        decoded = await _decoded([given] if kind is int else given)
        return [text or empty for text in decoded] if empty is not None else decoded

    def _batches(self, given: Any, texts: list[Any] | None) -> list[Any]:
        """What each part has as its `input`."""
        most = self._max_inputs
        inputs = given if texts is None else texts
        if most is None or isinstance(inputs, str) or isinstance(inputs[0], int) or len(inputs) <= most:
            return [inputs]
        return [inputs[start : start + most] for start in range(0, len(inputs), most)]

    @staticmethod
    def _part(call: Call, body: Json, batch: Any) -> Call:
        changed = {**body, "input": batch}
        return call if changed == call.body else call.with_body(changed)


def _format(body: Json) -> str:
    wanted = body.get("encoding_format")
    if wanted is None:
        return "float"
    if wanted not in FORMATS:
        message = "Invalid value for 'encoding_format': expected 'float' or 'base64'."
        raise InvalidRequest(message, param="encoding_format", code="invalid_value")
    return str(wanted)


def _kind(given: Sequence[Any]) -> type:
    """str for texts, int for the ids of one text, list for those of several. Raises `InvalidRequest` for others."""
    kind = type(given[0])
    if kind not in (str, int, list):
        raise _wrong(0, "a string, an integer or an array of integers")
    words = {str: "a string", int: "an integer", list: "an array of integers"}[kind]
    for index, item in enumerate(given):
        if type(item) is not kind:
            raise _wrong(index, f"{words}, as the first one is")
        if kind is int and item < 0:
            raise _no_token(index)
        if kind is list:
            if not item:
                message = f"Invalid 'input[{index}]': empty array."
                raise InvalidRequest(message, param=f"input[{index}]", code="empty_array")
            if any(type(token) is not int for token in item):
                raise _wrong(index, words)
    return kind


def _wrong(index: int, expected: str) -> InvalidRequest:
    message = f"Invalid type for 'input[{index}]': expected {expected}."
    return InvalidRequest(message, param=f"input[{index}]", code="invalid_type")


def _no_token(index: int) -> InvalidRequest:
    message = f"Invalid 'input[{index}]': it is no token id of cl100k_base."
    return InvalidRequest(message, param=f"input[{index}]", code="invalid_value")


async def _decoded(inputs: Sequence[Sequence[int]]) -> list[str]:
    try:
        return await cl100k.decode(inputs)
    except cl100k.UnknownToken as error:
        raise _no_token(error.index) from None
    except cl100k.NoVocabulary:
        message = "This gateway cannot read token ids: the vocabulary is missing. Send text."
        raise GatewayError(message, param="input", code="no_vocabulary") from None


def _count(batch: Any) -> int:
    return 1 if isinstance(batch, str) or isinstance(batch[0], int) else len(batch)


# -- the reply -------------------------------------------------------------------------------------------------------

_FIRST = re.compile(rb'"embedding"\s*:\s*(["\[])')


def has_format(body: bytes, wanted: str) -> bool:
    """Whether the vectors are in the format that was asked for: told by the first, without parsing megabytes."""
    found = _FIRST.search(body)
    return found is not None and (found[1] == b'"') == (wanted == "base64")


def joined(answers: Sequence[Reply], counts: Sequence[int], wanted: str, size: int | None) -> Reply:
    """One reply of many, in the order of the inputs. Raises `MalformedResponse` where a vector is missing."""
    data: list[Json] = []
    tokens = 0
    first: Json | None = None
    for answer, count in zip(answers, counts, strict=True):
        try:
            body = orjson.loads(answer.body)
            vectors = sorted(body["data"], key=lambda item: int(item["index"]))
            if [item["index"] for item in vectors] != list(range(count)):
                raise MalformedResponse("The engine's answer lacks vectors.")
            for item in vectors:
                item["embedding"] = encoded(item["embedding"], wanted, size)
                item["index"] = len(data)
                data.append(item)
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
            raise MalformedResponse("The engine's answer holds no vectors.") from None
        first = first or body
        tokens += answer.usage.prompt_tokens if answer.usage is not None else 0
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    whole = {**(first or {}), "data": data, "usage": usage}
    return Reply(200, b"application/json", orjson.dumps(whole), Usage(tokens), served_by(answers))


def encoded(vector: Any, wanted: str, size: int | None) -> str | Sequence[float]:
    """A vector in the format that was asked for: numbers, or the base64 of little-endian 32-bit floats."""
    numbers = _numbers(vector) if isinstance(vector, str) else vector
    if size is not None:
        numbers = cut(numbers, size)
    if wanted == "float":
        return list(numbers)
    if isinstance(vector, str) and size is None:
        return vector
    packed = array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def _numbers(text: str) -> Sequence[float]:
    numbers = array("f", base64.b64decode(text))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def cut(numbers: Sequence[float], size: int) -> Sequence[float]:
    """The vector's beginning, of length 1 again."""
    if size > len(numbers):
        message = f"Invalid 'dimensions': this model's vectors have {len(numbers)}."
        raise InvalidRequest(message, param="dimensions", code="invalid_value")
    beginning = numbers[:size]
    length = math.sqrt(math.fsum(number * number for number in beginning))
    return [number / length for number in beginning] if length else beginning
