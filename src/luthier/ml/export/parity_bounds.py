"""What a proof demands of each format and precision, each figure with its reason."""

from __future__ import annotations

from typing import Final

from luthier.core.records.export import ExportFormat, ExportPrecision

_SAME_ARITHMETIC: Final = "the same weights in the same float32 arithmetic: only the order of sums differs"
_OTHER_KERNELS: Final = "the same float32 weights in other kernels: sums in another order, other approximations of exp"
_ROUNDED_ADAPTER: Final = "the two small matrices of each update are rounded to 8 bits of mantissa, the base is not"
_ROUNDED_BF16: Final = "merged weights are rounded to 8 bits of mantissa once"
_ROUNDED_FP16: Final = "merged weights are rounded to 11 bits of mantissa once"
_GGUF_FP16: Final = "weights are rounded to 11 bits of mantissa, and so is in llama.cpp what they are multiplied with"
_GGUF_BF16: Final = "weights are rounded to 8 bits of mantissa, and so is in llama.cpp what they are multiplied with"

# Three times and more of what SmolLM2-135M shows with an adapter of rank 16 (docs/exports.md has the figures): a wrong
# scale, a module that was forgotten or another rotary base move likelihoods by whole nats.
BOUNDS: Final[dict[tuple[ExportFormat, ExportPrecision], tuple[float, str]]] = {
    ("adapter", "float32"): (1e-3, _SAME_ARITHMETIC),
    ("adapter", "bfloat16"): (0.1, _ROUNDED_ADAPTER),
    ("merged", "float32"): (1e-3, _SAME_ARITHMETIC),
    ("merged", "float16"): (0.1, _ROUNDED_FP16),
    ("merged", "bfloat16"): (0.5, _ROUNDED_BF16),
    ("gguf", "float32"): (1e-3, _OTHER_KERNELS),
    ("gguf", "float16"): (0.2, _GGUF_FP16),
    ("gguf", "bfloat16"): (1.0, _GGUF_BF16),
    ("onnx", "float32"): (1e-3, _OTHER_KERNELS),
    ("executorch", "float32"): (1e-3, _OTHER_KERNELS),
}
"""The most that a log-probability may differ, in nats, and why. What is missing is judged by its loss of quality."""

NOTEWORTHY_LOSS_NATS: Final = 0.02
"""A token of the references. A loss above it (2% more perplexity) whose interval leaves out 0 makes a format "not
recommended" for a model: q8_0 stays below, q4_k_m of a small model does not."""

RUINOUS_LOSS_NATS: Final = 0.693
"""A token of the references: perplexity has doubled. An export that loses more fails, whatever its format."""

NEARER_BASE_FRACTION: Final = 0.9
"""An export that is nearer to the base than to the source in this share of its prompts has lost the adapter."""


def bound_nats(format: ExportFormat, precision: ExportPrecision) -> float | None:
    """The bound of a format and precision; None where only the loss of quality is judged."""
    found = BOUNDS.get((format, precision))
    return None if found is None else found[0]
