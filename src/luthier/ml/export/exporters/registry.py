"""The export formats: one declaration each, with its precisions, its writer, and the runtime of its parity check.

A package adds a format by the entry point group `luthier.exporters`, which names a `Format`. All checks are called here
and by the use case, never by a format, so that a plug-in cannot skip them: missing packages, its own check, the tokens
of every prompt and a small copy of the model before the work, and the comparison in the runtime after it. No torch.

A writer is `write(source, target, precision, progress, tools) -> list[str]`: it fills the existing empty folder
`target`, may keep intermediate files in folders next to it, and returns what users must know. tools: the folder of
third-party programs that are run but not installed.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.import_string import import_string
from luthier.core.ports import Progress
from luthier.core.records.export import NAME_PATTERN, ExportFormat, ExportPrecision, ExportSource
from luthier.core.registry import EXPORTERS
from luthier.core.system.extras import command_for
from luthier.ml.export.exporters.head_formats import refuse_head, refuse_prompt

if TYPE_CHECKING:
    from luthier.ml.charts.spec import Role
    from luthier.ml.export.exporters.proof_prompts import SourcePrompts
    from luthier.ml.export.runtimes.protocol import Runtime

WHOLE: Final = ("float32", "float16", "bfloat16")
"""Precisions that round each weight separately; all others pack weights into fewer bits."""
SHORT_NAMES: Final[Mapping[str, ExportPrecision]] = {
    "f32": "float32", "fp32": "float32", "f16": "float16", "fp16": "float16", "bf16": "bfloat16",
}  # fmt: skip
"""Short names of precisions in PyTorch and llama.cpp."""
MAX_BOUND_NATS: Final = 1.0
"""A wrong scale, a missing module or another rotary base changes likelihoods by whole nats."""


@dataclass(frozen=True, slots=True)
class Precision:
    """A precision of weights in a format.

    Attributes:
        weight_bytes: Approximate bytes per weight.
        bound_nats: The largest permitted difference of a log-probability to the source's; None if only the loss of
            quality is evaluated, as for packed weights.
        why: The reason for this bound.
        is_usual: Whether `luthier export benchmark` measures it if no formats are named.
    """

    weight_bytes: float
    bound_nats: float | None = None
    why: str = ""
    is_usual: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """The declaration of an export format.

    Attributes:
        title: Display name.
        description: What such an export is, with an article, for its card.
        contents: The content of the folder.
        writer: "module:function" that writes it.
        runtime: "module:function" with folder and source, which opens the export as a `runtimes.protocol.Runtime`.
            Every export is checked in it.
        precisions: The available precisions by name, widest first.
        default: The default precision; None selects one by the source.
        library: The Hugging Face hub's name of the library that loads it.
        scratch_bytes: Bytes per weight of intermediate files, in addition to the export.
        modules: Modules required to write and check it.
        program: "module:function" that says whether the program of its runtime is installed; empty if it needs none.
        install: The argument of `pip install` for these modules, or for the program.
        distributions: Packages used, for the bill of materials.
        check: "module:function" that rejects a model before any work; empty if the format supports every model.
        unrehearsed: Why no small copy of the model is first written and read in the runtime; empty if one is.
        native_runtime: Name of its runtime if that is a native library, whose failed assertions end the process.
            Rehearsal and check open it in a child process.
        limits_context: Whether its writer can state a shorter context (`ExportSource.context_tokens`).
        is_adapter: Whether it contains only the adapter, without the base.
        is_served: Whether this server can serve the folder: PEFT, transformers, or a single GGUF file.
        runs_as_stored: Whether users run it with transformers, in the stored type of its weights.
        fills_in_date: Whether its runtime gives the chat template today's date in its own variables.
        chart_role: The colour role of its dots in format charts.
    """

    title: str
    description: str
    contents: str
    writer: str
    runtime: str
    precisions: Mapping[ExportPrecision, Precision]
    default: ExportPrecision | None
    library: str
    scratch_bytes: float = 0.0
    modules: tuple[str, ...] = ()
    program: str = ""
    install: str = ""
    distributions: tuple[str, ...] = ()
    check: str = ""
    unrehearsed: str = ""
    native_runtime: str = ""
    limits_context: bool = False
    is_adapter: bool = False
    is_served: bool = False
    runs_as_stored: bool = False
    fills_in_date: bool = False
    chart_role: Role = "other-3"

    def __post_init__(self) -> None:
        """Reject declarations that could not be checked.

        Raises:
            ValueError: A precision without a bound, an invalid bound, or no float32 for the rehearsal.
        """
        for name, precision in self.precisions.items():
            bound = precision.bound_nats
            if not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(f"precision {name!r}: small letters, digits and underscores alone")
            if bound is None and name in WHOLE:
                raise ValueError(f"{name} has no bound_nats, and weights of 32 and 16 bits are evaluated by one")
            if bound is not None and not (0 < bound <= MAX_BOUND_NATS and precision.why):
                raise ValueError(
                    f"{name} has bound_nats={bound}, why={precision.why!r}: it needs one over 0, "
                    f"up to {MAX_BOUND_NATS:g}, and a reason"
                )
        if self.default is not None and self.default not in self.precisions:
            raise ValueError(f"default {self.default!r} is not one of its precisions")
        if not self.unrehearsed and "float32" not in self.precisions:
            # In fewer bits, rounding would hide a missing part of the architecture.
            raise ValueError("a small copy is rehearsed in float32, which it does not have; or say why in unrehearsed")

    @property
    def missing(self) -> tuple[str, ...]:
        """What is required and not installed, without importing it: modules, and its program by the library's name."""
        modules = tuple(module for module in self.modules if importlib.util.find_spec(module) is None)
        return modules if not self.program or import_string(self.program)() else (*modules, self.library)


