"""Chat chunks -> the Responses API's events, and so the response that they build. Pure.

    created, in_progress
    { output_item.added, content_part.added, deltas, ...done, content_part.done, output_item.done }  for each item
    completed | incomplete | failed

Shapes and names: `ResponseStreamEvent` of the official SDK (openai/types/responses). Events have their type as their
name, and a `sequence_number`; the last of the three ends the stream, no `[DONE]` follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from backends.base import Usage
from backends.errors import GatewayError, InvalidRequest, MalformedResponse

from .chunks import Json, named, objects
from .items import new_id
from .responses import skeleton
from .segments import Kind, Said, Segment, Segments, Step, as_chunk, count

_PREFIX: dict[Kind, str] = {"reasoning": "rs", "text": "msg", "refusal": "msg", "call": "fc"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_FAILURES = ("rate_limit_exceeded",)


class ResponseEvents:
    """One response. See `chunks.Events`.

    body      the request that it answers
    now       seconds since the epoch
    """

    usage: Usage | None = None  # the chat stream's own count is taken

    def __init__(
        self, body: Json, *, now: Callable[[], float] = time.time, id_for: Callable[[str], str] = new_id
    ) -> None:
        self._now = now
        self._id_for = id_for
        self._summarises = bool((body.get("reasoning") or {}).get("summary"))
        self._response = skeleton(body, id_for("resp"), int(now()))
        self._segments = Segments()
        self._item: Json = {}
        self._sequence = 0
        self._started = False
        self.final: Json | None = None
        self.failure: GatewayError | None = None

    @property
    def over(self) -> bool:
        return self.final is not None

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for chunk in objects(data):
            if isinstance(name := chunk.get("model"), str) and name:
                self._response["model"] = name  # of who answered: it may be another than was asked
            out += self._start()
            out += self._tell(self._segments.chunk(chunk))
            if self._segments.failure is not None:
                return b"".join(out) + self.fail(self._segments.failure)
        return b"".join(out)

    def quiet(self) -> bytes:
        """It begins, or it is still in progress."""
        return b"".join(self._start()) or self._event("response.in_progress", response=self._response)

    def finish(self) -> bytes:
        out = self._start()
        reason = _INCOMPLETE.get(self._segments.finish_reason or "")
        if not self._segments.begun:  # an empty answer is a message without words, not no message
            nothing = Segment("text")
            out += self._tell((Said(Step.BEGIN, nothing), Said(Step.END, nothing)))
        out += self._tell(self._segments.end(), "incomplete" if reason else "completed")
        response = self._response
        response["status"] = "incomplete" if reason else "completed"
        response["incomplete_details"] = {"reason": reason} if reason else None
        response["completed_at"] = None if reason else int(self._now())
        response["usage"] = usage_of(self._segments.usage)
        self.final = response
        out.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(out)

    def fail(self, error: GatewayError) -> bytes:
        out = self._start()
        if self._item:
            self._response["output"][-1] = {**self._item, "status": "incomplete"}
        self.failure = error
        self.final = failed(self._response, error)
        out.append(self._event("response.failed", response=self.final))
        return b"".join(out)

    def whole(self, completion: Any) -> Json:
        """The response to a chat completion that was not streamed. Raises `GatewayError`."""
        self._start()
        if isinstance(name := completion.get("model") if isinstance(completion, dict) else None, str) and name:
            self._response["model"] = name
        self._tell(self._segments.chunk(as_chunk(completion)))
        self.finish()
        if self.final is None:  # not reachable: `finish` sets it
            raise MalformedResponse("The engine's answer could not be followed.")
        return self.final

    # -- events -------------------------------------------------------------------------------------------------------

    def _start(self) -> list[bytes]:
        if self._started:
            return []
        self._started = True
        return [self._event(f"response.{name}", response=self._response) for name in ("created", "in_progress")]

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return named(event)

    def _tell(self, said: Iterable[Said], status: str = "completed") -> list[bytes]:
        out: list[bytes] = []
        for one in said:
            match one.step:
                case Step.BEGIN:
                    out += self._begin(one.segment)
                case Step.PIECE:
                    out.append(self._piece(one))
                case Step.END:
                    out += self._end(one.segment, status)
        return out

    def _begin(self, segment: Segment) -> list[bytes]:
        item: Json = {"id": self._id_for(_PREFIX[segment.kind])}
        match segment.kind:
            case "call":
                item |= {"type": "function_call", "call_id": segment.call_id, "name": segment.name, "arguments": ""}
            case "reasoning":
                item |= {"type": "reasoning", "summary": []}
            case _:
                item |= {"type": "message", "role": "assistant", "content": []}
        item["status"] = "in_progress"
        self._item = item
        self._response["output"].append(item)
        out = [self._event("response.output_item.added", output_index=self._index, item=item)]
        if segment.kind != "call":
            out.append(self._part("added", segment))
        return out

    def _piece(self, one: Said) -> bytes:
        fields: Json = {**self._place(one.segment.kind), "delta": one.text}
        if one.segment.kind == "text":
            fields["logprobs"] = [_logprob(token) for token in one.logprobs]
        return self._event(f"response.{self._names(one.segment.kind)}.delta", **fields)

    def _end(self, segment: Segment, status: str) -> list[bytes]:
        kind = segment.kind
        whole: Json = {_FIELD[kind]: segment.text}
        if kind == "call":
            whole["name"] = segment.name
        if kind == "text":
            whole["logprobs"] = [_logprob(token) for token in segment.logprobs]
        out = [self._event(f"response.{self._names(kind)}.done", **self._place(kind), **whole)]
        item = {**self._item, "status": status}
        if kind == "call":
            item["arguments"] = segment.text
        else:
            out.append(self._part("done", segment))
            name = "content" if kind != "reasoning" or not self._summarises else "summary"
            item[name] = [self._part_of(segment)]
        self._response["output"][-1] = item
        out.append(self._event("response.output_item.done", output_index=self._index, item=item))
        self._item = {}
        return out

    def _part(self, what: str, segment: Segment) -> bytes:
        """A part of an item begins (`added`: without its words) or is `done`."""
        part = self._part_of(segment if what == "done" else Segment(segment.kind))
        name = "reasoning_summary_part" if segment.kind == "reasoning" and self._summarises else "content_part"
        return self._event(f"response.{name}.{what}", **self._place(segment.kind), part=part)

    def _part_of(self, segment: Segment) -> Json:
        match segment.kind:
            case "refusal":
                return {"type": "refusal", "refusal": segment.text}
            case "reasoning":
                return {"type": "summary_text" if self._summarises else "reasoning_text", "text": segment.text}
            case _:
                logprobs = [_logprob(token) for token in segment.logprobs]
                return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": segment.text}

    def _names(self, kind: Kind) -> str:
        """What the deltas of a segment are called. Thoughts are called a summary for those who asked for one: many
        clients show nothing else."""
        if kind == "reasoning":
            return "reasoning_summary_text" if self._summarises else "reasoning_text"
        return {"call": "function_call_arguments", "refusal": "refusal"}.get(kind, "output_text")

    def _place(self, kind: Kind) -> Json:
        place: Json = {"item_id": self._item["id"], "output_index": self._index}
        if kind == "reasoning" and self._summarises:
            place["summary_index"] = 0
        elif kind != "call":
            place["content_index"] = 0
        return place

    @property
    def _index(self) -> int:
        return len(self._response["output"]) - 1


_FIELD: dict[Kind, str] = {"call": "arguments", "refusal": "refusal", "text": "text", "reasoning": "text"}


def failed(response: Json, error: GatewayError) -> Json:
    """The response that an error ended. Its codes are few: what is not among them is the server's."""
    code = error.code if error.code in _FAILURES else "server_error"
    if isinstance(error, InvalidRequest) or error.type == "invalid_request_error":
        code = "invalid_prompt"
    return {**response, "status": "failed", "error": {"code": code, "message": error.message}}


def usage_of(usage: Json | None) -> Json | None:
    """Chat's usage in the Responses API's words. None where the engine told none."""
    if usage is None:
        return None
    given, made = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cache_write_tokens": 0,
            "cached_tokens": count(usage, "prompt_tokens_details", "cached_tokens"),
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": count(usage, "completion_tokens_details", "reasoning_tokens")},
        "total_tokens": given + made,
    }


def _logprob(token: Json) -> Json:
    """Chat's logprob of a token in the Responses API's shape, which wants every field."""
    top = token.get("top_logprobs")
    return {
        "token": token.get("token"),
        "logprob": token.get("logprob"),
        "bytes": token.get("bytes") or [],
        "top_logprobs": [
            {"token": t.get("token"), "logprob": t.get("logprob"), "bytes": t.get("bytes") or []}
            for t in (top if isinstance(top, list) else ())
        ],
    }
