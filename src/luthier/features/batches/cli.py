"""`luthier batches`: files of requests that the server of this home answers beside live traffic."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, ProjectOption, caller_of, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.batches.store import BatchView

_BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="The id of a batch; see `luthier batches list`.")]
_LOOK_SECONDS: Final = 1.0


def list_all(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, metavar="N", help="Only the newest N.")] = 20,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List the batches of a project, newest first."""
    with open_context(home) as context:
        found, _ = context.batches.list(caller_of(context, project).project_id, after=None, limit=limit)
    return Answer(as_json, [_document(one) for one in found], lambda console: _show_all(console, found))


def show(
    batch_id: _BatchArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Show the progress until the batch has ended.")] = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show one batch: its progress, its files, and why it failed."""
    with open_context(home) as context:
        project_id = caller_of(context, project).project_id
        view = context.batches.get(project_id, batch_id)
        if wait and not view.has_ended:
            with context.progress.task("Answering", view.batch.num_total or None, "requests") as task:
                num_done = 0
                while not view.has_ended:
                    task.advance(view.batch.num_done - num_done)
                    num_done = view.batch.num_done
                    time.sleep(_LOOK_SECONDS)
                    view = context.batches.get(project_id, batch_id)
    return _one(as_json, view)


def cancel(
    batch_id: _BatchArgument, project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """Cancel a batch; the answers so far go into its output file."""
    from luthier.features.batches import service as batches

    with open_context(home) as context:
        return _one(as_json, batches.cancel(context, caller_of(context, project), batch_id))


def _one(as_json: bool, view: BatchView) -> Answer:
    # A script that waits has to notice that requests are without an answer.
    exit_code = 1 if view.status in ("failed", "expired") else 0
    return Answer(as_json, _document(view), lambda console: _show(console, view), exit_code)


def _document(view: BatchView) -> dict[str, Any]:
    return view.batch.model_dump(mode="json") | {"status": view.status}


def _show_all(console: Console, found: list[BatchView]) -> None:
    from luthier.platform.cli.console import make_table

    if not found:
        console.print("no batches yet: start one with the Batch API of the server, POST /v1/batches", soft_wrap=True)
        return
    table = make_table(["batch", "status", "endpoint", "answered", "failed", "requests"], num_text_columns=3)
    for view in found:
        one = view.batch
        counts = (f"{one.num_completed:,}", f"{one.num_failed:,}", f"{one.num_total:,}")
        table.add_row(one.batch_id, view.status, one.endpoint, *counts)
    console.print(table)


def _show(console: Console, view: BatchView) -> None:
    from luthier.features.batches.service import fault_of
    from luthier.platform.cli.console import facts

    one = view.batch
    rows = [
        ("batch", one.batch_id),
        ("status", view.status),
        ("endpoint", one.endpoint),
        ("requests", f"{one.num_done:,} of {one.num_total:,} done, {one.num_failed:,} of them failed"),
        ("tokens", f"{one.num_prompt_tokens:,} of prompts, {one.num_new_tokens:,} of answers"),
    ]
    files = (("answers", one.output_file_id), ("errors", one.error_file_id))
    rows += [(name, file_id) for name, file_id in files if file_id is not None]
    if (fault := fault_of(view)) is not None:
        rows.append(("failed", fault.message))
    facts(console, rows)


COMMANDS: dict[str, Callable[..., Any]] = {"list": list_all, "show": show, "cancel": cancel}
