"""`luthier plan`: what a recipe comes to, and what it will cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.answer import Answer
from luthier.cli.opening import open_context
from luthier.cli.options import HomeOption, JsonOption, PricesOption, SetOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.advice import Advice
    from luthier.core.cost import Option, Quote
    from luthier.core.plan import Plan


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML or JSON.")],
    overrides: SetOption = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on", metavar="DEVICE", help="Plan for cpu, or NAME[:COUNT] as a100-80g:4. With --compare, repeatable."
        ),
    ] = None,
    is_probed: Annotated[
        bool, typer.Option("--probe", help="Run a few real steps on this machine first, and predict by them.")
    ] = False,
    prices: PricesOption = None,
    is_compared: Annotated[bool, typer.Option("--compare", help="Every method on every device, side by side.")] = False,
    is_spot: Annotated[bool, typer.Option("--spot", help="Prices of devices that may be taken away.")] = False,
    is_advised: Annotated[bool, typer.Option("--advise", help="Which method to take on this device, and why.")] = False,
    is_curved: Annotated[
        bool,
        typer.Option(
            "--learning-curve", help="Train on shares of the rows (kept as runs) and tell what more rows would buy."
        ),
    ] = False,
    budget_hours: Annotated[
        float | None,
        typer.Option("--budget-hours", metavar="H", help="With --learning-curve: hours for all of its runs together."),
    ] = None,
    chart: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE", help="Draw it: a file that ends in .svg or .png.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Read and check all rows, and print the complete plan: every value, where it comes from, and why.

    Below it the quote: memory, time, money and energy, each with the range in which it is expected to lie.
    """
    from luthier.core.cost import Market
    from luthier.plan.prices import load_prices
    from luthier.service import quotes
    from luthier.service.plans import prepare
    from luthier.service.recipes import load_recipe

    names = _names(on, is_compared)
    if chart is not None:
        from luthier.reporting.chart_file import check_chart_path

        check_chart_path(chart)
    if is_curved:
        from luthier.cli.learning_curve_text import learning_curve_answer

        alone = not (on or is_probed or is_compared or is_spot or is_advised)
        return learning_curve_answer(recipe, overrides or (), budget_hours, prices, chart, as_json, home, alone=alone)
    _refuse_budget_alone(budget_hours)
    market: Market = "spot" if is_spot else "on_demand"
    table, asked = load_prices(prices), load_recipe(recipe, overrides or ())
    for name in names:
        table.usd_per_hour(quotes.device_for(name).name, market=market)
    options: tuple[Option, ...] = ()
    advice: Advice | None = None
    with open_context(home) as context:
        prepared = prepare(context, asked, base_dir=recipe.absolute().parent, prices=prices)
        if is_compared:
            options = quotes.compare_options(
                context, prepared, on=names, prices=table, market=market, is_probed=is_probed
            )
            is_probed = False
        quote = quotes.quote_of(
            context,
            prepared,
            on=names[0] if names else None,
            prices=table,
            market=market,
            is_probed=is_probed,
        )
        if is_advised:
            from luthier.service.advice import advise

            advice = advise(context, prepared, on=names[0] if names else None, prices=table)
    if chart is not None:
        _draw(chart, quote, options)
    made = prepared.plan
    document: dict[str, Any] = {"hash": made.hash, "values": made.values(), "predicted": quote.as_json()}
    if is_compared:
        document["comparison"] = [option.as_json() for option in options]
    if advice is not None:
        document["advice"] = advice.as_json()
    document["plan"] = made.model_dump(mode="json")
    return Answer(as_json, document, lambda console: _show(console, made, quote, options, advice, chart))


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
    from luthier.plan.quote_chart import write_memory_chart, write_options_chart

    if options:
        write_options_chart(path, options)
    else:
        write_memory_chart(path, quote)


def _show(
    console: Console,
    made: Plan,
    quote: Quote,
    options: tuple[Option, ...],
    advice: Advice | None,
    chart: Path | None,
) -> None:
    from luthier.cli.quote_text import show_options, show_quote

    if options:
        show_options(console, options)
    else:
        _show_values(console, made)
        show_quote(console, quote)
    if advice is not None:
        from luthier.cli.advice_text import show_advice

        show_advice(console, advice)
    if chart is not None:
        console.print(f"chart {chart}", soft_wrap=True)
    console.print(f"plan {made.hash}", soft_wrap=True)


def _show_values(console: Console, made: Plan) -> None:
    from luthier.cli import figures
    from luthier.cli.console import make_table, visible

    table = make_table(["name", "value", "source", "why"], num_text_columns=4)
    for row in made.values():
        table.add_row(row["name"], visible(figures.plain(row["value"])), row["source"], visible(row["why"]))
    console.print(table)