_SAME_ARITHMETIC: Final = "the same weights in the same float32 arithmetic: only the order of sums differs"
_OTHER_KERNELS: Final = "the same float32 weights in other kernels: sums in another order, other approximations of exp"
_ROUNDED_ADAPTER: Final = "the two small matrices of each update are rounded to 8 bits of mantissa, the base is not"
_ROUNDED_BF16: Final = "merged weights are rounded to 8 bits of mantissa once"
_ROUNDED_FP16: Final = "merged weights are rounded to 11 bits of mantissa once"
_GGUF_FP16: Final = "weights are rounded to 11 bits of mantissa, and so is in llama.cpp what they are multiplied with"
_GGUF_BF16: Final = "weights are rounded to 8 bits of mantissa, and so is in llama.cpp what they are multiplied with"
_VLLM_BITS: Final = "weights, and in vLLM all that is computed with them, are rounded to {} bits of mantissa"
_SAME_PROGRAM: Final = "transformers reads it, as it reads the source"

# Bounds: at least three times the differences of SmolLM2-135M with an adapter of rank 16 (figures in docs/exports.md).
# Bytes of llama.cpp's mixed types: with the wider fallback types in narrow models, about a third more.
FORMATS: Final[Mapping[ExportFormat, Format]] = {
    "adapter": Format(
        title="Adapter",
        description="an adapter as PEFT reads it, without the base model",
        contents="PEFT files; `adapter.gguf`, `Modelfile` where llama.cpp applies it; tokenizer, template of the base",
        writer="luthier.ml.export.exporters.adapter:write",
        runtime="luthier.ml.export.runtimes.transformers_runtime:open_adapter",
        precisions={
            "float32": Precision(4.0, 1e-3, _SAME_ARITHMETIC),
            "bfloat16": Precision(2.0, 0.1, _ROUNDED_ADAPTER),
        },
        default=None,
        library="peft",
        check="luthier.ml.export.exporters.adapter:check",
        unrehearsed=_SAME_PROGRAM,
        is_adapter=True,
        is_served=True,
        runs_as_stored=True,
    ),
    "merged": Format(
        title="Merged",
        description="a whole model as transformers reads it",
        contents="one transformers folder, no PEFT needed",
        writer="luthier.ml.export.exporters.merged:write",
        runtime="luthier.ml.export.runtimes.transformers_runtime:open_merged",
        precisions={
            "float32": Precision(4.0, 1e-3, _SAME_ARITHMETIC),
            "float16": Precision(2.0, 0.1, _ROUNDED_FP16),
            "bfloat16": Precision(2.0, 0.5, _ROUNDED_BF16, is_usual=True),
        },
        default=None,
        library="transformers",
        unrehearsed=_SAME_PROGRAM,
        is_served=True,
        runs_as_stored=True,
        chart_role="base",
    ),
    "vllm": Format(
        title="vLLM",
        description="a folder for vLLM",
        contents="one transformers folder; in `fp8` and `w4a16` its matrices in the format of compressed-tensors",
        writer="luthier.ml.export.exporters.vllm:write",
        runtime="luthier.ml.export.runtimes.vllm_runtime:open_export",
        precisions={
            "float32": Precision(4.0, 0.01, _OTHER_KERNELS),
            "float16": Precision(2.0, 0.3, _VLLM_BITS.format(11)),
            "bfloat16": Precision(2.0, 1.0, _VLLM_BITS.format(8)),
            "fp8": Precision(1.3),
            "w4a16": Precision(1.0),
        },
        default=None,
        library="vllm",
        program="luthier.ml.inference.vllm.process:is_installed",
        install="vllm",
        unrehearsed="vLLM takes long to start, and the proof opens the whole model in it",
        is_served=True,
    ),
    "gguf": Format(
        title="GGUF",
        description="a GGUF file for llama.cpp",
        contents="`model.gguf`, and a `Modelfile` for Ollama",
        writer="luthier.ml.export.exporters.gguf:write",
        runtime="luthier.ml.export.runtimes.llama_cpp_runtime:open_export",
        precisions={
            "float32": Precision(4.0, 1e-3, _OTHER_KERNELS),
            "float16": Precision(2.0, 0.2, _GGUF_FP16, is_usual=True),
            "bfloat16": Precision(2.0, 1.0, _GGUF_BF16),
            "q8_0": Precision(1.1, is_usual=True),
            "q6_k": Precision(1.1),
            "q5_k_m": Precision(0.9),
            "q4_k_m": Precision(0.85, is_usual=True),
        },
        default="float16",
        library="gguf",
        scratch_bytes=6.0,
        modules=("xllamacpp", "llama_cpp_py_sync"),
        install="luthier[gguf]",
        distributions=("gguf", "xllamacpp", "llama-cpp-py-sync"),
        check="luthier.ml.export.exporters.gguf:check",
        native_runtime="llama.cpp",
        limits_context=True,
        is_served=True,
        fills_in_date=True,
        chart_role="tuned",
    ),
    "onnx": Format(
        title="ONNX",
        description="a folder for ONNX Runtime GenAI",
        contents="what ONNX Runtime GenAI opens",
        writer="luthier.ml.export.exporters.onnx:write",
        runtime="luthier.ml.export.runtimes.onnx_runtime:open_export",
        precisions={
            "float32": Precision(4.0, 1e-3, _OTHER_KERNELS, is_usual=True),
            "int8": Precision(1.2),
            "int4": Precision(0.8, is_usual=True),
        },
        default="float32",
        library="onnxruntime-genai",
        scratch_bytes=8.0,
        modules=("onnxruntime_genai", "onnx", "onnx_ir"),
        install="luthier[onnx]",
        distributions=("onnx", "onnx-ir", "onnxruntime-genai", "onnxruntime"),
        check="luthier.ml.export.exporters.onnx:check",
        native_runtime="ONNX Runtime",
        chart_role="other-1",
    ),
    "executorch": Format(
        title="ExecuTorch",
        description="a program for ExecuTorch",
        contents="`model.pte` for phones",
        writer="luthier.ml.export.exporters.executorch:write",
        runtime="luthier.ml.export.runtimes.executorch_runtime:open_export",
        precisions={"float32": Precision(4.0, 1e-3, _OTHER_KERNELS)},
        default="float32",
        library="executorch",
        scratch_bytes=8.0,
        modules=("executorch", "pytorch_tokenizers"),
        install="luthier[executorch]",
        distributions=("executorch", "torchao"),
        check="luthier.ml.export.exporters.executorch:check",
        unrehearsed="lowering even a small copy takes long",
        chart_role="other-2",
    ),
}


