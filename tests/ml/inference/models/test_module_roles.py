"""Matrices are classed by what they are, on small models of architectures that name and lay them differently."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures import SMALL, small
from tests.vacuous import nonempty
from tests.zoo.families import FAMILIES, family_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.ml.inference.models.module_roles import computes_more, expert_layers
from luthier.ml.inference.models.structure import UNBOUNDED_TOKENS, Structure, context_length, structure_of

PARTS = {
    "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
}


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _roles(structure: Structure) -> dict[str, str]:
    return {x.name: x.role for x in (*structure.linear_layers, *structure.outside_layers, *structure.experts)}


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("mixtral", {"gate_up_proj": (4, 32, 96), "down_proj": (4, 48, 32)}),
        ("gpt_oss", {"gate_up_proj": (4, 32, 96), "down_proj": (4, 48, 32)}),  # stored the other way around
        ("nemotron_h", {"up_proj": (4, 32, 48), "down_proj": (4, 48, 32)}),
        ("jetmoe", {"weight": None}),
    ],
)
def test_experts_in_one_tensor_are_so_many_matrices(kind: str, shapes: dict[str, Any]) -> None:
    found = structure_of(small(kind))
    assert found.experts
    assert {x.kind for x in found.experts} == set(shapes)
    assert all(x.role == "expert" and x.num_matrices == 4 for x in found.experts)
    for layer in found.experts:
        if shapes[layer.kind] is not None:
            assert (layer.num_matrices, layer.num_inputs, layer.num_outputs) == shapes[layer.kind]
    assert (found.num_experts, found.num_active_experts) == (4, 2)


def test_a_dense_model_has_no_experts_and_no_routers() -> None:
    found = structure_of(small("llama"))
    assert found.experts == ()
    assert {x.role for x in found.linear_layers} == {"block"}


@pytest.mark.parametrize("kind", ["phimoe", "jetmoe", "afmoe", "dbrx"])
def test_a_linear_router_is_one(kind: str) -> None:
    found = structure_of(small(kind))
    routers = [x.name for x in found.linear_layers if x.role == "router"]
    assert routers
    assert all("router" in name for name in routers)


def test_a_shared_expert_as_wide_as_there_are_experts_is_no_router() -> None:
    found = structure_of(small("qwen3_next") | {"shared_expert_intermediate_size": 4})
    roles = _roles(found)
    assert roles["model.layers.0.mlp.shared_expert.gate_proj"] == "block"
    assert roles["model.layers.0.mlp.shared_expert_gate"] == "block"


@pytest.mark.parametrize(
    ("kind", "past"),
    [
        ("mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("mamba2", {"out_proj"}),
        ("granitemoehybrid", {"out_proj"}),
        ("falcon_h1", {"out_proj"}),
    ],
)
def test_a_matrix_that_other_code_reads_itself_is_found(kind: str, past: set[str]) -> None:
    found = structure_of(small(kind))
    kernel = {x.name.rpartition(".")[2] for x in found.linear_layers if x.role == "kernel"}
    assert kernel == past
    assert any(x.kind == "in_proj" and x.role == "block" for x in found.linear_layers)


@pytest.mark.parametrize(
    ("kind", "past"),
    [
        ("gemma3n_text", {"altup.correction_coefs", "altup.prediction_coefs"}),
        ("rwkv", {"attention.output", "feed_forward.value"}),  # by the model around the blocks
    ],
)
def test_a_matrix_that_is_clamped_or_scaled_past_its_call_is_found(kind: str, past: set[str]) -> None:
    config = family_config(FAMILIES[kind], vocabulary=96, tokens={"bos_token_id": 0, "pad_token_id": 0})
    roles = _roles(structure_of(config.to_dict()))
    assert {".".join(name.split(".")[-2:]) for name, role in roles.items() if role == "kernel"} == past


@pytest.mark.parametrize("kind", ["qwen3_next", "bloom", "llama", "gpt2"])
def test_an_output_projection_that_is_called_stays_an_ordinary_matrix(kind: str) -> None:
    assert all(nonempty(x.role == "block" for x in structure_of(small(kind)).linear_layers))


class _Grouped(nn.Linear):
    """One product for each half of its inputs, with the matrix in two halves."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2, in] -> [..., 2, out / 2]."""
        return torch.einsum("...gi,goi->...go", x, self.weight.unflatten(0, (2, -1)))


