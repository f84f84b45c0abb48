"""The budget of a run, made complete: its caps, the rates of its device, and what its first actions should take."""

from __future__ import annotations

from typing import Final

from luthier.core.errors import RecipeError, RequestError
from luthier.core.estimate import Estimate
from luthier.core.plan import ValueSource
from luthier.core.recipe import BudgetRecipe
from luthier.core.results.cost import Device, PriceTable
from luthier.core.run import BudgetPlan, FirstActions, JudgeBudget
from luthier.ml.planning import speed
from luthier.ml.planning.predict import Calibration, checkpoint_seconds, mean_watts
from luthier.ml.planning.workload import BYTES, Workload

# Of a slow disk: a cap is better kept with room to spare.
_LOADING_GB_PER_SECOND: Final = 0.5
_SECONDS_AN_HOUR: Final = 3600.0


def resolve_budget(
    asked: BudgetRecipe | None,
    workload: Workload,
    device: Device,
    prices: PriceTable,
    *,
    calibration: Calibration | None = None,
    judges: JudgeBudget | None = None,
) -> BudgetPlan:
    """The budget of a run on a device; without caps where none is requested, so that its bill can still be shown.

    Args:
        asked: the caps of the recipe; None for none.
        workload: of the run.
        device: that it runs on.
        prices: by device.
        calibration: of the device; None uses the priors.
        judges: what judges behind servers cost; None where none grades.

    Raises:
        RecipeError: a cap on money without a price, on energy without watts, and for a cap that the first step alone
            should use up.
    """
    caps = asked or BudgetRecipe()
    price, price_source = _price(device, prices)
    watts = mean_watts(device)
    step = speed.step_seconds(workload, device, calibration)
    learning = speed.learning_seconds(workload, device, calibration)
    return checked(
        BudgetPlan(
            hours=caps.hours,
            usd=caps.usd,
            tokens=caps.tokens,
            energy_kwh=caps.energy_kwh,
            device=device.title,
            # Prices are of one device; a run pays for all of its devices for as long as it takes.
            usd_per_hour=None if price is None else price.times(device.num_devices),
            price_source=price_source,
            watts=watts,
            watts_source=f"{device.power_watts:g} W of {device.title} ({device.source}), with cooling"
            if watts
            else f"the power of {device.title} is not known",
            # What each action takes before one of its kind was measured in the run itself.
            first=FirstActions(
                step_seconds=step,
                step_tokens=workload.step_tokens,
                validation_seconds=speed.validation_seconds(workload, step, learning).value,
                checkpoint_seconds=checkpoint_seconds(workload),
                loading_seconds=workload.structure.num_parameters * BYTES[workload.base] / 1e9 / _LOADING_GB_PER_SECOND,
                reference_seconds=speed.reference_seconds(workload, step).value,
                judging=speed.judging_seconds(workload, device, step, calibration) if workload.judging else None,
            ),
            judges=judges,
        )
    )


def budget_of_unknown_device(
    asked: BudgetRecipe | None, why: str, *, step_tokens: float, judges: JudgeBudget | None = None
) -> BudgetPlan:
    """The budget on a machine that the table of devices lacks: hours and tokens can be capped, money and energy not.

    Args:
        asked: the caps of the recipe; None for none.
        why: what is not known, as text.
        step_tokens: of the mean step.
        judges: what judges behind servers cost; None where none grades.

    Raises:
        RecipeError: the caps limit money or energy.
    """
    caps = asked or BudgetRecipe()
    zero = Estimate(value=0.0, low=0.0, high=0.0)
    first = FirstActions(
        step_seconds=zero, step_tokens=step_tokens, validation_seconds=0.0, checkpoint_seconds=0.0, loading_seconds=0.0
    )
    return checked(
        BudgetPlan(
            **caps.model_dump(),
            device="this machine",
            usd_per_hour=None,
            price_source=why,
            watts=None,
            watts_source=why,
            first=first,
            judges=judges,
        )
    )


def checked(budget: BudgetPlan) -> BudgetPlan:
    """The given budget, if its caps can be kept.

    Raises:
        RecipeError: a cap on money has no price, one on energy no watts, or the first step alone should use a cap up.
    """
    if budget.usd is not None and budget.usd_per_hour is None:
        raise RecipeError(
            f"budget.usd is {budget.usd:g}, but {budget.price_source}",
            expected=f"a price of {budget.device}",
            do="give one with --prices FILE (docs/cost.md shows its format), or cap hours instead: budget.hours",
        )
    if budget.energy_kwh is not None and budget.watts is None:
        raise RecipeError(
            f"budget.energy_kwh is {budget.energy_kwh:g}, but {budget.watts_source}",
            expected="a device whose power is known",
            do="cap hours instead: budget.hours",
        )
    if budget.usd is not None and budget.judges is not None and budget.judges.step_usd is None:
        raise RecipeError(
            f"budget.usd is {budget.usd:g}, but a model behind a server in objective.rewards has no price",
            expected="the prices of its tokens",
            do="set LUTHIER_TEACHER_USD_PER_MILLION_PROMPT_TOKENS and LUTHIER_TEACHER_USD_PER_MILLION_NEW_TOKENS (and "
            "LUTHIER_TEACHER, where it is set, to that model), or cap hours instead: budget.hours",
        )
    _refuse_less_than_a_step(budget)
    return budget


def budget_sources(budget: BudgetPlan) -> dict[str, ValueSource]:
    """Where each value of a budget comes from, for the plan; caps that are not set are left out."""
    found = {
        f"budget.{name}": ValueSource(source="asked", why="a cap: it ends the run, so it is not in the plan's hash")
        for name in ("hours", "usd", "tokens", "energy_kwh")
        if getattr(budget, name) is not None
    }
    if budget.usd_per_hour is not None:
        found["budget.usd_per_hour"] = ValueSource(source="derived", why=budget.price_source)
    if budget.watts is not None:
        found["budget.watts"] = ValueSource(source="derived", why=budget.watts_source)
    return found


def _price(device: Device, prices: PriceTable) -> tuple[Estimate | None, str]:
    try:
        # Only a cap on money needs one, so a missing price is reported and not raised.
        price = prices.usd_per_hour(device.name)
    except RequestError as error:
        return None, error.came
    entry = prices.devices[device.name]
    return price, f"the price of {device.name} on {entry.as_of} ({entry.basis.replace('_', ' ')}: {entry.source})"


def _refuse_less_than_a_step(budget: BudgetPlan) -> None:
    """A run that cannot take one step would pause where it began."""
    hours = budget.first.step_seconds.value / _SECONDS_AN_HOUR
    judges_usd = budget.judges.step_usd.value if budget.judges and budget.judges.step_usd else 0.0
    needs = {
        "hours": hours,
        "usd": hours * (budget.usd_per_hour.high if budget.usd_per_hour else 0.0) + judges_usd,
        "energy_kwh": hours * (budget.watts.high / 1000 if budget.watts else 0.0),
        "tokens": budget.first.step_tokens,
    }
    for name, need in needs.items():
        cap = getattr(budget, name)
        if cap is not None and cap < need:
            raise RecipeError(
                f"budget.{name} is {cap:g}, but the first step alone should take {need:.3g}",
                expected="a cap that at least one step fits into",
                do=f"raise budget.{name}, or make steps smaller: training.global_batch_size",
            )
