"""The traffic log: requests and answers of deployed models are recorded as the project's policy allows.

A record is made while a request is running and is stored when it ends, in any way. `keep` is called in the
thread that counts the tokens; it takes microseconds and never raises.

If OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT) names a collector and the extra `otel` is installed, each answer
becomes an OpenTelemetry span, without its text. Spans wait in a bounded queue of the SDK and are sent by its thread.

Sources: OpenTelemetry Semantic Conventions for Generative AI, spans of inference and embeddings (2026).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.ids import sha256_bytes
from luthier.core.records.traffic import Exchange, TrafficPolicy
from luthier.core.system.extras import install_command
from luthier.features.traffic import service as traffic
from luthier.features.traffic.files import settle
from luthier.features.traffic.policy import traffic_policy, user_digest, user_key
from luthier.features.usage.service import cost_of
from luthier.ml.drift.traffic.log import FAILED, Lost, TrafficLog
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from luthier.core.frozen_model import FrozenModel
    from luthier.features.serving.models import Routed

Operation = Literal["chat", "text_completion", "embeddings", "classify", "score", "rerank"]
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
        """The settings of the environment; None where it names no collector, or the SDK is missing, which is logged."""
        is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if is_off or not any(os.environ.get(name) for name in _ENDPOINTS):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            log.warning("a collector of spans is named, but none are sent: %s", install_command("otel"))
            return None
        # Attributes given here would override those of the environment.
        own = {} if _is_service_named() else {"service.name": _NAME}
        provider = TracerProvider(resource=Resource.create(own))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def tell(self, exchange: Exchange, operation: Operation, trace_parent: str = "") -> None:
        """One span of an exchange that has ended.

        Args:
            exchange: The exchange.
            operation: What was asked for, such as `chat`.
            trace_parent: The header of the request (W3C Trace Context).
        """
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


_KNOWN_SECONDS: Final = 5.0
_NUM_POINTS: Final = 1 << 32


class TrafficRecorder:
    """Records traffic for a serving process: a log, cached policies, and spans."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[str, tuple[float, TrafficPolicy, bytes]] = {}
        self.spans = Spans.from_environment()
        self.log = TrafficLog(
            traffic.spool(context),
            mask_texts,
            tell_lost=lambda lost: count_lost(context, lost),
            settle=lambda: settle(context),
        )

    def known(self, project_id: str) -> tuple[TrafficPolicy, bytes]:
        """A project's policy and the key of its users, asked of the database every few seconds."""
        now = time.monotonic()
        # No lock: two threads may both ask the database, and the last answer wins.
        found = self._known.get(project_id)
        if found is None or now - found[0] > _KNOWN_SECONDS:
            policy = traffic_policy(self._context, project_id)
            found = self._known[project_id] = (now, policy, user_key(self._context, project_id))
        return found[1:]

    def close(self) -> None:
        """Write and send what waits."""
        self.log.close()
        if self.spans is not None:
            self.spans.close()


def keep(
    context: Context,
    asked: Exchange,
    user: str = "",
    words: Callable[[], tuple[Sequence[FrozenModel], str] | None] = lambda: None,
) -> None:
    """Have an exchange kept as the project's policy says; never raises, and does not wait.

    Args:
        context: The home.
        asked: The exchange, without its words and its user.
        user: Whose request it was, where a user is named.
        words: Messages and answer; called only where they are kept.
    """
    recorder = None
    try:
        recorder = context.traffic_recorder
        policy, key = recorder.known(asked.project_id)
        if policy.keep == "off":
            return
        changes: dict[str, object] = {"user_digest": user_digest(key, user)}
        if keeps_words(policy, asked.exchange_id) and (found := words()) is not None:
            messages = tuple(one.model_dump(mode="json", exclude_defaults=True) for one in found[0])
            changes |= {"messages": messages, "answer": found[1]}
        recorder.log.offer(asked.model_copy(update=changes), is_masked=policy.mask_personal_data)
    except Exception:
        log.exception("an exchange is not in the log")
        if recorder is not None:
            recorder.log.lose(asked, FAILED)


def keeps_words(policy: TrafficPolicy, exchange_id: str) -> bool:
    """Whether the words of an exchange are kept: of a sample by its id, so that the same one is drawn again."""
    if policy.keep == "sampled":
        # The first 32 bits of the digest are uniform on [0, 2**32).
        point = int(sha256_bytes(exchange_id.encode())[:8], 16)
        return point < policy.fraction * _NUM_POINTS
    return policy.keep == "full"


def mask_texts(groups: Sequence[Sequence[str]]) -> list[tuple[list[str], int]]:
    """Texts without personal data and secrets, and how many places that were; the same value in a group gets the same
    stand-in (`data.masking`). Names of people are not looked for: that takes a language model for each language."""
    import polars as pl

    from luthier.ml.data.personal_data.find import may_hold_personal_data
    from luthier.ml.data.personal_data.masking import Pseudonyms, mask_personal_data, mask_secrets

    # Unpaired surrogates, which JSON may contain, cannot be stored in an Arrow string.
    texts = [[text.encode("utf-8", "replace").decode() for text in group] for group in groups]
    flat = pl.Series("text", [text for group in texts for text in group], dtype=pl.String)
    suspects = iter(may_hold_personal_data(flat).to_list())
    found = []
    for group in texts:
        pseudonyms, num_masked, kept = Pseudonyms(), 0, []
        for text in group:
            counts: list[int] = []
            # One vectorised scan marks the texts that may hold personal data; the slow rules run on these alone.
            if next(suspects):
                text, by_kind = mask_personal_data(text, pseudonyms)
                counts += by_kind.values()
            text, by_kind = mask_secrets(text, pseudonyms)
            num_masked += sum([*counts, *by_kind.values()])
            kept.append(text)
        found.append((kept, num_masked))
    return found


