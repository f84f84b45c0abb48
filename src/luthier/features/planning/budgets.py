"""What a run may cost: the budget of its plan, a larger one for a resumed run, and the check that uses it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import RequestError, StorageFullError
from luthier.core.plan import Plan
from luthier.core.ports import StopCheck
from luthier.core.recipe import BudgetRecipe
from luthier.core.run import BudgetPlan
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.training.budget import Meter

FLAGS: Mapping[str, str] = {
    "hours": "--budget-hours",
    "usd": "--budget-usd",
    "tokens": "--budget-tokens",
    "energy_kwh": "--budget-kwh",
}


class BudgetTooSmallError(RequestError):
    """What is left of a budget does not cover what comes next."""


def asked_budget(
    *, hours: float | None, usd: float | None, tokens: int | None, energy_kwh: float | None
) -> BudgetRecipe | None:
    """The caps that were given on the command line; None where there are none.

    Args:
        hours: wall time of the run.
        usd: its cost.
        tokens: trained tokens, padding excluded.
        energy_kwh: its energy.

    Raises:
        RequestError: a cap is not a finite number above 0.
    """
    given = {"hours": hours, "usd": usd, "tokens": tokens, "energy_kwh": energy_kwh}
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise RequestError(
                f"{FLAGS[name]} {value}", expected="a finite number above 0", do=f"write for example: {FLAGS[name]} 3"
            )
    return None if all(value is None for value in given.values()) else BudgetRecipe.model_validate(given)


def merged(first: BudgetRecipe | None, later: BudgetRecipe | None) -> BudgetRecipe | None:
    """The caps of both; where both have one, the later."""
    if first is None or later is None:
        return later or first
    return first.model_copy(update=later.model_dump(exclude_none=True))


def changed_caps(plan: Plan, asked: BudgetRecipe | None) -> BudgetRecipe | None:
    """The caps that differ from those that a run began with; None where none does.

    A launch has the same caps each time it starts again, and must not undo what the run was given since.

    Args:
        plan: of the run.
        asked: the caps of the launch now; None for none.
    """
    before = plan.recipe.budget
    given = {} if asked is None else asked.model_dump(exclude_none=True)
    changed = {name: cap for name, cap in given.items() if before is None or getattr(before, name) != cap}
    return BudgetRecipe.model_validate(changed) if changed else None


def with_budget(
    context: Context,
    plan: Plan,
    asked: BudgetRecipe | None,
    prices: Path | None,
    *,
    num_devices: int = 1,
    num_machines: int = 1,
) -> Plan:
    """The plan with these caps and the rates of this machine.

    Args:
        context: The home.
        plan: Without a budget.
        asked: The caps; None for none.
        prices: A file whose entries replace those of the price table.
        num_devices: How many accelerators are paid for.
        num_machines: How many machines are paid for where processes train on CPUs, which those of a machine share.

    Raises:
        RecipeError: A cap on money without a price, on energy without watts, or one that the first step alone should
            use up.
    """
    from luthier.features.planning.probes import stored
    from luthier.features.planning.remote_judges import judge_budget
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.budget import budget_of_unknown_device, resolve_budget
    from luthier.ml.planning.devices import load_prices, this_machine
    from luthier.ml.planning.workload import workload_of
    from luthier.ml.training.budget import mean_step_tokens
    from luthier.platform.home.hardware_benchmark import hardware_of

    table, judges = load_prices(prices), judge_budget(plan)
    try:
        device = this_machine(hardware_of(context).shared_by(num_devices))
        device = device.model_copy(update={"num_devices": num_machines if device.is_cpu else num_devices})
    except RequestError as error:  # no run fails because of an optional extra
        unknown = budget_of_unknown_device(asked, error.came, step_tokens=mean_step_tokens(plan), judges=judges)
        return with_caps(plan, unknown)
    workload = workload_of(plan, read_structure(plan.base_model.path), device)
    calibration = stored(context, device, plan)
    return with_caps(plan, resolve_budget(asked, workload, device, table, calibration=calibration, judges=judges))


def with_larger_budget(
    context: Context,
    plan: Plan,
    asked: BudgetRecipe | None,
    prices: Path | None,
    *,
    num_devices: int = 1,
    num_machines: int = 1,
) -> Plan:
    """The plan of a resumed run, with the caps that are given now in place of its own; the others stay.

    Rates stay, too, where no other prices are given.

    Args:
        context: of the home.
        plan: of the run.
        asked: the caps that are given now; None for none.
        prices: a file whose entries replace those of the price table; None keeps the rates of the run.
        num_devices: that train the run.
        num_machines: that train it on their CPUs.

    Raises:
        RecipeError: A cap on money without a price, on energy without watts, or one that the first step alone should
            use up.
    """
    from luthier.ml.planning.budget import checked

    if prices is not None or plan.budget is None:
        before = BudgetRecipe(**{name: getattr(plan.budget, name) for name in FLAGS}) if plan.budget else None
        caps = merged(before, asked)
        return with_budget(context, plan, caps, prices, num_devices=num_devices, num_machines=num_machines)
    if asked is None:
        return plan
    return with_caps(plan, checked(plan.budget.model_copy(update=asked.model_dump(exclude_none=True))))


def with_caps(plan: Plan, budget: BudgetPlan) -> Plan:
    """The plan with this budget in place of its own."""
    from luthier.ml.planning.budget import budget_sources

    others = {name: source for name, source in plan.sources.items() if not name.startswith("budget.")}
    return plan.model_copy(update={"budget": budget, "sources": others | budget_sources(budget)})


@contextmanager
def metered(folder: Path, plan: Plan, *, seconds_before: float = 0.0) -> Iterator[Meter]:
    """The meter of a run for as long as a process works on it; its ledger is in the run's folder."""
    from luthier.ml.training.budget import Meter
    from luthier.ml.training.ledger import Ledger

    meter = Meter(plan.budget, Ledger(folder), seconds_before=seconds_before)
    try:
        yield meter
    finally:
        with suppress(StorageFullError):  # the disk may be what the run failed of
            meter.close()


def refuse_spent(run_id: str, meter: Meter, *, training_is_done: bool) -> None:
    """Raise BudgetTooSmallError where a run that is to be resumed has no budget left."""
    reason = meter.refuses_to_go_on(training_is_done=training_is_done)
    if reason is not None:
        raise BudgetTooSmallError(
            f"run {run_id}: {reason}",
            expected="a cap with room for what comes next",
            do=f"resume with a larger one: {how_to_go_on(run_id, meter)}",
        )


def how_to_go_on(run_id: str, meter: Meter) -> str:
    """The command that resumes a paused run: with twice as much of the cap that stopped it, if one did."""
    command, name = f"luthier train --resume {run_id}", meter.refused_by
    return command if name is None else f"{command} {FLAGS[name]} {2 * getattr(meter.budget, name):.12g}"


def stop_check(meter: Meter, stop_requested: StopCheck) -> StopCheck:
    """Why work has to stop: a signal, or the budget."""
    return lambda: stop_requested() or meter.overrun()
