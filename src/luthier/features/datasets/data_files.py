"""Operations on data files: audit, difference, repair and split.

An audit lists what is wrong before anything is trained. A repair changes or removes what an audit finds, and records
what happened to every row. A split makes train, validation and held-out files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import NotFoundError, RequestError
from luthier.features.datasets.row_workers import row_workers, working_memory
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.core.results.audit import Audit
    from luthier.ml.data.audit.base import ToxicityModel
    from luthier.ml.data.audit.table import AuditTable
    from luthier.ml.data.diff.compare import DatasetDiff
    from luthier.ml.data.files.row_workers import RowWorkers
    from luthier.ml.data.split.split_file import FileSplit


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit, and what it was made of.

    Attributes:
        audit: The findings and the grade.
        table: The table of rows that was checked.
        report: The HTML page, where one was requested.
    """

    audit: Audit
    table: AuditTable
    report: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data audit --json`."""
        return {**self.audit.model_dump(mode="json"), "report": str(self.report) if self.report else None}


@dataclass(frozen=True, slots=True)
class ShownNames:
    """What an audit shows in place of paths, for files that were uploaded. None shows the path.

    Attributes:
        file: The audited file.
        against: The held-out file.
        model: The base model.
    """

    file: str | None = None
    against: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """The settings of an audit, without the file.

    Attributes:
        against: The held-out file, for contamination.
        model: The base model whose tokens count; it is pulled where it is missing.
        only: Ids of checks; None for all.
        mapping: Column map, as for training.
        against_mapping: That of the held-out file; None takes `mapping`.
        group_by: The field that names a row's source document.
        method: How the file will be trained.
        toxicity_model: The folder of a text-classification model in place of the word list.
        toxic_label: Which of its labels means toxic, where the names do not say.
        shown: Names in place of paths.
        on: `ray` shares the work on a cluster of Ray; None does it on this machine. The findings are the same.
    """

    against: Path | None = None
    model: str | None = None
    only: tuple[str, ...] | None = None
    mapping: Mapping[str, str] | None = None
    against_mapping: Mapping[str, str] | None = None
    group_by: str | None = None
    method: str = "lora"
    toxicity_model: Path | None = None
    toxic_label: str | None = None
    shown: ShownNames = ShownNames()
    on: str | None = None


def audit(context: Context, file: Path, options: AuditOptions | None = None, *, html: Path | None = None) -> Audited:
    """Check a data file. The same file and options give the same findings.

    Args:
        context: The home.
        file: The rows.
        options: What is checked, and how; None takes the defaults.
        html: Where to write the report; its folder is made where it is missing.

    Raises:
        NotFoundError: No such file, model or check.
        DataError: The file as a whole cannot be read.
        RequestError: Options that do not go together.
        ModelSourceError: The model cannot be fetched.
    """
    from luthier.ml.data.audit.base import AuditRequest
    from luthier.ml.data.audit.run import load_checks, run_audit
    from luthier.ml.data.files.row_workers import IN_PROCESS

    options = options or AuditOptions()
    load_checks(options.only)  # an unknown id is an error before a long file is read
    check_is_not_input(html, file, options.against)
    model = _model(context, options.model)
    # Loaded before the file is read, so that a wrong folder is an error within a second.
    judge = _toxicity_model(options)
    with row_workers(context, options.on, file, options.against) as workers:
        table, held_out = _tables(context, file, options, _token_counter(model), workers)
        request = AuditRequest(
            table=table,
            held_out=held_out,
            model=(options.shown.model or model.name) if model else None,
            context_tokens=model.context_length_tokens if model else None,
            method=options.method,
            toxicity_model=judge,
            toxicity_model_name=options.toxicity_model.name if options.toxicity_model else None,
            progress=context.progress,
        )
        found = run_audit(request, options.only)
        report = _write_report(context, html, found, table, held_out) if html is not None else None
    # The workers are gone: code that continues with the table does so in this process.
    table.rows.workers = IN_PROCESS
    return Audited(found, table, report)


def _tables(
    context: Context, file: Path, options: AuditOptions, count_tokens: Any, workers: RowWorkers
) -> tuple[AuditTable, AuditTable | None]:
    """The rows of the file, and those of the held-out file, where there is one."""
    from luthier.ml.data.audit.table import build_table

    shown = options.shown
    read = partial(
        build_table,
        group_by=options.group_by,
        progress=context.progress,
        spill=working_memory(context),
        workers=workers,
    )
    table = read(file, shown_name=shown.file, mapping=options.mapping, count_tokens=count_tokens)
    if options.against is None:
        return table, None
    mapping = options.mapping if options.against_mapping is None else options.against_mapping
    return table, read(options.against, shown_name=shown.against, mapping=mapping)


def check_is_not_input(output: Path | None, *inputs: Path | None) -> None:
    """Raises RequestError where the output is one of the inputs, also by a link or another spelling of the path."""
    for path in inputs:
        # samefile compares device and inode: links and other spellings of the path are seen through.
        if output is not None and path is not None and output.exists() and path.exists() and output.samefile(path):
            raise RequestError(
                f"{output} is the file that is read",
                expected="another output file: the original is not changed",
                do="choose another name for the output",
            )


def _model(context: Context, name: str | None) -> LocalModel | None:
    if name is None:
        return None
    from luthier.ml.inference.models import sources

    return sources.pull(name, context.home, context.progress)


def _token_counter(model: LocalModel | None) -> Any:
    if model is None:
        return None
    from luthier.ml.inference.models.token_counter import token_counter

    return token_counter(Path(model.path))


def _toxicity_model(options: AuditOptions) -> ToxicityModel | None:
    if options.toxicity_model is None:
        if options.toxic_label is not None:
            raise RequestError(
                f"--toxic-label {options.toxic_label!r} without --toxicity-model",
                expected="a model whose label this is",
                do="name its folder with --toxicity-model, or leave the label out",
            )
        return None
    if not options.toxicity_model.is_dir():
        raise NotFoundError(
            f"no folder {options.toxicity_model}",
            expected="a folder with a text-classification model (config, tokenizer, safetensors)",
            do="correct --toxicity-model",
        )
    from luthier.ml.inference.models.text_classifier import load_text_classifier

    return load_text_classifier(options.toxicity_model, toxic_label=options.toxic_label)


def _write_report(context: Context, html: Path, found: Audit, table: AuditTable, held_out: AuditTable | None) -> Path:
    from luthier.ml.data.audit.report import write_audit_report
    from luthier.platform.home.hardware_benchmark import versions

    html.parent.mkdir(parents=True, exist_ok=True)
    write_audit_report(html, found, table, versions=versions(context), held_out=held_out)
    return html


def names_of(only: Sequence[str] | None) -> tuple[str, ...] | None:
    """`a,b`, given once or more, as ids; None where nothing was given. Raises RequestError where none is named."""
    if only is None:
        return None
    names = tuple(name.strip() for text in only for name in text.split(",") if name.strip())
    if not names:
        raise RequestError(
            f"--only {','.join(only)!r} names no check",
            expected="ids of checks, with commas between",
            do="write for example: --only exact_duplicate,personal_data",
        )
    return names


def compare(
    context: Context,
    old: Path,
    new: Path,
    *,
    key: str | None = None,
    mapping: Mapping[str, str] | None = None,
    num_examples: int = 5,
) -> DatasetDiff:
    """What changed from one data file, or folder with a split, to another.

    Args:
        context: The home, whose progress shows the reading.
        old: A data file, or the folder of a split.
        new: The same of the new version.
        key: The field that names a row; None as `data.diff.compare.diff` has it.
        mapping: Field of the shape -> column.
        num_examples: Rows of each kind to show; 0 for none.

    Raises:
        RequestError: `num_examples` is negative, a folder is compared with a file, or a folder has no split.json.
        NotFoundError: A file is missing.
        DataError: A file cannot be read, or a row has no key.
    """
    if num_examples < 0:
        raise RequestError(f"num_examples={num_examples}", expected="0 or more", do="ask for no or some examples")
    from luthier.ml.data.diff.compare import diff

    return diff(old, new, key=key, mapping=mapping, num_examples=num_examples, progress=context.progress)


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """The settings of a repair, without the files.

    Attributes:
        only: Ids of repairs; None for those that are safe for every file.
        skip: Ids to leave out.
        against: The held-out file, for contamination.
        model: The base model whose tokens count.
        mapping: Column map, as for training.
        against_mapping: As of `AuditOptions`.
        force: Replace an earlier repair.
        mask: Kinds of personal data of which every value is masked.
        leave: Kinds that are not masked.
        on: As of `AuditOptions`.
    """

    only: tuple[str, ...] | None = None
    skip: tuple[str, ...] | None = None
    against: Path | None = None
    model: str | None = None
    mapping: Mapping[str, str] | None = None
    against_mapping: Mapping[str, str] | None = None
    force: bool = False
    mask: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    on: str | None = None


@dataclass(frozen=True, slots=True)
class WrittenRepair:
    """A repair that was written.

    Attributes:
        output: The repaired rows, as JSONL.
        manifest: What became of each row.
        summary: The file of `document`.
        document: Counts, grades and examples of the repair.
    """

    output: Path
    manifest: Path
    summary: Path
    document: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data repair --json`: the summary, and the paths of the files."""
        paths = {"output": self.output, "manifest": self.manifest, "summary": self.summary}
        return {**self.document, "paths": {name: str(path) for name, path in paths.items()}}


def repair(context: Context, file: Path, output: Path, options: RepairOptions | None = None) -> WrittenRepair:
    """Repair a file into another one; the original is not changed.

    Raises:
        NotFoundError: No such file, model or repair.
        DataError: The file as a whole cannot be read, or no row is left.
        RequestError: Options that do not go together, or an output that is the input.
        ConflictError: The output exists.
        ModelSourceError: The model cannot be fetched.
    """
    from luthier.ml.data.audit.base import AuditRequest
    from luthier.ml.data.repair.request import RepairRequest, choose_actions, masked_kinds
    from luthier.ml.data.repair.run import check_repair_output, repair_file

    options = options or RepairOptions()
    actions = choose_actions(options.only, options.skip, has_held_out=options.against is not None)
    mask = masked_kinds(options.mask, options.leave)
    if (options.mask or options.leave) and all(action.id != "personal_data" for action in actions):
        raise RequestError(
            "kinds of personal data are named, and personal data is not among the repairs",
            expected="personal_data among the repairs",
            do="add personal_data to --only (or take it out of --skip), or leave --mask and --no-mask out",
        )
    inputs = [file] if options.against is None else [file, options.against]
    # Checked before the audit, which may take minutes for a large file.
    check_repair_output(output, *inputs, force=options.force)
    model = counter = None
    if options.model is not None:
        from luthier.ml.inference.models import sources
        from luthier.ml.inference.models.token_counter import token_counter

        model = sources.pull(options.model, context.home, context.progress)
        counter = token_counter(Path(model.path))
    with row_workers(context, options.on, file, options.against) as workers:
        settings = AuditOptions(options.against, mapping=options.mapping, against_mapping=options.against_mapping)
        table, held_out = _tables(context, file, settings, counter, workers)
        audit = AuditRequest(
            table=table,
            held_out=held_out,
            model=model.name if model else None,
            context_tokens=model.context_length_tokens if model else None,
            progress=context.progress,
        )
        made = repair_file(
            RepairRequest(
                output=output,
                actions=actions,
                audit=audit,
                mapping=dict(options.mapping or {}),
                count_tokens=counter,
                force=options.force,
                mask=mask,
            )
        )
    return WrittenRepair(made.output, made.manifest, made.summary, made.document)


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How to split a file.

    Attributes:
        folder: Where the sides are written; None for a folder next to the file.
        validation: The fraction of the validation side, 0 to 1.
        held_out: The fraction of the held-out side, 0 to 1.
        seed: Another seed gives another split.
        group_by: The field whose equal values stay on one side.
        stratify_by: The field whose values each side has its share of.
        near_threshold: Jaccard similarity (0.5 to 1) from which rows stay together; None does not search.
        mapping: Column map, as for training.
        force: Replace an earlier split.
        on: As of `AuditOptions`.
    """

    folder: Path | None = None
    validation: float = 0.1
    held_out: float = 0.1
    seed: int = 0
    group_by: str | None = None
    stratify_by: str | None = None
    near_threshold: float | None = 0.8
    mapping: Mapping[str, str] | None = None
    force: bool = False
    on: str | None = None


