"""`luthier data audit`: what is wrong with a file, gravest first, and what to do about it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, MappingOption, PageOption, parse_mapping

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.results.audit import Audit, Finding
    from luthier.features.datasets.file_audits import Audited

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_GRADE_STYLES = {"A": "bold green", "B": "bold green", "C": "bold yellow", "D": "bold red", "F": "bold red"}
_NUM_EXAMPLES = 2


class FailOn(StrEnum):
    """From which severity on the exit code is 1."""

    ERROR = "error"
    WARNING = "warning"
    NEVER = "never"


def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV or Parquet, each also .gz, or .xlsx.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="The held-out file: which rows leak from it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model: lengths in its tokens, its context.")
    ] = None,
    html: PageOption = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit code 1 where something of this severity is found.")
    ] = FailOn.NEVER,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK,...", help="Run only these checks. Repeatable.")
    ] = None,
    mapping: MappingOption = None,
    group_by: Annotated[
        str | None, typer.Option("--group-by", metavar="FIELD", help="The field that names a row's source document.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="How the file will be trained: how many rows it needs.")] = (
        "lora"
    ),
    toxicity_model: Annotated[
        Path | None,
        typer.Option("--toxicity-model", metavar="DIR", help="A text-classification model in place of the word list."),
    ] = None,
    toxic_label: Annotated[
        str | None, typer.Option("--toxic-label", metavar="LABEL", help="Which label of that model means toxic.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Check a file: duplicates, leaks, personal data, secrets, encodings, lengths and more; a grade with reasons."""
    from luthier.features.datasets import file_audits as audits

    options = audits.AuditOptions(
        against=against,
        model=model,
        only=audits.names_of(only),
        mapping=parse_mapping(mapping or ()) or None,
        group_by=group_by,
        method=method,
        toxicity_model=toxicity_model,
        toxic_label=toxic_label,
    )
    with open_context(home) as context:
        found = audits.audit(context, file, options, html=html)
    return Answer(as_json, found.as_json(), lambda console: _show(console, found), _exit_code(found.audit, fail_on))


def _exit_code(found: Audit, fail_on: FailOn) -> int:
    bad = {FailOn.ERROR: ("error",), FailOn.WARNING: ("error", "warning"), FailOn.NEVER: ()}[fail_on]
    return 1 if found.worst() in bad else 0


def _show(console: Console, found: Audited) -> None:
    from rich.text import Text

    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    audit = found.audit
    shape = audit.shape or "no known shape"
    console.print(
        visible(
            f"{audit.file}: {audit.num_rows:,} rows, {figures.size(audit.num_bytes)}, {shape}: {audit.shape_reason}"
        ),
        soft_wrap=True,
    )
    console.print(Text.assemble("grade ", (audit.grade, _GRADE_STYLES[audit.grade])), soft_wrap=True)
    for finding in sorted(audit.findings, key=lambda one: list(_STYLES).index(one.severity)):
        _show_finding(console, finding)
    for check, reason in audit.skipped.items():
        console.print(Text.assemble(("\nnot run  ", "bold"), f"{check}: {visible(reason)}"), soft_wrap=True)
    if not audit.findings:
        console.print(f"\nnothing found by {len(audit.checks) - len(audit.skipped)} checks", soft_wrap=True)
    if found.report is not None:
        console.print(f"\nreport   {visible(str(found.report))}", soft_wrap=True)


def _show_finding(console: Console, finding: Finding) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import visible

    share = f"  {finding.count:,} ({finding.fraction:.2%})" if finding.count else ""
    head = Text.assemble(
        ("\n" + f"{finding.severity:<8} ", _STYLES[finding.severity]), (finding.check, "bold"), (share, "dim")
    )
    console.print(head, soft_wrap=True)
    console.print(visible(f"         {finding.message}"), soft_wrap=True)
    for example in finding.examples[:_NUM_EXAMPLES]:
        note = f" {example.note}:" if example.note else ""
        said = " ".join(example.excerpt.split())
        console.print(Text(visible(f"         {example.row}:{note} {said}"), style="dim"), soft_wrap=True)
    if finding.severity != "info":
        console.print(visible(f"         fix: {finding.fix}"), soft_wrap=True)
