"""What each matrix of a model is, measured on the model itself: the ground on which adapters are placed.

A linear layer of the language model's blocks, a router that chooses experts, a matrix that other code reads past its
module, the matrices of experts that lie in one tensor, or a part outside the language model (a tower for pictures
or sound, and what joins it). Decided by shapes, by where a module lies and by what its owner does with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from luthier.ml.inference.models.architecture import outside_modules
from luthier.ml.inference.models.structure import LinearLayer, Role
from luthier.ml.inference.models.weight_reads import weight_reads

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def linear_layers(model: PreTrainedModel, experts: tuple[LinearLayer, ...]) -> tuple[LinearLayer, ...]:
    """Every linear layer but the output head, with its role, in the order of the model; also transformers' Conv1D.

    Args:
        model: may be on torch's meta device.
        experts: as `expert_layers` gives them.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, outside = model.get_output_embeddings(), _prefixes(outside_modules(model))
    flat = _flat_experts(model)
    counts = {layer.num_matrices for layer in experts} | set(flat.values())
    routed = {part for layer in experts for part in _owners(layer.name)}
    routed |= {part for name in flat for part in (name, name.rpartition(".")[0])}
    past = weight_reads(model).used
    found = []
    for name, module in model.named_modules():
        if module is head or not isinstance(module, (nn.Linear, Conv1D)):
            continue
        # Conv1D of GPT-2 holds its matrix as [in, out], a linear layer as [out, in].
        rows, columns = module.weight.shape
        inputs, outputs = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
        parent = name.rpartition(".")[0]
        role: Role = "block"
        if f"{name}.".startswith(outside):
            role = "outside"
        # By shape and place, since routers have no common name or class.
        elif outputs in counts and _chooses(model, parent, routed):
            role = "router"
        elif name in past:
            role = "kernel"
        found.append(LinearLayer(name, inputs, outputs, role))
    return tuple(found)


def expert_layers(model: PreTrainedModel) -> tuple[LinearLayer, ...]:
    """The matrices of experts of the language model that lie in one tensor, the expert as its first dimension.

    Such a tensor is a parameter of three dimensions, no kernel of a convolution, whose owner or whose name says
    "expert", or that shares its first dimension with one that does.
    """
    tensors = list(_stacked(model, _prefixes(outside_modules(model))))
    # A tensor without "expert" in its name still belongs to experts if it has one entry for each.
    sizes = {t.shape[0] for name, owner, t in tensors if _says_expert(name, owner)}
    found = []
    for name, owner, tensor in tensors:
        if tensor.shape[0] not in sizes:
            continue
        rows, columns = tensor.shape[1:]
        inputs, outputs = (rows, columns) if getattr(owner, "is_transposed", False) else (columns, rows)
        found.append(LinearLayer(name, inputs, outputs, "expert", tensor.shape[0]))
    return tuple(found)


def _flat_experts(model: PreTrainedModel) -> dict[str, int]:
    """Modules of experts that state their number, such as those of DBRX, whose tensors have two dimensions.

    Returns:
        Name of the module -> number of its experts.
    """
    return {
        name: value
        for name, module in model.named_modules()
        if "expert" in type(module).__name__.lower()
        for key, value in vars(module).items()
        if key.endswith("num_experts") and isinstance(value, int)
    }


def _chooses(model: PreTrainedModel, parent: str, routed: set[str]) -> bool:
    """Whether a linear layer with as many outputs as there are experts lies beside them, or alone in a module there."""
    if parent in routed:
        return True
    return parent.rpartition(".")[0] in routed and len(list(model.get_submodule(parent).children())) == 1


def _stacked(model: PreTrainedModel, outside: tuple[str, ...]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    from torch.nn.modules.conv import _ConvNd

    for prefix, module in model.named_modules():
        if isinstance(module, _ConvNd) or (outside and f"{prefix}.".startswith(outside)):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and min(parameter.shape) > 1:
                yield f"{prefix}.{own}", module, parameter


def _says_expert(name: str, owner: nn.Module) -> bool:
    return "expert" in f"{name} {type(owner).__name__}".lower()


def _owners(name: str) -> tuple[str, str]:
    """The module that holds a tensor of experts, and the one around it, where the router is."""
    holder = name.rpartition(".")[0]
    return holder, holder.rpartition(".")[0]


def _prefixes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)