def format_of(name: str) -> Format:
    """The declaration of a format.

    Raises:
        RequestError: The format does not exist.
        NotFoundError: The package of the format declares no `Format`, or cannot be loaded.
    """
    if not EXPORTERS.is_known(name) or not re.fullmatch(NAME_PATTERN, name):
        raise RequestError(
            f"--to {name[:40]}", expected=f"one of {', '.join(EXPORTERS.names())}", do="choose one of them"
        )
    found: Format = EXPORTERS.declaration(name)
    return found


def served_formats() -> tuple[ExportFormat, ...]:
    """Formats to which a deployment on this server can route."""
    return tuple(name for name, one in EXPORTERS.declarations().items() if one.is_served)


def usual_formats() -> tuple[str, ...]:
    """The formats that are measured if none are named, such as `gguf:q8_0`."""
    declared = EXPORTERS.declarations().items()
    return tuple(f"{name}:{p}" for name, one in declared for p, how in one.precisions.items() if how.is_usual)


def packages_of(format: ExportFormat) -> tuple[str, ...]:
    """The packages used by such an export, including that of a plug-in."""
    return (*format_of(format).distributions, *_package_of(format))


def full_precision(text: str) -> ExportPrecision:
    """The full name of a precision given by a short name: `f16` is float16."""
    return SHORT_NAMES.get(text.lower(), text.lower())


