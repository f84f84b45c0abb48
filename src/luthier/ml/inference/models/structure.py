"""The structure of a model without its weights, built on torch's meta device, so that even a 70B model costs little.

torch and transformers are imported by the functions that build a model, not by this module: planning uses its types in
processes that only serve HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.errors import ModelSourceError, library_reason
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
"""Common names of the last matrix of an MLP, whose inputs are the activations."""
UNBOUNDED_TOKENS: Final = 32_768
"""The context of a model without a position limit (state spaces, ALiBi)."""
_EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVE_EXPERTS: Final = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


Role = Literal["block", "router", "kernel", "custom", "outside", "expert"]
"""The role of a matrix: a layer of the language model, a router of experts, one that other code reads directly (for
example a fused kernel, which may ignore an adapter), one of a layer that computes more than a product with it, one
outside the language model (image and audio towers), or stacked experts."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A matrix that an adapter may target.

    Attributes:
        name: full name of its module.
        num_inputs, num_outputs: its input and output width.
        role: its role in the model.
        num_matrices: the number of stacked matrices in the tensor, one per expert; the name is then that of the
            parameter.
    """

    name: str
    num_inputs: int
    num_outputs: int
    role: Role = "block"
    num_matrices: int = 1

    @property
    def kind(self) -> str:
        """The last part of the name, which is the same in every block: `q_proj`, `down_proj`."""
        return self.name.rpartition(".")[2]

    @property
    def layer(self) -> int | None:
        """The index of its block, from 0: the first number in its name. None outside the blocks."""
        found = re.search(r"\.(\d+)\.", self.name)
        return int(found[1]) if found else None

    @property
    def full_rank(self) -> int:
        """The smaller of its dimensions, which limits the rank of an update."""
        return min(self.num_inputs, self.num_outputs)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of all its matrices."""
        return self.num_matrices * self.num_inputs * self.num_outputs


@dataclass(frozen=True, slots=True)
class Structure:
    """The facts about an architecture that the planner needs.

    Attributes:
        linear_layers: linear layers of the language model that an adapter may target.
        num_parameters: of the whole model, tied ones once.
        num_layers: blocks of the language model.
        hidden_size: width of the hidden state.
        vocabulary_size: rows of the output head, padding included.
        num_embedding_parameters: of embeddings and head, tied ones once.
        intermediate_size: width of the MLP, or of one expert.
        ties_embeddings: whether embeddings and head share one matrix.
        num_experts: experts per router; 0 for none.
        num_active_experts: experts per token.
        sliding_window: window size in tokens; None if no layer has a window.
        experts: the stacked matrices of experts.
        outside_layers: linear layers outside the language model, which do not process text.
        outer_layers: the embedding table (vocabulary in, width out) and the output head, which adapters may also
            target.
        num_matrix_parameters: parameters of all matrices that multiply hidden states, without head and embeddings.
        num_active_parameters: the part of these used per token (fewer with experts).
        num_packed_parameters: the part packed by quantisation, which excludes stacked experts.
        num_head_biases: parameters of the bias of the head; 0 for none.
        fuses_experts: whether low-rank adapters on experts can be computed without copies (expert_product.py).
        num_windowed_layers: layers with an attention window of `sliding_window` tokens.
        num_norms: normalisations of the hidden state per layer.
        has_head_norms: whether queries and keys are normalised as well.
        is_silu_gated: whether the MLP is silu(gate) * up.
        is_gated: whether the MLP has a gate.
        has_plain_rms_norm: whether normalisations are w * x / rms.
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
    num_head_biases: int = 0

    @property
    def adaptable(self) -> tuple[LinearLayer, ...]:
        """All modules that an adapter may target: linear layers, then embeddings and head."""
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
        """Parameters of a matrix used per token: for routed experts, those of the chosen ones."""
        if layer.role != "expert" or layer.num_matrices != self.num_experts:
            return float(layer.num_parameters)
        return layer.num_parameters * min(1.0, self.num_active_experts / layer.num_matrices)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelSourceError: missing, not JSON, or not an object.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(
            f"{file}: {library_reason(error)}", expected="a readable JSON file", do="copy or pull the model again"
        ) from error
    if not isinstance(document, dict):
        raise ModelSourceError(
            f"{file} holds a {type(document).__name__}", expected="a JSON object", do="copy or pull the model again"
        )
    return document


def read_structure(path: str) -> Structure:
    """The structure of a local transformers folder; its linear layers exclude the output head.

    Raises:
        ModelSourceError: the folder has no config that transformers can read, or is not a causal language model.
    """
    try:
        status = (Path(path) / "config.json").stat()
    except OSError:
        return _read_structure(path, ())  # `load_config` reports what is missing
    return _read_structure(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=8)
def _read_structure(path: str, stamp: tuple[int, ...]) -> Structure:  # noqa: ARG001
    # The stamp is part of the cache key, so that a rewritten config is read again.
    return _structure(load_config(path))


def structure_of(config: Mapping[str, Any]) -> Structure:
    """The structure of an architecture described by the entries of a config.json, including `model_type`.

    Raises:
        ModelSourceError: transformers does not support the description, or it is not a causal language model.
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
    # By identity: tied weights are one parameter and count once.
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
        num_head_biases=_num_biases(head),
        **_window(text, num_layers),
    )


