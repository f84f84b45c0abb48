"""A repair from beginning to end; the files appear only when all of them are whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.core.digest import sha256_file
from luthier.core.errors import DataError, RequestError
from luthier.core.json_limits import json_utf8
from luthier.core.results.audit import Audit, Finding
from luthier.ml.data.audit.run import run_audit
from luthier.ml.data.audit.table import AuditTable, build_table
from luthier.ml.data.repair.actions import ACTIONS
from luthier.ml.data.repair.change import Changed, change_rows
from luthier.ml.data.repair.remove import check_can_run, removals
from luthier.ml.data.repair.request import Notes, RepairRequest, add_note, lines_of
from luthier.ml.data.repair.write import manifest_path, summary, summary_path, write_rows_and_manifest
from luthier.ml.data.rows.outputs import check_free, check_outputs, publish, working_folder


@dataclass(frozen=True, slots=True)
class Repaired:
    """The files of a repair.

    Attributes:
        output: the rows.
        manifest: the fate of every row.
        summary: the file of the summary.
        document: contents of the summary.
    """

    output: Path
    manifest: Path
    summary: Path
    document: dict[str, Any]


def check_repair_output(output: Path, *inputs: Path, force: bool) -> None:
    """Check that a repair can be written.

    Raises:
        RequestError: the output is no .jsonl file, or one of the files that are read.
        ConflictError: an earlier repair is there, and `force` is not set.
    """
    if output.suffix.lower() != ".jsonl":
        raise RequestError(f"the output {output}", expected="a name that ends in .jsonl", do="name it clean.jsonl")
    check_outputs([output, manifest_path(output), summary_path(output)], inputs)
    check_free([summary_path(output)], force=force)


def repair_file(request: RepairRequest) -> Repaired:
    """Repair a file into another one; the original stays as it is.

    Writes the rows (JSONL, in order; a line of JSONL that is kept is kept byte for byte), `.manifest.jsonl` with the
    fate of every row, and `.repair.json`, the summary, last. The same file and request give the same bytes. Repairing
    the outcome again changes nothing, as long as checks that compare a row with the whole file (length, language, HTML
    that most rows hold) judge the rows that are left as before.

    Raises:
        DataError: rows that cannot be read and may not be removed, no row left, a file that changes meanwhile.
        RequestError: a check that cannot be run.
        ConflictError: an output that is there.
    """
    before = request.audit.table
    inputs = [request.file, *([request.audit.held_out.path] if request.audit.held_out else [])]
    check_repair_output(request.output, *inputs, force=request.force)
    audited = run_audit(request.audit, request.checks)
    check_can_run(audited.skipped, request.actions)
    with working_folder(request.output) as work:
        changed = change_rows(
            request, lines_of(audited.findings, ACTIONS["encoding"]), html_is_meant=_html_is_meant(audited), folder=work
        )
        removed = _removed(request, changed, audited)
        rows, manifest, last = (work / name for name in (request.output.name, "manifest", "summary"))
        fates = write_rows_and_manifest(request, changed, removed, rows, manifest)
        if sha256_file(request.file) != before.sha256:
            raise DataError(
                f"{before.file} was changed while it was read",
                expected="a file that stays as it is",
                do="wait until whatever writes the file is done, then start again",
            )
        # The grade after the repair is measured on what was written.
        again = run_audit(replace(request.audit, table=_table(request, rows)), request.checks)
        document = summary(request, fates, changed, rows, audited, again)
        last.write_bytes(json_utf8(document, indent=2) + b"\n")
        finals = (request.output, manifest_path(request.output), summary_path(request.output))
        publish(dict(zip((rows, manifest, last), finals, strict=True)), force=request.force)
    return Repaired(*finals, document)


def _html_is_meant(audited: Audit) -> bool:
    return any(one.check == "encoding" and one.details.get("is_meant") for one in audited.findings)


def _removed(request: RepairRequest, changed: Changed, audited: Audit) -> Notes:
    """All rows that go, with the reasons."""
    removed: Notes = {line: list(notes) for line, notes in changed.removed.items()}
    table = request.audit.table
    found: Sequence[Finding] | None = audited.findings
    if changed.changed:
        table = replace(_table(request, changed.path), file=table.file)
        # The audit's findings are of the original rows: changed rows must be checked again.
        found = None
    for line, notes in removals(request, table, removed, found).items():
        for note in notes:
            add_note(removed, line, note)
    return removed


def _table(request: RepairRequest, path: Path) -> AuditTable:
    return build_table(
        path, mapping=request.mapping, count_tokens=request.count_tokens, progress=request.audit.progress
    )
