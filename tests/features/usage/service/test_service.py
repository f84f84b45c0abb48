"""What was asked of models, by day and by model."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update
from tests.clock import today

from luthier.features.usage.service import usage_by_model
from luthier.platform.auth.service import create_project
from luthier.platform.auth.store import Use
from luthier.platform.db.tables import model_usage
from luthier.platform.home.context import Context


def use(context: Context, model: str, *, key_id: str = "", cost_usd: float | None = None, target: str = "t") -> None:
    context.usage.add(
        Use(
            project_id="default",
            key_id=key_id,
            model=model,
            target=target,
            num_prompt_tokens=10,
            num_new_tokens=3,
            cost_usd=cost_usd,
        )
    )


def test_models_are_summed_up_over_keys_targets_and_days(context: Context) -> None:
    create_project(context, "mine")
    use(context, "a", cost_usd=0.5)
    day_now = today()
    for back in (2, 40):
        with context.database.write() as connection:
            day = (day_now - timedelta(days=back)).isoformat()
            connection.execute(update(model_usage).where(model_usage.c.day == day_now.isoformat()).values(day=day))
        use(context, "a", cost_usd=0.5)
    use(context, "a", key_id="key-1", target="other", cost_usd=0.25)
    use(context, "b")
    found = usage_by_model(context, "default", num_days=7)
    assert [one.model for one in found.models] == ["a", "b"], "asked most often first"
    first, second = found.models
    assert (first.num_requests, first.num_prompt_tokens, first.num_new_tokens) == (3, 30, 9)
    assert first.cost_usd == pytest.approx(1.25)
    assert second.cost_usd is None
    assert len(found.days) == len(first.requests_by_day) == 7
    assert found.days[-1] == day_now
    assert first.requests_by_day == (0, 0, 0, 0, 1, 0, 2)
    assert found.num_keys == 2
    assert usage_by_model(context, "proj-none").models == ()
