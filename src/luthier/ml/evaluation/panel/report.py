"""The report of a panel: its raters, its figures with and without those who seem not to read, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.results.human_eval import Rater, RatingPanel, RatingsTable
from luthier.core.results.human_eval_report import PanelReport, RaterReport
from luthier.ml.evaluation.panel.figures import panel_figures
from luthier.ml.evaluation.panel.raters import rater_reports


def report(panel: RatingPanel, people: Sequence[Rater], table: RatingsTable) -> PanelReport:
    """All figures of a panel so far."""
    reports = rater_reports(panel, people, table)
    caught = [one.name for one in reports if one.caught]
    without = table.without(caught)
    return PanelReport(
        panel=panel,
        raters=reports,
        everyone=panel_figures(table),
        without_caught=panel_figures(without) if caught and without.rows else None,
        cautions=_cautions(panel, reports, table),
    )


def _cautions(panel: RatingPanel, reports: Sequence[RaterReport], table: RatingsTable) -> tuple[str, ...]:
    found = []
    if caught := [one.name for one in reports if one.caught]:
        whom = ", ".join(caught)
        verb = "seems" if len(caught) == 1 else "seem"
        if len(caught) == len({row.rater for row in table.rows}):
            found.append(f"{whom} {verb} not to read, and nobody else has rated: these figures tell nothing.")
        else:
            found.append(f"{whom} {verb} not to read: figures stand with and without them, nothing is dropped.")
    behind = [one for one in reports if not one.is_done]
    if table.rows and behind:
        told = ", ".join(f"{one.name} ({one.num_rated} of {one.num_items})" for one in behind)
        found.append(f"Not all have rated everything: {told}. Items that more people have rated weigh more.")
    if panel.num_same:
        found.append(
            f"{panel.num_same} pairs are not shown, because both answers are the same text; the win rate is of the "
            "others alone."
        )
    if panel.num_left_out:
        found.append(f"{panel.num_left_out} rows were too long for one of the systems and are not rated.")
    if panel.num_checks == 0:
        found.append("There are no attention checks: who clicks at random is seen only by disagreeing with others.")
    if len(reports) < 2:
        found.append("One rater: whether others would say the same is not known.")
    return tuple(found)
