"""A folder for vLLM: a whole model in 32 or 16 bits, or with packed matrices in the format of compressed-tensors.

    fp8     weight [out, in] float8_e4m3, weight_scale [out, 1]; vLLM rounds what they are multiplied with to FP8, too,
            with a scale for each token
    w4a16   weight_packed [out, in / 8] int32 (eight numbers from the lowest bits on, each plus 8), weight_scale
            [out, in / group], weight_shape; multiplied in 16 bits

Weights are rounded to the nearest number; no rows are read. Of each group of 4 bits the largest weights are clipped
where that makes the squared error of the group smaller. Format: vLLM `compressed_tensors`, and `pack_to_int32` of the
package of that name.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.ml.export.exporters import merged
from luthier.ml.export.exporters.merged import complete_folder, finish_folder, whole_model
from luthier.ml.inference.models.quiet import quiet_transformers

Packing = Literal["fp8", "w4a16"]

GROUP_SIZES: Final = (128, 64, 32)
_FP8: Final = torch.float8_e4m3fn
_LOWEST, _HIGHEST, _ZERO = -8, 7, 8
_NUM_PACKED: Final = 8
# Shares of the largest weight of a group that its scale is tried with.
_CLIPS: Final = tuple(1.0 - 0.03 * number for number in range(11))
_ROWS_AT_ONCE: Final = 1024
_KERNEL_WIDTH: Final = 32


def packed_matrices(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The matrices of a model that are packed, by name: those of its layers, and neither embeddings nor head.

    Raises:
        RequestError: a model whose layers hold other matrices than linear ones, or widths that no kernel takes.
    """
    head = model.get_output_embeddings()
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".layers." in f".{name}"
    }
    owned = {id(module.weight) for module in found.values()}
    for name, weight in model.named_parameters():
        if ".layers." in f".{name}" and weight.dim() > 1 and id(weight) not in owned:
            raise RequestError(
                f"{name} of shape {list(weight.shape)}, which is not a plain matrix, such as the experts of a mixture",
                expected="layers of linear matrices for the precisions fp8 and w4a16",
                do="export --to vllm in float16 or bfloat16",
            )
    for name, module in found.items():
        if module.in_features % _KERNEL_WIDTH or module.out_features % _KERNEL_WIDTH:
            raise RequestError(
                f"{name} is a matrix of {module.out_features} by {module.in_features}",
                expected=f"multiples of {_KERNEL_WIDTH}, which vLLM's kernels for packed weights take",
                do="export --to vllm in float16 or bfloat16",
            )
    if not found:
        raise RequestError(
            f"{type(model).__name__} without linear matrices in layers",
            expected="layers of linear matrices for the precisions fp8 and w4a16",
            do="export --to vllm in float16 or bfloat16",
        )
    return found


def group_size(matrices: dict[str, nn.Linear]) -> int:
    """The largest usual size of groups that divides the width of every matrix."""
    widths = [module.in_features for module in matrices.values()]
    return next(size for size in GROUP_SIZES if all(width % size == 0 for width in widths))


def packed(weight: Tensor, packing: Packing, group: int) -> dict[str, Tensor]:
    """The tensors of a packed matrix, by the last part of their names.

    Args:
        weight: [out, in] in float32.
        packing: how.
        group: weights that share a scale in 4 bits.
    """
    parts = [
        _fp8(rows) if packing == "fp8" else _four_bits(rows, group) for rows in torch.split(weight, _ROWS_AT_ONCE)
    ]  # in parts: clipping tries several copies of what it packs
    made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if packing == "w4a16":
        made["weight_shape"] = torch.tensor(weight.shape, dtype=torch.int64)
    return made


def unpacked(tensors: dict[str, Tensor]) -> Tensor:
    """The matrix [out, in] in float32 that packed tensors represent."""
    if "weight" in tensors:
        return tensors["weight"].float() * tensors["weight_scale"].float()
    shifts = torch.arange(0, 4 * _NUM_PACKED, 4)
    # [out, in / 8, 8] of unsigned numbers, the lowest bits first.
    numbers = (tensors["weight_packed"].unsqueeze(-1) >> shifts) & 0xF
    rows, width = (int(size) for size in tensors["weight_shape"])
    scales = tensors["weight_scale"].float()
    grouped = (numbers.reshape(rows, scales.shape[1], -1) - _ZERO).float()
    return (grouped * scales.unsqueeze(-1)).reshape(rows, width)