def count_lost(context: Context, lost: Lost) -> None:
    """Add to what is known to be lost, by hour.

    Raises:
        LuthierError: The database does not take the counts.
    """
    by_hour: dict[tuple[str, str], dict[str, int]] = {}
    for (project_id, at, reason), count in lost.items():
        counts = by_hour.setdefault((project_id, traffic.hour_of(at)), {})
        counts[reason] = counts.get(reason, 0) + count
    known = {one.project_id for one in context.access.projects()}
    for (project_id, hour), counts in by_hour.items():
        if project_id not in known:
            continue

        # The default binds this round's counts: a closure would see the last one's.
        def more(kept: str | None, counts: dict[str, int] = counts) -> str:
            sums: dict[str, int] = json.loads(kept or "{}")
            return json.dumps(sums | {reason: sums.get(reason, 0) + count for reason, count in counts.items()})

        # Read and written in one transaction: several servers add to the same hour.
        context.watches.change(project_id, traffic.LOST, hour, more)


CLIENT_GONE: Final = 499
"""The status of an abandoned request."""
_MAX_NAME_CHARACTERS: Final = 255


@dataclass(slots=True)
class RequestRecord:
    """A request from its start to its end, for the traffic log.

    Attributes:
        context: The home.
        caller: Who sent it.
        model: The name that was requested.
        user: Whose request it is, where it names a user.
        exchange_id: Its id; changed to the one that the client gets, once that is known.
        at: When it was sent, in seconds since 1970.
        began_at: The same by `time.monotonic`, so that a corrected clock does not change its duration.
        operation: What OpenTelemetry calls it.
        trace_parent: The header `traceparent` of the request, for its span.
    """

    context: Context
    caller: Caller
    model: str
    user: str = ""
    exchange_id: str = field(default_factory=lambda: f"ask-{uuid.uuid4().hex}")
    at: float = field(default_factory=time.time)
    began_at: float = field(default_factory=time.monotonic)
    operation: Operation = "chat"
    trace_parent: str = ""

    def end(
        self,
        routed: Routed | None,
        *,
        error: BaseException | None = None,
        is_whole: bool = True,
        finish_reason: str = "",
        num_prompt_tokens: int = 0,
        num_new_tokens: int = 0,
        first_at: float = 0.0,
        ended_at: float = 0.0,
        words: Callable[[], tuple[Sequence[FrozenModel], str] | None] = lambda: None,
    ) -> None:
        """Store the exchange, as `keep` does.

        Args:
            routed: Where the request went; None where it was refused before.
            error: Why there is no answer; None where there is one.
            is_whole: Whether the client was there to the end.
            finish_reason: Of the answer, as OpenAI names it.
            num_prompt_tokens: Of the request.
            num_new_tokens: Of the answer.
            first_at: The first token, by `time.monotonic`; 0 where none came.
            ended_at: The end, by `time.monotonic`; 0 for now.
            words: Messages and answer, called only where the project logs texts; None where there are none.
        """
        status, error_code = _outcome(error, is_whole=is_whole)
        try:
            ended = Exchange(
                exchange_id=self.exchange_id,
                project_id=self.caller.project_id,
                at=self.at,
                model=(self.model if routed is None else routed.model)[:_MAX_NAME_CHARACTERS],
                target="" if routed is None else routed.target[:_MAX_NAME_CHARACTERS],
                is_canary=routed is not None and routed.is_canary,
                status=status,
                error_code=error_code,
                finish_reason=finish_reason,
                num_prompt_tokens=num_prompt_tokens,
                num_new_tokens=num_new_tokens,
                seconds=max(0.0, (ended_at or time.monotonic()) - self.began_at),
                first_token_seconds=max(0.0, first_at - self.began_at) if first_at else None,
                cost_usd=cost_of(self.context, num_prompt_tokens, num_new_tokens),
            )
        except Exception:  # as in `keep`
            log.exception("an exchange is not in the log")
            return
        keep(self.context, ended, self.user, words)
        self._tell_span(ended)

    def _tell_span(self, ended: Exchange) -> None:
        try:
            if (spans := self.context.traffic_recorder.spans) is not None:
                spans.tell(ended, self.operation, self.trace_parent)
        except Exception:  # as in `keep`
            log.exception("no span was made of an exchange")


def _outcome(error: BaseException | None, *, is_whole: bool) -> tuple[int, str]:
    """Status and error code: the kind of our own errors in small letters, `not_found` or `busy`."""
    if isinstance(error, LuthierError):
        return error.http_status, re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()
    if isinstance(error, Exception):
        return 500, "internal"
    return (200, "") if is_whole and error is None else (CLIENT_GONE, "client_gone")
