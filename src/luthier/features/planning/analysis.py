"""Answers to the questions about recipes that `question_child` is asked, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.planning.service import Prepared


def wake(context: Context, _asked: dict[str, Any]) -> dict[str, Any]:
    """Load what a plan needs and measure the machine, so that the first plan need not wait for that."""
    from luthier.features.planning import advice, quotes
    from luthier.features.planning import service as plans
    from luthier.ml.planning import options, resolve

    device = quotes.device_for(context, None)
    return {"device": device.name, "ready": [m.__name__ for m in (advice, options, plans, resolve)]}


def plan_answer(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """What `luthier plan --json` prints; compares: with advice, and what it takes on each device of the table."""
    from luthier.features.planning import quotes
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import recipe_from
    from luthier.ml.planning.prices import load_prices

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
    from luthier.features.planning.advice import advise
    from luthier.features.planning.quotes import compare_options
    from luthier.ml.planning.devices import accelerators
    from luthier.ml.planning.fit_suggestions import METHOD_TITLES
    from luthier.ml.planning.workload import work_method

    method = METHOD_TITLES[work_method(prepared.plan.method.name)]
    options = compare_options(context, prepared, on=[device.name for device in accelerators()])
    devices = [
        option.as_json()
        | {"title": option.prediction.device.title, "memory_bytes": option.prediction.device.memory_bytes}
        for option in options
        if option.method == method
    ]
    return {"advice": advise(context, prepared).as_json(), "devices": devices}
