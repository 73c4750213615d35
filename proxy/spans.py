"""A request as OpenTelemetry spans, by the semantic conventions for GenAI.

    SERVER    "chat llama"      the request, a child of the client's span where it sent a `traceparent`
    INTERNAL    "queue"         each wait for a place
    CLIENT      "chat llama"    each attempt at a replica; the engine's own spans hang under the request's
    INTERNAL    "tribunal draft"  each phase of a deliberation, and under it a CLIENT span for each of its calls

The request's span is begun at its arrival, since the engine is told its id; all the rest is made when it is over, from
what its record says. Where spans go, which are kept and what the service is called is said by the usual OTEL_*
variables. The conventions: github.com/open-telemetry/semantic-conventions-genai.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tribunal.backend import Deliberated

from .messages_told import input_messages, output_messages
from .record import Record
from .trail import Attempt, Trail, Wait

PROVIDER = "slurmgate"

OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/v1/audio/transcriptions": "transcription",
}
"""`gen_ai.operation.name` by endpoint: the conventions' word where they have one."""

_NUMBERS: Mapping[str, str] = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "dimensions": "gen_ai.embeddings.dimension.count",
}
"""What is told of a request's parameters: numbers. Texts (`stop`, `user`) are the client's own words."""

Attributes = dict[str, str | int | float | bool]


