"""How a published folder says that its weights are packed: AWQ, GPTQ, compressed-tensors, FP8 and others.

Only `config.json` is read. vLLM computes with such weights; transformers needs a package for each kind, which Luthier
does not bring, so the engine transformers and training reject them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TITLES: Final = {
    "awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors", "fp8": "FP8", "fbgemm_fp8": "FP8",
    "bitsandbytes": "bitsandbytes", "mxfp4": "MXFP4", "hqq": "HQQ", "torchao": "torchao",
}  # fmt: skip
_FIXED_BITS: Final = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4}


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """What `quantization_config` of a model says.

    Attributes:
        method: `quant_method`, or "unknown".
        num_bits: of a weight; None where it is not said, or differs among matrices.
        group_size: weights that share a scale; None for a row, a whole matrix, or where it is not said.
        activation_bits: what activations are rounded to; None where they are not.
    """

    method: str
    num_bits: int | None = None
    group_size: int | None = None
    activation_bits: int | None = None

    @property
    def phrase(self) -> str:
        """For people: `AWQ, 4 bits in groups of 128`."""
        title = _TITLES.get(self.method, self.method)
        bits = "" if self.num_bits is None else f", {self.num_bits} bits"
        group = "" if self.group_size is None else f" in groups of {self.group_size}"
        activations = "" if self.activation_bits is None else f", activations in {self.activation_bits}"
        return f"{title}{bits}{group}{activations}"


def packed_weights(folder: Path) -> PackedWeights | None:
    """How the weights of a transformers folder are packed; None for plain weights, and where no config is readable."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # what loads the model reports the error
    return packing_of(config) if isinstance(config, dict) else None


def packing_of(config: dict[str, Any]) -> PackedWeights | None:
    """The same for the content of a `config.json`."""
    text = config.get("text_config")
    found = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method") or "unknown")
    if method == "compressed-tensors":
        return _compressed_tensors(found)
    if method == "bitsandbytes":
        bits = 4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None
        return PackedWeights(method, bits)
    rounds_activations = method in ("fp8", "fbgemm_fp8")
    return PackedWeights(
        method,
        _count(found.get("bits")) or _FIXED_BITS.get(method),
        _count(found.get("group_size")),
        8 if rounds_activations else None,
    )


def _compressed_tensors(found: dict[str, Any]) -> PackedWeights:
    groups = found.get("config_groups")
    schemes = [one for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    weights = [one.get("weights") or {} for one in schemes]
    inputs = [one.get("input_activations") or {} for one in schemes]
    return PackedWeights(
        "compressed-tensors",
        _only([_count(one.get("num_bits")) for one in weights]),
        _only([_count(one.get("group_size")) for one in weights]),
        _only([_count(one.get("num_bits")) for one in inputs]),
    )


def _only(values: list[int | None]) -> int | None:
    """The value that all have; None where they differ."""
    return values[0] if values and len(set(values)) == 1 else None


def _count(value: object) -> int | None:
    """A positive number; -1 stands for a whole row."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
