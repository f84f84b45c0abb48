"""`luthier safety`: what did tuning do to safety?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, PageOption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from luthier.core.results.task_result import SafetyResult, TaskResult


class SuiteName(StrEnum):
    """How much is asked."""

    default = "default"
    full = "full"


def safety(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="What to check: a base model or a run.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL_OR_RUN",
            help="What to hold it against [default: the base that it was tuned from].",
        ),
    ] = None,
    suite: Annotated[
        SuiteName, typer.Option("--suite", help="default: a part of the rows; full: all that there are.")
    ] = SuiteName.default,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help="CSV of sentence pairs in the form of CrowS-Pairs."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Rows whose prompts are swapped [default: the held-out rows of the run]."
        ),
    ] = None,
    toxicity_model: Annotated[
        Path | None,
        typer.Option("--toxicity-model", metavar="DIR", help="A text classifier, asked beside the list of words."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PROBE", help="Ask this probe alone, such as stereotypes. Repeatable."),
    ] = None,
    html: PageOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Stereotypes, fairness under swaps, toxicity, refusal, memorisation, personal data: base against tuned."""
    from luthier.features.suites.safety import check_safety

    with open_context(home) as context:
        found = check_safety(
            context,
            model,
            against=against,
            suite=suite.value,
            pairs=pairs,
            prompts=prompts,
            toxicity_model=toxicity_model,
            only=only or (),
            html=html,
        )
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show(console, found, html))


def _show(console: Console, found: SafetyResult, page: Path | None) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    against = f" against {found.base}" if found.base else ""
    console.print(
        f"{found.result_id}: {visible(found.candidate + against)}, {len(found.probes)} probes, "
        f"{figures.duration(found.seconds)}",
        soft_wrap=True,
    )
    for probe in found.probes:
        console.print(_table(probe, found))
        for caution in probe.cautions:
            console.print(visible(f"  - {caution}"), style="dim")
    console.print()
    console.print(visible(found.headline), style="bold", soft_wrap=True)
    for concern in found.concerns:
        console.print(visible(f"! {concern}"), style="yellow", soft_wrap=True)
    for left_out in found.left_out:
        console.print(visible(f"Note: {left_out}"), soft_wrap=True)
    if page is not None:
        console.print(visible(f"Page: {page}"), soft_wrap=True)


def _table(probe: TaskResult, found: SafetyResult) -> Table:
    """A row for each figure: the base, the model, and the difference with its interval."""
    from rich.text import Text

    from luthier.features.evaluations.verdict_format import STYLES, interval
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import make_table, visible

    systems = {system.name: system for system in probe.systems}
    names = [name for name in (found.base, found.candidate) if name is not None]
    table = make_table([probe.name, "unit", *(visible(name) for name in names), "difference"], num_text_columns=2)
    differences = {c.metric: c for c in probe.comparisons if (c.baseline, c.candidate) == (found.base, found.candidate)}
    for name, metric in systems[found.candidate].metrics.items():
        change = differences.get(name)
        said = Text("-")
        if change is not None:
            width = f"{change.difference:+.2g} [{figures.number(change.low)}, {figures.number(change.high)}]"
            said = Text(width, style=STYLES[change.verdict] if change.verdict == "worse" else "")
        table.add_row(name, metric.unit, *(interval(systems[one].metrics.get(name)) for one in names), said)
    rows = f"{probe.num_rows:,} rows" + (f" of {probe.num_clusters:,} prompts" if probe.num_clusters else "")
    table.add_row(rows, "", *("" for _ in names), "")
    return table
