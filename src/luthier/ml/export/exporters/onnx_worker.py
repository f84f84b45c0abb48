"""The builder of ONNX Runtime GenAI in a child process, without network access."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError


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
    try:
        # As its command line does: the builder's functions are not a stable interface.
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    except NotImplementedError as error:
        raise RequestError(
            f"ONNX Runtime GenAI: {error}",
            expected="an architecture that its builder knows",
            do="export with --to gguf, or install a newer onnxruntime-genai",
        ) from error
