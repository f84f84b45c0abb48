"""Results of suites, and what gates say of them, as text."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from luthier.core.evaluation import Metric
from luthier.core.results.suite import GateOutcome, SuiteResult, TaskResult, TasksVerdict
from luthier.core.text.counted import counted
from luthier.features.evaluations.verdict_format import STYLES
from luthier.platform.cli import figures
from luthier.platform.cli.console import make_table, visible

_PANEL_WIDTH = 100


def show_suite(console: Console, found: SuiteResult) -> None:
    """Each task with the figures of all systems and what the candidate's primary figure means, then the verdict."""
    seeds = f", {found.num_seeds} trainings of {visible(found.candidate)}" if found.num_seeds > 1 else ""
    tasks = counted(len(found.tasks), "task")
    console.print(
        f"{found.result_id}: suite {visible(found.suite)} ({found.fingerprint[:12]}), {tasks}, "
        f"{figures.duration(found.seconds)}{seeds}",
        soft_wrap=True,
    )
    for task in found.tasks:
        show_task(console, task, found.candidate)
    if found.verdict is not None:
        console.print(_verdict_panel(console, found.verdict))


def show_task(console: Console, task: TaskResult, candidate: str) -> None:
    """The figures of a task, its comparisons of the candidate by the primary metric, and its cautions."""
    rows = f"{counted(task.num_rows, 'row')} of {visible(task.data_file)}"
    if task.num_clusters is not None:
        rows += f" from {counted(task.num_clusters, 'source')}"
    console.print(Text.assemble((f"\n{visible(task.name)}", "bold"), f"  {visible(task.kind)}, {rows}"), soft_wrap=True)
    console.print(_figures(task))
    for one in task.comparisons:
        # All other comparisons are in the JSON and on the page; here they would bury the one that decides.
        if one.candidate != candidate or one.metric != task.primary:
            continue
        # Adjusted where several tasks were tested together.
        p_value = one.p_value if one.adjusted_p_value is None else one.adjusted_p_value
        needed = f" (about {one.rows_needed:,} rows would settle it)" if one.rows_needed is not None else ""
        console.print(
            Text.assemble(
                visible(
                    f"{one.candidate} - {one.baseline}: {one.difference:+.4g}, 95% interval {one.low:+.4g} to "
                    f"{one.high:+.4g}, p {p_value:.2g}: "
                ),
                (one.verdict, STYLES[one.verdict]),
                needed,
            ),
            soft_wrap=True,
        )
    for line in task.cautions:
        console.print(Text(f"Note: {visible(line)}", style="yellow"), soft_wrap=True)


def show_gate(console: Console, outcome: GateOutcome) -> None:
    """Each rule in a line, and whether all were met."""
    for rule in outcome.outcomes:
        word, style = ("met    ", "green") if rule.passed else ("not met", "red")
        console.print(Text.assemble((word, style), f"  {visible(rule.sentence)}"), soft_wrap=True)
    num_failed = sum(not rule.passed for rule in outcome.outcomes)
    words = "gate passed" if outcome.passed else f"gate failed: {num_failed} of {len(outcome.outcomes)} rules not met"
    console.print(Text(words, style="bold green" if outcome.passed else "bold red"))


def _figures(task: TaskResult) -> Table:
    table = make_table(["metric", "unit", *(visible(system.name) for system in task.systems)], num_text_columns=2)
    # The primary first, each once: systems need not have the same metrics.
    names = dict.fromkeys([task.primary, *(name for system in task.systems for name in system.metrics)])
    for name in names:
        known = next(system.metrics[name] for system in task.systems if name in system.metrics)
        cells = [_interval(system.metrics.get(name)) for system in task.systems]
        table.add_row(name, f"{known.unit}, {'higher' if known.higher_is_better else 'lower'} is better", *cells)
    thoughts = [system.thinking for system in task.systems]
    for title, counts in (
        ("empty outputs", [system.num_empty for system in task.systems]),
        ("cut off at the token limit", [system.num_cut_off for system in task.systems]),
        ("cut off within the thought", [one.num_cut_off if one else 0 for one in thoughts]),
    ):
        # Rows of zeros are left out.
        if any(counts):
            table.add_row(title, "", *(f"{count:,}" for count in counts))
    if any(thoughts):
        means = [None if one is None else one.mean_tokens for one in thoughts]
        table.add_row("thoughts", "tokens on average", *("-" if mean is None else f"{mean:,.0f}" for mean in means))
    return table


def _interval(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{figures.number(metric.value)} [{figures.number(metric.low)}, {figures.number(metric.high)}]"


def _verdict_panel(console: Console, verdict: TasksVerdict) -> Panel:
    text = Text.assemble((visible(verdict.headline), "bold"))
    for line in verdict.caveats:
        text.append(f"\nNote: {visible(line)}", style="yellow")
    shape = box.ROUNDED if console.encoding.lower().startswith("utf") else box.ASCII
    width = min(console.width, _PANEL_WIDTH)
    return Panel(text, title=f"Verdict: {verdict.word}", border_style=STYLES[verdict.word], width=width, box=shape)
