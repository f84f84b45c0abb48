"""Which layers of a model are built alike, and how many of the first ones hold one of each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from luthier.ml.inference.models.architecture import language_model, text_config

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_FEWEST_LAYERS: Final = 2


def layers_of(base: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The list of a model's layers, the module that holds it, and under which name; None where there is no one list."""
    from torch import nn

    body = language_model(base)
    num = getattr(text_config(base.config), "num_hidden_layers", None)
    for parent in body.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == num:
                return parent, name, child
    return None


def prefix_length(base: PreTrainedModel, layers: nn.ModuleList) -> int:
    """How many of the first layers hold one of each kind."""
    kinds = [(_kind(layer), *said) for layer, said in zip(layers, _said_of_layers(base, len(layers)), strict=True)]
    # The last first occurrence of a kind; at least two layers, so that one feeds another.
    return max(min(_FEWEST_LAYERS, len(kinds)), *(kinds.index(kind) + 1 for kind in set(kinds)))


def _said_of_layers(base: PreTrainedModel, num_layers: int) -> list[tuple[Any, ...]]:
    """What the config lists once a layer, such as which of them have a window."""
    entries = [value for _, value in sorted(vars(text_config(base.config)).items()) if isinstance(value, (list, tuple))]
    # numbers of layers, where all of them are listed, tell none apart
    listed = [e for e in entries if len(e) == num_layers and list(e) != list(range(num_layers))]
    return [tuple(str(entry[i]) for entry in listed) for i in range(num_layers)]


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What tells layers apart: the modules in them, and plain settings of these, except for numbers of layers."""
    found = []
    for name, module in layer.named_modules():
        settings = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, (bool, int, float, str, type(None))) and "layer_idx" not in key and key != "training"
        )
        if "experts." not in name:  # there may be hundreds, all alike
            found.append((name, type(module).__name__, settings))
    return tuple(found)
