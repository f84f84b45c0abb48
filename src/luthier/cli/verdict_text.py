"""Evaluations, verdicts and warnings as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from luthier.cli import figures
from luthier.cli.console import make_table, visible
from luthier.core.evaluation import Evaluation, Metric, Verdict

_STYLES = {"better": "green", "worse": "red", "not distinguishable": "yellow"}
_PANEL_WIDTH = 100


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Systems against metrics with their 95% intervals, the comparisons, and the verdict."""
    names = list(dict.fromkeys(name for system in evaluation.systems for name in system.metrics))
    table = make_table(["system", *(f"{name} {_arrow(evaluation, name)}" for name in names), "rows"])
    for system in evaluation.systems:
        cells = [_interval(system.metrics.get(name)) for name in names]
        table.add_row(visible(system.name), *cells, f"{system.num_samples:,}")
    console.print(table)
    if evaluation.comparisons:
        compared = make_table(
            ["comparison", "metric", "verdict", "difference", "95% interval", "p"], num_text_columns=3
        )
        for one in evaluation.comparisons:
            needed = f" (about {one.rows_needed:,} rows would tell)" if one.rows_needed is not None else ""
            compared.add_row(
                visible(f"{one.candidate} - {one.baseline}"),
                one.metric,
                Text(one.verdict + needed, style=_STYLES[one.verdict]),
                f"{one.difference:+.4g}",
                f"{figures.number(one.low)} to {figures.number(one.high)}",
                f"{one.p_value:.2g}",
            )
        console.print(compared)
    for system in evaluation.systems:
        if system.num_cut_off:
            console.print(
                f"{visible(system.name)}: {system.num_cut_off:,} of {system.num_samples:,} outputs were cut off at the "
                f"token limit",
                soft_wrap=True,
            )
    if evaluation.verdict is not None:
        console.print(verdict_panel(console, evaluation.verdict))


def verdict_panel(console: Console, verdict: Verdict) -> Panel:
    """The answer in words, with what it rests on."""
    text = Text(visible(verdict.headline), style="bold")
    for line in verdict.details:
        text.append(f"\n{visible(line)}", style="not bold")
    for line in verdict.caveats:
        text.append(f"\nbut: {visible(line)}", style="not bold yellow")
    width = min(console.width, _PANEL_WIDTH)
    shape = box.ROUNDED if console.encoding.lower().startswith("utf") else box.ASCII
    return Panel(text, title=f"Verdict: {verdict.word}", border_style=_STYLES[verdict.word], width=width, box=shape)


def print_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Warnings, one a line."""
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), visible(warning)), soft_wrap=True)


def _arrow(evaluation: Evaluation, name: str) -> str:
    metric = next(system.metrics[name] for system in evaluation.systems if name in system.metrics)
    return f"({metric.unit}, {'higher' if metric.higher_is_better else 'lower'} is better)"


def _interval(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{figures.number(metric.value)} [{figures.number(metric.low)}, {figures.number(metric.high)}]"
