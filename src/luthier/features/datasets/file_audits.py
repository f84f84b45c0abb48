"""Audits: what is wrong with a data file before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import NotFoundError, RequestError
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.core.results.audit import Audit
    from luthier.ml.data.audit.request import ToxicityModel
    from luthier.ml.data.audit.table import AuditTable


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
    """The settings of an audit, besides the file.

    Attributes:
        against: The held-out file, for contamination.
        model: The base model whose tokens count; it is pulled where it is missing.
        only: Ids of checks; None for all.
        mapping: Column map, as for training.
        group_by: The field that names a row's source document.
        method: How the file will be trained.
        toxicity_model: The folder of a text-classification model in place of the word list.
        toxic_label: Which of its labels means toxic, where the names do not say.
        shown: Names in place of paths.
    """

    against: Path | None = None
    model: str | None = None
    only: tuple[str, ...] | None = None
    mapping: Mapping[str, str] | None = None
    group_by: str | None = None
    method: str = "lora"
    toxicity_model: Path | None = None
    toxic_label: str | None = None
    shown: ShownNames = ShownNames()


def audit(context: Context, file: Path, options: AuditOptions | None = None, *, html: Path | None = None) -> Audited:
    """Check a data file. The same file and options give the same findings.

    Args:
        html: Where to write the report; its folder is made where it is missing.

    Raises:
        NotFoundError: No such file, model or check.
        DataError: The file as a whole cannot be read.
        RequestError: Options that do not go together.
        ModelSourceError: The model cannot be fetched.
    """
    from luthier.ml.data.audit.registry import load_checks
    from luthier.ml.data.audit.request import AuditRequest
    from luthier.ml.data.audit.run import run_audit
    from luthier.ml.data.audit.table import build_table

    options = options or AuditOptions()
    load_checks(options.only)  # an unknown id is an error before a long file is read
    check_is_not_input(html, file, options.against)
    model = _model(context, options.model)
    # Loaded before the file is read, so that a wrong folder is an error within a second.
    judge = _toxicity_model(options)
    count_tokens = _token_counter(model)
    shown = options.shown
    table = build_table(
        file,
        shown_name=shown.file,
        mapping=options.mapping,
        group_by=options.group_by,
        count_tokens=count_tokens,
        progress=context.progress,
    )
    held_out = None
    if options.against is not None:
        held_out = build_table(
            options.against,
            shown_name=shown.against,
            mapping=options.mapping,
            group_by=options.group_by,
            progress=context.progress,
        )
    request = AuditRequest(
        table=table,
        held_out=held_out,
        model=(shown.model or model.name) if model else None,
        context_tokens=model.context_length_tokens if model else None,
        method=options.method,
        toxicity_model=judge,
        toxicity_model_name=options.toxicity_model.name if options.toxicity_model else None,
        progress=context.progress,
    )
    found = run_audit(request, options.only)
    return Audited(found, table, _write_report(context, html, found, table, held_out) if html is not None else None)


def check_is_not_input(output: Path | None, *inputs: Path | None) -> None:
    """Refuse to write over a file that is read. Raises RequestError."""
    for path in inputs:
        # samefile compares device and inode: links and other spellings of the path are seen through.
        if output is not None and path is not None and output.exists() and path.exists() and output.samefile(path):
            raise RequestError(
                f"{output} is the file that is read",
                expected="an output beside it: the original stays as it is",
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
    from luthier.features.planning.versions import versions
    from luthier.ml.data.audit.report import write_audit_report

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
