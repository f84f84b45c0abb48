"""Use case: export a model to another runtime, and let it out only once it is proved equal to its source."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import ParityError, RequestError, WorkError
from luthier.core.ids import sha256_file
from luthier.core.records.export import Export, ExportFormat, ExportPrecision, ExportSource, ParityReport
from luthier.core.registry import EXPORTERS
from luthier.core.system.extras import command_for
from luthier.features.evaluations.export_sources import find_source, proof_examples
from luthier.features.exports.folders import open_to_readers, refuse_taken, register_of, staged_folder
from luthier.ml.export.exporters.head_formats import HEAD_FORMATS
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.export.source_side import ObservedSource

__all__ = ["export", "find_source"]

NUM_PROMPTS = 32


def export(
    context: Context,
    name: str,
    *,
    to: ExportFormat,
    output: Path,
    quantise: str | None = None,
    held_out: Path | None = None,
    num_prompts: int = NUM_PROMPTS,
) -> Export:
    """Write what a run has trained, or a base model, in another format, proved in its real runtime against its source.

    Args:
        context: The home.
        name: A run, a tuned model or a base model.
        to: The format.
        output: A folder that does not exist yet, or is empty; nothing is left in it after an error.
        quantise: The precision; None takes the format's own.
        held_out: Rows to prove it on; None takes those of the run, or built-in prompts.
        num_prompts: How many rows it is proved on.

    Raises:
        NotFoundError: The source, its files or its base model are not here.
        ConflictError: The run has not succeeded, its files have changed, or `output` is not empty.
        RequestError: A precision or model that the format lacks, or a missing package.
        StorageFullError, ParityError, WorkError: A full disk, a failed proof, a failed converter.
    """
    from luthier.ml.export.exporters import registry
    from luthier.ml.export.exporters.proof_prompts import source_prompts
    from luthier.ml.export.parity import day_warnings, parity_warnings
    from luthier.ml.export.source_side import observe_source

    start = time.perf_counter()
    final = Path(output).absolute()
    # Everything that can refuse comes before the first byte is written; converting may take an hour.
    refuse_taken(final)
    source = find_source(context, name)
    if source.task_head is not None:
        return _export_head(context, source, to, final, quantise, held_out, num_prompts, start)
    _refuse_head_format(source, to)
    precision = registry.choose_precision(to, quantise, source)
    registry.need_packages(to)
    examples, notes = proof_examples(context, source, held_out, num_prompts)
    prompts = source_prompts(source, examples)
    registry.check(to, source, context.progress, context.settings.tools_folder, prompts)
    needed = registry.needed_bytes(to, precision, _num_parameters(source, to))
    with staged_folder(
        final, needed_bytes=needed, what=f"{to} in {precision}", register=register_of(context)
    ) as folder:
        warnings = registry.write(to, source, folder, precision, context.progress, context.settings.tools_folder)
        # Some writers create files with mode 0600, which a server under another user could not read.
        open_to_readers(folder)
        # The forward passes of the source are done once, and serve both proofs.
        observed = observe_source(source, examples, context.progress, prompts=prompts)
        report = _prove(context, source, folder, to, precision, observed)
        gguf_report, unproved = _prove_gguf(context, source, folder, to, observed)
        # After both proofs: a GGUF that failed its proof is unlinked by then and must not enter the manifest.
        made = _made(source, final, folder, to, precision, start).model_copy(
            update={
                "parity": report,
                "warnings": (*parity_warnings(report), *day_warnings(observed, report), *notes, *warnings, *unproved),
                "gguf_parity": gguf_report,
            }
        )
        # The manifest is written inside the staging block, so the rename publishes files and manifest together.
        return _bundled(context, folder, made)


def _refuse_head_format(source: ExportSource, to: ExportFormat) -> None:
    """Raise RequestError for a format that holds nothing but models with a task head."""
    if to in HEAD_FORMATS and to not in EXPORTERS.declarations():
        raise RequestError(
            f"the format {to} for {source.name}, which writes text",
            expected=f"one of {', '.join(EXPORTERS.declarations())}",
            do=f"choose one of these with --to; only models with a task head can be exported as {to}",
        )


def _export_head(
    context: Context,
    source: ExportSource,
    to: ExportFormat,
    final: Path,
    quantise: str | None,
    held_out: Path | None,
    num_prompts: int,
    start: float,
) -> Export:
    """The same for a model with a task head: separate formats, and a proof on what the head gives.

    Args:
        start: When the export began, by `time.perf_counter`; the others are those of `export`.
    """
    from luthier.ml.export.exporters.head_formats import head_format, head_precision, write_head
    from luthier.ml.export.head_parity import prove_head

    format = head_format(source, to)
    precision = head_precision(to, format, quantise)
    examples, notes = proof_examples(context, source, held_out, num_prompts)
    needed = _count_of(source.base_path) * (2 if precision == "float16" else 4) * format.num_copies
    with staged_folder(
        final, needed_bytes=needed, what=f"{to} in {precision}", register=register_of(context)
    ) as folder:
        warnings = write_head(format, source, folder, precision, context.progress, context.settings.tools_folder)
        open_to_readers(folder)
        report = prove_head(source, folder, to, precision, examples, context.progress)
        if not report.passed:
            raise _failed_proof(source, f"{to} in {precision}", report.reasons, "outputs")
        return _bundled(
            context,
            folder,
            _made(source, final, folder, to, precision, start).model_copy(
                update={"head_parity": report, "warnings": (*notes, *warnings)}
            ),
        )


def _made(
    source: ExportSource, final: Path, folder: Path, to: ExportFormat, precision: ExportPrecision, start: float
) -> Export:
    """The record of what is in `folder` now, and in `final` later; its proof is still missing."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return Export(
        source=source,
        format=to,
        precision=precision,
        folder=str(final),
        num_bytes=sum(file.stat().st_size for file in files.values()),
        files={path: sha256_file(file) for path, file in files.items()},
        parity=None,
        seconds=time.perf_counter() - start,
    )


