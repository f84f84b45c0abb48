"""The builder of ONNX Runtime GenAI as a child process, without a network."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from luthier.core.errors import LuthierError, RequestError


def work(folder: str, target: str, precision: str, cache: str) -> None:
    """Write the model in a transformers folder as ONNX for the CPU. precision: as the builder calls it.

    Raises RequestError for an architecture that the builder does not know, and whatever else it raises.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    options = [
        "-i",
        folder,
        "-o",
        target,
        "-p",
        precision,
        "-e",
        "cpu",
        "-c",
        cache,
        "--extra_options",
        "hf_token=false",
    ]
    sys.argv = ["builder", *options]
    try:
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    except NotImplementedError as error:
        raise RequestError(
            f"ONNX Runtime GenAI: {error}",
            expected="an architecture that its builder knows",
            do="export with --to gguf, or install a newer onnxruntime-genai",
        ) from error


def main(arguments: Sequence[str]) -> int:
    """Run with a folder, a target, a precision and a folder for intermediate files.

    An error that a user can act on is one line of JSON on stdout.
    """
    folder, target, precision, cache = arguments
    try:
        with redirect_stdout(sys.stderr):
            work(folder, target, precision, cache)
    except LuthierError as error:
        sys.stdout.write(json.dumps(error.as_json()) + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
