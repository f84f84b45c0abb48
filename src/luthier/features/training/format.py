"""Results of training as text: how a run fitted its rows, and its learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from luthier.core.run import Fit
from luthier.core.text.counted import counted
from luthier.platform.cli import figures
from luthier.platform.cli.command import Answer, open_context

if TYPE_CHECKING:
    from luthier.core.workflows.learning_curve import LearningCurve


def learning_curve_answer(
    recipe: Path,
    overrides: Sequence[str],
    hours: float | None,
    prices: Path | None,
    chart: Path | None,
    as_json: bool,
    home: Path | None,
    *,
    alone: bool,
) -> Answer:
    """Train on growing shares of the rows, and report the curve.

    Args:
        recipe: The file.
        overrides: `key=value`, as the command has them.
        hours: The budget of time; None for no limit.
        prices: A file of prices; None for those of the home.
        chart: Where the chart is written, as SVG or PNG; None for nowhere.
        as_json: Whether the answer is JSON.
        home: The folder of the home; None for the usual one.
        alone: Whether no other option of the plan was given.

    Raises:
        RequestError: Another option was given, or the chart has an unknown ending.
    """
    from luthier.core.errors import RequestError
    from luthier.features.recipes.service import load_recipe
    from luthier.features.training.repeated_runs import learning_curve
    from luthier.ml.charts.svg import check_chart_path

    if not alone:
        raise RequestError(
            "--learning-curve with --on, --probe, --compare, --spot or --advise",
            expected="one question at a time: a learning curve trains on this machine",
            do="leave the others out",
        )
    if chart is not None:
        # Before hours of training, at the end of which the chart could not be written.
        check_chart_path(chart)
    asked = load_recipe(recipe, overrides)
    with open_context(home) as context:
        curve = learning_curve(context, asked, base_dir=recipe.absolute().parent, hours=hours, prices=prices)
    if chart is not None and curve.points:
        from luthier.ml.planning.learning_curve import write_learning_curve_chart

        write_learning_curve_chart(chart, curve)
    return Answer(
        as_json, {"learning_curve": curve.as_json()}, lambda console: show_learning_curve(console, curve, chart)
    )


def show_learning_curve(console: Console, curve: LearningCurve, chart: Path | None = None) -> None:
    """Print points, the fitted law, the effect of more rows, the cost, and how to continue."""
    from luthier.platform.cli.console import facts, make_table, visible

    table = make_table(["share of rows", "rows", "validation loss", "hours", "run"], num_text_columns=1)
    for point in curve.points:
        # Both ends: two parts of equal size contain different rows.
        share = f"{point.part[0]:.2%} to {point.part[1]:.2%}"
        hours = figures.duration(point.hours * 3600)
        table.add_row(share, f"{point.num_rows:,}", figures.number(point.loss), hours, point.run_id)
    console.print(table)
    planned = figures.between(curve.planned_hours.times(3600), figures.duration)
    cap = "no cap" if curve.cap_hours is None else f"a cap of {figures.duration(curve.cap_hours * 3600)}"
    rows = [
        ("validated on", f"{counted(curve.num_validation_rows, 'row')}, the same for every run"),
        ("spent", f"{figures.duration(curve.spent_hours * 3600)} in all; predicted {planned}, {cap}"),
    ]
    fit = curve.fit
    if fit is not None:
        rows += [
            ("law", f"{figures.between(fit.floor, figures.number)} + {figures.number(fit.scale)} x rows^-"
             f"{figures.between(fit.exponent, figures.number)}; noise of a run {figures.number(fit.noise)} nats"),
            ("answer", fit.words),
        ]  # fmt: skip
        # If the effect of more rows is within the noise, figures for it would mislead.
        if fit.word == "useful":
            for gain in fit.gains:
                loss, bought = (figures.between(value, figures.number) for value in (gain.loss, gain.bought))
                rows.append((f"+{gain.more_rows:,} rows", f"loss {loss}, lower by {bought}"))
            enough = f"from about {fit.enough_rows:,} rows on" if fit.enough_rows else "not within a thousand times"
            rows.append(("enough", f"{enough} twice as many buy less than 1% of the loss"))
    if chart is not None and curve.points:
        rows.append(("chart", str(chart)))
    facts(console, rows)
    for note in curve.notes:
        console.print(f"note: {visible(note)}", soft_wrap=True)
    if curve.paused_because is not None:
        console.print(
            f"\nstopped: {visible(curve.paused_because)}\nThe same command continues where it stopped; "
            "with a larger --budget-hours where that was the reason.",
            soft_wrap=True,
        )


_STYLES = {"overfitted": "yellow", "unstable": "yellow", "still_learning": "yellow", "settled": "green"}


def show_fit(console: Console, fit: Fit) -> None:
    """The finding with its numbers, then the remedies, each with its settings."""
    console.print(
        Text.assemble((f"{fit.title}. ", f"bold {_STYLES.get(fit.kind, '')}".strip()), fit.seen), soft_wrap=True
    )
    for number, remedy in enumerate(fit.remedies, start=1):
        asks = f"  [{' '.join(f'--set {setting}' for setting in remedy.settings)}]" if remedy.settings else ""
        console.print(Text.assemble(f"  {number}. {remedy.text}", (asks, "dim")), soft_wrap=True)