def _prove(
    context: Context,
    source: ExportSource,
    folder: Path,
    to: ExportFormat,
    precision: ExportPrecision,
    observed: ObservedSource,
) -> ParityReport:
    from luthier.ml.export.parity import prove

    # `observed` has the rows already, so an empty tuple is in their place.
    report = prove(source, folder, to, precision, (), context.progress, observed=observed)
    return _held(source, f"{to} in {precision}", report)


def _prove_gguf(
    context: Context, source: ExportSource, folder: Path, to: ExportFormat, observed: ObservedSource
) -> tuple[ParityReport | None, list[str]]:
    """The proof of the file for llama.cpp next to an adapter, or why there is none.

    The adapter itself is proved without it, so a file that does not hold is left out, and a warning says why.
    """
    from luthier.ml.export.exporters.adapter import GGUF
    from luthier.ml.export.exporters.gguf import MODELFILE
    from luthier.ml.export.exporters.registry import format_of
    from luthier.ml.export.parity import prove_gguf_adapter

    if not format_of(to).is_adapter or not (folder / GGUF).is_file():
        return None, []
    if missing := (needed := format_of("gguf")).missing:
        return None, [f"{GGUF} was not run: {', '.join(missing)} is not installed ({command_for(needed.install)})"]
    # llama.cpp applies the adapter to the full base, whose weights differ from the packed ones it was trained on.
    if source.quantisation is not None:
        return None, [f"{GGUF} was not run: the adapter was trained over a base packed in {source.quantisation}"]
    try:
        report = prove_gguf_adapter(
            source, folder / GGUF, observed, folder.parent, context.progress, context.settings.tools_folder
        )
    except (RequestError, WorkError) as error:
        return None, [f"{GGUF} was not run: {error.came}"]
    if report.passed:
        return report, []
    # Only the companion fails here. The safetensors adapter has its own proof and may be exported without it. The
    # Modelfile applies nothing but that file.
    for name in (GGUF, MODELFILE):
        (folder / name).unlink(missing_ok=True)
    return None, [f"there is no {GGUF} for llama.cpp, since its proof has failed: {' '.join(report.reasons)}"]


def _held(source: ExportSource, what: str, report: ParityReport) -> ParityReport:
    """The report of a proof that holds. Raises ParityError for one that does not."""
    if report.passed:
        return report
    raise _failed_proof(source, what, report.reasons, "likelihoods")


def _failed_proof(source: ExportSource, what: str, reasons: tuple[str, ...], compared: str) -> ParityError:
    lines = "\n    ".join(reasons)
    return ParityError(
        f"the export of {source.name} as {what} is not equal to its source:\n    {lines}",
        expected=f"the same tokens, and {compared} within the bound of the format; nothing of the export was kept",
        do="choose a wider precision with --quantise; where it fails in 16 bits, report it with the lines above",
    )


def _bundled(context: Context, folder: Path, made: Export) -> Export:
    from luthier.features.exports.bundles import facts_for
    from luthier.ml.export.bundle import add_bundle_files

    return add_bundle_files(folder, made, facts_for(context, made))


def _num_parameters(source: ExportSource, to: ExportFormat) -> int:
    """What is written, in weights: of an adapter its own, else all of the model."""
    from luthier.ml.export.exporters.registry import format_of
    from luthier.ml.inference.models.weights import count_parameters

    # The base is not written with an adapter, so its size does not count against the disk.
    if format_of(to).is_adapter and source.adapter_path is not None:
        return count_parameters(Path(source.adapter_path), {})
    return _count_of(source.base_path)


def _count_of(folder: str) -> int:
    """Weights of a whole model."""
    from luthier.ml.inference.models.structure import read_json
    from luthier.ml.inference.models.weights import count_parameters

    return count_parameters(Path(folder), read_json(Path(folder) / "config.json"))
