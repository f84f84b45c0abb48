"""Use cases: requests to models by key, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from luthier.core.access import Caller
from luthier.core.frozen_model import FrozenModel
from luthier.platform.auth.store import DayOfUse, Use
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.serving.models import Routed


class ModelUse(FrozenModel):
    """What one model has answered, by the name that was requested.

    Attributes:
        model: That name.
        num_requests: In all days.
        num_prompt_tokens: Read.
        num_new_tokens: Written.
        cost_usd: Of the answers for which a price was set; None where it was for none.
        requests_by_day: From the first day to today, each one.
    """

    model: str
    num_requests: int
    num_prompt_tokens: int
    num_new_tokens: int
    cost_usd: float | None
    requests_by_day: tuple[int, ...]


class UseOfDays(FrozenModel):
    """Usage in that many days: by model, the most used first, and how many keys were used."""

    days: tuple[date, ...]
    models: tuple[ModelUse, ...]
    num_keys: int


def use_of(context: Context, caller: Caller, routed: Routed, num_prompt_tokens: int, num_new_tokens: int) -> Use:
    """One counted answer, with its cost at today's prices.

    Args:
        context: of the home.
        caller: of the request.
        routed: the model as requested, and the one that answered.
        num_prompt_tokens: read for the answer.
        num_new_tokens: written for it.
    """
    return Use(
        project_id=caller.project_id,
        key_id=caller.key_id or "",
        model=routed.model,
        target=routed.target,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        cost_usd=cost_of(context, num_prompt_tokens, num_new_tokens),
    )


def usage(context: Context, project_id: str, *, num_days: int = 30, model: str | None = None) -> list[DayOfUse]:
    """What a project has asked in the last days (UTC, today is one of them), newest day first.

    Args:
        context: The home.
        project_id: The project.
        num_days: How many days, today included.
        model: The requested name; None for all.
    """
    today = datetime.fromtimestamp(context.access.now(), UTC).date()
    since = (today - timedelta(days=num_days - 1)).isoformat()
    return context.usage.list(project_id, since=since, model=model)


def usage_by_model(context: Context, project_id: str, *, num_days: int = 30) -> UseOfDays:
    """What a project has asked in the last days (UTC, today is one of them), summed up by model."""
    today = datetime.fromtimestamp(context.access.now(), UTC).date()
    days = tuple(today - timedelta(days=back) for back in reversed(range(num_days)))
    rows = context.usage.list(project_id, since=days[0].isoformat())
    by_model: dict[str, list[DayOfUse]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    models = [_summed(name, its_rows, days) for name, its_rows in by_model.items()]
    models.sort(key=lambda one: (-one.num_requests, one.model))
    return UseOfDays(days=days, models=tuple(models), num_keys=len({row.key_id for row in rows}))


def _summed(model: str, rows: Sequence[DayOfUse], days: Iterable[date]) -> ModelUse:
    # None and 0 differ: without a price nothing is known of the cost.
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    by_day: dict[str, int] = {}
    for row in rows:
        by_day[row.day] = by_day.get(row.day, 0) + row.num_requests
    return ModelUse(
        model=model,
        num_requests=sum(row.num_requests for row in rows),
        num_prompt_tokens=sum(row.num_prompt_tokens for row in rows),
        num_new_tokens=sum(row.num_new_tokens for row in rows),
        cost_usd=sum(costs) if costs else None,
        requests_by_day=tuple(by_day.get(day.isoformat(), 0) for day in days),
    )


def cost_of(context: Context, num_prompt_tokens: int, num_new_tokens: int) -> float | None:
    """What tokens cost at today's prices, in USD; None where none are set."""
    of_prompts = context.settings.serving_usd_per_million_prompt_tokens
    of_new = context.settings.serving_usd_per_million_new_tokens
    if of_prompts is None and of_new is None:
        return None
    return (num_prompt_tokens * (of_prompts or 0.0) + num_new_tokens * (of_new or 0.0)) / 1e6