def provider_of_environment() -> TracerProvider:
    """Sends spans by OTLP over HTTP, in batches, from a thread of its own."""
    resource = Resource.create({"service.name": PROVIDER}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `Tracing.close` does, in its order
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """content   prompts and answers stand in the spans too: only where privacy was switched off"""

    def __init__(self, provider: TracerProvider, *, content: bool = False) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("slurmgate")
        self._context = TraceContextTextMapPropagator()
        self._content = content

    def begin(self, record: Record, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """A request has arrived. What asks no model has no span."""
        if record.method != "POST" or not record.path.startswith("/v1/"):
            return
        said = {
            name.decode(): value.decode("latin-1") for name, value in headers if name in (b"traceparent", b"tracestate")
        }
        parent = self._context.extract(said, Context())
        span = self._tracer.start_span("POST", parent, SpanKind.SERVER)
        told: dict[str, str] = {}
        self._context.inject(told, set_span_in_context(span, Context()))
        trail = record.note()
        trail.span = span
        trail.headers = "".join(f"{name}: {value}\r\n" for name, value in told.items()).encode("latin-1")

    def finish(self, record: Record, elapsed_s: float) -> None:
        """It is over: everything is known now."""
        trail = record.trail
        if trail is None or trail.span is None:
            return
        span, trail.span = trail.span, None
        if (
            not isinstance(span, ReadableSpan) or span.start_time is None
        ):  # the client's trace is not kept, so nor is it
            return
        started_ns = span.start_time
        name = name_of(record)
        span.update_name(name)
        span.set_attributes(attributes_of(record, trail))
        if self._content:
            span.set_attributes(_content_of(record, trail))
        if failed(record):
            span.set_status(StatusCode.ERROR)
        parent = set_span_in_context(span, Context())
        for part in parts_of(record, trail, elapsed_s):
            since_ns, until_ns = (started_ns + round(at_s * 1e9) for at_s in (part.since_s, part.until_s))
            kind = SpanKind.CLIENT if part.replica_id else SpanKind.INTERNAL
            child = self._tracer.start_span(
                name if part.replica_id else "queue", parent, kind, _attempt(part), start_time=since_ns
            )
            if part.error:
                child.set_status(StatusCode.ERROR)
            child.end(until_ns)
        if trail.deliberated is not None:
            self._deliberation(trail.deliberated, parent, started_ns - round(record.started * 1e9))
        span.end(started_ns + round(elapsed_s * 1e9))

    def _deliberation(self, over: Deliberated, parent: Context, zero_ns: int) -> None:
        """A span for each phase, and under it one for each of its calls. `zero_ns`: when its clock was at 0."""
        trace, began_s = over.trace, over.began_s

        def at_ns(seconds: float) -> int:
            return zero_ns + round((began_s + seconds) * 1e9)

        phases: dict[str, Context] = {}
        since_s = 0.0
        for phase, reason, until_s in trace.exits:
            said: Attributes = {"slurmgate.tribunal.exit": reason}
            one = self._tracer.start_span(f"tribunal {phase}", parent, attributes=said, start_time=at_ns(since_s))
            one.end(at_ns(until_s))
            phases[phase] = set_span_in_context(one, Context())
            since_s = until_s
        for call in trace.calls:
            said = {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": call.model,
                "slurmgate.tribunal.label": call.label,
            }
            if call.usage is not None:
                said |= {"gen_ai.usage.input_tokens": call.usage.prompt}
                said |= {"gen_ai.usage.output_tokens": call.usage.completion}
            if call.outcome == "failed":
                said["error.type"] = call.reason
            child = self._tracer.start_span(
                f"chat {call.model}",
                phases.get(call.phase, parent),
                SpanKind.CLIENT,
                said,
                start_time=at_ns(call.started_s),
            )
            if call.outcome == "failed":
                child.set_status(StatusCode.ERROR)
            ended_s = call.started_s + call.elapsed_s if call.elapsed_s is not None else over.ended_s - began_s
            child.end(at_ns(ended_s))

    def close(self) -> None:
        """Sends what is left; takes as long as the receiver does, some seconds at most: call it in a thread."""
        self._provider.shutdown()


@dataclass(frozen=True, slots=True)
class Part:
    """Of a request's time, in seconds after its arrival: an attempt at a replica, or without one a wait in a queue."""

    since_s: float
    until_s: float
    replica_id: str = ""
    error: str = ""


def parts_of(record: Record, trail: Trail, elapsed_s: float) -> Iterator[Part]:
    """One after the other: waits, attempts that failed, and the attempt that was the last."""
    events: list[Wait | Attempt] = [*trail.waits, *trail.failed]
    at_s = 0.0
    for event in sorted(events, key=lambda event: event.at_s):
        if isinstance(event, Wait):
            yield Part(max(at_s, event.at_s - event.seconds), event.at_s)
        else:
            yield Part(at_s, event.at_s, event.replica_id, event.reason)
        at_s = event.at_s
    if record.served_by:
        yield Part(at_s, elapsed_s, record.served_by, record.error if failed(record) else "")


def name_of(record: Record) -> str:
    """`{operation} {model}`; of what never came to a model, what is known of its way. Low in cardinality."""
    operation = OPERATIONS.get(record.endpoint)
    if operation and record.model:
        return f"{operation} {record.model}"
    return f"{record.method} {record.endpoint}" if record.endpoint else record.method


def failed(record: Record) -> bool:
    """By HTTP's conventions for servers: what the client did wrong, or its leaving, is no failure of ours. A stream
    that broke has a 200."""
    return bool(record.error) and not 400 <= record.status < 500


def attributes_of(record: Record, trail: Trail) -> Attributes:
    said: Attributes = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "slurmgate.request_id": record.id,
        "gen_ai.provider.name": PROVIDER,
    }
    if record.endpoint:
        said["http.route"] = record.endpoint
    if operation := OPERATIONS.get(record.endpoint):
        said["gen_ai.operation.name"] = operation
    if record.model:
        said["gen_ai.request.model"] = trail.asked or record.model
        if record.served_by:
            said["gen_ai.response.model"] = record.model
    if record.stream:
        said["gen_ai.request.stream"] = True
    if record.first_byte_s is not None:
        said["gen_ai.response.time_to_first_chunk"] = record.first_byte_s
    if record.prompt_tokens or record.completion_tokens:
        said["gen_ai.usage.input_tokens"] = record.prompt_tokens
        said["gen_ai.usage.output_tokens"] = record.completion_tokens
    if record.error:
        said["error.type"] = record.error
    for key, text in (
        ("slurmgate.client_request_id", trail.client_id),
        ("slurmgate.replica", record.served_by),
        ("slurmgate.fallback", trail.fallback),
        ("slurmgate.refusal", trail.refusal),
    ):
        if text:
            said[key] = text
    for key, name in _NUMBERS.items():
        value = (trail.body or {}).get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            said[name] = value
    return said


def _attempt(part: Part) -> Attributes:
    said: Attributes = {"slurmgate.replica": part.replica_id} if part.replica_id else {}
    return said | {"error.type": part.error} if part.error else said


def _content_of(record: Record, trail: Trail) -> Attributes:
    """What was said, where privacy was switched off."""
    told = input_messages(trail.body or {})
    said: Attributes = {"gen_ai.input.messages": told} if told else {}
    if (record.endpoint in ("/v1/chat/completions", "/v1/completions")) and (told := output_messages(trail.response)):
        said["gen_ai.output.messages"] = told
    return said
