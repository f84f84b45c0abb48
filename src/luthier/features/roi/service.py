"""Use case: is fine-tuning worth it? A case file, prices, perhaps a verdict; an answer, perhaps a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.features.datasets.file_audits import check_is_not_input
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.results.roi_result import RoiResult


@dataclass(frozen=True, slots=True)
class RoiOutcome:
    """An answer. report: the HTML page, where one was asked for."""

    result: RoiResult
    report: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier worth --json`."""
        return {**self.result.model_dump(mode="json"), "report": str(self.report) if self.report else None}


def compute_roi(
    context: Context, file: Path, *, verdict: str | None = None, prices: Path | None = None, html: Path | None = None
) -> RoiOutcome:
    """Answer a case file. The same files and the same evaluation give the same answer.

    verdict: a run, whose last evaluation is taken, or an evaluation; in place of assumed gains. prices: entries that
    replace those of the shipped table. html: where to write the page; its folder is made where it is missing.

    Raises NotFoundError (a file, run or evaluation that is not there), RequestError (a case that is wrong or
    contradicts itself, a missing price), ConflictError (see `measured_gains`), StorageFullError.
    """
    from luthier.features.roi.case import load_case, with_prices
    from luthier.features.roi.verdict import measured_gains
    from luthier.ml.planning.prices import load_prices
    from luthier.ml.planning.roi import check_case, worth

    check_is_not_input(html, file, prices)
    table, case = load_prices(prices), load_case(file)
    measured = measured_gains(context, verdict, case) if verdict is not None else None
    check_case(case, measured)
    priced, sources = with_prices(case, table)
    if prices is not None and not sources:
        sources = (f"No price of {prices} was needed: the case says all of them itself.",)
    result = worth(priced, measured, sources=sources)
    if html is None:
        return RoiOutcome(result)
    from luthier.ml.planning.roi.report import write_roi_report

    return RoiOutcome(result, write_roi_report(html, result, case_file=str(file), verdict=verdict))
