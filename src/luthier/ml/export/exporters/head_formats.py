"""The formats for models with a task head: their declarations, and the checks before any work.

Formats for text models (`registry`) would lose the head; these are only for heads. Nothing here loads torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import RequestError
from luthier.core.import_string import import_string
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.core.system.extras import command_for
from luthier.core.task_head import TaskHeadKind, how_it_is_asked, what_it_gives

if TYPE_CHECKING:
    from luthier.ml.export.runtimes.head_runtimes import HeadRuntime


@dataclass(frozen=True, slots=True)
class HeadFormat:
    """The declaration of such a format.

    Attributes:
        title: Display name.
        description: What such an export is, with an article, for its card.
        contents: The content of the folder.
        kinds: The supported kinds of heads.
        writer: "module:function" with source, folder, precision, progress, tools.
        runtime: "module:class" with the folder; it reads texts.
        precisions: Name -> the largest permitted difference of an output to the source; numbers in standard deviations
            of the training rows, vectors by distance. float32 differs only by the order of sums; float16 rounds weights
            to 11 bits; int8 to 8, in blocks. If a probability changes by more than a tenth, or a vector to a cosine
            below 0.995, another label or document results too often.
        library: The Hugging Face hub's name of the library that loads it.
        modules: Modules required to write and check it.
        install: The argument of `pip install` for these modules.
        distributions: Packages used, for the bill of materials.
        num_copies: The most copies of the weights that its folder holds while it is written.
    """

    title: str
    description: str
    contents: str
    kinds: tuple[TaskHeadKind, ...]
    writer: str
    runtime: str
    precisions: Mapping[ExportPrecision, float]
    library: str
    modules: tuple[str, ...] = ()
    install: str = ""
    distributions: tuple[str, ...] = ()
    num_copies: int = 1


_ALL: Final[tuple[TaskHeadKind, ...]] = ("classify", "regress", "rank", "embed")
_EXPORTERS: Final = "luthier.ml.export.exporters"
_RUNTIMES: Final = "luthier.ml.export.runtimes.head_runtimes"
HEAD_FORMATS: Final[Mapping[str, HeadFormat]] = {
    "sentence_transformers": HeadFormat(
        title="sentence-transformers",
        description="a folder for sentence-transformers",
        contents="the model with its adapter merged, pooling, and the head as a Dense layer (embed: Normalize)",
        kinds=_ALL,
        writer=f"{_EXPORTERS}.head_folders:write_sentence_transformers",
        runtime=f"{_RUNTIMES}:SentenceTransformersRuntime",
        precisions={"float32": 1e-3, "float16": 0.02},
        library="sentence-transformers",
    ),
    "sequence_classification": HeadFormat(
        title="Sequence classification",
        description="a classifier of transformers (AutoModelForSequenceClassification)",
        contents="one transformers folder with the class names in its config",
        kinds=("classify", "regress", "rank"),
        writer=f"{_EXPORTERS}.head_folders:write_sequence_classification",
        runtime=f"{_RUNTIMES}:SequenceClassificationRuntime",
        precisions={"float32": 1e-3, "float16": 0.02},
        library="transformers",
    ),
    "onnx": HeadFormat(
        title="ONNX",
        description="a graph for ONNX Runtime",
        contents="`model.onnx`: token ids in; probabilities, number, relevance or vector out",
        kinds=_ALL,
        writer=f"{_EXPORTERS}.head_onnx:write_onnx",
        runtime=f"{_RUNTIMES}:OnnxHeadRuntime",
        precisions={"float32": 1e-3, "int8": 0.1},
        library="onnx",
        modules=("onnxruntime", "onnxruntime_genai", "onnx", "onnx_ir"),
        install="luthier[onnx]",
        distributions=("onnx", "onnx-ir", "onnxruntime-genai", "onnxruntime"),
        num_copies=3,  # built from a merged folder, and copied behind its head
    ),
}


def refuse_head(source: ExportSource, what: str) -> None:
    """Reject a model with a task head where a text model is needed: the head would be lost.

    Args:
        source: The model.
        what: The purpose, such as "the format gguf".

    Raises:
        RequestError: It has a head.
    """
    if source.task_head is not None:
        raise RequestError(
            f"{source.name} gives {what_it_gives(source.task_head)}, and {what} has no place for its task head",
            expected="a model that writes text",
            do=f"serve it: {how_it_is_asked(source.task_head)}",
        )


def missing_modules(format: HeadFormat) -> tuple[str, ...]:
    """Required modules that are not installed."""
    # find_spec loads nothing: importing onnxruntime takes a second.
    return tuple(module for module in format.modules if importlib.util.find_spec(module) is None)


def head_format(source: ExportSource, name: str) -> HeadFormat:
    """The format with this name for a model with a task head.

    Raises:
        RequestError: The format loses the head, does not support this kind, or needs missing modules.
    """
    assert source.task_head is not None
    known = HEAD_FORMATS.get(name)
    fitting = [one for one, format in HEAD_FORMATS.items() if source.task_head in format.kinds]
    if known is None or name not in fitting:
        raise RequestError(
            f"{source.name} gives {what_it_gives(source.task_head)}; the format {name} has no place for its task head",
            expected=f"one of {', '.join(fitting)}",
            do=f"choose one of these with --to, or serve it: {how_it_is_asked(source.task_head)}",
        )
    if missing := missing_modules(known):
        raise RequestError(
            f"--to {name} needs {', '.join(missing)}, which is not installed here",
            expected="the runtime in which the export is proved",
            do=command_for(known.install),
        )
    return known


def head_precision(name: str, format: HeadFormat, asked: str | None) -> ExportPrecision:
    """The requested precision, or float32.

    Raises:
        RequestError: The format does not have it.
    """
    if asked is not None and asked not in format.precisions:
        raise RequestError(
            f"--quantise {asked} for a model with a task head in the format {name}",
            expected=f"one of {', '.join(format.precisions)}",
            do="leave --quantise out to take float32",
        )
    # float32 comes first in every declaration.
    return asked or next(iter(format.precisions))


def write_head(
    format: HeadFormat, source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path
) -> list[str]:
    """Write a model with a task head in a format.

    Args:
        format: With its writer.
        source: The model.
        target: An empty folder.
        precision: Of the weights.
        progress: Shows the work.
        tools: The folder of third-party programs.

    Returns:
        Sentences that users must know.

    Raises:
        RequestError: The format does not support the model.
        WorkError: A converter fails.
        OSError: The disk is full.
    """
    writer: Any = import_string(format.writer)
    warnings: list[str] = writer(source, target, precision, progress, tools)
    return warnings


def open_head(format: HeadFormat, folder: Path) -> HeadRuntime:
    """The export in `folder`, loaded in its real runtime.

    Raises:
        ModelSourceError: It does not load.
    """
    opener: Any = import_string(format.runtime)
    runtime: HeadRuntime = opener(folder)
    return runtime


def refuse_prompt(source: ExportSource) -> None:
    """Weights cannot contain a trained prompt, and every format except the adapter's consists of weights.

    Raises:
        RequestError: The source has a trained prompt.
    """
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
            do="export with --to adapter and serve the prompt with its base: it cannot be merged",
        )
