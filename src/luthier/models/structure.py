"""The shape of a model without its weights: built on torch's meta device, so that a 70B model costs nothing to ask.

torch and transformers are loaded by the functions that build a model, not with this module: the rules of a plan name
its types in processes that answer HTTP and compute nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ModelSourceError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

FEED_FORWARD_OUTPUTS: Final = ("down_proj", "fc2", "dense_4h_to_h", "wo", "w2")
"""Names that architectures give to the last matrix of an MLP, whose inputs are the activations."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One matrix that an adapter may be put on: its full module name and its widths."""

    name: str
    num_inputs: int
    num_outputs: int

    @property
    def kind(self) -> str:
        """The last part of the name, the same in every block: `q_proj`, `down_proj`."""
        return self.name.rpartition(".")[2]

    @property
    def layer(self) -> int | None:
        """The number of the block that it lies in, from 0: the first number in its name. None outside the blocks."""
        found = re.search(r"\.(\d+)\.", self.name)
        return int(found[1]) if found else None

    @property
    def full_rank(self) -> int:
        """The smaller of its sides: no product of thin matrices can have a higher rank here."""
        return min(self.num_inputs, self.num_outputs)


@dataclass(frozen=True, slots=True)
class Structure:
    """What the planner needs to know of an architecture.

    linear_layers: what an adapter may be put on; matrices of experts that are stored as one block are not among them.
    outer_layers: the table of embeddings (vocabulary in, width out) and the output head, which may carry one, too.
    num_matrix_parameters: all matrices that hidden states are multiplied with, head and embeddings excluded;
    num_active_parameters: those of them that one token meets (fewer where there are experts).
    num_windowed_layers: layers whose attention looks back `sliding_window` tokens only. num_norms: normalisations of
    the hidden state a layer; has_head_norms: whether queries and keys are normalised, too. is_silu_gated: whether the
    MLP is silu(gate) * up; is_gated: whether it has a gate at all. has_plain_rms_norm: normalisations are w * x / rms.
    """

    linear_layers: tuple[LinearLayer, ...]
    num_parameters: int
    num_layers: int
    hidden_size: int
    vocabulary_size: int
    num_embedding_parameters: int
    num_matrix_parameters: int
    num_active_parameters: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    is_gated: bool
    is_silu_gated: bool
    ties_embeddings: bool
    has_plain_rms_norm: bool
    num_norms: int
    has_head_norms: bool
    num_experts: int = 0
    num_active_experts: int = 0
    sliding_window: int | None = None
    num_windowed_layers: int = 0
    outer_layers: tuple[LinearLayer, ...] = ()

    @property
    def adaptable(self) -> tuple[LinearLayer, ...]:
        """All that an adapter may be put on: linear layers, then embeddings and head."""
        return (*self.linear_layers, *self.outer_layers)

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head, tied or not."""
        return self.vocabulary_size * self.hidden_size


@lru_cache(maxsize=8)
def read_structure(path: str) -> Structure:
    """The structure of a local transformers folder; the output head is not among its linear layers.

    Raises ModelSourceError where the folder has no config that transformers can read.
    """
    if not (Path(path) / "config.json").is_file():
        raise ModelSourceError(
            f"{path} has no config.json",
            expected="a transformers folder: config.json says what the model looks like",
            do="pull the model again, or point to the folder that holds config.json",
        )
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelSourceError(
            f"{path}/config.json: {' '.join(str(error).split())[:200]}",
            expected="a configuration that transformers knows, without code of its own",
            do="pull the model again; if it stays, it needs another version of transformers",
        ) from error
    return _structure(config)


def structure_of(config: Mapping[str, Any]) -> Structure:
    """The structure of an architecture that is only described: the entries of a config.json, `model_type` among them.

    Raises ModelSourceError for a description that transformers does not know.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = dict(config)
    kind = values.pop("model_type", None)
    try:
        return _structure(AutoConfig.for_model(kind, **values))
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelSourceError(
            f"model_type {kind!r}: {' '.join(str(error).split())[:200]}",
            expected="the entries of a config.json of an architecture that transformers knows",
            do="correct the description",
        ) from error


def _structure(config: PreTrainedConfig) -> Structure:
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    layers = tuple(
        LinearLayer(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    text = config.get_text_config()
    num_heads = int(text.num_attention_heads)
    num_experts = int(_first(text, "num_local_experts", "num_experts", "n_routed_experts") or 0)
    num_active = int(_first(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk") or 0)
    outer = {id(embedding.weight), id(head.weight)} if head is not None else {id(embedding.weight)}
    total, active = _matrix_parameters(model, outer, num_experts, num_active)
    activation = str(_first(text, "hidden_act", "hidden_activation", "activation_function"))
    gates = ("gate_proj", "gate_proj.weight", "gate_up_proj", "gate_up_proj.weight")
    is_gated = any(name.endswith(gates) for name, _ in model.named_parameters())
    norms = [
        (name, module)
        for name, module in model.named_modules()
        if "layers.0." in f"{name}." and "norm" in type(module).__name__.lower()
    ]
    head_norms = [name for name, _ in norms if name.endswith(("q_norm", "k_norm"))]
    return Structure(
        linear_layers=layers,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        vocabulary_size=int(text.vocab_size),
        num_embedding_parameters=sum(p.numel() for p in model.parameters() if id(p) in outer),
        num_matrix_parameters=total,
        num_active_parameters=active,
        num_heads=num_heads,
        num_kv_heads=int(_first(text, "num_key_value_heads") or num_heads),
        head_size=int(_first(text, "head_dim") or text.hidden_size // num_heads),
        intermediate_size=int(
            (_first(text, "moe_intermediate_size") if num_experts else None)
            or _first(text, "intermediate_size", "n_inner")
            or 4 * text.hidden_size
        ),
        is_gated=is_gated,
        is_silu_gated=is_gated and activation in ("silu", "swish"),
        ties_embeddings=head is not None and head.weight is embedding.weight,
        has_plain_rms_norm=bool(norms) and all(hasattr(module, "variance_epsilon") for _, module in norms),
        num_norms=len(norms) - len(head_norms),
        has_head_norms=bool(head_norms),
        outer_layers=tuple(
            LinearLayer(name, *reversed(module.weight.shape))
            if module is head
            else LinearLayer(name, *module.weight.shape)
            for name, module in model.named_modules()
            if module is head or module is embedding
        ),
        num_experts=num_experts,
        num_active_experts=num_active,
        **_window(text),
    )


def _matrix_parameters(model: nn.Module, outer: set[int], num_experts: int, num_active: int) -> tuple[int, int]:
    """All matrix parameters but embeddings and head, and those that one token meets.

    The matrices of experts are one tensor with the expert as its first dimension, or modules under `experts.`.
    """
    total = active = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in outer or name.endswith(("embed_positions.weight", "wpe.weight")):
            continue
        count = parameter.numel()
        is_routed = num_experts and ".experts." in name
        total += count
        active += count * num_active // num_experts if is_routed else count
    return total, active


def _window(text: PreTrainedConfig) -> dict[str, Any]:
    """Sliding-window attention: its width, and how many layers have it."""
    window = _first(text, "sliding_window")
    if not window or getattr(text, "use_sliding_window", True) is False:
        return {"sliding_window": None, "num_windowed_layers": 0}
    kinds = getattr(text, "layer_types", None)
    count = sum(kind == "sliding_attention" for kind in kinds) if kinds else int(text.num_hidden_layers)
    return {"sliding_window": int(window) if count else None, "num_windowed_layers": count}


def _first(config: PreTrainedConfig, *names: str) -> Any:
    """The first of the entries that the config has with a value."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
