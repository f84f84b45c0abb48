"""The dataset card as one Markdown document with YAML front matter. What is not known is written as not stated.

The front matter follows the dataset card specification of the Hugging Face hub.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import yaml

from luthier.core.results.audit import SEVERITIES
from luthier.ml.charts import figures, visible
from luthier.ml.charts.visible import code, table
from luthier.ml.data.card.facts import NOT_STATED, CardRequest
from luthier.ml.data.rows.columns import ValueType

_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
)
_DTYPES: Final = {"text": "string", "integer": "int64", "number": "float64", "boolean": "bool", "null": "null"}


def front_matter(request: CardRequest) -> dict[str, Any]:
    """The metadata; unknown keys are left out."""
    made: dict[str, Any] = {}
    if request.languages_known:
        made["language"] = list(request.languages_known)
    if request.licence_known:
        made |= _licence(request.licence_known)
    tasks = _tasks(request)
    if tasks:
        made["task_categories"] = tasks
    made["size_categories"] = [size_category(sum(file.num_rows for file in request.files))]
    made["pretty_name"] = request.name
    made["tags"] = ["luthier", "croissant", *(["synthetic"] if request.origins.num_synthetic else [])]
    files = [{"split": file.split, "path": file.path.name} for file in request.files]
    made["configs"] = [{"config_name": "default", "data_files": files}]
    made["dataset_info"] = _dataset_info(request)
    return made


def front_matter_text(request: CardRequest) -> str:
    """The metadata between its two lines of dashes."""
    text = yaml.safe_dump(front_matter(request), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n"


def size_category(num_rows: int) -> str:
    """The hub's class of size."""
    return next((name for limit, name in _SIZES if num_rows < limit), "n>1T" if num_rows >= 10**12 else "10B<n<100B")


def features(columns: dict[str, ValueType]) -> list[dict[str, Any]] | None:
    """The fields in the hub's notation; None where one of them is of more than one type, which it has no word for."""
    made = [_feature(column) for column in columns.values()]
    if any(one is None for one in made):
        return None
    return [{"name": name, **(one or {})} for name, one in zip(columns, made, strict=True)]


def _feature(column: ValueType) -> dict[str, Any] | None:
    if column.is_cut:
        return None
    kind = column.type
    if kind in _DTYPES:
        return {"dtype": _DTYPES[kind]}
    if kind == "list":
        if column.items is None:
            return {"list": "null"}
        if column.items.type in _DTYPES:
            return {"list": _DTYPES[column.items.type]}
        if column.items.type == "object" and column.items.members:
            inner = features(column.items.members)
            return None if inner is None else {"list": inner}
        return None
    if kind == "object" and column.members:
        inner = features(column.members)
        return None if inner is None else {"struct": inner}
    return None


