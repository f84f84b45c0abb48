"""Quantise a GGUF file with llama.cpp's own function, in a child process."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.errors import WorkError

KINDS: Final = {"q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M"} | {
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K"
}


def quantise(document: dict[str, Any], _channel: Channel) -> None:
    """Quantise in a child process.

    Args:
        document: `source` and `target` (files), `kind` (a key of `KINDS`), `num_threads`.

    Raises:
        WorkError: llama.cpp refuses.
    """
    kind = document["kind"]
    bindings = import_module("llama_cpp_py_sync._cffi_bindings")
    library, ffi = bindings.get_lib(), bindings.get_ffi()
    # Before any other call: it sets up ggml's tables of conversions.
    library.llama_backend_init()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = getattr(library, KINDS[kind])
    parameters.nthread = document["num_threads"]
    source, target = document["source"].encode(), document["target"].encode()
    code = library.llama_model_quantize(source, target, ffi.addressof(parameters))
    if code != 0:
        raise WorkError(
            f"llama.cpp could not quantise to {kind} (code {code})",
            expected="a GGUF file in 16 bits of an architecture that it can quantise",
            do="export with --quantise q8_0, which needs no mixture of kinds",
        )
