"""A case file: read, checked key by key, and completed with prices of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from luthier.core.cost import Estimate, Market, PriceTable
from luthier.core.errors import RequestError
from luthier.core.results.roi import ALTERNATIVES, Case, Money, SelfServed, TrainingCost
from luthier.features.recipes.file import FileKind, read_recipe_file
from luthier.features.recipes.problems import describe_problems

CASE: Final = FileKind(
    word="case",
    needs="a mapping with at least the keys name, currency, calls, today, tuned, people and training",
    begin="copy examples/shop/case.yaml and change its figures",
    hint="give the case's path; docs/roi.md explains its keys",
    refuse=RequestError,
)


def load_case(path: Path) -> Case:
    """Read a case file (YAML or JSON).

    Raises NotFoundError (no such file), RequestError: wrong syntax, unknown keys (the nearest known is named), wrong
    types or values; all of them are listed.
    """
    document = read_recipe_file(path, CASE)
    try:
        # By way of JSON, since there strict means: no text and no true for a number.
        return Case.model_validate_json(json.dumps(document.keys), strict=True)
    except ValidationError as error:
        problems = describe_problems(error, document.lines, (), spec=Case)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RequestError(
            "\n    ".join([f"case {path} has {count}:", *problems]),
            expected="only known keys, each with a value of its kind",
            do="correct the places named; docs/roi.md explains every key",
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"case {path} holds something that is no plain value: {error}",
            expected="text, numbers, lists and mappings",
            do="write the value out",
        ) from error


def with_prices(case: Case, table: PriceTable) -> tuple[Case, tuple[str, ...]]:
    """The case with the table's price wherever a device is named without one, and a sentence for each on its source.

    Raises RequestError for a device or market without a price, and for another currency than USD without its rate.
    """
    sources: list[str] = []

    def price(key: str, device: str, market: Market | None) -> Money:
        chosen = market or "on_demand"
        estimate, entry = table.usd_per_hour(device, market=chosen), table.devices[device]
        sources.append(
            f"{key}: {_dollars(estimate)} an hour for one {device}, {chosen.replace('_', ' ')}; "
            f"{entry.basis.replace('_', ' ')} of {entry.as_of.isoformat()}: {entry.source}."
        )
        return _in_currency(case, key, estimate)

    def served(key: str, way: SelfServed | None) -> SelfServed | None:
        if way is None or way.price_per_hour is not None or way.device is None:
            return way
        found = price(f"{key}.self_served.price_per_hour", way.device, way.market)
        # The market is taken out once it has become a price, which would contradict it.
        return way.model_copy(update={"price_per_hour": found, "market": None})

    training: TrainingCost = case.training
    if training.cost is None and training.price_per_hour is None and training.device is not None:
        found = price("training.price_per_hour", training.device, training.market)
        training = training.model_copy(update={"price_per_hour": found, "market": None})
    today, tuned = (
        way.model_copy(update={"self_served": served(key, way.self_served)})
        for key, way in (("today", case.today), ("tuned", case.tuned))
    )
    plain: dict[str, Any] = {
        name: way.model_copy(update={"self_served": served(f"alternatives.{name}", way.self_served)})
        for name in ALTERNATIVES
        if (way := getattr(case.alternatives, name)) is not None
    }
    changed = {
        "training": training,
        "today": today,
        "tuned": tuned,
        "alternatives": case.alternatives.model_copy(update=plain),
    }
    return case.model_copy(update=changed), tuple(sources)


def _in_currency(case: Case, key: str, estimate: Estimate) -> Money:
    if case.currency == "USD":
        return Money(low=estimate.low, typical=estimate.value, high=estimate.high)
    rate = case.currency_per_usd
    if rate is None:
        raise RequestError(
            f"case {case.name}: {key} comes from a table in USD, and the case is in {case.currency}",
            expected="currency_per_usd: what a dollar costs",
            do=f"add currency_per_usd, or say {key} in {case.currency}",
        )
    return Money(low=estimate.low * rate.low, typical=estimate.value * rate.typical, high=estimate.high * rate.high)


def _dollars(estimate: Estimate) -> str:
    return f"{estimate.value:g} USD ({estimate.low:g} to {estimate.high:g})"
