"""Bills and budgets in words."""

from __future__ import annotations

from typing import Any

from luthier.core.estimate import Estimate
from luthier.core.events import BillUpdated
from luthier.core.run import Bill, BudgetPlan, FirstActions
from luthier.features.planning.format import bill_line, budget_lines
from luthier.features.training.recorder import event_text


def estimate(value: float, spread: float = 0.0) -> Estimate:
    return Estimate(value=value, low=value - spread, high=value + spread)


def bill(**changes: Any) -> Bill:
    values: dict[str, Any] = {
        "hours": 0.5,
        "tokens": 1000,
        "usd": estimate(0.1),
        "energy_kwh": None,
        "interrupted_hours": 0.0,
        "final_hours": estimate(2.0, 0.25),
        "final_usd": estimate(0.4, 0.05),
        "final_energy_kwh": None,
    }
    return Bill(**(values | changes))


def budget(**caps: Any) -> BudgetPlan:
    first = FirstActions(
        step_seconds=estimate(1.0),
        step_tokens=10.0,
        validation_seconds=1.0,
        checkpoint_seconds=1.0,
        loading_seconds=1.0,
    )
    values: dict[str, Any] = {
        "device": "cpu", "usd_per_hour": estimate(0.2, 0.1), "price_source": "a price list",
        "watts": estimate(50.0, 10.0), "watts_source": "a data sheet", "first": first,
    }  # fmt: skip
    return BudgetPlan(**(values | caps))


def test_a_bill_on_the_way_says_where_it_leads() -> None:
    line = bill_line(bill())
    assert line == "spent 30 min 00 s of about 2 h 00 min [1 h 45 min, 2 h 15 min], 0.1 of 0.4 [0.35, 0.45] USD"
    assert event_text(BillUpdated(step=1200, bill=bill())) == f"step 1,200  {line}"


def test_a_bill_at_the_end_says_what_it_came_to_and_what_kills_took() -> None:
    done = bill(
        final_hours=estimate(0.5), final_usd=estimate(0.1, 0.02), usd=estimate(0.1, 0.02), interrupted_hours=0.01,
        energy_kwh=estimate(0.3), final_energy_kwh=estimate(0.3),
    )  # fmt: skip
    assert bill_line(done) == "spent 30 min 00 s, 0.1 [0.08, 0.12] USD, 0.3 kWh; 36 s of it lost to kills"


def test_a_budget_names_its_caps_and_the_rates_that_they_are_counted_at() -> None:
    assert budget_lines(budget()) == []
    assert budget_lines(budget(hours=3.0, tokens=5000)) == ["at most 3 hours, 5,000 tokens; evaluation counts, too"]
    assert budget_lines(budget(usd=20.0, energy_kwh=2.0)) == [
        "at most 20 USD, 2 kWh (counted: money at 0.3 USD an hour, the upper end of a price list; energy at 60 W, the "
        "upper end of a data sheet); evaluation counts, too"
    ]
