"""`luthier data audit`, `repair` and `split`: find what is wrong with a file, fix it, and divide it without leaks.

A repair writes a new file with a reason for every changed row; a split comes with the proof that nothing leaks.
"""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.text.counted import counted
from luthier.platform.cli.command import (
    Answer,
    HomeOption,
    JsonOption,
    MappingOption,
    PageOption,
    open_context,
    parse_mapping,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.results.audit import Audit, Finding
    from luthier.features.datasets.data_files import Audited, WrittenRepair, WrittenSplit

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_GRADE_STYLES = {"A": "bold green", "B": "bold green", "C": "bold yellow", "D": "bold red", "F": "bold red"}
_NUM_EXAMPLES = 2


OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray",
        help="Share the work on a Ray cluster: the one at RAY_ADDRESS or on this machine, or one started for this "
        "command.",
    ),
]


class FailOn(StrEnum):
    """From which severity on the exit code is 1."""

    ERROR = "error"
    WARNING = "warning"
    NEVER = "never"


def audit(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A data file: JSONL, JSON, CSV, Parquet (each also .gz), a workbook."),
    ],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="The held-out file, to find rows that leak from it."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model whose tokens and context are used.")
    ] = None,
    html: PageOption = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit code 1 if something of this severity or a higher one is found.")
    ] = FailOn.NEVER,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK,...", help="Run only these checks. Repeatable.")
    ] = None,
    mapping: MappingOption = None,
    group_by: Annotated[
        str | None, typer.Option("--group-by", metavar="FIELD", help="The field with the source document of a row.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="The planned training method: it decides how many rows are needed.")
    ] = ("lora"),
    toxicity_model: Annotated[
        Path | None,
        typer.Option(
            "--toxicity-model", metavar="DIR", help="A text-classification model to use instead of the word list."
        ),
    ] = None,
    toxic_label: Annotated[
        str | None, typer.Option("--toxic-label", metavar="LABEL", help="The label of that model that means toxic.")
    ] = None,
    on: OnOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Check a file: duplicates, leaks, personal data, secrets, encodings, lengths and more; a grade with reasons."""
    from luthier.features.datasets import data_files as audits

    options = audits.AuditOptions(
        against=against,
        model=model,
        only=audits.names_of(only),
        mapping=parse_mapping(mapping or ()) or None,
        group_by=group_by,
        method=method,
        toxicity_model=toxicity_model,
        toxic_label=toxic_label,
        on=on,
    )
    with open_context(home) as context:
        found = audits.audit(context, file, options, html=html)
    return Answer(
        as_json, found.as_json(), lambda console: _show_audit(console, found), _exit_code(found.audit, fail_on)
    )


def _exit_code(found: Audit, fail_on: FailOn) -> int:
    bad = {FailOn.ERROR: ("error",), FailOn.WARNING: ("error", "warning"), FailOn.NEVER: ()}[fail_on]
    return 1 if found.worst() in bad else 0


def _show_audit(console: Console, found: Audited) -> None:
    from rich.text import Text

    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    audit = found.audit
    shape = audit.shape or "no known shape"
    console.print(
        visible(
            f"{audit.file}: {counted(audit.num_rows, 'row')}, {figures.size(audit.num_bytes)}, {shape}: "
            f"{audit.shape_reason}"
        ),
        soft_wrap=True,
    )
    console.print(Text.assemble("grade ", (audit.grade, _GRADE_STYLES[audit.grade])), soft_wrap=True)
    for finding in sorted(audit.findings, key=lambda one: list(_STYLES).index(one.severity)):
        _show_finding(console, finding)
    for check, reason in audit.skipped.items():
        console.print(Text.assemble(("\nnot run  ", "bold"), f"{check}: {visible(reason)}"), soft_wrap=True)
    if not audit.findings:
        console.print(f"\nnothing found by {counted(len(audit.checks) - len(audit.skipped), 'check')}", soft_wrap=True)
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


def repair(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A data file: JSONL, JSON, CSV, Parquet (each also .gz), a workbook."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write the rows to, as JSONL.")
    ],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK,...", help="Repair only what these checks find. Repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="CHECK,...", help="Skip these repairs. Repeatable.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="The held-out file: rows that leak from it are removed."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model whose tokens and context are used.")
    ] = None,
    mapping: MappingOption = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask", metavar="KIND,...", help="Mask every value of these kinds: names,streets,phones,... Repeatable."
        ),
    ] = None,
    no_mask: Annotated[
        list[str] | None, typer.Option("--no-mask", metavar="KIND,...", help="Do not mask these kinds.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier repair.")] = False,
    on: OnOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Repair a file into a new one: damaged text, personal data, secrets, duplicates, leaks; a reason for every row."""
    from luthier.features.datasets import data_files as audits
    from luthier.features.datasets import data_files as repairs

    options = repairs.RepairOptions(
        only=audits.names_of(only),
        skip=audits.names_of(skip),
        against=against,
        model=model,
        mapping=parse_mapping(mapping or ()) or None,
        force=force,
        mask=_kinds(mask),
        leave=_kinds(no_mask),
        on=on,
    )
    with open_context(home) as context:
        made = repairs.repair(context, file, output, options)
    return Answer(as_json, made.as_json(), lambda console: _show_repair(console, made))


def _kinds(given: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for text in given or () for name in text.split(",") if name.strip())


def _show_masked(console: Console, found: dict[str, Any]) -> None:
    """What was masked, by kind, with the first values before and after; and which kinds were left."""
    from luthier.platform.cli.console import visible

    for one in found["masked"]:
        values = f"{one['num_values']:,} value{'' if one['num_values'] == 1 else 's'}"
        rows = f"{one['num_rows']:,} row{'' if one['num_rows'] == 1 else 's'}"
        console.print(visible(f"masked   {one['kind']}: {values} in {rows}"), soft_wrap=True)
        for example in one["examples"]:
            console.print(visible(f"         line {example['line']:,}: {_one_line(example['before'])}"), soft_wrap=True)
            console.print(visible(f"           becomes {_one_line(example['after'])}"), soft_wrap=True)
    if found["mask"] is not None and found["mask"]["left"]:
        console.print(f"not masked  {', '.join(found['mask']['left'])} (--mask KIND masks these, too)", soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _show_repair(console: Console, made: WrittenRepair) -> None:
    from luthier.platform.cli.console import facts, make_table, visible

    found = made.document
    fates = found["fates"]
    console.print(
        visible(
            f"{found['file']}: {counted(found['num_rows'], 'row')}; {fates['kept']:,} kept, "
            f"{fates['changed']:,} changed, {fates['removed']:,} removed"
        ),
        soft_wrap=True,
    )
    table = make_table(("repair", "does", "rows"), num_text_columns=2)
    for action in found["actions"]:
        table.add_row(action["id"], action["action"], f"{action['num_rows']:,}")
    console.print(table)
    _show_masked(console, found)
    console.print(
        f"grade {found['grade_before']} before, {found['grade_after']} after, by these checks only", soft_wrap=True
    )
    for left in found["left"]:
        console.print(visible(f"left     {left['check']}: {left['message']}"), soft_wrap=True)
    if found["num_rows_with_html_kept"]:
        console.print(
            f"left     HTML in {counted(found['num_rows_with_html_kept'], 'row')} to clean: most rows have it on "
            "purpose",
            soft_wrap=True,
        )
    paths = (("rows", made.output), ("fates", made.manifest), ("summary", made.summary))
    facts(console, [(name, str(path)) for name, path in paths])


_NUM_STRATA = 20


def split(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A data file: JSONL, JSON, CSV, Parquet (each also .gz), a workbook."),
    ],
    held_out: Annotated[
        float, typer.Option("--held-out", help="The fraction of held-out rows, which evaluate the model once.")
    ] = 0.1,
    validation: Annotated[
        float, typer.Option("--validation", help="The fraction of validation rows, which steer training.")
    ] = 0.1,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="FIELD",
            help="Keep rows with the same value together; `source`: the document; `none` [default: provenance.file if "
            "any].",
        ),
    ] = None,
    stratify_by: Annotated[
        str | None, typer.Option("--stratify-by", metavar="FIELD", help="Give each side its share of each value.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The folder to write to [default: FILE-split, next to FILE]."
        ),
    ] = None,
    near_threshold: Annotated[
        float, typer.Option("--near-threshold", help="Keep rows that are at least this similar (Jaccard) on one side.")
    ] = 0.8,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates/--no-near-duplicates", help="Search for near-duplicates, or not.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier split in that folder.")] = False,
    mapping: MappingOption = None,
    on: OnOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Split a file so that no document, no text and no near-duplicate is on two sides, and prove it."""
    from luthier.features.datasets import data_files as splits

    options = splits.SplitOptions(
        folder=folder,
        validation=validation,
        held_out=held_out,
        seed=seed,
        group_by=group_by,
        stratify_by=stratify_by,
        near_threshold=near_threshold if near_duplicates else None,
        mapping=parse_mapping(mapping or ()) or None,
        force=force,
        on=on,
    )
    with open_context(home) as context:
        made = splits.split(context, file, options)
    return Answer(as_json, made.as_json(), lambda console: _show_split(console, made))


def _show_split(console: Console, made: WrittenSplit) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import make_table, visible

    found = made.document
    console.print(
        visible(
            f"{found['file']}: {counted(found['num_rows'], 'row')} in {counted(found['num_groups'], 'group')}, "
            f"seed {found['seed']}"
        ),
        soft_wrap=True,
    )
    console.print(visible(f"grouping: {found['grouping']}"), soft_wrap=True)
    table = make_table(("side", "file", "rows", "share", "asked", "groups"), num_text_columns=2)
    for side, part in found["sides"].items():
        figures = (f"{part['num_rows']:,}", f"{part['fraction']:.2%}", f"{part['fraction_asked']:.2%}")
        where = visible(str(made.folder / part["file"]))
        table.add_row(side.replace("_", "-"), where, *figures, f"{part['num_groups']:,}")
    console.print(table)
    _show_strata(console, made)
    for text in _proof(made):
        console.print(text, soft_wrap=True)
    for name in found["removed"]:
        console.print(visible(f"removed  {name} of an earlier split"), soft_wrap=True)
    for warning in found["warnings"]:
        console.print(Text.assemble(("warning  ", "yellow"), visible(warning)), soft_wrap=True)
    # Quoted for a shell, so that the line can be copied.
    sides = " ".join(f"--set data.{side}={shlex.quote(path)}" for side, path in made.recipe_data().items())
    console.print(visible(f"next     luthier train RECIPE {sides}"), soft_wrap=True)


def _show_strata(console: Console, made: WrittenSplit) -> None:
    from luthier.platform.cli.console import make_table, visible

    strata, sides = made.document["strata"], list(made.document["sides"])
    if not strata:
        return
    names = [side.replace("_", "-") for side in sides]
    table = make_table((made.document["stratified_by"], *names))
    for stratum, counts in list(strata.items())[:_NUM_STRATA]:
        total = sum(counts.values())
        table.add_row(visible(stratum), *(f"{counts[side]:,} ({counts[side] / total:.1%})" for side in sides))
    console.print(table)
    if len(strata) > _NUM_STRATA:
        console.print(f"... and {len(strata) - _NUM_STRATA:,} more, in split.json", soft_wrap=True)


def _proof(made: WrittenSplit) -> list[str]:
    proof, threshold = made.document["proof"], made.document["near_threshold"]
    near, groups = proof["near_duplicate"], proof["same_group"]
    parts = [counted(proof["exact"], "text")]
    parts.append(
        "near-duplicates not searched" if near is None else f"{counted(near, 'near-duplicate')} (Jaccard {threshold})"
    )
    parts += [] if groups is None else [counted(groups, "group")]
    lines = [f"on two sides, read back from the files: {', '.join(parts)}"]
    if proof["same_prompt"]:
        verb = "has" if proof["same_prompt"] == 1 else "have"
        rows = counted(proof["same_prompt"], "row")
        lines.append(f"{rows} of validation and held-out {verb} a prompt that train answers too")
    return lines
