"""`luthier quickstart`: a first tuned model with a verdict."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.counted import counted
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.previews import DataPreview
    from luthier.features.workflows.quickstart.workflow import ChosenSize, QuickstartData, QuickstartOutcome


def quickstart(
    full: Annotated[bool, typer.Option("--full", help="More rows and epochs: better, but slower.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Build a real dataset from this machine's Python, fine-tune a small model on it, and evaluate the gain.

    Needs no account, GPU or hub. The number of rows and the duration depend on the measured speed of this machine:
    under 6 minutes on two cores. --full uses all rows, which takes hours on a machine without bfloat16 instructions.
    """
    from luthier.features.planning.format import show_plan
    from luthier.features.workflows.quickstart import workflow

    with open_context(home) as context:
        outcome = workflow.quickstart(context, full=full, show=_show_data, show_plan=show_plan)
    exit_code = 1 if outcome.training.record.status == "failed" else 0
    return Answer(as_json, outcome.as_json(), lambda console: _show(console, outcome, home), exit_code)


def _show_data(data: QuickstartData, found: DataPreview) -> None:
    """Show what will be trained, on stderr, as it is part of the progress."""
    from luthier.features.datasets.cli.describe import show_preview
    from luthier.platform.cli.console import stderr_console, visible

    console = stderr_console()
    counts = ", ".join(f"{split} {number:,}" for split, number in data.num_rows.items())
    console.print(f"this machine: {visible(data.chosen.why)}", soft_wrap=True)
    console.print(f"chosen: {_size_line(data.chosen)}", soft_wrap=True)
    console.print(f"rows: {counts}; recipe: {data.recipe_path}", soft_wrap=True)
    show_preview(console, found)


def _size_line(chosen: ChosenSize) -> str:
    """The amount of training and evaluation on this machine, and its expected duration."""
    from luthier.platform.cli import figures

    size = chosen.size
    rows = "all rows" if size.num_rows is None else counted(size.num_rows, "row")
    line = f"{rows} of up to {size.max_tokens:,} tokens, {size.max_samples} of them evaluated"
    if chosen.expected_seconds is not None:
        line += f"; training and evaluation about {figures.duration(chosen.expected_seconds)}"
    return line if size.num_rows is None else f"{line}; `--full` takes all rows"


def _show(console: Console, outcome: QuickstartOutcome, home: Path | None) -> None:
    from luthier.features.training.cli import show_outcome

    show_outcome(console, outcome.training)
    console.print("\nNext:", soft_wrap=True)
    in_home = f" --home {shlex.quote(str(home))}" if home else ""
    for command in outcome.next_commands:
        console.print(f"  {command}{in_home}", soft_wrap=True)
