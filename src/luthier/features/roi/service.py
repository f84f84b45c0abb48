"""Use case: does fine-tuning pay? From a case file, prices and perhaps a verdict to an answer and a page.

A case file is checked key by key and completed with prices of the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.results.cost import Market, PriceTable
from luthier.core.results.roi import ALTERNATIVES, Case, Money, SelfServed, TrainingCost
from luthier.features.datasets.data_files import check_is_not_input
from luthier.features.recipes.file import FileKind, describe_problems, read_recipe_file
from luthier.features.roi.measured_gains import measured_gains
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.results.roi_result import RoiResult
    from luthier.ml.planning.roi.questions import Questions


@dataclass(frozen=True, slots=True)
class RoiOutcome:
    """An answer. report: the HTML page, where one was requested."""

    result: RoiResult
    report: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier worth --json`."""
        return {**self.result.model_dump(mode="json"), "report": str(self.report) if self.report else None}


def compute_roi(
    context: Context,
    file: Path | Questions,
    *,
    verdict: str | None = None,
    prices: Path | None = None,
    html: Path | None = None,
) -> RoiOutcome:
    """Answer a case file, or three questions. The same files and the same evaluation give the same answer.

    Args:
        context: of the home.
        file: a case; or the answers to three questions, where all else is a default.
        verdict: a run, of which the last evaluation is taken, or an evaluation; its gains replace assumed ones.
        prices: entries that replace those of the shipped table.
        html: where to write the page; its folder is made where it is missing. None writes none.

    Raises:
        NotFoundError: a file, run or evaluation does not exist.
        RequestError: the case is wrong or contradicts itself, a price is missing, or the evaluation is none that the
            case can use.
        ConflictError: the files of the evaluation's examples are missing or changed.
        StorageFullError: the disk has no room for the page.
    """
    from luthier.ml.planning.devices import load_prices
    from luthier.ml.planning.roi import check_case, worth
    from luthier.ml.planning.roi.questions import case_of

    check_is_not_input(html, *([file] if isinstance(file, Path) else []), prices)
    table = load_prices(prices)
    case, assumed = (load_case(file), ()) if isinstance(file, Path) else case_of(file, is_measured=verdict is not None)
    measured = None
    if verdict is not None:
        measured = measured_gains(context, verdict, case, has_file=isinstance(file, Path))
    if measured is not None and measured.today_kind == "few_shot":
        # It may have been requested by its name: one word for it from here on.
        case = case.model_copy(update={"verdict": case.verdict.model_copy(update={"today": "few_shot"})})
    check_case(case, measured)
    priced, sources = with_prices(case, table)
    if prices is not None and not sources:
        sources = (f"No price of {prices} was needed: the case says all of them itself.",)
    result = worth(priced, measured, sources=(*assumed, *sources))
    if html is None:
        return RoiOutcome(result)
    from luthier.ml.planning.roi.report import write_roi_report

    arguments = (str(file),) if isinstance(file, Path) else file.arguments
    # With other prices the same case has another answer.
    arguments += () if prices is None else ("--prices", str(prices))
    return RoiOutcome(result, write_roi_report(html, result, case=arguments, verdict=verdict))


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
            f"case {path} contains something that is not a plain value: {error}",
            expected="text, numbers, lists and mappings",
            do="write the value in full",
        ) from error


def with_prices(case: Case, table: PriceTable) -> tuple[Case, tuple[str, ...]]:
    """The case with the table's price for each device without one, and a sentence for each on its source.

    Raises:
        RequestError: a device or market without a price, or another currency than USD without its rate.
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
            do=f"add currency_per_usd, or give {key} in {case.currency}",
        )
    return Money(low=estimate.low * rate.low, typical=estimate.value * rate.typical, high=estimate.high * rate.high)


def _dollars(estimate: Estimate) -> str:
    return f"{estimate.value:g} USD ({estimate.low:g} to {estimate.high:g})"
