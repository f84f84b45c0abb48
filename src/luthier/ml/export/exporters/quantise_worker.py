"""Quantise a GGUF file with llama.cpp's own function, as a child process: SOURCE TARGET KIND THREADS."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Final

from luthier.core.errors import LuthierError, WorkError

KINDS: Final = {"q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M"} | {
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K"
}


def main(arguments: list[str]) -> int:
    """Quantise; an error is one line of JSON on stdout."""
    source, target, kind, num_threads = arguments
    bindings = import_module("llama_cpp_py_sync._cffi_bindings")
    library, ffi = bindings.get_lib(), bindings.get_ffi()
    library.llama_backend_init()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = getattr(library, KINDS[kind])
    parameters.nthread = int(num_threads)
    code = library.llama_model_quantize(source.encode(), target.encode(), ffi.addressof(parameters))
    if code == 0:
        return 0
    error = WorkError(
        f"llama.cpp could not quantise to {kind} (code {code})",
        expected="a GGUF file in 16 bits of an architecture that it can quantise",
        do="export with --quantise q8_0, which needs no mixture of kinds",
    )
    return _say(error)


def _say(error: LuthierError) -> int:
    sys.stdout.write(json.dumps(error.as_json()) + "\n")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
