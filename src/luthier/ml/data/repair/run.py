"""A repair from beginning to end, and the files it writes: the rows, the fate of every original row, and a summary.

The files appear only when all of them are complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from luthier.core.errors import DataError, RequestError
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.core.json_limits import json_text, json_utf8
from luthier.core.results.audit import Audit, Finding
from luthier.ml.data.audit.earlier_rows import EarlierRows
from luthier.ml.data.audit.run import run_audit
from luthier.ml.data.audit.table import AuditTable, build_table
from luthier.ml.data.files.source import changed_while_read, open_source
from luthier.ml.data.personal_data.recognizers import KINDS
from luthier.ml.data.repair.change import Changed, change_rows
from luthier.ml.data.repair.remove import check_can_run, removals
from luthier.ml.data.repair.request import ACTIONS, Note, Notes, RepairRequest, add_note, lines_of
from luthier.ml.data.rows.outputs import check_free, check_outputs, publish, working_folder
from luthier.ml.data.rows.rows import read_raw_records


@dataclass
class Fates:
    """How many rows were kept, changed and removed.

    Attributes:
        num_kept: rows that are unchanged.
        num_changed: rows that were changed and stay.
        num_removed: rows that are not in the output.
        by_action: rows by action id; a removed row counts for its first reason, a changed one for each of its actions.
    """

    num_kept: int = 0
    num_changed: int = 0
    num_removed: int = 0
    by_action: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """For the summary."""
        return {"kept": self.num_kept, "changed": self.num_changed, "removed": self.num_removed}


def manifest_path(output: Path) -> Path:
    """`clean.jsonl` -> `clean.jsonl.manifest.jsonl`."""
    return output.with_name(f"{output.name}.manifest.jsonl")


def summary_path(output: Path) -> Path:
    """`clean.jsonl` -> `clean.jsonl.repair.json`."""
    return output.with_name(f"{output.name}.repair.json")


def write_rows_and_manifest(
    request: RepairRequest, changed: Changed, removed: Notes, rows: Path, manifest: Path
) -> Fates:
    """Write the rows that stay, and a line for every record of the original, in order.

    A line of the manifest: line, row (its id), fate (kept, changed, removed), check and reason (the first ones),
    reasons (all), sha256_before and sha256_after of the row as one line of JSONL without its end (null where there is
    none, or where it could not be read as a line), output_line. No value of a row is in it.

    Args:
        request: the file, its audit, and the actions.
        changed: the rows with changed values.
        removed: of each line the reasons why its row is removed.
        rows: the file of rows to write.
        manifest: the file of the manifest to write.

    Raises:
        DataError: no row is left.
    """
    fates, table = Fates(), request.audit.table
    with (
        rows.open("wb") as output,
        manifest.open("w", encoding="utf-8", newline="\n") as fates_file,
        request.audit.progress.task("write rows", table.num_rows, "row") as task,
    ):
        for line, before, after in _pairs(request, changed):
            notes = [*removed.get(line, []), *changed.changed.get(line, [])]
            fate = "removed" if line in removed else "changed" if notes else "kept"
            output_line = None
            if fate != "removed":
                output.write(after + b"\n")
                # Counted before this row is, so one more is its line.
                output_line = fates.num_kept + fates.num_changed + 1
            _count(fates, fate, notes)
            task.advance()
            _write_fate(
                fates_file,
                {"line": line, "row": table.id_of(line), "fate": fate},
                notes,
                {
                    "sha256_before": None if before is None else sha256_bytes(before),
                    # Lines count from 1, so None is the only false value.
                    "sha256_after": sha256_bytes(after) if output_line else None,
                    "output_line": output_line,
                },
            )
    if fates.num_kept + fates.num_changed == 0:
        raise DataError(
            f"no row of {table.file} is left: "
            + ", ".join(f"{n:,} {name}" for name, n in fates.by_action.most_common()),
            expected="at least one row that is kept",
            do="check them with `luthier data audit`, and skip some repairs with --skip",
        )
    return fates


def _pairs(request: RepairRequest, changed: Changed) -> Iterator[tuple[int, bytes | None, bytes]]:
    """Line, bytes of the original, bytes of the changed row."""
    with changed.path.open("rb") as file:
        at = 0
        for line, before in read_raw_records(open_source(request.file)):
            # Line n of the working file belongs to record n of the original; blank lines are skipped in both.
            while at < line:
                after = file.readline()
                at += 1
            yield line, before, after.removesuffix(b"\n")


def _count(fates: Fates, fate: str, notes: list[Note]) -> None:
    if fate == "kept":
        fates.num_kept += 1
        return
    if fate == "removed":
        fates.num_removed += 1
        # Only the first reason, so that the actions add up to the removed rows.
        fates.by_action[notes[0].action] += 1
        return
    fates.num_changed += 1
    fates.by_action.update(dict.fromkeys((note.action for note in notes), 1))


def _write_fate(file: IO[str], head: dict[str, Any], notes: list[Note], tail: dict[str, Any]) -> None:
    first = notes[0] if notes else None
    why = {
        "check": first.action if first else None,
        "reason": first.reason if first else None,
        "reasons": [note.as_json() for note in notes],
    }
    file.write(json_text({**head, **why, **tail}) + "\n")


def summary(
    request: RepairRequest, fates: Fates, changed: Changed, rows: Path, before: Audit, after: Audit
) -> dict[str, Any]:
    """The document next to the rows; written last, so that the repair is complete where it exists.

    Args:
        request: the file, its audit, and the actions.
        fates: what became of each row.
        changed: the rows with changed values.
        rows: the written file.
        before: the audit of the original.
        after: the audit of the written file.
    """
    table = request.audit.table
    return {
        "file": table.file,
        "sha256": table.sha256,
        "output": request.output.name,
        "output_sha256": sha256_file(rows),
        "manifest": manifest_path(request.output).name,
        "against": request.audit.held_out.file if request.audit.held_out else None,
        "model": request.audit.model,
        "mapping": request.mapping,
        "num_rows": table.num_rows,
        "num_rows_after": after.num_rows,
        "fates": fates.as_json(),
        "actions": [{**action.as_json(), "num_rows": fates.by_action[action.id]} for action in request.actions],
        "masked": changed.masked.as_json(),
        "mask": {
            "kinds": list(request.mask.kinds),
            "every": list(request.mask.every),
            "left": [kind for kind in KINDS if kind not in request.mask.kinds],
        }
        if request.has("personal_data")
        else None,
        "num_rows_with_html_kept": changed.num_html_kept,
        "checks": list(before.checks),
        "skipped": before.skipped,
        "grade_before": before.grade,
        "grade_after": after.grade,
        "left": [
            {"check": one.check, "severity": one.severity, "count": one.count, "message": one.message}
            for one in after.findings
            if one.severity != "info"
        ],
    }


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
    """Repair a file into another one; the original is not changed.

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
            raise changed_while_read(before.file)
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
        table = replace(_table(request, changed.path, _unchanged(request, changed)), file=table.file)
        # The audit's findings are of the original rows: changed rows must be checked again.
        found = None
    for line, notes in removals(request, table, removed, found).items():
        for note in notes:
            add_note(removed, line, note)
    return removed


def _unchanged(request: RepairRequest, changed: Changed) -> EarlierRows | None:
    """The rows that are as they were; None where the file is no JSONL, as the working file is."""
    if open_source(request.file).format != "jsonl":
        return None
    return EarlierRows(request.audit.table, changed.changed)


def _table(request: RepairRequest, path: Path, earlier: EarlierRows | None = None) -> AuditTable:
    return build_table(
        path,
        mapping=request.mapping,
        count_tokens=request.count_tokens,
        progress=request.audit.progress,
        spill=request.audit.table.rows.spill,
        workers=request.audit.table.rows.workers,
        earlier=earlier,
    )
