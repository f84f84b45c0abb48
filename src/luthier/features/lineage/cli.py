"""`luthier lineage --row` and `luthier data forget`: which models saw a row, and what will not see it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.counted import counted
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, ProjectOption, caller_of, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.lineage.forget import ForgetPreview, Forgotten
    from luthier.features.lineage.other_texts import TextMatches
    from luthier.features.lineage.rows import RowLineage


def lineage(
    row: Annotated[
        str, typer.Option("--row", metavar="TEXT|ID", help="Text in the row, or the id of its exchange or review.")
    ],
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show which runs used a row, whether they learned it, and what was exported and deployed from them.

    Every file that a run of the project has used is read, so that each is known, or reported as unknown.
    """
    from luthier.features.lineage.rows import row_lineage

    with open_context(home) as context:
        found = row_lineage(context, caller_of(context, project), row)
    return Answer(as_json, found.as_json(), lambda console: _show(console, found))


def forget_row(
    row: Annotated[
        str,
        typer.Argument(metavar="TEXT|ID", help="Text that only this row contains, or an id as for `luthier lineage`."),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove the row; without this, only show what would be removed.")
    ] = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Remove a row from the newest versions of all datasets and from stored texts, and list what still contains it.

    What a model has learned stays in its weights: the models to retrain are listed.
    """
    from luthier.features.lineage.forget import forget_row as forget
    from luthier.features.lineage.forget import preview_forget

    with open_context(home) as context:
        caller = caller_of(context, project)
        if not yes:
            seen = preview_forget(context, caller, row)
            return Answer(as_json, seen.as_json(), lambda console: _show_preview(console, seen))
        done = forget(context, caller, row)
    return Answer(as_json, done.as_json(), lambda console: _show_forgotten(console, done))


def _show(console: Console, found: RowLineage) -> None:
    from luthier.platform.cli.console import visible

    console.print(
        f"{counted(found.num_runs, 'run')} and {counted(found.num_files, 'file')} of theirs were searched",
        soft_wrap=True,
    )
    for file in found.files:
        lines = ", ".join(f"{line:,}" for line in file.lines[:10]) + (" ..." if len(file.lines) > 10 else "")
        origin = f" (imported from {file.origin})" if file.origin else ""
        console.print(visible(f"  {file.dataset or file.file}{origin}: line {lines}"), soft_wrap=True)
    if not found.saw:
        console.print("no run was given it")
    for one in found.saw:
        word = "has learned it" if one.learned else "has not learned it"
        where = f" (in {', '.join(one.splits)})" if one.splits else ""
        through = f" through {one.through}" if one.through else ""
        console.print(visible(f"  {one.run_id} {word}{where}{through}"), soft_wrap=True)
        outcomes = [*one.models, *one.exports, *(f"{n} ({'now' if now else 'before'})" for n, now in one.deployments)]
        if outcomes:
            console.print(visible(f"    exported and deployed from it: {', '.join(outcomes)}"), soft_wrap=True)
    for run_id in found.unknown:
        console.print(f"  {run_id}: not known, a file of its rows is missing or has changed", soft_wrap=True)
    for bad in found.unreadable:
        lines = ", ".join(f"{line:,}" for line in bad.lines[:10]) + (" ..." if len(bad.lines) > 10 else "")
        num = counted(len(bad.lines), "row")
        console.print(visible(f"  {bad.file}: {num} could not be read and may hold it: line {lines}"), soft_wrap=True)


def _show_preview(console: Console, seen: ForgetPreview) -> None:
    from luthier.platform.cli.console import visible

    _show(console, seen.lineage)
    for one in seen.newest:
        text = f"{one.dataset.name}: {counted(one.num_rows, 'row')} of version {one.version.number} would be removed"
        if one.is_all:
            text = f"{one.dataset.name}: every row of version {one.version.number} matches, so nothing would be removed"
        console.print(visible(text), soft_wrap=True)
    for earlier in seen.earlier:
        text = f"{earlier.dataset.name}: version {earlier.version.number} keeps {counted(earlier.num_rows, 'row')}"
        console.print(visible(text), soft_wrap=True)
    for other in seen.unread:
        rows = "its file" if other.num_rows is None else counted(other.num_rows, "row")
        text = f"{other.dataset.name}: of version {other.version.number} {rows} cannot be read, and may hold it"
        console.print(visible(text), soft_wrap=True)
    console.print(f"{counted(seen.num_reviews, 'item')} of the review would be removed")
    if seen.num_feedback:
        pieces = counted(seen.num_feedback, "piece", "pieces")
        console.print(f"correction and comment of {pieces} of feedback would be removed", soft_wrap=True)
    for match in seen.others.stored:
        does = {"deleted": "would be deleted", "blanked": "would lose their texts", "kept": "would stay"}[match.action]
        console.print(visible(f"{_counted(match)} {does}"), soft_wrap=True)
    for sentence in seen.others.unread:
        console.print(visible(sentence), soft_wrap=True)
    console.print("do it with --yes" if seen.changes_anything else "there is nothing to remove")


def _show_forgotten(console: Console, done: Forgotten) -> None:
    from luthier.platform.cli.console import visible

    for version, num in done.versions:
        console.print(f"{version.dataset_id} version {version.number}: {counted(num, 'row')} less", soft_wrap=True)
    console.print(f"{counted(done.num_reviews, 'item')} less in the review")
    if done.num_feedback:
        console.print(f"correction and comment removed from {done.num_feedback:,} pieces of feedback", soft_wrap=True)
    for match in done.stored:
        if match.action != "kept":
            action = "deleted" if match.action == "deleted" else "without their texts now"
            console.print(visible(f"{_counted(match)} {action}"), soft_wrap=True)
    for sentence in done.left:
        console.print(visible(f"left: {sentence}"), soft_wrap=True)


def _counted(match: TextMatches) -> str:
    ids = f" ({match.shown_ids})" if match.ids else ""
    return f"{match.num:,} x {match.what}{ids}"


DATA_COMMANDS: dict[str, Callable[..., Answer]] = {"forget": forget_row}
"""Verbs of `luthier data`."""
