"""OpenTelemetry spans of streams and chunks, where a collector is named; nothing else knows of it.

A stream's span continues the trace that its robot names in the call's metadata (``traceparent``, W3C Trace Context). A
chunk's is its child, with a child for each stage, made when the chunk is answered: the hot path keeps no context.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from chunkcast.v1 import policy_pb2 as pb

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

STAGES = ("preprocess", "queue", "inference", "postprocess")
"""In the order in which an observation passes them."""

SHUTDOWN_MS = 2000
"""For what has not been exported yet, when the server ends."""

Metadata = Iterable[tuple[str, str | bytes]]


class StreamTrace(Protocol):
    """The spans of one stream."""

    def answered(self, response: pb.StreamActionsResponse) -> None:
        """An answer leaves."""

    def close(self) -> None:
        """The stream is over."""


class Tracing(Protocol):
    """Where spans go."""

    def stream(self, metadata: Metadata | None, **attributes: str) -> StreamTrace:
        """The trace of a stream whose call has this metadata."""

    def close(self) -> None:
        """Export what is left."""


class NoTracing:
    """Spans go nowhere."""

    def stream(self, metadata: Metadata | None, **attributes: str) -> StreamTrace:
        """As ``Tracing``."""
        return self

    def answered(self, response: pb.StreamActionsResponse) -> None:
        """As ``StreamTrace``."""

    def close(self) -> None:
        """As both."""


class OpenTelemetry:
    """Spans go to a collector.

    Args:
        exporter: that sends them.
        share: of the streams whose robot does not say whether to trace them.
    """

    def __init__(self, exporter: SpanExporter, share: float = 1.0) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({"service.name": "chunkcast"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = self._provider.get_tracer("chunkcast.server")

    @classmethod
    def to_collector(cls, url: str, share: float) -> OpenTelemetry:
        """To the collector at ``url``, OTLP over HTTP.

        Raises:
            ModuleNotFoundError: the extra ``otel`` is not installed.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(OTLPSpanExporter(endpoint=url), share)

    def stream(self, metadata: Metadata | None, **attributes: str) -> StreamTrace:
        """As ``Tracing``."""
        carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
        span = self._tracer.start_span(
            "stream",
            self._propagator.extract(carrier),
            attributes={f"chunkcast.{key}": value for key, value in attributes.items()},
        )
        return _StreamSpans(self._tracer, span)

    def close(self) -> None:
        """As ``Tracing``."""

        def end() -> None:
            self._provider.force_flush(SHUTDOWN_MS)
            self._provider.shutdown()

        # A collector that is gone would be tried for long, while arms wait for the server that comes after this one.
        ending = threading.Thread(target=end, name="end-traces", daemon=True)
        ending.start()
        ending.join(SHUTDOWN_MS / 1e3)


class _StreamSpans:
    def __init__(self, tracer: Any, span: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span = tracer, span
        self._context = set_span_in_context(span) if span.is_recording() else None

    def answered(self, response: pb.StreamActionsResponse) -> None:
        if self._context is None:
            return
        if response.WhichOneof("response") != "chunk":
            self._add_event(response)
            return
        from opentelemetry.trace import set_span_in_context

        chunk, ended = response.chunk, time.time_ns()
        began = ended - round(chunk.timings.total * 1e9)
        attributes = {
            "chunkcast.episode": chunk.episode_id,
            "chunkcast.step": chunk.step,
            "chunkcast.policy_version": chunk.policy_version,
            "chunkcast.batch_size": chunk.batch_size,
        }
        span = self._tracer.start_span("chunk", self._context, attributes=attributes, start_time=began)
        inside = set_span_in_context(span)
        for stage in STAGES:
            until = began + round(getattr(chunk.timings, stage) * 1e9)
            self._tracer.start_span(stage, inside, start_time=began).end(until)
            began = until
        span.end(ended)

    def _add_event(self, response: pb.StreamActionsResponse) -> None:
        if response.WhichOneof("response") == "error":
            error = response.error
            code = pb.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_").lower()
            self._span.add_event("refused", {"chunkcast.step": error.step, "chunkcast.code": code})
        elif response.WhichOneof("response") == "dropped":
            dropped = response.dropped
            reason = pb.DropReason.Name(dropped.reason).removeprefix("DROP_REASON_").lower()
            self._span.add_event("dropped", {"chunkcast.step": dropped.step, "chunkcast.reason": reason})

    def close(self) -> None:
        self._span.end()
