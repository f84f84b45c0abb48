"""`luthier inbox`: what waits for people, and who does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, ProjectOption, caller_of, open_context
from luthier.platform.cli.figures import utc

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.inbox.records import InboxEntry

_ItemArgument = Annotated[str, typer.Argument(metavar="ITEM", help="The id of an entry; see `luthier inbox list`.")]


def list_all(
    show: Annotated[Literal["open", "snoozed", "done"], typer.Option("--show", help="The entries to show.")] = "open",
    assignee: Annotated[
        str | None, typer.Option("--for", metavar="NAME", help="Only entries of this member.", show_default="all")
    ] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List work waiting for people: to rate, review and annotate; alerts, canaries to decide on, and failed jobs."""
    from luthier.features.inbox import service as inbox

    with open_context(home) as context:
        found = inbox.list_entries(context, caller_of(context, project), show=show, assignee=assignee)
    return Answer(as_json, [_document(one) for one in found], lambda console: _show(console, found, show))


def assign(
    item: _ItemArgument,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The member to assign it to; leave it out for nobody.", show_default=False),
    ] = None,
    due: Annotated[str | None, typer.Option("--due", metavar="YYYY-MM-DD", help="The due date (UTC).")] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Assign an entry to a member, who gets a message, or to nobody."""
    from luthier.features.inbox import service as inbox

    day = None if due is None else _day(due)
    with open_context(home) as context:
        made = inbox.assign(context, caller_of(context, project), item, name, due=day)
    whom = f"assigned to {made.assignee}" if made.assignee else "assigned to nobody"
    return _changed(as_json, made, whom)


def done(
    item: _ItemArgument, project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """Mark an entry as done; it reopens when there is something new to do."""
    from luthier.features.inbox import service as inbox

    with open_context(home) as context:
        made = inbox.finish(context, caller_of(context, project), item)
    return _changed(as_json, made, "marked as done")


def snooze(
    item: _ItemArgument,
    span: Annotated[str, typer.Argument(metavar="SPAN", help="How long to hide it, such as 3d or 12h.")],
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Hide an entry for a while."""
    from luthier.features.inbox import service as inbox
    from luthier.platform.home.duration import parse_duration

    seconds = parse_duration(span, option="SPAN")
    with open_context(home) as context:
        made = inbox.snooze(context, caller_of(context, project), item, seconds)
    until = made.mark.snoozed_until
    assert until is not None, "it was snoozed just now"
    return _changed(as_json, made, f"hidden until {utc(until)} UTC")


def reopen(
    item: _ItemArgument, project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """Reopen an entry that was snoozed or marked as done."""
    from luthier.features.inbox import service as inbox

    with open_context(home) as context:
        made = inbox.reopen(context, caller_of(context, project), item)
    return _changed(as_json, made, "open again")


def _day(text: str) -> date:
    from luthier.core.errors import RequestError

    try:
        return date.fromisoformat(text)
    except ValueError:
        raise RequestError(f"--due {text!r}", expected="a day such as 2026-12-03", do="correct it") from None


def _changed(as_json: bool, made: InboxEntry, words: str) -> Answer:
    from luthier.platform.cli.console import visible

    text = f"{visible(made.work.title)}: {words}"
    return Answer(as_json, _document(made), lambda console: console.print(text, soft_wrap=True))


def _document(one: InboxEntry) -> dict[str, Any]:
    due = one.mark.due_at
    return {
        "id": one.item_id,
        "kind": one.work.kind,
        "about": one.work.subject,
        "title": one.work.title,
        "detail": one.work.detail,
        "address": one.work.address,
        "status": one.state,
        "waiting_since": one.work.since,
        "assignee": one.assignee or None,
        "due": None if due is None else datetime.fromtimestamp(due, UTC).date().isoformat(),
        "overdue": one.is_overdue,
    }


def _show(console: Console, found: Sequence[InboxEntry], show: str) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print("nothing waits" if show == "open" else f"nothing is {show}")
        return
    table = make_table(["entry", "what", "how far", "who", "due (UTC)"], num_text_columns=5)
    for one in found:
        due = "-" if one.mark.due_at is None else f"{datetime.fromtimestamp(one.mark.due_at, UTC):%Y-%m-%d}"
        texts = (one.work.title, one.work.detail[:80], one.assignee or "-")
        table.add_row(one.item_id, *map(visible, texts), f"{due} overdue" if one.is_overdue else due)
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "list": list_all,
    "assign": assign,
    "done": done,
    "snooze": snooze,
    "reopen": reopen,
}
