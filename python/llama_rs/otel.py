"""Spans of OpenTelemetry: what became of each request that computed something, as a part of its client's trace.

Nothing of OpenTelemetry is imported unless somebody asks for it. The server keeps what there is to say when a request
is over; a thread here makes a span of it, and below that one for each stage: in the queue, the prompt, the answer. What
was asked and answered is in none of them.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from . import _core

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/completion": "text_completion",
    "/v1/embeddings": "embeddings",
    "/embedding": "embeddings",
}
"""What the conventions for generative models call what a route does."""


def tracer() -> Tracer | None:
    """The tracer that the environment asks for; None if it asks for none.

    It does with ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``), as for any program; the
    other variables of OpenTelemetry's have their meaning.

    Raises:
        ImportError: if it asks for one, and the packages are not there: ``pip install 'llama_rs[otel]'``.
    """
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in names) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    given = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    is_named = not str(given.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
    provider = TracerProvider(resource=given if is_named else given.merge(Resource({SERVICE_NAME: "llama-rs"})))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("llama_rs")


class Spans:
    """Makes spans of a server's requests until it is closed."""

    def __init__(self, server: _core.Server, tracer: Tracer) -> None:
        self._server, self._tracer = server, tracer
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llama_rs-otel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Makes spans of what is left, and ends."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            is_over = self._is_over.is_set()
            line = self._server.next_span(0.0 if is_over else 0.2)
            if line is not None:
                record(self._tracer, json.loads(line))
            elif is_over:
                return


def record(tracer: Tracer, of: dict[str, Any]) -> None:
    """Makes the spans of a request that is over."""
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name: of[name] for name in ("traceparent", "tracestate") if of[name]}
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": OPERATIONS.get(of["route"], "generate_content"),
        "gen_ai.provider.name": "llama_rs",
        "gen_ai.request.model": of["model"],
        "gen_ai.usage.input_tokens": of["prompt_tokens"],
        "gen_ai.usage.output_tokens": of["tokens"],
        "llama_rs.cached_tokens": of["cached_tokens"],
        "http.request.method": "POST",
        "http.route": of["route"],
        "http.response.status_code": of["status"],
        "llama_rs.request_id": of["id"],
    }
    if of["finish"]:
        attributes["gen_ai.response.finish_reasons"] = [of["finish"]]
    if of["error"]:
        attributes["error.type"] = of["error"]
    span = tracer.start_span(
        f"POST {of['route']}",
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=SpanKind.SERVER,
        attributes=attributes,
        start_time=of["start"],
    )
    if of["first_token"]:
        span.add_event("first token", timestamp=of["first_token"])
    inside, at = set_span_in_context(span), of["start"]
    for name in ("queue", "prefill", "decode"):
        end = min(at + round(of[name] * 1e9), of["end"])
        if of[name]:
            tracer.start_span(name, context=inside, start_time=at).end(end)
        at = end
    if of["status"] >= 500 or (of["error"] and of["status"] == 200):
        span.set_status(Status(StatusCode.ERROR, of["error"] or None))
    span.end(of["end"])
