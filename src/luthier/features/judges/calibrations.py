"""Use cases: hold a judge against people, and ask later whether it was found fit."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import DataError, RequestError
from luthier.core.ids import new_id
from luthier.core.records.calibration import Calibration, Target
from luthier.features.judges.service import judge_name, open_judge, same_base
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.results.human_eval import RatingsTable

_MIN = 2


def calibrate(
    context: Context, project_id: str, judge: str, *, ratings: Path | None = None, panel: str | None = None
) -> tuple[Calibration, ...]:
    """Have a judge rate what people rated, measure how far they agree, and store that; one calibration a target.

    Raters who fail their attention checks are left out, and named.

    Args:
        judge: As `open_judge` takes it.
        ratings: A file that `luthier human-eval export` has written. Exactly one of this and `panel`.
        panel: The id of a panel of the project.

    Raises:
        RequestError: Not exactly one source, a wrong file, or a judge's name that cannot be.
        NotFoundError: No such panel, judge or file.
        DataError: Fewer than two items with ratings.
    """
    from luthier.ml.evaluation.judge.against_people import Occasion, targets_of
    from luthier.ml.evaluation.judge.against_people import calibrate as hold_against

    table, source = _ratings(context, project_id, ratings, panel)
    # Raters who do not read would make a good judge look bad: agreement is measured with the others only.
    table, cautions = _who_read(table)
    if len(table.real.by_item()) < _MIN:
        raise DataError(
            f"{source} has ratings of {len(table.real.by_item())} items by people who read",
            expected=f"at least {_MIN}, attention checks aside",
            do="wait until people have rated more",
        )
    name = judge_name(judge)
    occasion = Occasion(
        calibration_ids={target: new_id("calibration") for target in targets_of(table)},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        judge=name,
        source=source,
        cautions=(*cautions, *same_base(context, judge, {system: system for system in table.systems})),
    )
    with closing(open_judge(context, judge)) as engine:
        found = hold_against(engine, table, occasion, context.progress)
    for one in found:
        context.assessments.save(
            "calibration", one.calibration_id, one, project_id=project_id, subject=name, run_id=None
        )
    return found


def is_calibrated(context: Context, project_id: str, judge: str, target: Target) -> Calibration | None:
    """The newest calibration of a judge in a target, if it says that its figures may enter a gate; else None.

    One that was made with another form of the questions counts for nothing.
    """
    from luthier.ml.evaluation.judge.questions import form_digest

    # The digest of the questions: another wording is another instrument, and its calibration does not carry over.
    form = form_digest()
    # The newest alone decides: an older good calibration must not hide a later bad one.
    newest = next((one for one in calibrations(context, project_id, judge) if one.target == target), None)
    return newest if newest is not None and newest.form == form and newest.may_enter_gate else None


def calibrations(context: Context, project_id: str, judge: str | None = None) -> list[Calibration]:
    """A project's calibrations, newest first; of one judge where it is named."""
    subject = None if judge is None else judge_name(judge)
    return context.assessments.list("calibration", Calibration, project_id, subject=subject)


def _ratings(context: Context, project_id: str, ratings: Path | None, panel: str | None) -> tuple[RatingsTable, str]:
    from luthier.core.results.human_eval import RatingsTable

    if (ratings is None) == (panel is None):
        raise RequestError(
            "both --ratings and --panel" if ratings is not None else "neither --ratings nor --panel",
            expected="exactly one of the two",
            do="name a file of ratings, or a panel: luthier human-eval status lists them",
        )
    if ratings is not None:
        return RatingsTable.read(ratings), str(ratings)
    from luthier.features.human_eval.service import ratings_table

    assert panel is not None
    return ratings_table(context, project_id, panel), panel


def _who_read(table: RatingsTable) -> tuple[RatingsTable, tuple[str, ...]]:
    """The ratings without those of raters who fail their attention checks, and a sentence for each of these."""
    from luthier.ml.evaluation.panel.raters import FAILED_SHARE, MIN_FAILED

    left_out, sentences = [], []
    for rater in table.raters:
        checks = [row.passed for row in table.rows if row.rater == rater and row.is_check]
        num_failed = checks.count(False)
        # A number and a share: one slip in two checks is no evidence, nor are two slips in fifty.
        if num_failed >= MIN_FAILED and num_failed >= FAILED_SHARE * len(checks):
            left_out.append(rater)
            sentences.append(f"{rater} failed {num_failed} of {len(checks)} attention checks, and is left out.")
    return table.without(left_out), tuple(sentences)
