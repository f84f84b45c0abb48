"""`luthier audit-log`: what was done, by whom, and whether the log is unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context
from luthier.platform.cli.figures import utc

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.platform.audit_log.service import AuditEntry, AuditVerdict


def verify(
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect", metavar="NUMBER:HASH", help="The head that an earlier `verify` printed, stored elsewhere."
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Verify the chain of hashes; exit code 1 if an entry was changed, removed or inserted.

    Store the printed head somewhere else: the chain alone cannot show that its end was cut off, or that all of it was
    rewritten; --expect can.
    """
    from luthier.platform.audit_log import service as audit_log

    with open_context(home) as context:
        verdict = audit_log.verify_log(context, expect=expect)
    document = {**verdict.model_dump(mode="json"), "head": _head(verdict)}
    return Answer(as_json, document, lambda console: _tell(console, verdict), exit_code=0 if verdict.is_whole else 1)


def show(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, metavar="N", help="Only the newest N.")] = 50,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show the newest entries, newest first."""
    from luthier.platform.audit_log import service as audit_log

    with open_context(home) as context:
        found = audit_log.newest_entries(context, limit=limit)
    return Answer(as_json, [_document(entry) for entry in found], lambda console: _show_all(console, found))


def _head(verdict: AuditVerdict) -> str:
    # Kept elsewhere it proves later that the log was only appended to since.
    return f"{verdict.head_number}:{verdict.head_hash}"


def _document(entry: AuditEntry) -> dict[str, object]:
    return {**entry.model_dump(mode="json"), "document": json.loads(entry.document)}


def _tell(console: Console, verdict: AuditVerdict) -> None:
    from luthier.platform.cli.console import facts

    rows = [("unchanged", "yes" if verdict.is_whole else "no"), ("verified entries", f"{verdict.num_entries:,}")]
    if verdict.problem is not None:
        rows.append(("first broken", f"entry {verdict.broken_number}: {verdict.problem}"))
    facts(console, [*rows, ("head", _head(verdict))])


def _show_all(console: Console, found: list[AuditEntry]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print("the audit log is empty")
        return
    table = make_table(["number", "when (UTC)", "who", "what", "to what", "more"], num_text_columns=6)
    for entry in found:
        words = (entry.actor, entry.action, entry.subject, entry.document)
        table.add_row(str(entry.number), utc(entry.created_at, is_exact=True), *(visible(word) for word in words))
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {"verify": verify, "show": show}
