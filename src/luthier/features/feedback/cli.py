"""`luthier feedback`: what people say of answers, and what of it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, ProjectOption, caller_of, open_context
from luthier.platform.cli.figures import utc

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.traffic import Feedback
    from luthier.features.feedback.service import Imported

_MAX_REFUSED_SHOWN = 20


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines with exchange_id, and thumb, score, ...")],
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Import feedback from a file; importing it twice is safe. Exit code 1 if a line was refused."""
    from luthier.features.feedback import service as feedback

    with open_context(home) as context:
        came = feedback.import_feedback(context, caller_of(context, project), file)
    refused = [{"line": number, "reason": reason} for number, reason in came.refused]
    document: dict[str, Any] = {**{str(name): num for name, num in came.num_by_outcome.items()}, "refused": refused}
    document["waiting_for_review"] = came.num_queued
    return Answer(as_json, document, lambda console: _show_import(console, came), exit_code=int(bool(refused)))


def list_all(
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only feedback on this model.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show only the newest N.")] = 50,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List feedback, newest first."""
    from luthier.features.feedback import service as feedback

    with open_context(home) as context:
        project_id = caller_of(context, project).project_id
        found = feedback.list_feedback(context, project_id, model=model, limit=limit)
    return Answer(as_json, [one.model_dump(mode="json") for one in found], lambda console: _show(console, found))


def queue(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name in requests.")],
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", help="Queue this many answers, chosen at random.", show_default=False),
    ] = None,
    liked: Annotated[
        bool, typer.Option("--liked", help="Queue answers with a thumb up or a score of at least 0.8.")
    ] = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Queue answers for review (page /review) before they may be trained on. Corrections are queued automatically."""
    from luthier.core.errors import RequestError
    from luthier.features.feedback import review as review_queue

    if (sample is None) == (not liked):
        raise RequestError(
            "both or neither of --sample and --liked", expected="one of them", do="write for example --sample 50"
        )
    with open_context(home) as context:
        caller = caller_of(context, project)
        if sample is None:
            made = review_queue.queue_liked(context, caller, model)
        else:
            made = review_queue.queue_sample(context, caller, model, sample)
    document = {"queued": made.num_queued, "queued_before": made.num_known, "without_words": made.num_wordless}

    def tell(console: Console) -> None:
        console.print(f"{counted(made.num_queued, 'answer is waiting', 'answers are waiting')} for review at /review")
        if made.num_known:
            console.print(f"{counted(made.num_known, 'was', 'were')} queued before")
        if made.num_wordless:
            console.print(f"{made.num_wordless:,} cannot be: their text was not stored (`luthier traffic policy`)")

    return Answer(as_json, document, tell)


def add_rows(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="The name of the dataset; created if it does not exist.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only answers of this model.", show_default="all")
    ] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Add the accepted answers of the review to a dataset, as its next version, without held-out rows."""
    from luthier.features.feedback.accepted_rows import add_accepted, add_to_new_dataset

    with open_context(home) as context:
        caller = caller_of(context, project)
        known = context.datasets.find(caller.project_id, dataset.strip())
        if known is None:
            made = add_to_new_dataset(context, caller, dataset, model)
        else:
            made = add_accepted(context, caller, known.dataset_id, model)
    document = {
        "dataset": made.version.dataset_id,
        "version": made.version.number,
        "added": made.num_added,
        "replaced": made.num_replaced,
        "left_out": dict(made.left_out),
        "cautions": list(made.cautions),
    }

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        console.print(visible(f"version {made.version.number} of {dataset}: {counted(made.num_added, 'row')} added"))
        if made.num_replaced:
            rows = counted(made.num_replaced, "earlier row is", "earlier rows are")
            console.print(f"{rows} left out of it: a new one has the same prompt")
        for reason, num in made.left_out.items():
            console.print(visible(f"{num:,} not added: {reason}"), soft_wrap=True)
        for caution in made.cautions:
            console.print(visible(f"note: {caution}"), soft_wrap=True)

    return Answer(as_json, document, tell)


def _show_import(console: Console, came: Imported) -> None:
    from luthier.platform.cli.console import visible

    num = came.num_by_outcome
    console.print(f"{num['new']:,} new, {num['replaced']:,} replacing earlier ones, {num['same']:,} known before")
    if came.num_queued:
        console.print(
            f"{counted(came.num_queued, 'correction is waiting', 'corrections are waiting')} for review at /review"
        )
    for number, reason in came.refused[:_MAX_REFUSED_SHOWN]:
        console.print(f"line {number} refused: {visible(reason)}", soft_wrap=True)
    if len(came.refused) > _MAX_REFUSED_SHOWN:
        console.print(f"... and {counted(len(came.refused) - _MAX_REFUSED_SHOWN, 'more line')}; --json has all")


def _show(console: Console, found: Sequence[Feedback]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        line = "no feedback yet: POST /api/v1/feedback, the playground, or `luthier feedback import FILE`"
        console.print(in_home(line))
        return
    table = make_table(["when (UTC)", "answer", "model", "author", "thumb", "words", "score"], num_text_columns=6)
    for one in found:
        words = f"should be: {one.correction}" if one.correction else one.comment
        shown = " ".join(words.split())
        texts = [one.exchange_id, one.model, one.author or "-", one.thumb or "-", shown[:80]]
        table.add_row(utc(one.created_at), *map(visible, texts), "-" if one.score is None else f"{one.score:g}")
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "import": import_file,
    "list": list_all,
    "queue": queue,
    "add-rows": add_rows,
}