def _outer(model: PreTrainedModel, head: nn.Module | None, embedding: nn.Module) -> tuple[LinearLayer, ...]:
    """The embedding table, then the head."""
    from luthier.ml.inference.models.module_roles import computes_more

    found = []
    for name, module in model.named_modules():
        if id(module) in (id(head), id(embedding)):
            weight: Tensor = module.weight
            first, second = weight.shape
            sizes = (second, first) if module is head else (first, second)
            found.append(LinearLayer(name, *sizes, role="custom" if computes_more(module) else "block"))
    return tuple(found)


def _num_biases(head: nn.Module | None) -> int:
    bias = getattr(head, "bias", None)
    return 0 if bias is None else int(bias.numel())


def _packed_parameters(model: PreTrainedModel) -> int:
    """Number of weights that `quantised.quantise` packs."""
    from luthier.ml.inference.models.quantised import packable_layers

    return sum(layer.weight.numel() for layer in packable_layers(model).values())


def _is_plain(model: PreTrainedModel, layer: LinearLayer) -> bool:
    """Whether the owner of the tensor declares its layout, as every experts class with several implementations does.

    See `transformers.integrations.moe.use_experts_implementation`.
    """
    return hasattr(model.get_submodule(layer.name.rpartition(".")[0]), "is_transposed")


def _heads(text: PreTrainedConfig, hidden: int) -> dict[str, Any]:
    """Attention sizes; zero for a model without attention. If layers differ, those of the widest."""
    num_heads = _number(text, "num_attention_heads")
    if not num_heads:
        return {"num_heads": 0, "num_kv_heads": 0, "head_size": 0}
    return {
        "num_heads": num_heads,
        "num_kv_heads": _number(text, "num_key_value_heads") or num_heads,
        "head_size": _number(text, "qk_head_dim", "head_dim") or max(1, hidden // num_heads),
    }


def _num_blocks(body: nn.Module) -> int:
    """The blocks of the language model: its longest module list."""
    from torch.nn import ModuleList

    return max((len(module) for module in body.modules() if isinstance(module, ModuleList)), default=1)


def _num_experts(experts: Sequence[LinearLayer], text: PreTrainedConfig) -> int:
    """The number of experts per router; tensors with fewer belong to shared experts."""
    named = _number(text, *_EXPERTS)
    sizes = {layer.num_matrices for layer in experts}
    return named if named in sizes or not sizes else max(sizes)


def _num_active(model: PreTrainedModel, text: PreTrainedConfig) -> int:
    """The number of experts per token: from the config, otherwise from the routers of the model."""
    if known := _number(text, *_ACTIVE_EXPERTS):
        return known
    return next((int(m.top_k) for m in model.modules() if isinstance(getattr(m, "top_k", None), int)), 1)


def _intermediate_size(
    text: PreTrainedConfig, layers: Sequence[LinearLayer], experts: Sequence[LinearLayer], hidden: int
) -> int:
    """Width of the MLP, or of one expert; without a config entry, the widest input of a layer."""
    if experts and (width := _number(text, "moe_intermediate_size")):
        return int(width)
    if known := _number(text, "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "dim_ff"):
        return known
    # The last matrix of an MLP projects back to the hidden state: its inputs are the activations.
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
    """All matrix parameters of the language model except embeddings and head, and the part used per token.

    Expert matrices are one tensor with the expert as first dimension, or modules under `experts.`.
    """
    from torch import nn

    outside = tuple(f"{name}." for name in outside_modules(model))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    total = active = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in outer | tables or name.startswith(outside) or name.endswith("bias"):
            continue
        count = parameter.numel()
        # Stacked experts; each token uses `num_active` of them.
        is_routed = num_experts and parameter.dim() == 3 and parameter.shape[0] == num_experts
        total += count
        active += count * min(num_active, num_experts) // num_experts if is_routed else count
    return total, active


def _window(text: PreTrainedConfig, num_layers: int) -> dict[str, Any]:
    """Sliding-window attention: window size and number of layers."""
    window = _first(text, "sliding_window")
    if not window or getattr(text, "use_sliding_window", True) is False:
        return {"sliding_window": None, "num_windowed_layers": 0}
    kinds = _values(text, "layer_types")
    count = sum(kind == "sliding_attention" for kind in kinds) if any(kinds) else num_layers
    return {"sliding_window": int(window) if count else None, "num_windowed_layers": count}


def context_length(path: str) -> int:
    """The longest row that a model supports, in tokens; `UNBOUNDED_TOKENS` if unlimited.

    Raises:
        ModelSourceError: the folder has no config that transformers supports.
    """
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
    return _number(text_config(load_config(path)), *names, "context_length") or UNBOUNDED_TOKENS


def _first(config: PreTrainedConfig, *names: str) -> Any:
    """The first of the entries with a value; if layers differ, that of the first layer."""
    return next((value for name in names for value in _values(config, name) if value is not None), None)


def _number(config: PreTrainedConfig, *names: str) -> int:
    """The first of the entries that is a number (the largest if layers differ); 0 if there is none.

    Entries under another name (`n_embd`) are found by the usual one through transformers' attribute map.
    """
    for name in names:
        numbers = [value for value in _values(config, name) if isinstance(value, int) and not isinstance(value, bool)]
        if any(numbers):
            return max(numbers)
    return 0


def _values(config: PreTrainedConfig, name: str) -> list[Any]:
    """An entry of the config, or its values per layer."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers raises if layers differ
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    if name == "sliding_window" or not isinstance(value, (list, tuple)):
        return [value]
    return list(value)
