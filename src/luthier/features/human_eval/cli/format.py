"""The report of a panel as text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.core.estimate import Estimate
from luthier.core.results.human_eval_report import PanelFigures, PanelReport, RaterReport
from luthier.core.text.counted import counted
from luthier.features.evaluations.verdict_format import STYLES
from luthier.ml.charts import figures
from luthier.platform.cli.console import make_table, visible

MEASURES = {
    "krippendorff_alpha": "Krippendorff's alpha",
    "fleiss_kappa": "Fleiss' kappa",
    "cohen_kappa": "Cohen's kappa",
}


def show_report(console: Console, report: PanelReport) -> None:
    """Raters, agreement and figures; with and without those who seem not to read; what to beware of."""
    panel = report.panel
    state = "open" if panel.closed_at is None else "closed"
    console.print(
        f"{panel.panel_id}: {visible(panel.name)}, {panel.kind}, {counted(panel.num_items, 'item')}, {state}",
        soft_wrap=True,
    )
    console.print(_raters(report))
    for rater in report.raters:
        for reason in rater.caught:
            console.print(Text(f"{visible(rater.name)} {reason}", style="red"), soft_wrap=True)
        for note in rater.notes:
            console.print(f"{visible(rater.name)}: {visible(note)}", soft_wrap=True)
    _show_figures(console, report.everyone, "Everyone" if report.without_caught else "")
    if report.without_caught is not None:
        _show_figures(console, report.without_caught, f"Without {visible(', '.join(report.caught))}")
    for caution in report.cautions:
        console.print(Text(f"Note: {visible(caution)}", style="yellow"), soft_wrap=True)


def _raters(report: PanelReport) -> Table:
    headers = ["rater", "link", "rated", "checks failed", "time an item", "alpha with others", "most frequent answer"]
    table = make_table(headers, num_text_columns=2)
    for rater in report.raters:
        table.add_row(visible(rater.name), "yes" if rater.has_link else "no", *_cells(rater))
    return table


def _cells(rater: RaterReport) -> list[str]:
    share = "-" if rater.most_said_share is None else f"{visible(rater.most_said)} {rater.most_said_share:.0%}"
    return [
        f"{rater.num_rated} of {rater.num_items}",
        f"{rater.num_failed} of {rater.num_checks}",
        "-" if rater.median_seconds is None else figures.duration(rater.median_seconds),
        "-" if rater.agreement is None else _estimate(rater.agreement),
        share,
    ]


def _show_figures(console: Console, found: PanelFigures, title: str) -> None:
    if title:
        console.print(Text(title, style="bold"))
    if found.agreements:
        table = make_table(["agreement", "of", "raters", "items", "figure", "same answer"], num_text_columns=2)
        for one in found.agreements:
            numbers = (str(one.num_raters), str(one.num_items), _estimate(one.estimate), f"{one.raw:.0%}")
            table.add_row(MEASURES[one.measure], one.criterion or "preference", *numbers)
        console.print(table)
        for caution in dict.fromkeys(one.caution for one in found.agreements if one.caution):
            console.print(Text(f"Note: {caution}", style="yellow"), soft_wrap=True)
    if found.win_rates:
        console.print(_win_rates(found))
    if found.standings:
        table = make_table(["system", "strength (log, Bradley-Terry)"])
        for standing in found.standings:
            ends = ", ".join("open" if end is None else figures.number(end, 2) for end in (standing.low, standing.high))
            table.add_row(visible(standing.system), f"{figures.number(standing.value, 2)} [{ends}]")
        console.print(table)
    if found.ranking_caution:
        console.print(Text(f"Note: {found.ranking_caution}", style="yellow"), soft_wrap=True)
    if found.scores:
        table = make_table(["score", "system", "ratings", "mean"], num_text_columns=2)
        for score in found.scores:
            table.add_row(score.criterion, visible(score.system), str(score.num_ratings), _estimate(score.mean))
        console.print(table)
    if found.differences:
        console.print(_differences(found))


def _win_rates(found: PanelFigures) -> Table:
    headers = ["system", "against", "rows", "wins", "losses", "ties", "win rate", "p", "verdict", "rows needed"]
    table = make_table(headers, num_text_columns=2)
    for one in found.win_rates:
        counts = (one.num_rows, one.num_wins, one.num_losses, one.num_ties)
        needed = "-" if one.rows_needed is None else f"about {one.rows_needed:,}"
        word = Text(one.word, style=STYLES[one.word])
        numbers = [*map(str, counts), _estimate(one.rate), figures.p_value(one.p_value)]
        table.add_row(visible(one.system), visible(one.against), *numbers, word, needed)
    return table


def _differences(found: PanelFigures) -> Table:
    headers = ["score", "system", "against", "difference", "p", "verdict", "rows needed"]
    table = make_table(headers, num_text_columns=3)
    for one in found.differences:
        needed = "-" if one.rows_needed is None else f"about {one.rows_needed:,}"
        word = Text(one.word, style=STYLES[one.word])
        names = (one.criterion, visible(one.system), visible(one.against))
        table.add_row(*names, _estimate(one.difference), figures.p_value(one.p_value), word, needed)
    return table


def _estimate(one: Estimate) -> str:
    decimals = figures.decimals_for(one.low, one.high)
    return f"{figures.number(one.value, decimals)} {figures.interval(one.low, one.high, decimals)}"
