"""The options of `luthier plan`: what can be asked of a recipe before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--on", metavar="DEVICE", help="Plan for cpu, or NAME[:COUNT] as a100-80g:4. With --compare, repeatable."
    ),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every value with its source and reason, and the whole quote.")]
ProbedOption = Annotated[
    bool, typer.Option("--probe", help="Run a few real steps on this machine first, and predict by them.")
]
ComparedOption = Annotated[bool, typer.Option("--compare", help="Every method on every device, side by side.")]
SpotOption = Annotated[bool, typer.Option("--spot", help="Prices of devices that may be taken away.")]
AdvisedOption = Annotated[bool, typer.Option("--advise", help="Which method to take on this device, and why.")]
CurvedOption = Annotated[
    bool,
    typer.Option(
        "--learning-curve", help="Train on shares of the rows (kept as runs) and tell what more rows would buy."
    ),
]
CurveHoursOption = Annotated[
    float | None,
    typer.Option("--budget-hours", metavar="H", help="With --learning-curve: hours for all of its runs together."),
]
ChartOption = Annotated[
    Path | None, typer.Option("--chart", metavar="FILE", help="Draw it: a file that ends in .svg or .png.")
]
