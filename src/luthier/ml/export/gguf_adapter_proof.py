"""The proof of `adapter.gguf`: in llama.cpp, over its base written as GGUF, compared with the source."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource, ParityReport
from luthier.ml.export.source_side import ObservedSource

_BASE_PRECISION: Final[ExportPrecision] = "float16"


def prove_gguf_adapter(
    source: ExportSource, file: Path, observed: ObservedSource, scratch: Path, progress: Progress, tools: Path
) -> ParityReport:
    """Run the adapter in `file` over its base in float16 and compare it as a GGUF of the merged model would be.

    The bound is that of GGUF in float16: only the base is rounded.

    Args:
        source: the model.
        file: the adapter as GGUF.
        observed: the source's side, its base not packed.
        scratch: a folder for the base, which is deleted afterwards (two bytes a weight, four more on the way).
        progress: shows conversion and proof.
        tools: where the converter is stored.

    Raises:
        WorkError: the converter fails or cannot be had.
        RequestError: llama.cpp cannot hold the base.
    """
    from luthier.ml.export.exporters import gguf
    from luthier.ml.export.parity import compare
    from luthier.ml.export.runtimes.llama_cpp_runtime import LlamaCppRuntime

    # The base alone, by its own name: the adapter is put over it by llama.cpp at run time.
    base = source.model_copy(update={"name": source.base_name, "adapter_path": None, "adapter_sha256": None})
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".base-") as folder:
        made = Path(folder) / "base"
        made.mkdir()
        gguf.write(base, made, _BASE_PRECISION, progress, tools)
        with closing(LlamaCppRuntime(made, file)) as runtime:
            return compare(observed, runtime, "gguf", _BASE_PRECISION, progress)
