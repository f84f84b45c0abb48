"""The interface to PEFT: target modules and adapter files.

PEFT 0.21 maps some module names to the expert tensors that replaced them in newer versions of transformers: on
mixture-of-experts models such as Mixtral and Qwen2 `gate_proj` silently becomes the experts' `gate_up_proj` at twice
the rank, even where a shared expert or a dense layer has a matrix of that name. Such a matrix is named by its parameter
instead, which PEFT treats the same, also when the adapter is loaded elsewhere. A check ensures that PEFT adapted
exactly the targets. The files of an adapter have the same bytes each time.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.errors import RequestError
from luthier.core.ids import sha256_file
from luthier.core.plan import MethodPlan

PEFT_PREFIX = "base_model.model."
"""What PEFT's names of parameters begin with, before the base's own name."""
_OWN = ".weight"
_SHOWN = 5


def meant_for_peft(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """The config with every target named so that PEFT does not remap it; changed in place.

    Its dropout is then zero, since PEFT has none for parameters. Our dropout, in training, acts on the matrix input.

    Raises:
        RequestError: the method does not support parameters as targets.
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
    """Full names of the modules and tensors that a plan targets, in a model without an adapter."""
    kinds = (nn.Linear, nn.Embedding, Conv1D)
    modules = {name for name, m in model.named_modules() if isinstance(m, kinds) and is_named(name, plan.targets)}
    return frozenset(modules | {name for name, _ in model.named_parameters() if is_named(name, plan.expert_targets)})


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
    """Raise RequestError, with the difference, if PEFT adapted other modules than the plan lists."""
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
        expected="an adapter on exactly the matrices of the plan",
        do="name the matrices in method.targets by their whole names, or leave these out",
    )


def _is_taken_for_experts(model: nn.Module, config: LoraConfig, target: str) -> bool:
    """Whether PEFT would map a module name to a parameter name."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    if not isinstance(model, PreTrainedModel):
        return False
    probe = copy.copy(config)
    probe.target_modules, probe.target_parameters, probe.rank_pattern, probe.alpha_pattern = {target}, None, {}, {}
    try:
        convert_peft_config_for_transformers(probe, model, None)
    except ValueError:  # it would be half of a tensor
        return True
    return set(probe.target_modules or ()) != {target}


def is_named(name: str, targets: Sequence[str]) -> bool:
    """Whether one of the targets is a whole name, or the last parts of it."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def all_but(tensors: Sequence[str]) -> str:
    """A key of `rank_pattern` and `alpha_pattern` that matches every name except those of expert tensors.

    PEFT matches keys against the end of a name, starting after a dot, so the part before the last dot decides.
    """
    holders = sorted({tensor.rpartition(".")[0].rpartition(".")[2] for tensor in tensors})
    return "".join(rf"(?<!{re.escape(holder)}\.)" for holder in holders) + r"[^.]+"


WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors by the names of PEFT's files, without those of the base."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return tensors


def read_back(model: PeftModel, tensors: Mapping[str, Tensor], config: PeftConfig) -> dict[str, Tensor]:
    """The tensors by names under which PEFT finds them again: of nearly all models, the given ones.

    PEFT renames what it loads as transformers renames a published checkpoint, by patterns whose dots match any
    character: `shared_expert.` of Laguna's checkpoints also matches the `shared_experts` of its modules, and
    makes a name of it that no module has. Such a tensor gets the name that it has in a checkpoint.

    Args:
        model: with the adapter.
        tensors: by PEFT's parameter names.
        config: of what is saved.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers as loaded
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    lost = tensors.keys() - loaded(model, config, dict(tensors), "default").keys()
    found = dict(tensors)
    if not lost:
        return found
    renamings = [one for one in get_model_conversion_mapping(model.get_base_model()) if type(one) is WeightRenaming]
    for name in sorted(lost):
        published = name.removeprefix(PEFT_PREFIX)
        for renaming in reversed(renamings):
            published, _ = renaming.reverse_transform().rename_source_key(published)
        published = PEFT_PREFIX + published
        if loaded(model, config, {published: tensors[name]}, "default").keys() == {name}:
            found[published] = found.pop(name)
    return found


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: PeftConfig, base_path: Path) -> str:
    """Write both files of an adapter folder; returns the digest of the weights.

    Args:
        folder: where they go; it exists.
        tensors: by PEFT's parameter names.
        config: of PEFT.
        base_path: folder of the base model, named in the config.
    """
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    saved = copy.deepcopy(config)
    saved.inference_mode = True
    saved.base_model_name_or_path = str(base_path)
    saved.save_pretrained(str(folder))
    document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules", "target_parameters"):
        # PEFT keeps names in a set, whose order changes from process to process.
        if isinstance(document.get(name), list):
            document[name] = sorted(document[name])
    (folder / CONFIG).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    return sha256_file(folder / WEIGHTS)
