"""`luthier worth`: is fine-tuning worth it here? Yes, no or not settled, with the reasons."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from luthier.core.errors import RequestError
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, PageOption, PricesOption, open_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from luthier.core.results.roi_result import RoiResult
    from luthier.features.roi.service import RoiOutcome
    from luthier.ml.planning.roi.questions import Questions

_STYLES = {"yes": "bold green", "no": "bold red", "open": "bold yellow"}
_NUM_BARS = 6


def worth(
    case: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CASE]", help="The case, as YAML or JSON (keys: docs/roi.md). Without it: three questions."
        ),
    ] = None,
    answers_per_week: Annotated[
        float | None, typer.Option(metavar="N", help="Without a case: answers that people give per week.")
    ] = None,
    minutes_each: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Without a case: minutes that a person needs for one answer."),
    ] = None,
    cost_of_an_error: Annotated[
        float | None, typer.Option(metavar="MONEY", help="Without a case: what a wrong answer costs.")
    ] = None,
    accuracy_today: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Without a case: the share of answers that people get right, such as 0.95 or 47/50."
        ),
    ] = None,
    rate_per_hour: Annotated[
        float | None, typer.Option(metavar="MONEY", help="Without a case: what an hour of the people who answer costs.")
    ] = None,
    currency: Annotated[
        str | None, typer.Option(metavar="CODE", help="Without a case: the currency.", show_default="USD")
    ] = None,
    currency_per_usd: Annotated[
        float | None,
        typer.Option(
            metavar="MONEY",
            help="Without a case: what a US dollar costs in the currency, which defaults in money are converted at.",
        ),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option("--verdict", metavar="RUN", help="Take gains from this run's evaluation, not from the case."),
    ] = None,
    prices: PricesOption = None,
    html: PageOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Calculate whether fine-tuning pays off: payback time, 12-month value, break-even gain, and simpler alternatives.

    Without a case file, it asks three questions, or takes their answers as options, and lists the defaults that it
    uses.
    """
    from luthier.features.roi import service as roi_service

    asked = _Asked(
        answers_per_week,
        minutes_each,
        cost_of_an_error,
        accuracy_today,
        rate_per_hour,
        currency,
        currency_per_usd,
    )
    question = _case_or_questions(case, asked, may_ask=not as_json)
    with open_context(home) as context:
        found = roi_service.compute_roi(context, question, verdict=verdict, prices=prices, html=html)
    return Answer(as_json, found.as_json(), lambda console: _show(console, found))


class _Asked(NamedTuple):
    """The options in place of a case; None where they were not given."""

    answers_per_week: float | None
    minutes_each: float | None
    cost_of_an_error: float | None
    accuracy_today: str | None
    rate_per_hour: float | None
    currency: str | None
    currency_per_usd: float | None


_QUESTIONS = {
    "answers_per_week": "How many answers do people give a week?",
    "minutes_each": "How many minutes does one take?",
    "cost_of_an_error": "What does a wrong answer cost, beyond the work on it?",
}


def _case_or_questions(case: Path | None, asked: _Asked, *, may_ask: bool) -> Path | Questions:
    """The case file, or the three questions, those that are missing asked in a terminal.

    Raises:
        RequestError: both, or neither without a terminal.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in asked._asdict().items() if value is not None]
    if case is not None:
        if given:
            raise RequestError(
                f"the case {case} and {', '.join(given)}",
                expected="a case file, which says all of it, or the options",
                do="leave one of them out",
            )
        return case
    from luthier.ml.planning.roi.questions import DEFAULT_CURRENCY, Questions, read_accuracy

    numbers: dict[str, float] = {}
    missing = [name for name in _QUESTIONS if getattr(asked, name) is None]
    if missing and not (may_ask and sys.stdin.isatty()):
        raise RequestError(
            f"no case file, and no {', '.join('--' + name.replace('_', '-') for name in missing)}",
            expected="a case file, or all of --answers-per-week, --minutes-each and --cost-of-an-error",
            do="give them, or run it in a terminal without --json: it asks",
        )
    for name, question in _QUESTIONS.items():
        value = getattr(asked, name)
        numbers[name] = typer.prompt(question, type=float, err=True) if value is None else value
    given_accuracy = asked.accuracy_today
    accuracy, counted = (
        read_accuracy(given_accuracy, "--accuracy-today") if given_accuracy is not None else (None, None)
    )
    currency, per_usd = (asked.currency or DEFAULT_CURRENCY).upper(), asked.currency_per_usd
    if currency != DEFAULT_CURRENCY and per_usd is None and may_ask and sys.stdin.isatty():
        per_usd = typer.prompt(f"What does a US dollar cost in {currency}?", type=float, err=True)
    return Questions(
        **numbers,
        accuracy_today=accuracy,
        counted_today=counted,
        rate_per_hour=asked.rate_per_hour,
        currency=currency,
        currency_per_usd=per_usd,
    )


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
    turns = "where it would stop being worth more than" if result.breaks_even_below else "to be worth more than"
    _show_list(console, f"{turns} {against}, one thing at a time", result.changes)
    _show_ways(console, result)
    _show_tornado(console, result)
    _show_list(console, "assumptions and sources", result.notes)
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
    table = make_table(["what it depends on", "low", "worth then", "high", "worth then"])
    for bar in result.tornado[:_NUM_BARS]:
        low, high = (words.of_kind(value, bar.kind, currency) for value in (bar.low, bar.high))
        at_low, at_high = (words.money(value, currency) for value in (bar.value_at_low, bar.value_at_high))
        table.add_row(visible(bar.title), low, at_low, high, at_high)
    console.print(table)
