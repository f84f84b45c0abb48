"""ONNX, for ONNX Runtime GenAI on edge devices, Windows and Android, made by its own builder from a merged folder."""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import run_child
from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.core.system.extras import require_extra
from luthier.ml.export.exporters.converter import architecture_of, compared_with, refuse_unknown
from luthier.ml.export.exporters.merged import write_model
from luthier.ml.inference.models.architecture import load_config, text_config

CONFIG: Final = "genai_config.json"
BUILD: Final = "luthier.ml.export.exporters.onnx:build"
BUILDER_PRECISIONS: Final = {"float32": "fp32", "int8": "int8", "int4": "int4"}
_HEAD_MULTIPLE: Final = 16
# Files that the builder rewrites through transformers; the source's own files are those of training.
_OURS: Final = ("tokenizer.json", "chat_template.jinja", "generation_config.json")


def check(source: ExportSource, progress: Progress, tools: Path) -> None:
    """Reject an architecture that the builder does not know, and attention heads that its runtime cannot compute.

    Raises:
        RequestError: such a model, or a missing package.
    """
    del progress, tools
    require_extra("onnx", "--to onnx")
    package = importlib.util.find_spec("onnxruntime_genai")
    places = (package.submodule_search_locations if package else None) or ()
    # The builder has no list: it compares `config.architectures[0]` in a chain of branches.
    known = frozenset[str]().union(
        *(compared_with(Path(one) / "models" / "builder.py", "config.architectures[0]") for one in places)
    )
    base = Path(source.base_path)
    refuse_unknown(
        architecture_of(base),
        known,
        "ONNX Runtime GenAI",
        "export with --to gguf or merged, or install a newer onnxruntime-genai",
    )
    _check_heads(base)


def write(source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path) -> list[str]:
    """Write `model.onnx` with its weights, `genai_config.json`, the tokenizer and the template.

    The model is first merged in float32. int8 and int4 are made by rounding only, without calibration text. They lose
    more quality than llama.cpp types of the same bits, so check a model before using them.

    Raises:
        RequestError: a missing package, or an architecture that the builder or the runtime cannot handle.
        WorkError: the builder fails.
        OSError: the disk is full.
    """
    check(source, progress, tools)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as scratch:
        folder, cache = Path(scratch) / "model", Path(scratch) / "cache"
        folder.mkdir()
        turns = write_model(source, folder, "float32", progress)
        document = {"folder": str(folder), "target": str(target), "cache": str(cache)}
        with progress.task(title := f"Building ONNX ({precision})", None, ""):
            run_child(BUILD, document | {"precision": BUILDER_PRECISIONS[precision]}, title=title)
        for name in _OURS:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
    return list(turns.notes)


def _check_heads(base: Path) -> None:
    """The runtime would also reject them, but only at the first answer."""
    config = text_config(load_config(base))
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or not heads:  # no attention, or different in each layer: the builder reports it
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if width % _HEAD_MULTIPLE:
        raise RequestError(
            f"{base} has attention heads of width {width}",
            expected=f"a multiple of {_HEAD_MULTIPLE}, as the kernels of ONNX Runtime need it",
            do="export with --to gguf",
        )


def _leave_out_help() -> None:
    """Leave out the texts of help: since Python 3.14 `argparse` formats them at once, and one of the builder's has a
    bare percent sign (onnxruntime-genai 0.18)."""
    add = argparse.ArgumentParser.add_argument

    def _without_help(parser: argparse.ArgumentParser, *names: Any, **options: Any) -> argparse.Action:
        return add(parser, *names, **options | {"help": None})

    argparse.ArgumentParser.add_argument = _without_help  # type: ignore[assignment,method-assign]


def build(document: dict[str, Any], _channel: Channel) -> None:
    """Write the model in a transformers folder as ONNX for the CPU, in a child process.

    Args:
        document: `folder`, `target`, `precision` (the builder's name) and `cache` (for intermediate files);
            `without_head` for a graph that gives hidden states instead of logits.

    Raises:
        RequestError: an architecture that the builder does not know.
    """
    # Before the builder is imported: huggingface_hub reads it at import.
    os.environ["HF_HUB_OFFLINE"] = "1"
    places = {"-i": document["folder"], "-o": document["target"], "-p": document["precision"], "-c": document["cache"]}
    options = [word for pair in places.items() for word in pair] + ["-e", "cpu", "--extra_options", "hf_token=false"]
    options += ["exclude_lm_head=true"] if document.get("without_head") else []
    sys.argv = ["builder", *options]
    _leave_out_help()  # in this process alone, which ends with the build
    try:
        # As its command line does: the builder's functions are not a stable interface.
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    except NotImplementedError as error:
        raise RequestError(
            f"ONNX Runtime GenAI: {error}",
            expected="an architecture that its builder knows",
            do="export with --to gguf, or install a newer onnxruntime-genai",
        ) from error