def quantization_config(packing: Packing, group: int, others: Collection[str]) -> dict[str, Any]:
    """What `config.json` says of packed weights.

    Args:
        packing: how.
        group: weights that share a scale in 4 bits.
        others: linear layers that are not packed, such as the head.
    """
    weights: dict[str, Any] = {"symmetric": True, "dynamic": False, "observer": "minmax"}
    inputs: dict[str, Any] | None
    if packing == "fp8":
        form = "float-quantized"
        weights |= {"num_bits": 8, "type": "float", "strategy": "channel"}
        inputs = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    else:
        form, inputs = "pack-quantized", None
        weights |= {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "actorder": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": sorted(others),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": inputs,
                "output_activations": None,
                "format": form,
            }
        },
    }


def _fp8(weight: Tensor) -> dict[str, Tensor]:
    largest = weight.abs().amax(dim=1, keepdim=True)
    # A row of zeros keeps a scale, so that nothing is divided by zero.
    scale = torch.where(largest > 0, largest, 1.0) / torch.finfo(_FP8).max
    return {"weight": (weight / scale).to(_FP8), "weight_scale": scale.to(torch.float32)}


def _four_bits(weight: Tensor, group: int) -> dict[str, Tensor]:
    # [out, groups, group]
    grouped = weight.reshape(weight.shape[0], -1, group)
    largest = grouped.abs().amax(dim=-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    best_error, best_scale = torch.full_like(largest, float("inf")), largest
    for clip in _CLIPS:
        # Stored in bfloat16: numbers are chosen for the scale that is read later.
        scale = (largest * clip / ((_HIGHEST - _LOWEST) / 2)).bfloat16().float()
        error = (_rounded(grouped, scale) * scale - grouped).square().sum(dim=-1, keepdim=True)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best_scale = torch.where(is_better, scale, best_scale)
    numbers = (_rounded(grouped, best_scale) + _ZERO).to(torch.int32).reshape(weight.shape[0], -1, _NUM_PACKED)
    shifts = torch.arange(0, 4 * _NUM_PACKED, 4, dtype=torch.int32)
    # Summed in 64 bits, and cut to 32: the highest of eight numbers reaches the sign.
    words = (numbers.to(torch.int64) << shifts).sum(dim=-1)
    return {"weight_packed": _as_int32(words), "weight_scale": best_scale.squeeze(-1).bfloat16()}


def _rounded(grouped: Tensor, scale: Tensor) -> Tensor:
    return torch.clamp(torch.round(grouped / scale), _LOWEST, _HIGHEST)


def _as_int32(words: Tensor) -> Tensor:
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


PACKINGS: Final = ("fp8", "w4a16")
_REST: Final = torch.bfloat16
"""The type of what is not packed: embeddings, norms, biases."""


def write(source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path) -> list[str]:
    """Write the model as safetensors in that precision, with tokenizer, template and generation config.

    An adapter is merged in float32; matrices are packed from that. Memory: 4 bytes per weight, and the packed model.

    Raises:
        RequestError: a trained prompt, or a model whose matrices cannot be packed.
        NotFoundError, ModelSourceError: base or adapter is missing or damaged.
    """
    if precision not in PACKINGS:
        return merged.write(source, target, precision, progress, tools)
    packing = cast("Packing", precision)
    title = "Packing the weights" if source.adapter_path is None else "Merging the adapter and packing the weights"
    with progress.task(title, 2, "steps") as task:
        model = whole_model(source, "float32")
        # A check on this machine may have set eager attention (`use_proved_attention`), which is not part of the model.
        model.config._attn_implementation = "sdpa"
        task.advance()
        matrices = packed_matrices(model)
        group = group_size(matrices)
        others = [n for n, one in model.named_modules() if isinstance(one, nn.Linear) and n not in matrices]
        made = {f"{name}.weight": packed(one.weight.detach(), packing, group) for name, one in matrices.items()}
        _save(model, target, made)
        task.advance()
    turns = finish_folder(source, target)
    file = target / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"dtype": "bfloat16", "quantization_config": quantization_config(packing, group, others)}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    complete_folder(source, target)
    return list(turns.notes)


def _save(model: PreTrainedModel, target: Path, packed_by_name: dict[str, dict[str, Tensor]]) -> None:
    """Save a model with packed tensors in the place of some of its weights."""
    tensors: dict[str, Tensor] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        if (made := packed_by_name.get(name)) is None:
            tensors[name] = tensor.to(_REST) if tensor.is_floating_point() else tensor
        else:
            tensors |= {f"{name.removesuffix('weight')}{part}": value for part, value in made.items()}
    # Tied weights are one tensor, which a file holds once. An adapter on one of the two has parted them: then the names
    # are still listed as tied, and both are written.
    listed = getattr(model, "all_tied_weights_keys", None) or {}
    tied = {name for name, other in listed.items() if _is_one(state.get(name), state.get(other))}
    with quiet_transformers():
        model.save_pretrained(str(target), state_dict={name: x for name, x in tensors.items() if name not in tied})


def _is_one(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()
