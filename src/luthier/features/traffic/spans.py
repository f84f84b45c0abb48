"""Use cases: tell OpenTelemetry of every answer, as a span of its GenAI conventions; never of its words.

It is told where the standard variable OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT) names a collector, and the
extra `otel` is installed. Spans wait in a bounded queue of the SDK and are sent by its own thread.
Conventions: OpenTelemetry Semantic Conventions for Generative AI, spans of inference and embeddings (2026).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from luthier.core.records.traffic import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Operation = Literal["chat", "text_completion", "embeddings"]
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAME: Final = "luthier"
_NANOSECONDS: Final = 1e9
log = logging.getLogger("luthier.service")


class Spans:
    """Sends spans of one process."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_NAME)

    @classmethod
    def from_environment(cls) -> Self | None:
        """What the environment asks for; None where it names no collector, or the SDK is missing, which is logged."""
        is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if is_off or not any(os.environ.get(name) for name in _ENDPOINTS):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            log.warning("a collector of spans is named, but none are sent: pip install 'luthier[otel]'")
            return None
        # Attributes given here would override those of the environment.
        own = {} if _is_service_named() else {"service.name": _NAME}
        provider = TracerProvider(resource=Resource.create(own))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def tell(self, exchange: Exchange, operation: Operation, trace_parent: str = "") -> None:
        """One span of an exchange that has ended. trace_parent: the header of the request (W3C Trace Context)."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # The span's duration comes from the monotonic clock, so its end is its start plus the measured seconds.
        begin = int(exchange.at * _NANOSECONDS)
        span = self._tracer.start_span(
            f"{operation} {exchange.model}",
            context=TraceContextTextMapPropagator().extract({"traceparent": trace_parent}),
            kind=SpanKind.CLIENT,
            attributes=_attributes(exchange, operation),
            start_time=begin,
        )
        if exchange.error_code:
            span.set_attribute("error.type", exchange.error_code)
            span.set_status(Status(StatusCode.ERROR))
        span.end(begin + int(exchange.seconds * _NANOSECONDS))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def _attributes(exchange: Exchange, operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _NAME,
        "gen_ai.request.model": exchange.model,
        "gen_ai.response.id": exchange.exchange_id,
        "gen_ai.usage.input_tokens": exchange.num_prompt_tokens,
        "gen_ai.usage.output_tokens": exchange.num_new_tokens,
        "luthier.project.id": exchange.project_id,
        "luthier.canary": exchange.is_canary,
    }
    if exchange.target:
        found["gen_ai.response.model"] = exchange.target
    if exchange.finish_reason:
        found["gen_ai.response.finish_reasons"] = [exchange.finish_reason]
    if exchange.first_token_seconds is not None:
        found["gen_ai.response.time_to_first_chunk"] = exchange.first_token_seconds
    return found


def _is_service_named() -> bool:
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