class _Plain(nn.Linear):
    """The same product, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        """As any linear layer."""
        return x @ self.weight.t() + self.bias


class _Normed(nn.Embedding):
    """Its rows are normalised."""

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of norm 1."""
        return nn.functional.normalize(super().forward(ids), dim=-1)


class _Scaled(nn.Embedding):
    """Its rows are multiplied by a number that PEFT knows by this name."""

    embed_scale = 2.0

    def forward(self, ids: Tensor) -> Tensor:
        """Scaled rows."""
        return super().forward(ids) * self.embed_scale


@pytest.mark.parametrize(
    ("layer", "does"),
    [
        (nn.Linear(4, 6), False),
        (_Plain(4, 6), False),
        (_Grouped(4, 6, bias=False), True),
        (nn.Embedding(6, 4), False),
        (_Scaled(6, 4), False),
        (_Normed(6, 4), True),
        (nn.LayerNorm(4), False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_layer_that_computes_more_than_its_product_is_told_from_one_that_does_not(
    layer: nn.Module, does: bool
) -> None:
    assert computes_more(layer) is does
    assert computes_more(layer.to("meta")) is does


def test_towers_lie_outside_the_language_model() -> None:
    text = {k: v for k, v in small("gemma3_text").items() if k != "model_type"}
    found = structure_of({"model_type": "gemma3", "text_config": text, "vision_config": TOWER})
    assert found.outside_layers
    assert all(x.role == "outside" for x in found.outside_layers)
    assert {x.kind for x in found.outside_layers} >= {"q_proj"}, "by its last part it is the same as a language model's"
    assert len(found.linear_layers) == 7 * found.num_layers
    counted = sum(x.num_parameters for x in found.linear_layers)
    assert found.num_matrix_parameters == counted, "what text does not go through is not computed"
    assert found.num_parameters > counted + found.num_embedding_parameters, "but held"
    assert found.num_packed_parameters == counted + sum(x.num_parameters for x in found.outside_layers)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_architecture_has_a_structure_that_counts_what_is_there(kind: str) -> None:
    found = structure_of(small(kind))
    config = AutoConfig.for_model(kind, **SMALL[kind])
    model = AutoModelForCausalLM.from_config(config)
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    assert found.hidden_size == model.get_output_embeddings().weight.shape[1]
    assert found.num_layers == SMALL[kind].get("num_hidden_layers", 2)
    assert found.num_heads >= 0
    assert 0 < found.num_active_parameters <= found.num_matrix_parameters < found.num_parameters
    modules = dict(model.named_modules())
    for layer in nonempty(found.linear_layers):
        assert modules[layer.name].weight.numel() == layer.num_parameters
    parameters = dict(model.named_parameters())
    assert Counter(parameters[x.name].numel() == x.num_parameters for x in found.experts)[False] == 0
    assert expert_layers(model) == found.experts


@pytest.mark.parametrize(("kind", "tokens"), [("gpt2", 128), ("llama", 128), ("mamba2", UNBOUNDED_TOKENS)])
def test_the_context_has_other_names_or_no_end(kind: str, tokens: int, tmp_path: Path) -> None:
    AutoConfig.for_model(kind, **SMALL[kind]).save_pretrained(tmp_path)
    assert context_length(str(tmp_path)) == tokens


def test_state_spaces_have_no_heads() -> None:
    found = structure_of(small("mamba2"))
    assert (found.num_heads, found.num_kv_heads, found.head_size) == (0, 0, 0)
