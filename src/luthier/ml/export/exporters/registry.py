"""Which formats there are, in which precisions, and who writes them: a table of "module:function" strings.

A writer is `write(source, target, precision, progress, tools) -> list[str]`: it fills the existing empty folder
`target`, may keep what it needs on the way in folders beside it, and returns what a user must know before the export is
used. tools: where third-party programs are stored that are run but not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, get_args

from luthier.core.errors import RequestError
from luthier.core.import_string import import_string
from luthier.core.ports import Progress
from luthier.core.records.export import ExportFormat, ExportPrecision, ExportSource

if TYPE_CHECKING:
    from luthier.ml.export.exporters.proof_prompts import SourcePrompts


class Check(Protocol):
    """Refuses what a format cannot hold, before any work is done."""

    def __call__(self, source: ExportSource, progress: Progress, tools: Path) -> None:
        """Raise RequestError with the reason."""
        ...


class Write(Protocol):
    """A writer of one format."""

    def __call__(
        self, source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path
    ) -> list[str]:
        """Fill the empty folder `target`; returns warnings."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One export format.

    Attributes:
        writer: "module:function" that writes it.
        weight_bytes: about how many bytes a weight takes in the export, by precision.
        default: the precision where none is chosen; None takes one by the source (`_own_precision`).
        scratch_bytes: bytes a weight takes on the way there, beside the export.
        modules: packages that must be installed.
        extra: the extra of Luthier that installs them.
        check: "module:function" that refuses a model before any work; empty where the format holds every model.
        is_rehearsed: whether a small copy of the model is written and read in the runtime first (`rehearsal`).
        limits_context: whether its writer can state a shorter context than the model's.
    """

    writer: str
    weight_bytes: Mapping[ExportPrecision, float]
    default: ExportPrecision | None
    scratch_bytes: float = 0.0
    modules: tuple[str, ...] = ()
    extra: str = ""
    check: str = ""
    is_rehearsed: bool = False
    limits_context: bool = False


_SIXTEEN_BITS: Mapping[ExportPrecision, float] = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
# Bits a weight of llama.cpp's mixtures, with what falls back to wider kinds in narrow models (about a third more).
_GGUF: Mapping[ExportPrecision, float] = {"q8_0": 1.1, "q6_k": 1.1, "q5_k_m": 0.9, "q4_k_m": 0.85}

FORMATS: Mapping[ExportFormat, Format] = {
    "adapter": Format(
        "luthier.ml.export.exporters.adapter:write",
        {"float32": 4.0, "bfloat16": 2.0},
        None,
        check="luthier.ml.export.exporters.adapter:check",
    ),
    "merged": Format("luthier.ml.export.exporters.merged:write", _SIXTEEN_BITS, None),
    "gguf": Format(
        "luthier.ml.export.exporters.gguf:write",
        {**_SIXTEEN_BITS, **_GGUF},
        "float16",
        scratch_bytes=6.0,
        modules=("xllamacpp", "llama_cpp_py_sync"),
        extra="gguf",
        check="luthier.ml.export.exporters.gguf:check",
        is_rehearsed=True,
        limits_context=True,
    ),
    "onnx": Format(
        "luthier.ml.export.exporters.onnx:write",
        {"float32": 4.0, "int8": 1.2, "int4": 0.8},
        "float32",
        scratch_bytes=8.0,
        modules=("onnxruntime_genai", "onnx", "onnx_ir"),
        extra="onnx",
        check="luthier.ml.export.exporters.onnx:check",
        is_rehearsed=True,
    ),
    "executorch": Format(
        "luthier.ml.export.exporters.executorch:write",
        {"float32": 4.0},
        "float32",
        scratch_bytes=8.0,
        modules=("executorch", "pytorch_tokenizers"),
        extra="executorch",
        check="luthier.ml.export.exporters.executorch:check",
    ),
}


def precisions(format: ExportFormat) -> tuple[ExportPrecision, ...]:
    """The precisions that a format can be written in, widest first."""
    return tuple(_known(format).weight_bytes)


def choose_precision(format: ExportFormat, asked: str | None, source: ExportSource) -> ExportPrecision:
    """The precision that was requested, or the format's own.

    Args:
        format: the format.
        asked: the requested precision; None takes the format's own.
        source: the model.

    Raises:
        RequestError: an unknown format, or a precision that it does not have; the message says which formats have it.
    """
    known = _known(format)
    if asked is None:
        return known.default or _own_precision(format, source)
    if asked in known.weight_bytes:
        return cast("ExportPrecision", asked)
    others = [name for name, other in FORMATS.items() if asked in other.weight_bytes]
    raise RequestError(
        f"--quantise {asked} for the format {format}",
        expected=f"one of {', '.join(known.weight_bytes)}",
        do=f"{asked} exists in {' and '.join(others)}: choose that format with --to, or another precision"
        if others
        else "leave --quantise out to take the format's own",
    )


def _own_precision(format: ExportFormat, source: ExportSource) -> ExportPrecision:
    """The precision that the source runs in; of weights that an adapter is merged into, one that keeps the update.

    The weights of a base in bfloat16 are numbers of bfloat16. An update smaller than half the distance to the next one
    is rounded away again, and most of a short run's are (docs/exports.md); float16 has eight times as many numbers.
    """
    # Only where something was added to bfloat16 weights: without an adapter nothing would be gained.
    if format == "merged" and source.adapter_path is not None and source.precision == "bfloat16":
        return "float16"
    return source.precision


def needed_bytes(format: ExportFormat, precision: ExportPrecision, num_parameters: int) -> int:
    """About how much of the disk an export takes while it is written."""
    known = _known(format)
    # Both at their peak: the scratch folder is there until the export is complete.
    return int(num_parameters * (known.weight_bytes[precision] + known.scratch_bytes))


def check(
    format: ExportFormat,
    source: ExportSource,
    progress: Progress,
    tools: Path,
    prompts: SourcePrompts | None = None,
) -> int | None:
    """Refuse what the format cannot hold before any work is done on the model itself.

    Args:
        format: The format.
        source: The model.
        progress: Shows what is being tried.
        tools: Where third-party programs are stored.
        prompts: Those that the export will be proved on: the tokens of its runtime are compared with the source's.

    Returns:
        The most tokens for which the format's runtime is right; None for all that the model has room for.

    Raises:
        RequestError: the format cannot hold the model, or its runtime would write a prompt otherwise.
        WorkError: a converter that would know cannot be had.
    """
    known = _known(format)
    # A trained prompt is vectors, which only a PEFT folder can hold.
    if format != "adapter":
        _refuse_prompt(source)
    if known.check:
        checks: Check = import_string(known.check)
        checks(source, progress, tools)
    if known.is_rehearsed:
        from luthier.ml.export.exporters.rehearsal import rehearse

        write: Write = import_string(known.writer)
        limits = known.limits_context
        return rehearse(format, write, known.modules, source, progress, tools, prompts, limits_context=limits)
    if prompts is not None:
        from luthier.ml.export.exporters.rehearsal import rehearse_companions

        rehearse_companions(format, source, prompts)
    return None


def write(
    format: ExportFormat,
    source: ExportSource,
    target: Path,
    precision: ExportPrecision,
    progress: Progress,
    tools: Path,
) -> list[str]:
    """Write the source into the empty folder `target`; returns warnings.

    Raises:
        RequestError: the format cannot hold the model, or a package is missing.
        WorkError: writing fails.
        OSError: the disk is full.
    """
    limit = check(format, source, progress, tools)
    writer: Write = import_string(_known(format).writer)
    warnings = writer(source.model_copy(update={"context_tokens": limit}), target, precision, progress, tools)
    if limit is not None:
        warnings.append(
            f"the runtime of {format} leaves out the attention window of this model, so the export has room for "
            f"{limit} tokens, as many as the window: do not raise it"
        )
    return warnings


def _refuse_prompt(source: ExportSource) -> None:
    """No weight can hold a trained prompt, and every format but the adapter's own has weights alone."""
    if source.adapter_path is None or not (Path(source.adapter_path) / "adapter_config.json").is_file():
        return
    from peft import PeftConfig

    from luthier.ml.inference.models.quiet import quiet_peft

    with quiet_peft():
        config = PeftConfig.from_pretrained(source.adapter_path)
    if config.is_prompt_learning:
        raise RequestError(
            f"{source.name} holds a trained prompt",
            expected="an adapter that changes matrices",
            do="export with --to adapter and serve the prompt beside its base: it cannot be merged",
        )


def _known(format: str) -> Format:
    if format not in FORMATS:
        raise RequestError(
            f"--to {format}", expected=f"one of {', '.join(get_args(ExportFormat))}", do="choose one of them"
        )
    return FORMATS[cast("ExportFormat", format)]
