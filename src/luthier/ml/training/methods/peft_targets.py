"""The targets given to PEFT, and the check that it adapted exactly these.

PEFT 0.21 takes some names of modules for the tensors of experts that older versions of transformers had in their place:
on mixtures of the Mixtral and Qwen2 kinds `gate_proj` silently becomes the experts' `gate_up_proj` at twice the rank,
even where a shared expert or a dense layer has a matrix of that name. Such a matrix is named by its parameter instead,
which means the same to PEFT and to everybody who loads the adapter.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.errors import RequestError
from luthier.core.plan import MethodPlan

_OWN = ".weight"
_SHOWN = 5


def meant_for_peft(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """The config with every target named so that PEFT takes it for what it says; changed in place.

    Dropout is then zero in it: PEFT has none for parameters. Ours, in training, acts on what a matrix reads.

    Raises:
        RequestError: the method cannot be put on a parameter.
    """
    renamed = sorted(t for t in config.target_modules or () if _is_taken_for_experts(model, config, t))
    if renamed and config.use_dora:
        raise RequestError(
            f"method dora on {', '.join(renamed)}, which PEFT takes for experts on this model",
            expected="names that PEFT leaves as they are: it cannot put DoRA on parameters",
            do=f"leave {', '.join(renamed)} out of method.targets, or choose method lora",
        )
    if renamed:
        config.target_modules = set(config.target_modules or ()) - set(renamed)
        config.target_parameters = [*(config.target_parameters or ()), *(f"{name}{_OWN}" for name in renamed)]
        for pattern in (config.rank_pattern, config.alpha_pattern):
            for name in [name for name in pattern if name in renamed]:
                pattern[f"{name}{_OWN}"] = pattern.pop(name)
    if config.target_parameters:
        config.lora_dropout = 0.0
    return config


def planned_targets(model: nn.Module, plan: MethodPlan) -> frozenset[str]:
    """Full names of the modules and tensors of a model, without an adapter yet, that a plan means."""
    kinds = (nn.Linear, nn.Embedding, Conv1D)
    modules = {name for name, m in model.named_modules() if isinstance(m, kinds) and _is_meant(name, plan.targets)}
    return frozenset(modules | {name for name, _ in model.named_parameters() if _is_meant(name, plan.expert_targets)})


def adapted_targets(model: PeftModel) -> frozenset[str]:
    """Full names of the modules and tensors of the base that carry an adapter."""
    found = set()
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer):
            own = name.replace(".base_layer", "")
            single = not isinstance(layer, ParamWrapper) or isinstance(layer.get_base_layer(), nn.Linear)
            found.add(own if single else f"{own}.{layer.parameter_name}")
    return frozenset(found)


def refuse_other_targets(model: PeftModel, planned: frozenset[str]) -> None:
    """Raise RequestError, with the difference, where PEFT adapted something else than the plan says."""
    adapted = adapted_targets(model)
    if adapted == planned:
        return
    parts = []
    for what, names in (("it left out", planned - adapted), ("it added", adapted - planned)):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN])
            parts.append(f"{what} {shown}{f' and {len(names) - _SHOWN:,} more' if len(names) > _SHOWN else ''}")
    raise RequestError(
        f"PEFT adapted {len(adapted):,} matrices where the plan has {len(planned):,}: {'; '.join(parts)}",
        expected="an adapter on what the plan says, and on nothing else",
        do="name the matrices in method.targets by their whole names, or leave these out",
    )


def _is_taken_for_experts(model: nn.Module, config: LoraConfig, target: str) -> bool:
    """Whether PEFT would turn the name of a module into one of a parameter."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    if not isinstance(model, PreTrainedModel):
        return False
    probe = copy.copy(config)
    probe.target_modules, probe.target_parameters, probe.rank_pattern, probe.alpha_pattern = {target}, None, {}, {}
    try:
        convert_peft_config_for_transformers(probe, model, None)
    except ValueError:  # it would be one half of a tensor
        return True
    return set(probe.target_modules or ()) != {target}


def _is_meant(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def all_but(tensors: Sequence[str]) -> str:
    """A key of `rank_pattern` and `alpha_pattern` that matches every name but those of tensors of experts.

    PEFT matches keys against the end of a name from a dot on, so that the part before the last one decides.
    """
    holders = sorted({tensor.rpartition(".")[0].rpartition(".")[2] for tensor in tensors})
    return "".join(rf"(?<!{re.escape(holder)}\.)" for holder in holders) + r"[^.]+"
