"""`luthier plan`: the plan of a recipe, and its price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, PricesOption, SetOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.plan import Plan
    from luthier.core.records.advice import Advice
    from luthier.core.results.cost import Market, Option, Quote
    from luthier.platform.home.context import Context

OnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--on", metavar="DEVICE", help="Plan for cpu, or NAME[:COUNT] such as a100-80g:4. Repeatable with --compare."
    ),
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Show every value with its source and reason, and the full quote.")
]
ProbedOption = Annotated[
    bool, typer.Option("--probe", help="Run a few real steps on this machine first, and predict from them.")
]
ComparedOption = Annotated[bool, typer.Option("--compare", help="Compare every method on every device, side by side.")]
SpotOption = Annotated[bool, typer.Option("--spot", help="Use spot prices: devices that may be withdrawn at any time.")]
AdvisedOption = Annotated[bool, typer.Option("--advise", help="Recommend a method for this device, with the reasons.")]
CurvedOption = Annotated[
    bool,
    typer.Option(
        "--learning-curve", help="Train on shares of the rows (kept as runs) and predict the gain from more rows."
    ),
]
CurveHoursOption = Annotated[
    float | None,
    typer.Option("--budget-hours", metavar="H", help="With --learning-curve: total hours for all its runs."),
]
ChartOption = Annotated[
    Path | None, typer.Option("--chart", metavar="FILE", help="Write a chart to this file, .svg or .png.")
]


@dataclass(frozen=True, slots=True)
class _Made:
    """The answer of `luthier plan`: plan, prediction and comparisons."""

    plan: Plan
    quote: Quote
    options: tuple[Option, ...]
    advice: Advice | None
    chart: Path | None
    head_advice: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier plan --json`."""
        from luthier.features.planning.remote_judges import judge_costs

        document: dict[str, Any] = {"hash": self.plan.hash, "values": self.plan.values()}
        document["predicted"] = self.quote.as_json()
        if costs := judge_costs(self.plan):
            document["judges"] = [cost.as_json() for cost in costs]
        if self.options:
            document["comparison"] = [option.as_json() for option in self.options]
        if self.advice is not None:
            document["advice"] = self.advice.as_json()
        return document | {"plan": self.plan.model_dump(mode="json")}


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, as YAML or JSON.")],
    overrides: SetOption = None,
    on: OnOption = None,
    is_probed: ProbedOption = False,
    prices: PricesOption = None,
    is_compared: ComparedOption = False,
    is_spot: SpotOption = False,
    is_advised: AdvisedOption = False,
    is_curved: CurvedOption = False,
    budget_hours: CurveHoursOption = None,
    chart: ChartOption = None,
    shows_all: AllOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Read and check all rows, and show what will be trained, how long it takes, and what it costs.

    With --all, it shows every value of the plan with its source and reason, and the full quote: memory part by part,
    time, money and energy, each with its expected range.
    """
    names = _names(on, is_compared)
    if chart is not None:
        from luthier.ml.charts.svg import check_chart_path

        check_chart_path(chart)
    if is_curved:
        from luthier.features.training.format import learning_curve_answer

        # A learning curve trains on this machine, so options for other devices do not apply.
        alone = not (on or is_probed or is_compared or is_spot or is_advised)
        return learning_curve_answer(recipe, overrides or (), budget_hours, prices, chart, as_json, home, alone=alone)
    _refuse_budget_alone(budget_hours)
    with open_context(home) as context:
        made = _make(
            context,
            recipe,
            overrides or (),
            names=names,
            prices=prices,
            market="spot" if is_spot else "on_demand",
            is_probed=is_probed,
            is_compared=is_compared,
            is_advised=is_advised,
            chart=chart,
        )
    if chart is not None:
        _draw(chart, made.quote, made.options)
    return Answer(as_json, made.as_json(), lambda console: _show(console, made, shows_all=shows_all))


def _make(
    context: Context,
    recipe: Path,
    overrides: Sequence[str],
    *,
    names: Sequence[str],
    prices: Path | None,
    market: Market,
    is_probed: bool,
    is_compared: bool,
    is_advised: bool,
    chart: Path | None,
) -> _Made:
    from luthier.features.planning import quotes
    from luthier.features.planning.quotes import advise
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import load_recipe
    from luthier.ml.planning.devices import check_device_name, load_prices

    for name in names:
        check_device_name(name)
    # Names, prices and the recipe are checked before rows are read, which may take minutes.
    table, asked = load_prices(prices), load_recipe(recipe, overrides)
    for name in names:
        # Only for its error: a device without a price is rejected now.
        table.usd_per_hour(quotes.device_for(context, name).name, market=market)
    prepared = prepare(context, asked, base_dir=recipe.absolute().parent, prices=prices)
    options: tuple[Option, ...] = ()
    if is_compared:
        options = quotes.compare_options(context, prepared, on=names, prices=table, market=market, is_probed=is_probed)
    # With --compare the quote itself is for the first device.
    first = names[0] if names else None
    # With --compare the comparison has run the probe already.
    quote = quotes.quote_of(
        context, prepared, on=first, prices=table, market=market, is_probed=is_probed and not is_compared
    )
    advice = advise(context, prepared, on=first, prices=table) if is_advised else None
    # The whole advice has it among its reasons.
    of_head = () if is_advised or is_compared else quotes.head_advice(context, prepared, on=first)
    return _Made(prepared.plan, quote, options, advice, chart, of_head)


def _names(on: list[str] | None, is_compared: bool) -> list[str]:
    from luthier.core.errors import RequestError

    names = on or []
    if len(names) > 1 and not is_compared:
        raise RequestError(
            f"--on {len(names)} times: {', '.join(names)}",
            expected="one device, or more of them with --compare",
            do="add --compare",
        )
    return names


def _refuse_budget_alone(budget_hours: float | None) -> None:
    from luthier.core.errors import RequestError

    if budget_hours is not None:
        raise RequestError(
            "--budget-hours without --learning-curve: a plan spends nothing",
            expected="--learning-curve, or a cap for the run itself",
            do=f"add --learning-curve, or plan with --set budget.hours={budget_hours:g}",
        )


def _draw(path: Path, quote: Quote, options: tuple[Option, ...]) -> None:
    from luthier.ml.planning.quote_chart import write_memory_chart, write_options_chart

    if options:
        write_options_chart(path, options)
    else:
        write_memory_chart(path, quote)


def _show(console: Console, made: _Made, *, shows_all: bool) -> None:
    from luthier.core.dataset import coverage
    from luthier.features.planning.format import show_advice, show_options, show_quote
    from luthier.platform.cli.console import visible

    if made.options:
        show_options(console, made.options)
    elif shows_all:
        _show_values(console, made.plan)
        show_quote(console, made.quote)
    else:
        _show_summary(console, made)
    for sentence in made.head_advice:
        console.print(f"  advice     {visible(sentence)}", soft_wrap=True)
    if made.advice is not None:
        show_advice(console, made.advice)
    if made.chart is not None:
        console.print(f"chart {made.chart}", soft_wrap=True)
    # Empty if the rows have no split.
    if proved := coverage(made.plan.data):
        console.print(proved, soft_wrap=True)
    console.print(f"plan {made.plan.hash}", soft_wrap=True)
    if not shows_all and not made.options:
        console.print("every value with its reason, and the whole quote: add --all", soft_wrap=True)


def _show_summary(console: Console, made: _Made) -> None:
    """The plan in about ten lines that fit a terminal."""
    from luthier.features.planning.format import plan_lines, quote_lines, show_changes
    from luthier.platform.cli.console import visible

    for line in [*plan_lines("", made.plan, made.quote.prediction.device), *quote_lines(made.quote)]:
        console.print(visible(line), soft_wrap=True)
    for note in made.quote.prediction.notes:
        console.print(f"  note       {visible(note)}", soft_wrap=True)
    if not made.quote.prediction.fits:
        show_changes(console, made.quote.changes, made.quote.prediction.device)


def _show_values(console: Console, made: Plan) -> None:
    from luthier.features.planning.format import data_notes
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import make_table, visible

    table = make_table(["name", "value", "source", "why"], num_text_columns=4)
    for row in made.shown_values():
        table.add_row(row["name"], visible(figures.plain(row["value"])), row["source"], visible(row["why"]))
    console.print(table)
    for note in data_notes(made.data):
        console.print(visible(f"columns of {note}"), soft_wrap=True)
