"""Use cases: what was asked of models, by whom, and what that comes to in money."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from luthier.core.access import Caller
from luthier.core.usage import DayOfUse, Use
from luthier.service.context import Context
from luthier.service.served_models import Routed


def use_of(context: Context, caller: Caller, routed: Routed, num_prompt_tokens: int, num_new_tokens: int) -> Use:
    """One answer as it is counted, with what it costs at today's prices."""
    return Use(
        project_id=caller.project_id,
        key_id=caller.key_id or "",
        model=routed.model,
        target=routed.target,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        cost_usd=_cost_usd(context, num_prompt_tokens, num_new_tokens),
    )


def usage(context: Context, project_id: str, *, num_days: int = 30, model: str | None = None) -> list[DayOfUse]:
    """What a project has asked in the last days (UTC, today is one of them), newest day first.

    model: as it was asked for; all where none is named.
    """
    today = datetime.fromtimestamp(context.access.now(), UTC).date()
    since = (today - timedelta(days=num_days - 1)).isoformat()
    return context.usage.list(project_id, since=since, model=model)


def _cost_usd(context: Context, num_prompt_tokens: int, num_new_tokens: int) -> float | None:
    of_prompts = context.settings.serving_usd_per_million_prompt_tokens
    of_new = context.settings.serving_usd_per_million_new_tokens
    if of_prompts is None and of_new is None:
        return None
    return (num_prompt_tokens * (of_prompts or 0.0) + num_new_tokens * (of_new or 0.0)) / 1e6
