"""`luthier human-eval export`, `import-labelstudio` and `pairs`: ratings as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.json_limits import json_utf8
from luthier.features.human_eval.cli.arguments import OutputOption, PanelArgument, ProjectOption, read_bytes
from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import caller_of, open_context
from luthier.platform.cli.options import ForceOption, HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.human_eval.pairs import Pairs


def export(
    panel: PanelArgument,
    output: OutputOption,
    project: ProjectOption = "default",
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Write all that was said: .csv, .parquet, or .json with tasks for Label Studio."""
    from luthier.features.human_eval.files import export_panel, format_of
    from luthier.ml.data.rows.outputs import check_free, write_output

    file_format = format_of(output)
    check_free([output], force=force)
    with open_context(home) as context:
        content = export_panel(context, caller_of(context, project).project_id, panel, file_format)
        num_ratings = len(context.rating_panels.ratings(panel))
    write_output(output, content, force=force)
    words = f"wrote {num_ratings} ratings to {output}"
    document = {"panel_id": panel, "file": str(output), "format": file_format, "num_ratings": num_ratings}
    return Answer(as_json, document, lambda console: console.print(words, soft_wrap=True))


def import_label_studio(
    panel: PanelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export (JSON) of Label Studio.")],
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Take in ratings that were given in Label Studio, on tasks that `luthier human-eval export` wrote."""
    from luthier.features.human_eval.files import import_label_studio as take_in

    content = read_bytes(file)
    with open_context(home) as context:
        found = take_in(context, caller_of(context, project), panel, content, str(file))
    words = f"took in {found.num_ratings} ratings of {', '.join(found.raters)}"
    words += f"; {found.num_skipped} cancelled ones were skipped" if found.num_skipped else ""
    document = {"num_ratings": found.num_ratings, "raters": found.raters, "num_skipped": found.num_skipped}

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        console.print(visible(words), soft_wrap=True)

    return Answer(as_json, document, tell)


def pairs(
    panel: PanelArgument,
    output: OutputOption,
    force: ForceOption = False,
    with_caught: Annotated[
        bool, typer.Option("--with-caught", help="Also of raters who seem not to read; by default they are left out.")
    ] = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Write preference pairs to train on (DPO and its kin), one JSON object a line."""

    from luthier.core.errors import RequestError
    from luthier.features.human_eval.pairs import preference_pairs
    from luthier.ml.data.rows.outputs import check_free, write_output

    if output.suffix != ".jsonl":
        raise RequestError(f"the file {output.name}", expected="a name that ends in .jsonl", do="choose such a name")
    check_free([output], force=force)
    with open_context(home) as context:
        found = preference_pairs(context, caller_of(context, project), panel, with_caught=with_caught)
    if not found.rows:
        raise RequestError(
            f"no pair that people settled: {_reasons(found) or 'nothing is rated yet'}",
            expected="at least one item of which most raters prefer one answer",
            do="wait for more ratings, or add raters",
        )
    lines = b"".join(json_utf8(row) + b"\n" for row in found.rows)
    write_output(output, lines, force=force)
    document = {"file": str(output), "num_pairs": len(found.rows), "left_out": found.left_out, "caught": found.caught}

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        left_out = _reasons(found) or "none"
        console.print(f"wrote {len(found.rows)} pairs to {output}; left out: {left_out}", soft_wrap=True)
        if found.caught:
            names = visible(", ".join(found.caught))
            console.print(f"without {names}, who seem not to read (--with-caught takes them, too)", soft_wrap=True)

    return Answer(as_json, document, tell)


def _reasons(found: Pairs) -> str:
    return ", ".join(f"{number} ({reason})" for reason, number in found.left_out.items())