def _licence(licence: str) -> dict[str, str]:
    """The hub's ids are SPDX's in lower case; it calls anything else other, with a separate name."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        return {"license": licence.lower()}
    return {"license": "other", "license_name": licence}


def _tasks(request: CardRequest) -> list[str]:
    if request.audit.shape is None:
        return []
    return ["text-generation", *(["text-classification"] if request.audit.profile.get("num_labels") else [])]


def _dataset_info(request: CardRequest) -> dict[str, Any]:
    made: dict[str, Any] = {}
    found = [features(file.columns) for file in request.files]
    if found[0] is not None and all(one == found[0] for one in found):
        made["features"] = found[0]
    made["splits"] = [
        {"name": file.split, "num_bytes": file.num_bytes, "num_examples": file.num_rows} for file in request.files
    ]
    num_bytes = sum(file.num_bytes for file in request.files)
    return {**made, "download_size": num_bytes, "dataset_size": num_bytes}


_NUM_SHOWN: Final = 10
_LENGTHS: Final = (
    ("text_tokens", "text, tokens"),
    ("text_characters", "text, characters"),
    ("prompt_characters", "prompt, characters"),
    ("completion_characters", "completion, characters"),
)


def card_text(request: CardRequest) -> str:
    """The whole card: front matter and sections. The same request gives the same bytes."""
    sections = (
        f"# {visible.text(request.name)}",
        visible.text(request.description, limit=10_000) if request.description else f"Description: {NOT_STATED}.",
        _what(request),
        _made(request),
        _composition(request),
        _splits(request),
        _quality(request),
        _limits(request),
        _uses(request),
    )
    return front_matter_text(request) + "\n" + "\n\n".join(sections) + "\n"


def _what(request: CardRequest) -> str:
    audit = request.audit
    languages = ", ".join(request.languages_known) or NOT_STATED
    if request.languages_known and not request.languages:
        languages += " (found by the audit)"
    facts = [
        ("Rows", f"{sum(file.num_rows for file in request.files):,} in {_num(len(request.files), 'file')}"),
        ("Size", figures.size(sum(file.num_bytes for file in request.files))),
        ("Shape of a row", _shape(request)),
        ("Languages", visible.text(languages)),
        ("Licence", visible.text(request.licence_known) if request.licence_known else NOT_STATED),
        ("SHA-256 of " + visible.text(request.described.path.name), code(audit.sha256)),
    ]
    return "## What it is\n\n" + table(("", ""), [[name, value] for name, value in facts], num_text_columns=2)


def _shape(request: CardRequest) -> str:
    shape = request.audit.shape
    return f"{shape.replace('_', ' ')} ({visible.text(request.audit.shape_reason)})" if shape else "none that is known"


def _made(request: CardRequest) -> str:
    origins, whole = request.origins, request.described.num_rows
    lines = ["## How it was made", ""]
    # A row can have a record of its origin that names no document.
    if not (origins.sources or origins.num_with_provenance):
        lines.append(f"The rows name no source, so where they come from is {NOT_STATED}.")
    if origins.sources:
        named = sum(origins.sources.values())
        lines += [
            f"{named:,} of {whole:,} rows name the document they come from; {_num(len(origins.sources), 'document')}.",
            "",
            _counts("Document", origins.sources, whole),
            "",
        ]
    if origins.num_synthetic:
        lines += [
            f"{_rows(origins.num_synthetic)} ({figures.percent(origins.num_synthetic / whole)}) are synthetic: "
            "written by a model.",
            "",
            _counts("Teacher", origins.teachers, whole),
            "",
        ]
    # Only a row with a record of its origin says that it is not synthetic.
    elif origins.num_with_provenance:
        lines += ["No row is marked as synthetic.", ""]
    else:
        lines += ["", f"Whether rows are synthetic: {NOT_STATED}.", ""]
    if origins.licences:
        stated = sum(origins.licences.values())
        silent = f"; {_rows(whole - stated)} state none" if stated < whole else ""
        lines += [f"Licences that rows state{silent}:", "", _counts("Licence", origins.licences, whole)]
    else:
        lines.append(f"Licences of the sources: {NOT_STATED}.")
    return "\n".join(lines).rstrip()


def _counts(title: str, counts: Counter[str] | Mapping[str, int], whole: int) -> str:
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    cells = [
        [visible.text(name, 80), f"{count:,}", figures.percent(count / whole) if whole else ""]
        for name, count in ranked[:_NUM_SHOWN]
    ]
    text = table((title, "Rows", "Share"), cells)
    left = len(ranked) - _NUM_SHOWN
    return text + (f"\n\nand {left:,} more." if left > 0 else "")


def _composition(request: CardRequest) -> str:
    audit, profile = request.audit, request.audit.profile
    described = request.described
    name = visible.text(described.path.name)
    parts = ["## Composition", f"Of {name}, {_rows(audit.num_rows)}."]
    fields = [
        [code(field), visible.text(column.in_words()), f"{column.num_filled:,}"]
        # Wide tables would fill the card.
        for field, column in list(described.columns.items())[:100]
    ]
    parts.append(table(("Field", "Type", "Rows that have it"), fields, num_text_columns=2))
    if features(described.columns) is None:
        parts.append("Fields of more than one type have no name on the hub, so the front matter lists no features.")
    lengths = [
        [title, *(f"{profile[key][quantile]:,.0f}" for quantile in ("q05", "q50", "q95", "q100")), _mean(profile[key])]
        for key, title in _LENGTHS
        if key in profile
    ]
    if lengths:
        parts.append(table(("Length", "5%", "median", "95%", "longest", "mean"), lengths))
    if "num_tokens" in profile:
        parts.append(f"{profile['num_tokens']:,} tokens of {visible.text(str(audit.model))} in all.")
    if request.languages_seen:
        seen = request.languages_seen
        parts.append(_counts("Language (found by the audit)", seen, sum(seen.values())))
    if profile.get("labels"):
        parts.append(_counts("Label", profile["labels"], audit.num_rows))
        if (more := profile.get("num_labels", 0) - len(profile["labels"])) > 0:
            parts.append(f"{more:,} further labels are rarer than these.")
    return "\n\n".join(parts)


def _mean(lengths: Mapping[str, float]) -> str:
    return f"{lengths['mean']:,.1f}"


def _splits(request: CardRequest) -> str:
    rows = [[code(file.split), code(file.path.name), f"{file.num_rows:,}", figures.size(file.num_bytes)]
            for file in request.files]  # fmt: skip
    text = "## Splits\n\n" + table(("Split", "File", "Rows", "Size"), rows, num_text_columns=2)
    if len(request.files) == 1:
        text += "\n\nThe dataset is one file without a split; the hub calls the only one `train`."
    elif any(file.split == "held_out" for file in request.files):
        text += "\n\n`train` is trained on, `validation` steers training, `held_out` evaluates the model, once."
    if request.split_note:
        text += f"\n\n{visible.text(request.split_note)}."
    return text


def _quality(request: CardRequest) -> str:
    audit = request.audit
    num_run = _num(len(audit.checks) - len(audit.skipped), "check")
    lines = [
        "## Quality",
        "",
        f"Grade **{audit.grade}** by the audit of {request.date} ({num_run} run, {len(audit.skipped)} not run). "
        "A: nothing but notes; F: must not be trained on.",
        "",
    ]
    if audit.findings:
        # Gravest first, then what is about most rows.
        ranked = sorted(audit.findings, key=lambda one: (SEVERITIES.index(one.severity), -one.fraction))
        cells = [
            [
                one.severity,
                code(one.check),
                visible.text(one.message),
                f"{one.count:,}" if one.count else "",
                figures.percent(one.fraction) if one.count else "",
            ]
            for one in ranked
        ]
        lines.append(table(("Severity", "Check", "Finding", "Rows", "Share"), cells, num_text_columns=3))
    else:
        lines.append("The checks found nothing.")
    lines += ["", "Made by:", "", _block(request.command)]
    return "\n".join(lines)


def _limits(request: CardRequest) -> str:
    audit = request.audit
    # Notes are in the table above, and limit nothing.
    said = [visible.text(one.message) for severity in ("error", "warning") for one in audit.findings
            if one.severity == severity]  # fmt: skip
    said += [f"Not checked, {code(check)}: {visible.text(reason)}." for check, reason in audit.skipped.items()]
    if request.described.num_unreadable:
        said.append(f"{_rows(request.described.num_unreadable)} of the file cannot be read.")
    if request.licence_known is None:
        said.append(f"The licence is {NOT_STATED}: whether the data may be used or passed on is not known.")
    if len(request.files) > 1:
        said.append(f"Quality and composition are those of {visible.text(request.described.path.name)} alone.")
    if not said:
        said = ["None is known: every check that was run found nothing but notes."]
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in said)


def _uses(request: CardRequest) -> str:
    lines = ["## Uses", "", f"Meant for: {visible.text(request.uses) if request.uses else NOT_STATED}."]
    if request.audit.shape:
        lines += ["", "Its rows have a shape that fine-tuning reads:", "", _block(_train_command(request))]
    return "\n".join(lines)


def _train_command(request: CardRequest) -> str:
    return f"luthier data preview {shlex.quote(request.described.path.name)} --model NAME"


def _block(command: str) -> str:
    # Indented, since a fence could be closed by the text within.
    return "\n".join(f"    {line}" for line in command.splitlines())


def _rows(num: int) -> str:
    return _num(num, "row")


def _num(num: int, noun: str) -> str:
    return f"{num:,} {noun}{'' if num == 1 else 's'}"
