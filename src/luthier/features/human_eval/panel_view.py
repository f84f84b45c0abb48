"""The tables and charts of a panel of raters, put together for its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.results.human_eval_report import Agreement, Estimate, PanelFigures, PanelReport
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import Tone, tone_of
from luthier.ml.charts.spec import Axis, Intervals, Role
from luthier.ml.charts.spec import Estimate as Drawn

MEASURES: Final = {
    "krippendorff_alpha": "Krippendorff's alpha",
    "fleiss_kappa": "Fleiss' kappa",
    "cohen_kappa": "Cohen's kappa",
}
_ROLES: Final[tuple[Role, ...]] = ("other-1", "other-2", "other-3")


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A figure with its interval and what it means.

    Attributes:
        name: What it is about.
        about: The metric or criterion.
        value: The figure.
        interval: Its 95% interval.
        counts: What it was computed from.
        p_value: The p-value of a difference.
        word: The verdict.
        tone: Whether it is shown as good or bad.
        rows_needed: How many rows would decide it; None where it is decided, or unknown.
    """

    name: str
    about: str
    value: str
    interval: str
    counts: str = ""
    p_value: str = ""
    word: str = ""
    tone: Tone = "quiet"
    rows_needed: int | None = None


@dataclass(frozen=True, slots=True)
class FiguresView:
    """Everything that follows from one set of ratings.

    Attributes:
        title: Whose ratings they are.
        found: The figures.
        agreements: Agreement between raters, a row for each measure.
        agreement_cautions: What limits these.
        rows: Win rates, rankings, scores and differences.
        charts: The same as charts.
    """

    title: str
    found: PanelFigures
    agreements: list[FigureRow]
    agreement_cautions: list[str]
    rows: list[FigureRow]
    charts: list[Intervals]


def views_of(report: PanelReport) -> list[FiguresView]:
    """One for all raters, and where some seem not to read another one without them, which comes first."""
    everyone = _view("Everyone", "all", report.everyone)
    if report.without_caught is None:
        return [everyone]
    return [_view(f"Without {', '.join(report.caught)}", "without", report.without_caught), everyone]


def shown_estimate(one: Estimate) -> tuple[str, str]:
    """A figure and its interval, as precise as the interval is narrow."""
    # More digits than the interval supports would pretend a precision that the data does not have.
    decimals = figures.decimals_for(one.low, one.high)
    return figures.number(one.value, decimals), figures.interval(one.low, one.high, decimals)


def _view(title: str, key: str, found: PanelFigures) -> FiguresView:
    cautions = list(dict.fromkeys(one.caution for one in found.agreements if one.caution))
    rows = [*_win_rates(found), *_standings(found), *_scores(found), *_differences(found)]
    agreements = [_agreement(one) for one in found.agreements]
    return FiguresView(title, found, agreements, cautions, rows, _charts(key, found))


def _agreement(one: Agreement) -> FigureRow:
    value, interval = shown_estimate(one.estimate)
    counts = f"{one.num_raters} raters, {one.num_items} items; {one.raw:.0%} of pairs said the same"
    return FigureRow(MEASURES[one.measure], one.criterion or "preference", value, interval, counts)


def _win_rates(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.win_rates:
        value, interval = shown_estimate(one.rate)
        counts = f"{one.num_wins} wins, {one.num_losses} losses, {one.num_ties} ties on {one.num_rows} rows"
        rows.append(
            FigureRow(
                name=f"{one.system} against {one.against}",
                about="win rate",
                value=value,
                interval=interval,
                counts=counts,
                p_value=figures.p_value(one.p_value),
                word=one.word,
                tone=tone_of(one.word),
                rows_needed=one.rows_needed,
            )
        )
    return rows


def _standings(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.standings:
        low, high = ("open" if end is None else figures.number(end, 2) for end in (one.low, one.high))
        interval = f"[{low}, {high}]"
        rows.append(FigureRow(one.system, "strength (log)", figures.number(one.value, 2), interval, "Bradley-Terry"))
    return rows


def _scores(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.scores:
        value, interval = shown_estimate(one.mean)
        rows.append(FigureRow(one.system, one.criterion, value, interval, f"{one.num_ratings} ratings"))
    return rows


def _differences(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.differences:
        value, interval = shown_estimate(one.difference)
        rows.append(
            FigureRow(
                name=f"{one.system} less {one.against}",
                about=one.criterion,
                value=value,
                interval=interval,
                p_value=figures.p_value(one.p_value),
                word=one.word,
                tone=tone_of(one.word),
                rows_needed=one.rows_needed,
            )
        )
    return rows


def _charts(key: str, found: PanelFigures) -> list[Intervals]:
    charts = []
    if found.win_rates:
        above = [
            # Percentage points above a coin toss, so that zero means no preference.
            Estimate(value=100 * r.value - 50, low=100 * r.low - 50, high=100 * r.high - 50)
            for r in (one.rate for one in found.win_rates)
        ]
        names = [f"{one.system} over {one.against}" for one in found.win_rates]
        caption = "Right of zero: preferred more often than not. An interval over zero tells nothing."
        axis = Axis("win rate less 50%", "percentage points")
        rows = _drawn(names, above)
        charts.append(Intervals(f"{key}-wins", "Who is preferred", axis, rows, zero=True, caption=caption))
    if found.standings:
        ends = [end for one in found.standings for end in (one.value, one.low, one.high) if end is not None]
        strengths = [  # an open interval is drawn to the end of the picture
            Estimate(
                value=one.value,
                # Bradley-Terry strengths diverge for a system that won or lost every comparison.
                low=min(ends) - 1 if one.low is None else one.low,
                high=max(ends) + 1 if one.high is None else one.high,
            )
            for one in found.standings
        ]
        rows = _drawn([one.system for one in found.standings], strengths)
        caption = "Zero is the mean of all systems; 1.1 more is preferred three times out of four."
        caption += f" {found.ranking_caution}" if found.ranking_caution else ""
        axis = Axis("strength by Bradley and Terry", "log")
        charts.append(Intervals(f"{key}-standing", "Ranking of all systems", axis, rows, zero=True, caption=caption))
    for criterion in dict.fromkeys(one.criterion for one in found.scores):
        of_it = [one for one in found.scores if one.criterion == criterion]
        rows = _drawn([one.system for one in of_it], [one.mean for one in of_it])
        axis = Axis(criterion, "1 to 5", low=1, high=5)
        charts.append(Intervals(f"{key}-{criterion}", f"{criterion.capitalize()} of each system", axis, rows))
    return charts


def _drawn(names: Sequence[str], found: Sequence[Estimate]) -> list[Drawn]:
    pairs = zip(names, found, strict=True)
    return [
        Drawn(name, one.value, one.low, one.high, _ROLES[place % len(_ROLES)])
        for place, (name, one) in enumerate(pairs)
    ]
