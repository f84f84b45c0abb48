"""Safetensors files written one tensor at a time, so that they are never all in memory.

The bytes are those that the library `safetensors` writes: an eight-byte length, a JSON header padded with blanks to
eight bytes, then the tensors, those of wider types first and by name within a type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from luthier.ml.training.sharding import whole

# The library's own order of types, the last first in a file.
_TYPES: Final = (
    (torch.bool, "BOOL"), (torch.uint8, "U8"), (torch.int8, "I8"), (torch.int16, "I16"), (torch.float16, "F16"),
    (torch.bfloat16, "BF16"), (torch.int32, "I32"), (torch.float32, "F32"), (torch.float64, "F64"),
    (torch.int64, "I64"),
)  # fmt: skip
_NAMES: Final = dict(_TYPES)
_RANKS: Final = {dtype: rank for rank, (dtype, _) in enumerate(_TYPES)}


def in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names as a file has them: all ranks gather tensors that are spread in this order."""
    return sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name))


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name; those that are spread over ranks are gathered, for which the others must do the same."""
    names, header, offset = in_file_order(tensors), {}, 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            # One tensor at a time: with sharding this gathers it from all ranks.
            there = whole(tensors[name]).detach().cpu().contiguous()
            file.write(there.reshape(-1).view(torch.uint8).numpy().data)
