"""Repairs of data files: what an audit finds is changed or removed, and every row's fate is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import RequestError
from luthier.platform.home.context import Context


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """The settings of a repair, besides the files.

    Attributes:
        only: Ids of repairs; None for those that are safe for every file.
        skip: Ids to leave out.
        against: The held-out file, for contamination.
        model: The base model whose tokens count.
        mapping: Column map, as for training.
        force: Replace an earlier repair.
        mask: Kinds of personal data of which every value is masked.
        leave: Kinds that are not masked.
    """

    only: tuple[str, ...] | None = None
    skip: tuple[str, ...] | None = None
    against: Path | None = None
    model: str | None = None
    mapping: Mapping[str, str] | None = None
    force: bool = False
    mask: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()


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
        """The document of `luthier data repair --json`: the summary, and where the files lie."""
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
    from luthier.ml.data.audit.request import AuditRequest
    from luthier.ml.data.audit.table import build_table
    from luthier.ml.data.repair.actions import choose_actions
    from luthier.ml.data.repair.masked_kinds import masked_kinds
    from luthier.ml.data.repair.request import RepairRequest
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
    table = build_table(file, mapping=options.mapping, count_tokens=counter, progress=context.progress)
    held_out = None
    if options.against is not None:
        # No token counter: held-out rows are only compared as texts.
        held_out = build_table(options.against, mapping=options.mapping, progress=context.progress)
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
