"""Evaluations, verdicts and warnings as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Evaluation, Metric, SystemResult, Verdict
from luthier.core.text.printed_commands import in_home
from luthier.ml.charts.judged_rows import on_scale, thinking_sentence, units_of
from luthier.platform.cli import figures
from luthier.platform.cli.console import make_table, visible

STYLES = {"better": "green", "worse": "red", NOT_DISTINGUISHABLE: "yellow"}
_PANEL_WIDTH = 100


def show_evaluation(console: Console, evaluation: Evaluation, *, only_what_decides: bool = False) -> None:
    """Metrics of all systems with their 95% intervals, the alternatives, the comparisons, and the verdict.

    Args:
        console: Where it is printed.
        evaluation: What is shown.
        only_what_decides: Leave out the comparisons that the verdict does not rest on.
    """
    for note in evaluation.rows_notes:
        console.print(visible(note), soft_wrap=True)
    console.print(_metrics_table(evaluation))
    if evaluation.verdict is not None and any(not _has_column(one) for one in evaluation.systems):
        console.print(_alternatives_table(evaluation, evaluation.verdict.metric))
    elif evaluation.baselines_left_out:
        console.print(visible(f"Without baselines: {'; '.join(evaluation.baselines_left_out)}"), soft_wrap=True)
    verdict, judged = evaluation.verdict, evaluation.systems[-1].name
    chosen = [
        one
        for one in evaluation.comparisons
        if not only_what_decides or verdict is None or (one.candidate, one.metric) == (judged, verdict.metric)
    ]
    if chosen:
        console.print(_comparisons_table(chosen, evaluation))
    if evaluation.label_confidence_left_out:
        line = f"Without the probabilities of labels: {evaluation.label_confidence_left_out}"
        console.print(visible(line), soft_wrap=True)
    if evaluation.forgetting is not None and evaluation.forgetting.word != "worse":  # else it is a caveat
        console.print(visible(evaluation.forgetting.sentence), soft_wrap=True)
    if evaluation.kl_to_base is not None:
        console.print(visible(evaluation.kl_to_base.sentence), soft_wrap=True)
    if evaluation.verdict is not None:
        console.print(verdict_panel(console, evaluation.verdict))
        show_recommendation(console, evaluation)
        return
    for system in evaluation.systems:  # where there is a verdict, its caveats state it
        if (thought := thinking_sentence(system)) is not None:
            console.print(visible(thought), soft_wrap=True)
        if system.num_cut_off:
            cut = f"{system.num_cut_off:,} of {system.num_samples:,} outputs were cut off at the token limit"
            console.print(f"{visible(system.name)}: {cut}", soft_wrap=True)


def show_recommendation(console: Console, evaluation: Evaluation) -> None:
    """The evaluation in one sentence, the recommended action and its reason; nothing without a verdict."""
    from luthier.ml.evaluation.verdict_view import verdict_view

    view = verdict_view(evaluation)
    if view is None or view.recommendation is None:
        return
    console.print(visible(view.sentence), soft_wrap=True)
    console.print(Text(visible(f"Recommended: {view.recommendation.title}"), style="bold"), soft_wrap=True)
    console.print(visible(view.recommendation.reason), soft_wrap=True)


def verdict_panel(console: Console, verdict: Verdict) -> Panel:
    """The verdict as text: headline, the figures behind it, caveats. The tables have the other metrics."""
    text = Text.assemble((visible(verdict.headline), "bold"))
    for line in verdict.details[: verdict.num_primary_details]:
        text.append(f"\n{visible(line)}")
    if verdict.learning_curve is not None:
        text.append(f"\n{visible(verdict.learning_curve.advice)}")
    for line in verdict.caveats:
        text.append(f"\nNote: {visible(line)}", style="yellow")
    width = min(console.width, _PANEL_WIDTH)
    shape = box.ROUNDED if console.encoding.lower().startswith("utf") else box.ASCII
    return Panel(text, title=f"Verdict: {verdict.title}", border_style=STYLES[verdict.word], width=width, box=shape)


def _has_column(system: SystemResult) -> bool:
    """Whether all metrics of a system are shown: of models, and of their prompts those with drawn examples alone."""
    own = system.prompting
    return system.is_model and (own is None or (own.kind == "few_shot" and own.examples != "nearest"))


def _metrics_table(evaluation: Evaluation) -> Table:
    models = [system for system in evaluation.systems if _has_column(system)]
    table = make_table(["metric", "unit", *(visible(system.name) for system in models)], num_text_columns=2)
    metrics = {name: metric for system in models for name, metric in system.metrics.items()}
    for name, metric in metrics.items():
        cells = [interval(system.metrics.get(name)) for system in models]
        table.add_row(name, f"{metric.unit}, {'higher' if metric.higher_is_better else 'lower'} is better", *cells)
    table.add_row("rows", "", *(f"{system.num_samples:,}" for system in models))
    return table


def _alternatives_table(evaluation: Evaluation, metric: str) -> Table:
    """Other prompts, and what answers without a language model: by the verdict's metric, since that decides."""
    table = make_table(["alternative", metric, "seconds", "tokens added to a prompt"], num_text_columns=1)
    for system in evaluation.systems:
        if not _has_column(system):
            added = "-" if system.prompting is None else f"{system.prompting.extra_prompt_tokens:,.0f}"
            table.add_row(visible(system.name), interval(system.metrics.get(metric)), f"{system.seconds:.2g}", added)
    return table


def _comparisons_table(comparisons: Sequence[Comparison], evaluation: Evaluation) -> Table:
    table = make_table(["comparison", "metric", "verdict", "difference", "95% interval", "p"], num_text_columns=3)
    units = units_of(evaluation.systems)
    in_a_row = {system.name for system in evaluation.systems if not _has_column(system)}
    for one in comparisons:
        if {one.baseline, one.candidate} & in_a_row and evaluation.verdict is not None:
            continue  # their table and the verdict's details say it
        needed = f" (about {one.rows_needed:,} rows would settle it)" if one.rows_needed is not None else ""
        table.add_row(
            visible(f"{one.candidate} - {one.baseline}"),
            one.metric + on_scale(units.get(one.metric, "")),
            Text(one.verdict + needed, style=STYLES[one.verdict]),
            f"{one.difference:+.4g}",
            f"{figures.number(one.low)} to {figures.number(one.high)}",
            f"{one.p_value:.2g}",
        )
    return table


def print_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Warnings, one a line."""
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), visible(in_home(warning))), soft_wrap=True)


def interval(metric: Metric | None) -> str:
    """`0.61 [0.48, 0.73]`; a dash where there is no figure."""
    if metric is None:
        return "-"
    return f"{figures.number(metric.value)} [{figures.number(metric.low)}, {figures.number(metric.high)}]"
