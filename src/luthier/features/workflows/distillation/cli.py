"""`luthier distill`: distil a teacher into a smaller model, and measure whether it was worth it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luthier.core.defaults import TEACHER_TOKENS
from luthier.core.text.counted import counted
from luthier.platform.cli.command import (
    ANY_MODEL,
    Answer,
    HomeOption,
    JsonOption,
    MappingOption,
    ProjectOption,
    SetOption,
    caller_of,
    open_context,
    parse_mapping,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.workflows.pipeline import Student

_STYLES = {"worth it": "green", "not worth it": "red", "not settled": "yellow"}


RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE", help="A recipe for training and evaluation; its base model and rows are replaced."
    ),
]


def distill(
    teacher: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help=f"The teacher: {ANY_MODEL}, or http(s)://host:port/v1#MODEL."),
    ],
    student: Annotated[
        str,
        typer.Option(
            "--student",
            metavar="NAME_OR_LAYERS",
            help="A base model, or layers of the teacher: layers:15 (number, evenly spread) or layers:0,2,4-29.",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Rows with prompts and gold answers.")],
    kind: Annotated[
        Literal["sequence", "logit"],
        typer.Option("--kind", help="Learn the teacher's answers, or its probabilities of every token."),
    ] = "sequence",
    held_out: Annotated[
        str,
        typer.Option("--held-out", metavar="FILE_OR_FRACTION", help="Rows for evaluation, or their share."),
    ] = "0.2",
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    mapping: MappingOption = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", min=1, help="Maximum tokens of a teacher's answer; longer ones are not learned."
        ),
    ] = TEACHER_TOKENS,
    batch: Annotated[
        bool,
        typer.Option("--batch", help="Use the Batch API of a teacher on a server; it answers within a day."),
    ] = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Distil into a smaller model, also train it without the teacher, and evaluate both and the teacher on the same
    rows.

    If it is stopped, the same command continues.
    """
    from luthier.features.workflows.distillation.request import DistilRequest
    from luthier.features.workflows.distillation.workflow import distil as carry_out

    with open_context(home) as context:
        found = carry_out(
            context,
            DistilRequest(
                teacher=teacher,
                student=student,
                data=data,
                kind=kind,
                held_out=_file_or_fraction(held_out),
                recipe=recipe,
                overrides=tuple(overrides or ()),
                mapping=parse_mapping(mapping or ()) or None,
                max_new_tokens=max_new_tokens,
                uses_batch_api=batch,
            ),
            caller=caller_of(context, project),
        )
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show(console, found))


def _file_or_fraction(text: str) -> Path | float:
    try:
        # A file whose name is a number can be given as ./0.2.
        return float(text)
    except ValueError:
        return Path(text)


def _show(console: Console, found: Student) -> None:
    from rich import box
    from rich.panel import Panel
    from rich.text import Text

    from luthier.features.evaluations.verdict_format import show_evaluation
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    size = f"{found.student_parameters / 1e6:,.1f} million parameters"
    # The size of a teacher on a server is unknown.
    if found.teacher_parameters:
        size += f", {found.student_parameters / found.teacher_parameters:.0%} of the teacher's"
    rows = [
        ("distillation", found.student_id),
        ("status", found.status),
        ("teacher", found.teacher),
        ("student", f"{found.student_model}: {size}"),
        ("rows", f"{found.num_rows:,} learned, {found.num_refused:,} left out, {found.num_held_out:,} held out"),
    ]
    for name, run in (("with teacher", found.taught), ("without", found.alone)):
        if run is not None:
            rows.append((name, f"{run.run_id}: {counted(run.num_steps, 'step')} in {figures.duration(run.seconds)}"))
    if found.report_path is not None:
        rows.append(("report", found.report_path))
    facts(console, rows)
    if found.evaluation is not None:
        # Without the verdict of the evaluation: that of the distillation follows, which also considers cost.
        show_evaluation(console, found.evaluation.model_copy(update={"verdict": None}))
    if found.verdict is not None:
        text = Text.assemble((visible(found.verdict.headline), "bold"))
        for line in found.verdict.reasons:
            text.append(f"\n{visible(line)}")
        for line in found.verdict.caveats:
            text.append(f"\nNote: {visible(line)}", style="yellow")
        # Other encodings lack the round corners.
        shape = box.ROUNDED if console.encoding.lower().startswith("utf") else box.ASCII
        style, width = _STYLES[found.verdict.word], min(console.width, 100)
        console.print(
            Panel(text, title=f"Distilling: {found.verdict.word}", border_style=style, width=width, box=shape)
        )
    if found.go_on is not None:
        console.print(f"\nTo resume: {found.go_on}", soft_wrap=True)
