"""The exports that a table of formats is about: each made by `luthier export`, or the reason why there is none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from luthier.core.errors import ParityError, RequestError
from luthier.core.records.export import Export, ExportFormat, ExportPrecision, ExportSource
from luthier.core.records.format_table import SOURCE_LABEL, FormatPrice
from luthier.features.exports.formats.progress import EXPORTS
from luthier.features.exports.service import export
from luthier.platform.home.context import Context

_PROVED: Final = 8
# What lies in an export and is not read by its runtime is no part of its size.
_BESIDE: Final = (".md", ".sig", ".jsonl")


def source_price(source: ExportSource) -> FormatPrice:
    """The model as it was trained: what it takes on disk is base and adapter."""
    from luthier.ml.inference.models.weights import weight_files

    files = weight_files(Path(source.base_path))
    if source.adapter_path is not None:
        files += weight_files(Path(source.adapter_path))
    num_bytes = sum(file.stat().st_size for file in files)
    return FormatPrice(label=SOURCE_LABEL, format=None, precision=source.precision, num_bytes=num_bytes)


def place(folder: Path, to: ExportFormat, precision: ExportPrecision) -> Path:
    """Where an export lies while it is measured."""
    return folder.absolute() / EXPORTS / f"{to}-{precision}"


def exported(
    context: Context, data: Path, source: ExportSource, to: ExportFormat, precision: ExportPrecision, folder: Path
) -> FormatPrice:
    """The export, written into a folder of its own; or why there is none. folder: of the table."""
    target = place(folder, to, precision)
    shutil.rmtree(target, ignore_errors=True)  # a kill came between its end and the note of it
    return _made(context, data, source, FormatPrice(label=f"{to}:{precision}", format=to, precision=precision), target)


def _made(context: Context, data: Path, source: ExportSource, price: FormatPrice, folder: Path) -> FormatPrice:
    assert price.format is not None
    to, precision = price.format, price.precision
    try:
        made: Export = export(
            context, source.name, to=to, output=folder, quantise=precision, held_out=data, num_prompts=_PROVED
        )
    except ParityError as error:
        # `export` has removed its folder after the failed proof, so the files are written once more.
        _write_unproved(context, source, to, precision, folder)
        reason = f"its proof failed, so `luthier export` does not let it out: {error.came}"
        return price.model_copy(update={"num_bytes": _size(folder), "reason": reason})
    except RequestError as error:
        return price.model_copy(update={"status": "missing", "reason": f"{error.came}; {error.do}"})
    return price.model_copy(update={"num_bytes": _size(folder), "parity": made.parity})


def _write_unproved(
    context: Context, source: ExportSource, to: ExportFormat, precision: ExportPrecision, folder: Path
) -> None:
    """What was not let out, to be measured all the same: a table without its worst rows would flatter."""
    from luthier.features.exports.folders import register_of, staged_folder
    from luthier.ml.export.exporters import registry

    with staged_folder(folder, needed_bytes=0, what=f"{to} in {precision}", register=register_of(context)) as target:
        registry.write(to, source, target, precision, context.progress, context.settings.tools_folder)


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix not in _BESIDE)
