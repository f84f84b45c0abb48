"""The list of runs as a table: filter, order, columns and saved views; changes of the chosen runs, and of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Form, Query, Request
from starlette.background import BackgroundTask
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.text.counted import counted
from luthier.features.runs import changes as run_changes
from luthier.features.runs import labels
from luthier.features.runs.labels import MAX_NAME, MAX_NOTE, LabelChanges
from luthier.features.runs.pages import run_page
from luthier.features.runs.state import name_of, standing
from luthier.features.runs.table import (
    OWN_COLUMNS,
    TableRequest,
    asked_for,
    cells_of,
    known_fields,
    offered_columns,
    table_of,
)
from luthier.features.runs.view import MOST_COMPARED
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, one_state, own_address

router = APIRouter()
_MAX_CHOSEN: Final = 100
_Short = Annotated[str, Query(max_length=1_000)]
_Text = Annotated[str, Form(max_length=MAX_NAME + 100)]
_Note = Annotated[str, Form(max_length=2 * MAX_NOTE)]
"""Browsers send two characters for the end of a line, and let a person write `MAX_NOTE` that count it as one."""
_Address = Annotated[str, Form(max_length=6_000)]
Action = Literal["archive", "restore", "star", "unstar", "tag", "untag", "group", "delete"]


@router.get("/runs")
@one_state
def show_runs(
    request: Request,
    context: HomeContext,
    caller: Reader,
    filter: _Short = "",
    status: Annotated[str, Query(max_length=40)] = "",
    text: Annotated[str, Query(max_length=200)] = "",
    sort: Annotated[str, Query(max_length=120)] = "",
    columns: Annotated[list[str] | None, Query(max_length=100)] = None,
    archived: Annotated[str, Query(max_length=10)] = "",
    before: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The list; for HTMX its rows alone, as they are now."""
    asked = asked_for(
        filter_text=filter, status=status, text=text, sort=sort, columns=columns or (), archived=archived, before=before
    )
    return _list(request, context, caller, asked)


def _list(
    request: Request,
    context: Context,
    caller: Caller,
    asked: TableRequest,
    *,
    chosen: Sequence[str] = (),
    word: str = "",
    view_name: str = "",
    error: LuthierError | None = None,
) -> Response:
    """The list; for HTMX its rows alone.

    Args:
        request: The request that it answers.
        context: The home.
        caller: Who looks at it.
        asked: Which rows and columns.
        chosen: Runs that are ticked.
        word: What is in the field for a tag or a group.
        view_name: What is in the field for the name of a view.
        error: Why a change of the chosen runs was refused; it decides the status of the response.
    """
    table = table_of(context, caller, request.app.state.judged, asked)
    rows = table.page.rows
    values = {
        "table": table,
        "asked": asked,
        "rows": [(row, cells_of(row, asked.columns)) for row in rows],
        "own_columns": OWN_COLUMNS,
        "is_moving": any(row.standing.status not in ("succeeded", "failed", "cancelled") for row in rows),
        "most_compared": MOST_COMPARED,
        "this": asked.address(asked.before),
        "newest": asked.address() if asked.before else "",
        "older": asked.address(table.page.older) if table.page.older else "",
        "is_grouped": asked.order.key == "group" if table.error is None else False,
        "chosen": chosen,
        "word": word,
        "view_name": view_name,
        "error": error or table.error,
    }
    if is_fragment_request(request):
        return render(request, "runs/rows.html", values)
    is_empty = error is None and not rows and not asked.is_filtered and not asked.before and table.error is None
    if is_empty and not asked.archived:
        # Where all are archived, the list says so and leads to them.
        is_empty = not table_of(context, caller, request.app.state.judged, replace(asked, archived=True)).page.rows
    values |= {
        "views": [(view, f"/runs?{view.query}") for view in context.run_labels.views(caller.project_id)],
        "offered": offered_columns(context, asked.columns),
        "fields": known_fields(),
        "is_empty": is_empty,
    }
    status = status_of(error) if error is not None else 200 if table.error is None else 422
    return render(request, "runs/list.html", values, status=status)


@router.post("/runs/edit")
def edit_chosen(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    run: Annotated[list[str], Form(max_length=_MAX_CHOSEN)] = [],  # noqa: B006 - FastAPI copies it
    do: Annotated[Action, Form()] = "archive",
    word: _Text = "",
    back: _Address = "/runs",
) -> Response:
    """Change what is written about the chosen runs, or delete them; where that is refused, they stay chosen."""
    try:
        if do == "delete":
            return _delete_chosen(request, context, caller, run, _list_address(back))
        number = run_changes.edit_runs(context, caller, run, _changes(do, word))
    except LuthierError as error:
        return _list(request, context, caller, _request_of(_list_address(back)), chosen=run, word=word, error=error)
    word = word.strip()
    match do:
        case "archive":
            notice = f"{counted(number, 'run is', 'runs are')} archived."
        case "restore":
            notice = f"{counted(number, 'run is', 'runs are')} no longer archived."
        case "star":
            notice = f"{counted(number, 'run has', 'runs have')} a star now."
        case "unstar":
            notice = f"{counted(number, 'run has', 'runs have')} no star now."
        case "tag":
            notice = f"{counted(number, 'run has', 'runs have')} the tag {word} now."
        case "untag":
            notice = f"{counted(number, 'run is', 'runs are')} without the tag {word} now."
        case "group" if word:
            notice = f"{counted(number, 'run is', 'runs are')} in the group {word} now."
        case "group":
            notice = f"{counted(number, 'run is', 'runs are')} in no group now."
    return redirect(request, _list_address(back), notice)


