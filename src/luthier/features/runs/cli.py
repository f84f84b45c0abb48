"""`luthier runs`: what was trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import (
    AllowUnsignedOption,
    Answer,
    CheckpointsOption,
    HomeOption,
    JsonOption,
    open_context,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.run import RunRecord
    from luthier.features.runs.service import RunComparison, RunDetails, RunView

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, from `luthier runs list`.")]


def list_runs(
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Show only the first N.")] = None,
    filter_text: Annotated[
        str,
        typer.Option(
            "--filter", metavar="FILTER", help="Only matching runs: 'lr>1e-3 tag:sweep verdict:better' (docs/runs.md)."
        ),
    ] = "",
    sort: Annotated[str, typer.Option("--sort", metavar="FIELD", help="Sort by a field; -FIELD: largest first.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List the runs, newest first."""
    from luthier.features.runs import service as runs

    with open_context(home) as context:
        views = runs.list_runs(context, limit, filter_text=filter_text, sort=sort)
    is_filtered = bool(filter_text.strip())
    return Answer(
        as_json,
        [view.as_json() for view in views],
        lambda console: _show_all(console, views, is_filtered=is_filtered),
    )


def show(run_id: RunArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Show one run: its plan, its progress, its results and its evaluation."""
    from luthier.features.runs import service as runs

    with open_context(home) as context:
        details = runs.show_run(context, run_id)
    return Answer(as_json, details.as_json(), lambda console: _show_one(console, details))


def compare(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare runs: where their plans differ, their results, and their evaluations."""
    from luthier.features.runs import service as runs

    with open_context(home) as context:
        comparison = runs.compare_runs(context, run_ids)
    return Answer(as_json, comparison.as_json(), lambda console: _show_comparison(console, comparison))


def watch(run_id: RunArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Follow a run until it ends; exit code 1 for one that has failed. With --json its events come at the end."""
    from luthier.features.runs import service as runs
    from luthier.features.training.recorder import event_text
    from luthier.platform.cli.console import stdout_console, visible

    events = []
    with open_context(home) as context:
        for event in runs.watch_run(context, run_id):
            # One document at the end, since stdout must be whole JSON; a person sees each event as it comes.
            if as_json:
                events.append(event.model_dump(mode="json"))
            else:
                stdout_console().print(visible(event_text(event)), soft_wrap=True)
        # Read after the last event: only now the record says how the run has ended.
        view = runs.view_run(context, run_id)

    def end(console: Console) -> None:
        console.print(f"{run_id}: {_status(view)}", soft_wrap=True)
        if view.was_killed or view.record.status in ("paused", "failed"):
            console.print(in_home(f"Resume it: luthier train --resume {run_id}"), soft_wrap=True)

    # As `luthier train` ends: a script that waits has to notice that there is no model.
    has_failed = view.was_killed or view.record.status == "failed"
    return Answer(as_json, {**view.as_json(), "events": events}, end, exit_code=1 if has_failed else 0)


def rm(
    run_id: RunArgument,
    with_models: Annotated[
        bool, typer.Option("--with-models", help="Also delete the models (ft:...) that are registered of it.")
    ] = False,
    checkpoints: CheckpointsOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Delete a run with its checkpoints, adapter, evaluations and report, and what this home has uploaded of it."""
    from contextlib import suppress

    from luthier.core.errors import LuthierError
    from luthier.features.runs import service as runs
    from luthier.features.training.checkpoint_uploads.session import is_continued_elsewhere

    with open_context(home, checkpoints=checkpoints) as context:
        leaves_uploads, is_elsewhere = runs.leaves_uploads(context, run_id), False
        with suppress(LuthierError):  # the store does not answer: the removal of the uploads is tried again later
            is_elsewhere = is_continued_elsewhere(context, run_id, context.settings.run_folder(run_id))
        # The old record, for the message about it.
        record = runs.remove_run(context, run_id, with_models=with_models)

    def tell(console: Console) -> None:
        console.print(f"removed {run_id}", soft_wrap=True)
        if leaves_uploads:
            console.print(
                f"Its uploads are still in object storage, since neither LUTHIER_CHECKPOINTS nor --checkpoints names "
                f"the place: delete the folder runs/{run_id} there.",
                soft_wrap=True,
            )
        elif is_elsewhere:
            console.print("Its uploads are still in object storage: another machine has taken the run.", soft_wrap=True)

    document = {"removed": run_id, "status": record.status, "leaves_uploads": leaves_uploads or is_elsewhere}
    return Answer(as_json, document, tell)


def edit(
    run_id: RunArgument,
    name: Annotated[str | None, typer.Option("--name", help="Its name; empty for the default name.")] = None,
    note: Annotated[str | None, typer.Option("--note", help="A note; empty to remove it.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="The group it is listed with; empty for none.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Add a tag; repeatable.")] = None,
    untag: Annotated[list[str] | None, typer.Option("--untag", metavar="TAG", help="Remove a tag; repeatable.")] = None,
    star: Annotated[bool | None, typer.Option("--star/--no-star", help="Add or remove the star.")] = None,
    archive: Annotated[
        bool | None, typer.Option("--archive/--no-archive", help="Hide it from lists, or show it again.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Change the name, note, tags, group, star or archive mark of a run."""
    from luthier.features.runs.changes import edit_here
    from luthier.features.runs.labels import LabelChanges

    changes = LabelChanges(name, note, group, star, archive, add_tags=tag or (), remove_tags=untag or ())
    with open_context(home) as context:
        labels = edit_here(context, run_id, changes)

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import facts, visible

        shown = labels.as_json() | {"tags": ", ".join(labels.tags)}
        facts(console, [(key.removeprefix("is_"), visible(str(value))) for key, value in shown.items() if value])

    return Answer(as_json, {"run_id": run_id, **labels.as_json()}, tell)


def track(
    run_id: RunArgument,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="TRACKER", help="Deliver only to this tracker: mlflow, wandb, ... Repeatable."),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Deliver everything again, into a new run of the tracker.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Deliver to experiment trackers what they do not have of a run yet.

    A run reports by itself during training. This delivers the rest after a tracker was down, or reports a
    run to a tracker that its recipe does not name.
    """
    from luthier.features.trackers import service as trackers

    with open_context(home) as context:
        found = trackers.deliver(context, run_id, asked=to or (), from_start=from_start)

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import facts, visible

        facts(console, [(state.name, visible(state.summary)) for state in found])
        for state in found:
            for note in state.notes:
                console.print(f"note: {state.name}: {visible(note)}", soft_wrap=True)

    has_failed = any(state.status != "delivered" for state in found)
    document = {"run_id": run_id, "trackers": [state.as_json() for state in found]}
    return Answer(as_json, document, tell, exit_code=1 if has_failed else 0)


def fetch(
    run_id: RunArgument,
    checkpoints: CheckpointsOption = None,
    allow_unsigned: AllowUnsignedOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Fetch a run that another machine has uploaded: its record, and its weights and report if it has ended.

    `luthier train --resume RUN` continues one that has not ended, with the checkpoints of the upload.
    """
    from luthier.features.training.checkpoint_uploads import session

    with open_context(home, checkpoints=checkpoints, allow_unsigned=allow_unsigned) as context:
        record = session.fetch_run(context, run_id)
    return _about_upload(record, "fetched", as_json)


def upload(
    run_id: RunArgument, checkpoints: CheckpointsOption = None, as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """Upload a run that is not being trained: its newest checkpoint, and its weights and report if it has ended.

    A run uploads by itself during training. This uploads the rest after the store did not answer.
    """
    from luthier.features.training.checkpoint_uploads import session

    with open_context(home, checkpoints=checkpoints) as context:
        record = session.upload_run(context, run_id)
    return _about_upload(record, "uploaded", as_json)


def _about_upload(record: RunRecord, verb: str, as_json: bool) -> Answer:
    document = {
        "run_id": record.run_id,
        "status": record.status,
        "step": record.step,
        "report_path": record.report_path,
    }

    def tell(console: Console) -> None:
        console.print(f"{verb} {record.run_id}: {record.status} at step {record.step:,}", soft_wrap=True)

    return Answer(as_json, document, tell)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "list": list_runs,
    "show": show,
    "edit": edit,
    "compare": compare,
    "watch": watch,
    "track": track,
    "fetch": fetch,
    "upload": upload,
    "rm": rm,
}


def _status(view: RunView) -> str:
    if view.was_killed:
        # The store still says "running": no process was left to change it.
        return f"{view.record.status}, but its process is gone"
    return view.record.status


def _show_all(console: Console, views: list[RunView], *, is_filtered: bool) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import make_table, visible

    if not views and is_filtered:
        console.print("No run matches the filter.")
        return
    if not views:
        console.print(
            in_home("No runs yet. Start one with `luthier train RECIPE`, or with `luthier quickstart`."), soft_wrap=True
        )
        return
    headers = ["run", "name", "status", "base model", "method", "steps", "training loss", "validation loss"]
    table = make_table(headers, num_text_columns=5)
    for view in views:
        record, result = view.record, view.record.result
        table.add_row(
            record.run_id,
            visible(view.name or ""),
            _status(view),
            visible(record.base_model),
            record.method,
            f"{record.step:,}/{record.num_steps:,}",
            figures.number(result.comparable_train_loss if result else None),
            figures.number(result.best_validation_loss if result else None),
        )
    console.print(table)


def _show_one(console: Console, details: RunDetails) -> None:
    from luthier.features.evaluations.verdict_format import print_warnings, show_evaluation
    from luthier.features.planning.format import bill_line
    from luthier.features.training.format import show_fit
    from luthier.features.training.recorder import event_text
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, make_table, visible

    record, result = details.view.record, details.view.record.result
    labels = details.view.labels
    written = {} if labels is None else labels.as_json() | {"name": details.view.name, "tags": ", ".join(labels.tags)}
    rows = [
        ("run", record.run_id),
        *((key.removeprefix("is_"), str(value)) for key, value in written.items() if value),
        ("status", _status(details.view) + (f": {record.stopped_because}" if record.stopped_because else "")),
        ("base model", record.base_model),
        ("method", record.method),
        ("started", record.created_at),
        ("changed", record.updated_at),
        ("steps", f"{record.step:,} of {record.num_steps:,}"),
        ("plan", record.plan_hash),
        ("folder", details.folder),
    ]
    if record.report_path is not None:
        rows.append(("report", record.report_path))
    if details.task_head is not None:
        rows += details.task_head.facts.items()
    if details.last_step is not None:
        rows.append(("last step", event_text(details.last_step)))
    if details.last_validation is not None:
        rows.append(("last validation", event_text(details.last_validation)))
    rows += [(state.name, visible(state.summary)) for state in details.trackers]
    if result is not None:
        # These have their own rows or tables; all other figures of the result are listed unchanged.
        said_elsewhere = {"status", "stopped_because", "warnings", "num_steps", "bill", "fit"}
        results = result.model_dump(mode="json", exclude=said_elsewhere)
        rows += [(name, figures.plain(value)) for name, value in results.items()]
    if details.bill is not None:
        rows.append(("bill", bill_line(details.bill)))
    facts(console, rows)
    if details.forecast is not None:
        table = make_table(["forecast and outcome", "predicted", "range", "measured", ""], num_text_columns=5)
        for line in details.forecast.rows:
            table.add_row(line.name, line.predicted, line.range, line.measured, line.where)
        console.print(table)
    print_warnings(console, details.warnings)
    if result is not None and result.fit is not None:
        show_fit(console, result.fit)
    table = make_table(["plan", "value", "source"], num_text_columns=3)
    for row in details.plan.shown_values():
        table.add_row(row["name"], visible(figures.plain(row["value"])), row["source"])
    console.print(table)
    if details.evaluation is not None:
        show_evaluation(console, details.evaluation)


def _show_comparison(console: Console, comparison: RunComparison) -> None:
    from luthier.features.evaluations.verdict_format import print_warnings
    from luthier.platform.cli.console import make_table, visible

    print_warnings(console, comparison.caveats)
    # The request, then the result, then the evaluation.
    parts = (("plan", comparison.plan), ("result", comparison.results), ("metric", comparison.metrics))
    for title, rows in parts:
        if rows:
            table = make_table([title, *comparison.run_ids])
            # Of a plan every difference is shown; a result has records and empty values, too.
            left_out = [row["name"] for row in rows if title == "result" and not _fits_a_table(row["values"])]
            for row in (row for row in rows if row["name"] not in left_out):
                table.add_row(visible(row["name"]), *(visible(_cell(value)) for value in row["values"]))
            console.print(table)
            if left_out:
                console.print(f"empty or no figures, so only in --json: {', '.join(left_out)}", soft_wrap=True)
        else:
            console.print({"plan": "the plans do not differ", "metric": "no metrics"}.get(title, ""), soft_wrap=True)


def _fits_a_table(values: Sequence[object]) -> bool:
    """Whether a run has a figure or a short text among these; records such as the first step are too wide."""
    return any(
        value not in (None, "", [], {}) and (not isinstance(value, dict) or _is_interval(value)) for value in values
    )


def _is_interval(value: object) -> bool:
    return isinstance(value, dict) and {"value", "low", "high"} <= set(value)


def _cell(value: object) -> str:
    from luthier.platform.cli import figures

    if isinstance(value, dict) and _is_interval(value):
        low, high = figures.number(value["low"]), figures.number(value["high"])
        return f"{figures.number(value['value'])} [{low}, {high}]"
    return figures.plain(value)
