"""The budget of a plan: rates, first actions, and what cannot be kept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import RecipeError
from luthier.core.plan import Plan
from luthier.core.recipe import BudgetRecipe
from luthier.core.results.cost import Device
from luthier.core.run import BudgetPlan
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning.budget import budget_of_unknown_device, budget_sources, checked, resolve_budget
from luthier.ml.planning.devices import load_prices
from luthier.ml.planning.predict import predict
from luthier.ml.planning.workload import Workload, workload_of

MakePlan = Callable[..., Plan]


def device(**changes: Any) -> Device:
    values: dict[str, Any] = {
        "name": "cpu",
        "title": "a processor, 2 threads",
        "num_devices": 1,
        "memory_bytes": 8 << 30,
        "bfloat16_tflops": 0.4,
        "float32_tflops": 0.1,
        "memory_gb_per_second": 20.0,
        "link_gb_per_second": 0.0,
        "power_watts": 20.0,
        "is_cpu": True,
        "source": "made by a test",
    }
    return Device(**(values | changes))


@pytest.fixture
def workload(make_plan: MakePlan, structure: Structure) -> Workload:
    return workload_of(make_plan(), structure, device())


def own_prices(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "prices.yaml"
    file.write_text(f"as_of: 2026-11-01\n{text}\n", encoding="utf-8")
    return file


def resolved(workload: Workload, caps: dict[str, Any] | None = None, **changes: Any) -> BudgetPlan:
    asked = None if caps is None else BudgetRecipe(**caps)
    return resolve_budget(asked, workload, device(**changes), load_prices())


def test_first_actions_are_those_of_the_prediction(workload: Workload) -> None:
    made, predicted = resolved(workload), predict(workload, device())
    assert made.first.step_seconds == predicted.step_seconds
    assert made.first.step_tokens == workload.batches.num_tokens
    assert made.first.checkpoint_seconds == pytest.approx(workload.num_trainable * 12 / 0.5e9)
    assert (made.hours, made.usd, made.tokens, made.energy_kwh) == (None, None, None, None)


def test_rates_are_of_all_devices_and_say_where_they_are_from(workload: Workload) -> None:
    one, four = resolved(workload), resolved(workload, name="a100-80g", num_devices=4, power_watts=400.0)
    assert one.usd_per_hour is not None
    assert "2026" in one.price_source
    assert four.usd_per_hour == load_prices().usd_per_hour("a100-80g").times(4)
    # 400 W x 4, 0.8 of it drawn on average, 1.3 for cooling
    assert four.watts is not None
    assert four.watts.value == pytest.approx(1600 * 0.8 * 1.3)
    assert four.watts.high == pytest.approx(1600 * 1.0 * 1.6)


def test_a_price_of_ones_own_counts(workload: Workload, tmp_path: Path) -> None:
    prices = load_prices(own_prices(tmp_path, "devices: {cpu: {on_demand: 0.25}}"))
    made = resolve_budget(BudgetRecipe(usd=1.0), workload, device(), prices)
    assert made.usd_per_hour is not None
    assert made.usd_per_hour.low == made.usd_per_hour.high == 0.25
    assert str(date(2026, 11, 1)) in made.price_source


def test_without_a_price_a_cap_on_money_is_refused_and_one_on_hours_is_not(workload: Workload) -> None:
    with pytest.raises(RecipeError, match=r"budget.usd is 5[\s\S]*no price[\s\S]*--prices FILE"):
        resolved(workload, {"usd": 5.0}, name="abacus", title="an abacus")
    made = resolved(workload, {"hours": 5.0}, name="abacus")
    assert made.usd_per_hour is None
    with pytest.raises(RecipeError, match="no price"):
        checked(made.model_copy(update={"usd": 5.0}))


def test_without_watts_a_cap_on_energy_is_refused(workload: Workload) -> None:
    with pytest.raises(RecipeError, match=r"energy_kwh is 5[\s\S]*is not known[\s\S]*budget.hours"):
        resolved(workload, {"energy_kwh": 5.0}, power_watts=0.0)
    assert resolved(workload, power_watts=0.0).watts is None


@pytest.mark.parametrize("name", ["hours", "usd", "tokens", "energy_kwh"])
def test_less_than_the_first_step_is_refused_in_three_parts(workload: Workload, name: str) -> None:
    tiny = 1 if name == "tokens" else 1e-12
    with pytest.raises(RecipeError, match=rf"budget.{name} is [\s\S]*first step alone[\s\S]*raise budget.{name}"):
        resolved(workload, {name: tiny})


def test_sources_are_told_of_the_caps_that_were_asked(workload: Workload) -> None:
    sources = budget_sources(resolved(workload, {"hours": 2.0}))
    assert set(sources) == {"budget.hours", "budget.usd_per_hour", "budget.watts"}
    assert sources["budget.hours"].source == "asked"


def test_the_budget_is_in_the_plan_but_not_in_its_hash(make_plan: MakePlan, workload: Workload) -> None:
    plan = make_plan()
    capped = plan.model_copy(
        update={
            "budget": resolved(workload, {"hours": 2.0}),
            "recipe": plan.recipe.model_copy(update={"budget": BudgetRecipe(hours=2.0)}),
        }
    )
    assert capped.hash == plan.hash
    assert Plan.model_validate_json(capped.model_dump_json()) == capped
    without = capped.model_dump(mode="json")
    del without["budget"]  # a plan of before there were budgets
    assert Plan.model_validate(without).budget is None


def test_on_a_device_that_nobody_knows_hours_and_tokens_can_be_capped() -> None:
    made = budget_of_unknown_device(BudgetRecipe(hours=2.0), "an unknown accelerator", step_tokens=50.0)
    assert (made.hours, made.usd_per_hour, made.watts) == (2.0, None, None)
    with pytest.raises(RecipeError, match=r"budget.usd is 1, but an unknown accelerator"):
        budget_of_unknown_device(BudgetRecipe(usd=1.0), "an unknown accelerator", step_tokens=50.0)
    with pytest.raises(RecipeError, match="the first step alone should take 50"):
        budget_of_unknown_device(BudgetRecipe(tokens=49), "an unknown accelerator", step_tokens=50.0)
