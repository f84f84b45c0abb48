"""Which runtime a format is proved in, and how an export is opened in it."""

from __future__ import annotations

from pathlib import Path

from luthier.core.records.export import ExportFormat, ExportSource
from luthier.ml.export.runtimes.protocol import Runtime


def open_export(format: ExportFormat, folder: Path, source: ExportSource) -> Runtime:
    """The export in `folder`, loaded in its real runtime.

    Args:
        format: of the export.
        folder: where it is.
        source: for the base of an export that is an adapter.

    Raises:
        RequestError: the package of the runtime is not installed.
        NotFoundError, ModelSourceError: the export is not there or does not load.
    """
    if format == "merged":
        from luthier.ml.export.runtimes.transformers_runtime import TransformersRuntime

        return TransformersRuntime(folder)
    if format == "adapter":
        from luthier.ml.export.runtimes.transformers_runtime import TransformersRuntime

        return TransformersRuntime(folder, source.base_path, source.quantisation, source.precision)
    if format == "gguf":
        from luthier.ml.export.runtimes.llama_cpp_runtime import LlamaCppRuntime

        return LlamaCppRuntime(folder)
    if format == "onnx":
        from luthier.ml.export.runtimes.onnx_runtime import OnnxRuntime

        return OnnxRuntime(folder)
    from luthier.ml.export.runtimes.executorch_runtime import ExecutorchRuntime

    return ExecutorchRuntime(folder)
