"""`luthier worth`: is fine-tuning worth it here? Yes, no or not settled, with the reasons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, PageOption, PricesOption, open_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from luthier.core.results.roi_result import RoiResult
    from luthier.features.roi.service import RoiOutcome

_STYLES = {"yes": "bold green", "no": "bold red", "open": "bold yellow"}
_NUM_BARS = 6


def worth(
    case: Annotated[Path, typer.Argument(metavar="CASE", help="YAML or JSON; docs/roi.md explains its keys.")],
    verdict: Annotated[
        str | None,
        typer.Option("--verdict", metavar="RUN", help="Take gains from this run's evaluation, not from the case."),
    ] = None,
    prices: PricesOption = None,
    html: PageOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Weigh a case: payback, 12-month value, break-even gain, and what plainer ways would be worth."""
    from luthier.features.roi import service as roi_service

    with open_context(home) as context:
        found = roi_service.compute_roi(context, case, verdict=verdict, prices=prices, html=html)
    return Answer(as_json, found.as_json(), lambda console: _show(console, found))


def _show(console: Console, found: RoiOutcome) -> None:
    from rich.text import Text

    from luthier.ml.planning.roi.answer import key_figures
    from luthier.platform.cli.console import facts, visible

    result = found.result
    console.print(visible(result.case.name), soft_wrap=True)
    console.print(Text(visible(result.headline), style=_STYLES[result.answer]), soft_wrap=True)
    console.print()
    facts(console, [(one.name, f"{one.value}  ({one.note})" if one.note else one.value) for one in key_figures(result)])
    _show_list(console, "why", result.reasons)
    against = result.break_evens[0].against
    turns = "where it would stop being worth more than" if result.answer == "yes" else "to be worth more than"
    _show_list(console, f"{turns} {against}, one thing at a time", result.changes)
    _show_ways(console, result)
    _show_tornado(console, result)
    _show_list(console, "what it rests on", result.notes)
    if found.report is not None:
        console.print(f"\nreport   {visible(str(found.report))}", soft_wrap=True)


def _show_list(console: Console, title: str, lines: Sequence[str]) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import visible

    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    for line in lines:
        console.print(visible(f"  {line}"), soft_wrap=True)


def _show_ways(console: Console, result: RoiResult) -> None:
    from luthier.ml.planning.roi.answer import way_rows
    from luthier.platform.cli.console import make_table, visible

    table = make_table(["way", "gain", "serving a month", "once", "worth", "95% of draws", "pays", "tuned worth more"])
    for row in way_rows(result):
        table.add_row(
            visible(row.title),
            row.gain,
            row.serving,
            row.once,
            row.value,
            row.interval,
            row.pays,
            row.tuned_is_worth_more,
        )
    console.print()
    console.print(table)
    for way in result.not_priced:
        console.print(visible(f"not priced: {way.title.lower()} ({way.needs})"), soft_wrap=True)


def _show_tornado(console: Console, result: RoiResult) -> None:
    from luthier.ml.planning.roi import words
    from luthier.platform.cli.console import make_table, visible

    if not result.tornado:
        return
    currency = result.case.currency
    table = make_table(["what it hangs on", "low", "worth then", "high", "worth then"])
    for bar in result.tornado[:_NUM_BARS]:
        low, high = (words.of_kind(value, bar.kind, currency) for value in (bar.low, bar.high))
        at_low, at_high = (words.money(value, currency) for value in (bar.value_at_low, bar.value_at_high))
        table.add_row(visible(bar.title), low, at_low, high, at_high)
    console.print(table)
