"""Embeddings and head that are trained in whole beside an adapter, and how PEFT's files hold them.

Tokens that were added to a vocabulary, and a template that a base model has never seen, need rows of their own: a
low-rank update moves all rows along the same few directions. The weights that are trained are the model's own, so that
loss, gradient and resume are those of full fine-tuning. PEFT puts a trained copy beside each such module
(`modules_to_save`); its files have the name of the module without the copy's, which is what is written here.

Where embeddings and head share one matrix it is trained once and written under both names: PEFT makes two copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.errors import RequestError
from luthier.ml.training.methods.peft_adapter import PEFT_PREFIX, is_named


def train_whole(model: PreTrainedModel, names: Sequence[str]) -> dict[str, nn.Module]:
    """Make embeddings and head trainable; returns them by whole name, in the order of the model.

    Args:
        model: the base, with its adapter or without one.
        names: whole names or last parts of them, as in the plan.

    Raises:
        RequestError: a name that is neither.
    """
    outer = [
        id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    ]
    found = {name: module for name, module in model.named_modules() if id(module) in outer and is_named(name, names)}
    for one in names:
        if not any(is_named(name, (one,)) for name in found):
            raise RequestError(
                f"method.modules_to_save names {one}, which is neither embeddings nor output head of this model",
                expected="the names of these two, as a plan of this model has them",
                do="plan the recipe again",
            )
    for module in found.values():
        module.requires_grad_(True)
    return found


def saved_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of the modules by the names of PEFT's files; a shared one is copied, as a file holds none twice."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            is_shared = tensor.data_ptr() in seen
            seen.add(tensor.data_ptr())
            found[f"{PEFT_PREFIX}{name}.{key}"] = tensor.clone() if is_shared else tensor
    return found


def saved_names(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules as PEFT's config names them: by last parts, or by whole names where those mean other modules, too.

    PEFT takes every module whose name ends with an entry, with or without a dot before it.

    Args:
        model: the base.
        modules: by whole name.

    Raises:
        RequestError: the name of another module ends with the whole name of one of them.
    """
    every = [name for name, _ in model.named_modules(remove_duplicate=False)]
    names = []
    for name in modules:
        short = [one for one in (name.rpartition(".")[2], name) if sum(other.endswith(one) for other in every) == 1]
        if not short:
            raise RequestError(
                f"modules_to_save: PEFT would take other modules for {name}, too",
                expected="a name with which no other module's name ends",
                do="leave method.modules_to_save out, or train with method full",
            )
        names.append(short[0])
    return names
