"""The shape of a model without its weights: built on torch's meta device, so that a 70B model costs nothing to ask.

torch and transformers are loaded by the functions that build a model, not with this module: the rules of a plan name
its types in processes that answer HTTP and compute nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.ml.inference.models.architecture import (
    config_of,
    empty_model,
    language_model,
    load_config,
    outside_modules,
    text_config,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

FEED_FORWARD_OUTPUTS: Final = ("down_proj", "fc2", "dense_4h_to_h", "wo", "w2")
"""Names that architectures give to the last matrix of an MLP, whose inputs are the activations."""
UNBOUNDED_TOKENS: Final = 32_768
"""The context of a model whose positions have no end of their own (state spaces, ALiBi)."""
_EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVE_EXPERTS: Final = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


Role = Literal["block", "router", "kernel", "outside", "expert"]
"""What a matrix is: one of the language model's own, a router of experts, one that other code reads past its module
(a fused kernel, say: an adapter there may be ignored), one outside the language model (towers for pictures and sound),
or experts' in one tensor."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One matrix that an adapter may be put on.

    Attributes:
        name: full name of its module.
        num_inputs, num_outputs: its widths.
        role: what it is in the model.
        num_matrices: how many are in one tensor, the experts of a block; the name is then that of the parameter.
    """

    name: str
    num_inputs: int
    num_outputs: int
    role: Role = "block"
    num_matrices: int = 1

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

    @property
    def num_parameters(self) -> int:
        """Of all its matrices."""
        return self.num_matrices * self.num_inputs * self.num_outputs


@dataclass(frozen=True, slots=True)
class Structure:
    """What the planner needs to know of an architecture.

    Attributes:
        linear_layers: what an adapter may be put on by its module, in the language model.
        num_parameters: of the whole model, tied ones once.
        num_layers: blocks of the language model.
        hidden_size: width of the hidden state.
        vocabulary_size: rows of the output head, padding included.
        num_embedding_parameters: of embeddings and head, tied ones once.
        intermediate_size: width of the MLP, an expert's where there are experts.
        ties_embeddings: whether embeddings and head share one matrix.
        num_experts: that a router chooses from; 0 for none.
        num_active_experts: that one token meets.
        sliding_window: tokens that windowed layers look back; None where no layer has a window.
        experts: the matrices of experts that lie in one tensor.
        outside_layers: linear layers outside the language model, which text does not go through.
        outer_layers: the table of embeddings (vocabulary in, width out) and the output head, which may carry one, too.
        num_matrix_parameters: all matrices that hidden states are multiplied with, head and embeddings excluded.
        num_active_parameters: those of them that one token meets (fewer where there are experts).
        num_packed_parameters: those that quantisation packs, which experts in one tensor are not among.
        fuses_experts: whether the low-rank products of all experts can be computed beside theirs (expert_product.py).
        num_windowed_layers: layers whose attention looks back `sliding_window` tokens only.
        num_norms: normalisations of the hidden state a layer.
        has_head_norms: whether queries and keys are normalised, too.
        is_silu_gated: whether the MLP is silu(gate) * up.
        is_gated: whether it has a gate at all.
        has_plain_rms_norm: normalisations are w * x / rms.
        num_heads, num_kv_heads, head_size: 0 for a model without attention.
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
    experts: tuple[LinearLayer, ...] = ()
    outside_layers: tuple[LinearLayer, ...] = ()
    num_packed_parameters: int = 0
    fuses_experts: bool = False

    @property
    def adaptable(self) -> tuple[LinearLayer, ...]:
        """All that an adapter may be put on by its module: linear layers, then embeddings and head."""
        return (*self.linear_layers, *self.outer_layers)

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head, tied or not."""
        return self.vocabulary_size * self.hidden_size

    @property
    def num_routed_parameters(self) -> float:
        """Matrix parameters of the experts that a router chooses from, all of them together."""
        idle = 1.0 - self.num_active_experts / self.num_experts if self.num_experts else 0.0
        return (self.num_matrix_parameters - self.num_active_parameters) / idle if idle > 0 else 0.0

    def active_of(self, layer: LinearLayer) -> float:
        """How many parameters of a matrix one token meets: of experts that a router chooses from, the chosen ones."""
        if layer.role != "expert" or layer.num_matrices != self.num_experts:
            return float(layer.num_parameters)
        return layer.num_parameters * min(1.0, self.num_active_experts / layer.num_matrices)


def read_structure(path: str) -> Structure:
    """The structure of a local transformers folder; the output head is not among its linear layers.

    Raises:
        ModelSourceError: the folder has no config that transformers can read, or of no model that continues a text.
    """
    try:
        status = (Path(path) / "config.json").stat()
    except OSError:
        return _read_structure(path, ())  # `load_config` says what is missing
    return _read_structure(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=8)
def _read_structure(path: str, stamp: tuple[int, ...]) -> Structure:  # noqa: ARG001
    # The stamp is a part of the key, so that a config that was written again is read again.
    return _structure(load_config(path))


def structure_of(config: Mapping[str, Any]) -> Structure:
    """The structure of an architecture that is only described: the entries of a config.json, `model_type` among them.

    Raises:
        ModelSourceError: transformers does not know such a description, or it is of no model that continues a text.
    """
    return _structure(config_of(config))


def _structure(config: PreTrainedConfig) -> Structure:
    from luthier.ml.inference.models.module_roles import expert_layers, linear_layers

    model, text = empty_model(config), text_config(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    experts = expert_layers(model)
    layers = linear_layers(model, experts)
    num_experts = _num_experts(experts, text)
    num_active = _num_active(model, text) if num_experts else 0
    outside = {layer.name for layer in layers if layer.role == "outside"}
    # By identity: tied weights are one parameter and must count once.
    outer = {id(embedding.weight), id(head.weight)} if head is not None else {id(embedding.weight)}
    total, active = _matrix_parameters(model, outer, num_experts, num_active)
    hidden = _number(text, "hidden_size") or int((embedding if head is None else head).weight.shape[1])
    num_layers = _number(text, "num_hidden_layers") or _num_blocks(language_model(model))
    return Structure(
        linear_layers=tuple(layer for layer in layers if layer.role != "outside"),
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_layers=num_layers,
        hidden_size=hidden,
        vocabulary_size=int((embedding if head is None else head).weight.shape[0]),
        num_embedding_parameters=sum(p.numel() for p in model.parameters() if id(p) in outer),
        num_matrix_parameters=total,
        num_active_parameters=active,
        **_heads(text, hidden),
        intermediate_size=_intermediate_size(text, layers, experts, hidden),
        **_norms_and_gates(model, text),
        ties_embeddings=head is not None and head.weight is embedding.weight,
        outer_layers=_outer(model, head, embedding),
        num_experts=num_experts,
        num_active_experts=num_active,
        experts=experts,
        outside_layers=tuple(layer for layer in layers if layer.name in outside),
        num_packed_parameters=_packed_parameters(model),
        fuses_experts=bool(experts) and all(_is_plain(model, layer) for layer in experts),
        **_window(text, num_layers),
    )


def _outer(model: PreTrainedModel, head: nn.Module | None, embedding: nn.Module) -> tuple[LinearLayer, ...]:
    """The table of embeddings, then the head."""
    found = []
    for name, module in model.named_modules():
        if id(module) in (id(head), id(embedding)):
            weight: Tensor = module.weight
            first, second = weight.shape
            found.append(LinearLayer(name, second, first) if module is head else LinearLayer(name, first, second))
    return tuple(found)


def _packed_parameters(model: PreTrainedModel) -> int:
    """Weights of what `quantised.quantise` packs."""
    from luthier.ml.inference.models.quantised import packable_layers

    return sum(layer.weight.numel() for layer in packable_layers(model).values())


def _is_plain(model: PreTrainedModel, layer: LinearLayer) -> bool:
    """Whether the owner of the tensor says how it multiplies, as all do that transformers can compute in several ways.

    See `transformers.integrations.moe.use_experts_implementation`.
    """
    return hasattr(model.get_submodule(layer.name.rpartition(".")[0]), "is_transposed")


def _heads(text: PreTrainedConfig, hidden: int) -> dict[str, Any]:
    """Of attention; zero for a model without. Where layers differ, those of the widest one."""
    num_heads = _number(text, "num_attention_heads")
    if not num_heads:
        return {"num_heads": 0, "num_kv_heads": 0, "head_size": 0}
    return {
        "num_heads": num_heads,
        "num_kv_heads": _number(text, "num_key_value_heads") or num_heads,
        "head_size": _number(text, "qk_head_dim", "head_dim") or max(1, hidden // num_heads),
    }


def _num_blocks(body: nn.Module) -> int:
    """The longest list of modules in the language model: its blocks."""
    from torch.nn import ModuleList

    return max((len(module) for module in body.modules() if isinstance(module, ModuleList)), default=1)


def _num_experts(experts: Sequence[LinearLayer], text: PreTrainedConfig) -> int:
    """How many a router chooses from; tensors with fewer are of experts that every token meets."""
    named = _number(text, *_EXPERTS)
    sizes = {layer.num_matrices for layer in experts}
    return named if named in sizes or not sizes else max(sizes)


def _num_active(model: PreTrainedModel, text: PreTrainedConfig) -> int:
    """How many experts a token meets: as the config says, else as the routers of the model hold it."""
    if known := _number(text, *_ACTIVE_EXPERTS):
        return known
    return next((int(m.top_k) for m in model.modules() if isinstance(getattr(m, "top_k", None), int)), 1)


def _intermediate_size(
    text: PreTrainedConfig, layers: Sequence[LinearLayer], experts: Sequence[LinearLayer], hidden: int
) -> int:
    """Width of the MLP, an expert's where there are experts; without an entry the widest input of a layer."""
    if experts and (width := _number(text, "moe_intermediate_size")):
        return int(width)
    if known := _number(text, "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "dim_ff"):
        return known
    # The last matrix of an MLP leads back to the hidden state: its inputs are the activations.
    wide = [layer.num_inputs for layer in layers if layer.role == "block" and layer.num_outputs == hidden]
    return max(wide, default=4 * hidden)


def _norms_and_gates(model: PreTrainedModel, text: PreTrainedConfig) -> dict[str, Any]:
    activation = str(_first(text, "hidden_act", "hidden_activation", "activation_function"))
    gates = ("gate_proj", "gate_proj.weight", "gate_up_proj", "gate_up_proj.weight")
    is_gated = any(name.endswith(gates) for name, _ in model.named_parameters())
    norms = [
        (name, module)
        for name, module in language_model(model).named_modules()
        if "layers.0." in f"{name}." and "norm" in type(module).__name__.lower()
    ]
    # Norms of queries and keys, not of the hidden state.
    head_norms = [name for name, _ in norms if name.endswith(("q_norm", "k_norm"))]
    return {
        "is_gated": is_gated,
        "is_silu_gated": is_gated and activation in ("silu", "swish"),
        "has_plain_rms_norm": bool(norms) and all(hasattr(module, "variance_epsilon") for _, module in norms),
        "num_norms": len(norms) - len(head_norms),
        "has_head_norms": bool(head_norms),
    }


def _matrix_parameters(model: PreTrainedModel, outer: set[int], num_experts: int, num_active: int) -> tuple[int, int]:
    """All matrix parameters of the language model but embeddings and head, and those that one token meets.

    The matrices of experts are one tensor with the expert as its first dimension, or modules under `experts.`.
    """
    from torch import nn

    outside = tuple(f"{name}." for name in outside_modules(model))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    total = active = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in outer | tables or name.startswith(outside) or name.endswith("bias"):
            continue
        count = parameter.numel()
        # Experts in one tensor; each token meets `num_active` of them.
        is_routed = num_experts and parameter.dim() == 3 and parameter.shape[0] == num_experts
        total += count
        active += count * min(num_active, num_experts) // num_experts if is_routed else count
    return total, active


def _window(text: PreTrainedConfig, num_layers: int) -> dict[str, Any]:
    """Sliding-window attention: its width, and how many layers have it."""
    window = _first(text, "sliding_window")
    if not window or getattr(text, "use_sliding_window", True) is False:
        return {"sliding_window": None, "num_windowed_layers": 0}
    kinds = _values(text, "layer_types")
    count = sum(kind == "sliding_attention" for kind in kinds) if any(kinds) else num_layers
    return {"sliding_window": int(window) if count else None, "num_windowed_layers": count}


def context_length(path: str) -> int:
    """The longest row that the positions of a model are made for, in tokens; `UNBOUNDED_TOKENS` where nothing ends it.

    Raises:
        ModelSourceError: the folder has no config that transformers knows.
    """
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
    return _number(text_config(load_config(path)), *names, "context_length") or UNBOUNDED_TOKENS


def _first(config: PreTrainedConfig, *names: str) -> Any:
    """The first of the entries that the config has with a value; where layers differ, that of the first layer."""
    return next((value for name in names for value in _values(config, name) if value is not None), None)


def _number(config: PreTrainedConfig, *names: str) -> int:
    """The first of the entries that is a number, where layers differ the largest; 0 where there is none.

    Entries under another name (`n_embd`) answer to the usual one by transformers' own attribute map.
    """
    for name in names:
        numbers = [value for value in _values(config, name) if isinstance(value, int) and not isinstance(value, bool)]
        if any(numbers):
            return max(numbers)
    return 0


def _values(config: PreTrainedConfig, name: str) -> list[Any]:
    """An entry of the config, or that of each layer where it is given by layer."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers refuses to name one value where layers differ
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    if name == "sliding_window" or not isinstance(value, (list, tuple)):
        return [value]
    return list(value)