def need_packages(format: ExportFormat) -> None:
    """Fail now on missing modules instead of after long work.

    Raises:
        RequestError: Modules required by the format are not installed.
    """
    known = format_of(format)
    if known.missing:
        raise RequestError(
            f"--to {format} needs {', '.join(known.missing)}, which is not installed here",
            expected="the runtime in which the export is proved",
            do=command_for(known.install),
        )


def choose_precision(format: ExportFormat, asked: str | None, source: ExportSource) -> ExportPrecision:
    """The requested precision, or the default of the format.

    Args:
        format: the format.
        asked: the requested precision; None selects the default of the format.
        source: the model.

    Raises:
        RequestError: an unknown format, or a precision that it lacks; the message lists the formats that have it.
    """
    known = format_of(format)
    if asked is None:
        return known.default or _own_precision(known, source)
    if asked in known.precisions:
        return asked
    others = [name for name, other in EXPORTERS.declarations().items() if asked in other.precisions]
    raise RequestError(
        f"--quantise {asked} for the format {format}",
        expected=f"one of {', '.join(known.precisions)}",
        do=f"{asked} exists in {' and '.join(others)}: choose that format with --to, or another precision"
        if others
        else "leave --quantise out to take the format's own",
    )


def _own_precision(known: Format, source: ExportSource) -> ExportPrecision:
    """The precision of the source; for weights with a merged adapter, one that preserves the update.

    A format without that precision uses its widest.

    The weights of a bfloat16 base are bfloat16 numbers. An update smaller than half the distance to the next number is
    rounded away, which affects most updates of a short run (docs/exports.md). float16 has eight times as many numbers.
    """
    # Only if something was added to bfloat16 weights: without an adapter nothing would be gained.
    is_merged = source.adapter_path is not None and not known.is_adapter
    own = "float16" if is_merged and source.precision == "bfloat16" else source.precision
    return own if own in known.precisions else next(iter(known.precisions))