def _delete_chosen(request: Request, context: Context, caller: Caller, chosen: Sequence[str], back: str) -> Response:
    """Delete runs with the models that were registered of them: all that can be. Their files may be large."""

    def work() -> Led:
        num_deleted, refused = run_changes.delete_runs(context, caller, chosen, with_models=True)
        run_changes.sweep(context)
        notices = [f"{counted(num_deleted, 'run is', 'runs are')} deleted."] if num_deleted else []
        if refused:
            notices.append(f"Not deleted: {counted(len(refused), 'run')}, the first since {refused[0].came}.")
        return Led(back, " ".join(notices))

    return page_work(request).answer(request, "The runs are being deleted", work, back=back)


def _changes(do: Action, word: str) -> LabelChanges:
    if do in ("tag", "untag") and not word.strip():
        raise RequestError("no tag", expected="a word", do="write the tag into the field next to the buttons")
    match do:
        case "archive" | "restore":
            return LabelChanges(is_archived=do == "archive")
        case "star" | "unstar":
            return LabelChanges(is_starred=do == "star")
        case "tag":
            return LabelChanges(add_tags=word.split())
        case "untag":
            return LabelChanges(remove_tags=[one.lower() for one in word.split()])
    return LabelChanges(group=word)


@router.post("/runs/views")
def save_view(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    name: _Text = "",
    query: _Address = "",
) -> Response:
    """Keep filter, order and columns under a name, for all of the project; where that is refused, they stay."""
    try:
        view = labels.save_view(context, caller, name, query)
    except LuthierError as error:
        return _list(request, context, caller, _request_of(f"/runs?{query}"), view_name=name, error=error)
    return redirect(request, f"/runs?{view.query}", f"The view {view.name} is saved.")


@router.post("/runs/views/delete")
def delete_view(
    request: Request, context: HomeContext, caller: Trainer, name: _Text = "", query: _Address = ""
) -> Response:
    """Delete a saved view; the runs are unchanged, and the list stays as it is shown."""
    address = _list_address(f"/runs?{query}" if query else "/runs")
    try:
        labels.delete_view(context, caller, name)
    except NotFoundError as error:  # as in another tab, or by somebody else
        return _list(request, context, caller, _request_of(address), error=error)
    return redirect(request, address, f"The view {name} is deleted.")


@router.post("/runs/{run_id}/edit")
def edit(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    run_id: str,
    name: _Text = "",
    note: _Note = "",
    group: _Text = "",
    tags: Annotated[str, Form(max_length=2_000)] = "",
    star: Annotated[str, Form(max_length=10)] = "",
    archived: Annotated[str, Form(max_length=10)] = "",
) -> Response:
    """Change what is written about a run: everything that the form has, which keeps its texts where one is refused."""
    changes = LabelChanges(name, note, group, bool(star), bool(archived), tags=tags.replace(",", " ").split())
    try:
        run_changes.edit_run(context, caller, run_id, changes)
    except LuthierError as error:
        edited: dict[str, str | bool] = {"name": name, "note": note, "group": group, "tags": tags}
        edited |= {"is_starred": bool(star), "is_archived": bool(archived)}
        return run_page(request, context, caller, standing(context, caller, run_id), edited=edited, error=error)
    return redirect(request, f"/runs/{run_id}", "Saved.")


@router.post("/runs/{run_id}/star")
def star_run(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    run_id: str,
    star: Annotated[Literal["", "0", "1"], Form()] = "",
    back: _Address = "/runs",
) -> Response:
    """Give it a star by `star` 1, take it away by 0: sent twice, that changes nothing. Without `star`, switch it."""
    is_starred = star == "1" if star else not context.run_labels.of_runs([run_id])[run_id].is_starred
    run_changes.edit_run(context, caller, run_id, LabelChanges(is_starred=is_starred))
    return redirect(request, _list_address(back))


@router.post("/runs/{run_id}/delete")
def delete_run(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    run_id: str,
    with_models: Annotated[Literal["", "1"], Form()] = "",
) -> Response:
    """Delete a run with its files, unless something uses it. The files go after the answer: they may be large.

    with_models: whether the models that are registered of it are deleted, too, as the page has said.
    """
    name, _ = name_of(context, standing(context, caller, run_id))
    try:
        run_changes.delete_run(context, caller, run_id, with_models=bool(with_models))
    except ConflictError as error:
        return run_page(request, context, caller, standing(context, caller, run_id), error=error)
    answer = redirect(request, "/runs", f"The run {name} is deleted.")
    answer.background = BackgroundTask(run_changes.sweep, context)
    return answer


def _request_of(address: str) -> TableRequest:
    """What an address of the list asks for."""
    given = dict(parse_qsl(urlsplit(address).query))
    names = ("status", "text", "sort", "archived", "before")
    one = {name: given.get(name, "") for name in names}
    return asked_for(filter_text=given.get("filter", ""), columns=[given.get("columns", "")], **one)


def _list_address(back: str) -> str:
    """The list that a form came from; never another site."""
    found = own_address(back)
    return found if found == "/runs" or found.startswith(("/runs?", "/runs/")) else "/runs"
