"""Answers to the questions about recipes that `question_child` is asked, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.service.context import Context

if TYPE_CHECKING:
    from luthier.service.plans import Prepared


def wake(context: Context, _asked: dict[str, Any]) -> dict[str, Any]:
    """Load what a plan needs and measure the machine, so that the first plan need not wait for that."""
    from luthier.plan import options, resolve
    from luthier.service import advice, plans, quotes

    device = quotes.device_for(context, None)
    return {"device": device.name, "ready": [m.__name__ for m in (advice, options, plans, resolve)]}


def plan_answer(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """What `luthier plan --json` prints; compares: with advice, and what it takes on each device of the table."""
    from luthier.plan.prices import load_prices
    from luthier.service import quotes
    from luthier.service.plans import prepare
    from luthier.service.recipes import recipe_from

    recipe, prices = recipe_from(asked["recipe"], base_dir=Path("/")), load_prices(None)
    prepared = prepare(context, recipe, base_dir=Path("/"))
    quote = quotes.quote_of(context, prepared, on=None, prices=prices, market="on_demand", is_probed=False)
    plan = prepared.plan
    shown = {"hash": plan.hash, "values": plan.values(), "predicted": quote.as_json()}
    if asked["compares"]:
        shown |= _compared(context, prepared)
    return shown | {"plan": plan.model_dump(mode="json")}


def _compared(context: Context, prepared: Prepared) -> dict[str, Any]:
    """Advice on the method, and the run on one of each accelerator of the table, those that fit and are cheap first."""
    from luthier.plan.changes import METHOD_TITLES
    from luthier.plan.devices import accelerators
    from luthier.plan.workload import work_method
    from luthier.service.advice import advise
    from luthier.service.quotes import compare_options

    method = METHOD_TITLES[work_method(prepared.plan.method.name)]
    options = compare_options(context, prepared, on=[device.name for device in accelerators()])
    devices = [
        option.as_json()
        | {"title": option.prediction.device.title, "memory_bytes": option.prediction.device.memory_bytes}
        for option in options
        if option.method == method
    ]
    return {"advice": advise(context, prepared).as_json(), "devices": devices}
