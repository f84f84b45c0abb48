"""A folder for vLLM: a whole model in 32 or 16 bits, or with packed matrices in the format of compressed-tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.ml.export.exporters.compressed_tensors import (
    Packing,
    group_size,
    packed,
    packed_matrices,
    quantization_config,
)
from luthier.ml.export.exporters.merged import Width, finish_folder, whole_model, write_model
from luthier.ml.inference.models.quiet import quiet_transformers

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
    del tools
    if precision not in PACKINGS:
        return list(write_model(source, target, cast("Width", precision), progress).notes)
    packing = cast("Packing", precision)
    title = "Packing the weights" if source.adapter_path is None else "Merging the adapter and packing the weights"
    with progress.task(title, 2, "steps") as task:
        model = whole_model(source, "float32")
        # A check on this machine may have set eager attention (`use_proved_attention`), which is not part of the model.
        model.config._attn_implementation = "sdpa"
        task.advance()
        matrices = packed_matrices(model)
        group = group_size(matrices)
        made = {f"{name}.weight": packed(one.weight.detach(), packing, group) for name, one in matrices.items()}
        _save(model, target, made)
        task.advance()
    turns = finish_folder(source, target)
    file = target / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"dtype": "bfloat16", "quantization_config": quantization_config(packing, group)}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return list(turns.notes)


def _save(model: PreTrainedModel, target: Path, packed_by_name: dict[str, dict[str, Tensor]]) -> None:
    """Save a model with packed tensors in the place of some of its weights."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if (made := packed_by_name.get(name)) is None:
            tensors[name] = tensor.to(_REST) if tensor.is_floating_point() else tensor
        else:
            tensors |= {f"{name.removesuffix('weight')}{part}": value for part, value in made.items()}
    # Tied weights are one tensor, which a file holds once.
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    with quiet_transformers():
        model.save_pretrained(str(target), state_dict={name: x for name, x in tensors.items() if name not in tied})
