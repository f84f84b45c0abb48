"""Use cases: an exchange under way, and what is kept of it and told of it once it has ended, however it ends."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.records.traffic import Exchange
from luthier.features.traffic.log import keep
from luthier.features.traffic.spans import Operation
from luthier.features.usage.service import cost_of
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.frozen_model import FrozenModel
    from luthier.features.serving.models import Routed

CLIENT_GONE: Final = 499
"""The status of what nobody waited for to the end."""
_MAX_NAME_CHARACTERS: Final = 255
log = logging.getLogger("luthier.service")


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
        """Have it kept, as `keep` does. is_whole: whether the client was there to the end. first_at, ended_at: by
        `time.monotonic`; 0 where no token came, and where it ends now."""
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