def needed_bytes(format: ExportFormat, precision: ExportPrecision, num_parameters: int) -> int:
    """Approximate disk space of an export while it is written."""
    known = format_of(format)
    # Both at their peak: the scratch folder exists until the export is complete.
    return int(num_parameters * (known.precisions[precision].weight_bytes + known.scratch_bytes))


def check(
    format: ExportFormat,
    source: ExportSource,
    progress: Progress,
    tools: Path,
    prompts: SourcePrompts | None = None,
) -> int | None:
    """Reject a model that the format does not support, before any work on the model itself.

    Args:
        format: The format.
        source: The model.
        progress: Shows the current trial.
        tools: The folder of third-party programs.
        prompts: The prompts of the later check: the runtime's tokens are compared with the source's.

    Returns:
        The largest context in tokens for which the format's runtime is correct; None for the model's full context.

    Raises:
        RequestError: the format does not support the model, or its runtime would write a prompt differently.
        WorkError: the converter needed for the check is not available.
    """
    known = format_of(format)
    refuse_head(source, f"the format {format}")
    # A trained prompt consists of vectors, which only an adapter folder can contain.
    if not known.is_adapter:
        refuse_prompt(source)
    if known.check:
        _function(format, known.check)(source, progress, tools)
    if not known.unrehearsed:
        from luthier.ml.export.exporters.rehearsal import rehearse

        packages = (*known.modules, *_package_of(format))
        write, limits = _function(format, known.writer), known.limits_context
        return rehearse(format, write, packages, source, progress, tools, prompts, limits_context=limits)
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
        RequestError: the format does not support the model, or a package is missing.
        WorkError: writing fails.
        OSError: the disk is full.
    """
    limit = check(format, source, progress, tools)
    limited = source.model_copy(update={"context_tokens": limit})
    warnings: list[str] = _function(format, format_of(format).writer)(limited, target, precision, progress, tools)
    if limit is not None:
        warnings.append(
            f"the runtime of {format} leaves out the attention window of this model, so the export has room for "
            f"{limit} tokens, as many as the window: do not raise it"
        )
    return warnings


def open_export(
    format: ExportFormat, folder: Path, source: ExportSource, adapter: Path | None = None, *, in_child: bool = False
) -> Runtime:
    """The export in `folder`, loaded in its real runtime.

    Args:
        format: format of the export.
        folder: folder of the export.
        source: gives the base of an adapter export.
        adapter: a GGUF adapter applied to the model in `folder`; with `in_child`.
        in_child: run a native runtime in its own process, so that an abort becomes an error here.

    Raises:
        RequestError: the package of the runtime is missing.
        NotFoundError, ModelSourceError: the export is missing or does not load.
        WorkError: a runtime in a child process fails on the model.
    """
    known = format_of(format)
    if in_child and known.native_runtime:
        from luthier.ml.export.runtimes.child import RuntimeInChild

        return RuntimeInChild(known.native_runtime, known.runtime, folder, source, adapter)
    return cast("Runtime", _function(format, known.runtime)(folder, source))


def _function(format: ExportFormat, place: str) -> Callable[..., Any]:
    """A function that a format names; errors of a plug-in are distinguished from ours."""
    if format in FORMATS:
        return cast("Callable[..., Any]", import_string(place))

    def call(*given: Any) -> Any:
        try:
            return import_string(place)(*given)
        except (LuthierError, OSError, MemoryError):
            raise
        # Code of another package may raise anything.
        except Exception as error:
            raise WorkError(
                f"{place} of the export format {format!r} fails: {type(error).__name__}: {error}",
                expected="an exporter that refuses with RequestError what it cannot do",
                do=f"ask the author of {' '.join(_package_of(format)) or 'the package that provides it'}",
            ) from error

    return call


def _package_of(format: ExportFormat) -> tuple[str, ...]:
    """The package of a format, by name; empty for built-in formats and packages without a name."""
    distribution = None if format in FORMATS else EXPORTERS.plug_in(format).dist
    return () if distribution is None else (distribution.name,)