@dataclass(frozen=True, slots=True)
class WrittenSplit:
    """A split that was written.

    Attributes:
        folder: Where its sides are.
        document: The content of split.json.
    """

    folder: Path
    document: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data split --json`: split.json and its path."""
        return {"folder": str(self.folder), **self.document}

    def recipe_data(self) -> dict[str, str]:
        """The `data` of a recipe whose rows are the sides of this split: those that the proof covers."""
        return {side: str(self.folder / part["file"]) for side, part in self.document["sides"].items()}


def split(context: Context, file: Path, options: SplitOptions | None = None) -> WrittenSplit:
    """Split a file; the same file and options give the same bytes.

    Raises:
        NotFoundError: No such file.
        DataError: Rows, fields or fractions that do not allow it.
        ConflictError: An earlier split is there.
        RequestError: An option is out of its range.
        LeakageError: The proof failed.
    """
    from luthier.ml.data.split.split_file import split_file
    from luthier.ml.data.split.split_request import SplitRequest, default_folder

    options = options or SplitOptions()
    if options.near_threshold is not None and not 0.5 <= options.near_threshold <= 1:
        raise RequestError(
            f"--near-threshold {options.near_threshold}",
            expected="a Jaccard similarity from 0.5 to 1",
            do="take the default of 0.8, or leave the search out with --no-near-duplicates",
        )
    request = SplitRequest(
        file=file,
        folder=options.folder if options.folder is not None else default_folder(file),
        validation=options.validation,
        held_out=options.held_out,
        seed=options.seed,
        group_by=options.group_by,
        stratify_by=options.stratify_by,
        near_threshold=options.near_threshold,
        mapping=options.mapping,
        force=options.force,
    )
    with row_workers(context, options.on, file) as workers:
        made: FileSplit = split_file(request, progress=context.progress, spill=working_memory(context), workers=workers)
    return WrittenSplit(made.folder, made.document)
