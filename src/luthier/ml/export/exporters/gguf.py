"""GGUF, for llama.cpp and what is built on it: one file with weights, tokenizer and template, a Modelfile beside it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from luthier.core.child_process.process import run_child
from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.ml.export.exporters.companions import Turns
from luthier.ml.export.exporters.converter import converter
from luthier.ml.export.exporters.known_architectures import keys_of, refuse_unknown
from luthier.ml.export.exporters.merged import write_model
from luthier.ml.export.exporters.modelfile import by_hand_in_ollama, modelfile

FILE: Final = "model.gguf"
MODELFILE: Final = "Modelfile"
CONVERT: Final = "luthier.ml.export.exporters.convert_worker:convert"
_QUANTISE: Final = "luthier.ml.export.exporters.quantise_worker:quantise"
_OUTTYPES: Final = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}


def check(source: ExportSource, progress: Progress, tools: Path) -> None:
    """Refuse an architecture that is not on the converter's own list.

    Raises:
        RequestError: it is not.
        WorkError: the converter cannot be had.
    """
    known = keys_of(converter(tools, progress) / "conversion" / "__init__.py", "TEXT_MODEL_MAP")
    refuse_unknown(
        Path(source.base_path),
        known,
        "llama.cpp's converter",
        "export with --to merged, which vLLM and transformers serve",
    )


def write(source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path) -> list[str]:
    """Write `model.gguf` in that precision and a Modelfile for Ollama beside it.

    On the way the model is merged in float32, and mixtures of kinds (q6_k and below) are made from float16. Beside the
    file there are the tokenizer and the generation config, for checks of tokens.

    Raises:
        RequestError: GGUF or llama.cpp cannot hold the model, or a package is missing.
        WorkError: the converter fails or cannot be had.
        OSError: the disk is full.
    """
    if precision not in _OUTTYPES:
        _need_llama_cpp(precision)
    program = converter(tools, progress)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        turns = write_model(source, folder, "float32", progress)
        # The converter writes wide types and q8_0 itself; mixtures of kinds are made by llama.cpp from 16 bits.
        direct = target / FILE if precision in _OUTTYPES else Path(scratch) / "wide.gguf"
        _convert(program, folder, direct, _OUTTYPES.get(precision, "f16"), source, turns, progress)
        _keep_companions(folder, target)
        if precision not in _OUTTYPES:
            # The merged folder (4 bytes a weight) goes before the quantised file comes: half the room on the disk.
            shutil.rmtree(folder)
            document = {"source": str(direct), "target": str(target / FILE), "kind": precision}
            with progress.task(title := f"Quantising to {precision}", None, ""):
                run_child(_QUANTISE, document | {"num_threads": os.cpu_count() or 1}, title=title)
    text = modelfile(FILE, turns)
    (target / MODELFILE).write_text(text, encoding="utf-8")
    return [*turns.notes, *by_hand_in_ollama(turns)]


def _convert(
    program: Path,
    folder: Path,
    file: Path,
    outtype: str,
    source: ExportSource,
    turns: Turns,
    progress: Progress,
) -> None:
    document = {
        "converter": str(program),
        "model": str(folder),
        "file": str(file),
        "outtype": outtype,
        "name": source.name,
        "end_of_turn": turns.stop_ids[0],
        "begins": bool(turns.beginning),
        "context_tokens": source.context_tokens,
    }
    with progress.task(title := f"Writing GGUF ({outtype})", None, ""):
        run_child(CONVERT, document, title=title)


def _keep_companions(folder: Path, target: Path) -> None:
    for name in ("chat_template.jinja", "generation_config.json"):
        shutil.copyfile(folder / name, target / name)


def _need_llama_cpp(precision: str) -> None:
    if importlib.util.find_spec("llama_cpp_py_sync") is None:
        raise RequestError(
            f"--quantise {precision} needs the package llama-cpp-py-sync, which is not installed",
            expected="llama.cpp's own quantisation beside Luthier",
            do="pip install luthier[gguf], or take --quantise q8_0, which needs nothing more",
        )
