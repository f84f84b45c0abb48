"""Adapters on experts in a plan: placed, counted, refused with the reason, left out where they have no room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.architectures import small
from tests.ml.planning.shapes import accelerator
from tests.vacuous import nonempty

from luthier.core.errors import RecipeError
from luthier.core.plan import MethodPlan, Plan
from luthier.core.recipe import LayersRecipe, MethodRecipe
from luthier.core.results.cost import Device
from luthier.core.text.target_modules import target_summary
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning import resolve_for_device as fitting
from luthier.ml.planning.adapter import place_adapters, reach, resolve_targets, targeted
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.resolve_method import resolve_method
from luthier.ml.planning.step_counts import layers_flops
from luthier.ml.planning.workload import Workload, workload_of

GPT_OSS_120B: dict[str, Any] = {"model_type": "gpt_oss"}  # transformers' own defaults are those of the large one
QWEN3_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip


def _resolved(structure: Structure, name: str = "lora", **settings: Any) -> tuple[MethodPlan, Provenance]:
    sources = Provenance()
    return resolve_method(MethodRecipe(name=name, **settings), structure, "cpu", sources), sources


@pytest.mark.parametrize(
    ("config", "before", "after", "active"),
    [(GPT_OSS_120B, 0.0083, 0.999, 0.99), (QWEN3_30B_A3B, 0.03, 0.999, 0.99), (MIXTRAL_8X7B, 0.029, 0.999, 0.99)],
)
def test_the_reach_of_models_that_people_tune(
    config: dict[str, Any], before: float, after: float, active: float
) -> None:
    structure = structure_of(config)
    frozen = place_adapters(structure, "all-linear", experts=False)
    assert reach(structure, frozen.targets).share == pytest.approx(before, rel=0.05)
    place = place_adapters(structure, "all-linear", rank=16)
    found = reach(structure, place.targets, place.expert_targets)
    assert found.share >= after
    assert found.active_share >= active
    assert place.expert_targets == ("experts.down_proj", "experts.gate_up_proj")
    assert found.num == found.num_all


def test_all_linear_says_what_it_reaches_and_what_it_leaves_out() -> None:
    plan, sources = _resolved(structure_of(small("phimoe")), rank=8)
    assert plan.expert_targets == ("experts.down_proj", "experts.gate_up_proj")
    assert plan.expert_rank == 4
    assert plan.targets == ("k_proj", "o_proj", "q_proj", "v_proj"), "and no router"
    why = sources.found["method.targets"].why
    assert "of the parameters in the language model's matrices" in why
    assert "of those that a token meets" in why
    assert "left out: 2 routers of experts" in why
    assert "loss of the router" not in why, "that is for objective.router_aux_loss to say"
    assert "rank 8 divided by 2 experts a token" in sources.found["method.expert_rank"].why
    assert "experts.down_proj, experts.gate_up_proj (rank 4 each)" in target_summary(plan)


@pytest.mark.parametrize(
    ("kind", "gone", "kept", "said"),
    [
        ("mamba2", "out_proj", {"in_proj"}, "2 matrices that other code reads past their module"),
        ("granitemoehybrid", "mamba.out_proj", {"in_proj", "o_proj", "q_proj"}, "1 matrices that other code"),
        (
            "qwen3_next",
            "shared_expert_gate",
            {"out_proj", "o_proj", "in_proj_qkvz"},
            "2 matrices narrower than rank 8 (shared",
        ),
    ],
)
def test_kernels_and_narrow_gates_are_left_out(kind: str, gone: str, kept: set[str], said: str) -> None:
    structure = structure_of(small(kind))
    plan, sources = _resolved(structure, rank=8)
    names = {layer.name for layer in targeted(structure, plan.targets)}
    assert not any(name.endswith(gone) for name in names)
    assert kept <= {name.rpartition(".")[2] for name in names}
    assert said in sources.found["method.targets"].why


def test_a_tower_that_has_the_same_names_is_not_meant() -> None:
    text = {k: v for k, v in small("gemma3_text").items() if k != "model_type"}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    structure = structure_of({"model_type": "gemma3", "text_config": text, "vision_config": tower})
    plan, sources = _resolved(structure, rank=8)
    assert all(nonempty("language_model" in name for name in plan.targets if name.endswith("q_proj")))
    assert {x.name for x in targeted(structure, plan.targets)} == {x.name for x in structure.linear_layers}
    assert "matrices outside the language model" in sources.found["method.targets"].why
    from_names, _ = _resolved(structure, rank=8, targets=("q_proj",))
    assert all(nonempty("vision" not in name for name in from_names.targets))


def test_a_dense_model_says_no_more_than_before(structure: Structure) -> None:
    plan, sources = _resolved(structure, rank=8)
    assert sources.found["method.targets"].why == "adapters on every matrix learn more at the same rank than on " \
        "attention alone"  # fmt: skip
    assert plan.expert_targets == ()
    assert plan.expert_rank is None


def test_experts_on_a_dense_model_are_refused(structure: Structure) -> None:
    with pytest.raises(RecipeError, match="experts, but this model has none"):
        _resolved(structure, targets="experts")


def test_a_rank_above_a_gate_by_hand_is_refused() -> None:
    structure = structure_of(small("qwen3_next"))
    with pytest.raises(RecipeError, match=r"method\.rank is 4, but .*shared_expert_gate is 1 x 32"):
        _resolved(structure, rank=4, targets=("q_proj", "shared_expert_gate"))
    routers = structure_of(small("phimoe"))
    with pytest.raises(RecipeError, match=r"method\.rank is 8, but .*router is 4 x 32"):
        _resolved(routers, rank=8, targets=("router",))


@pytest.mark.parametrize(
    ("ranks", "rank"), [({"target_rank": 2}, 3), ({"target_rank": 2, "initial_rank": 4}, 4), ({"target_rank": 1}, 2)]
)
def test_adalora_leaves_out_gates_that_are_narrower_than_its_initial_rank(ranks: dict[str, int], rank: int) -> None:
    # the gate of the shared expert is 1 x 32: it has room for the target rank of 1, not for the rank at the start
    plan, sources = _resolved(structure_of(small("qwen3_next")), "adalora", targets="all-linear", **ranks)
    assert plan.rank == rank
    assert "shared_expert_gate" not in {name.rpartition(".")[2] for name in plan.targets}
    assert f"2 matrices narrower than rank {rank} (shared_expert_gate: 0." in sources.found["method.targets"].why


def test_qlora_says_which_parameters_stay_wide() -> None:
    structure = structure_of(small("mixtral"))
    _, sources = _resolved(structure, "qlora", rank=4, quantisation="int8")
    experts = 2 * 4 * (32 * 96 + 48 * 32)
    said = sources.found["method.quantisation"].why
    assert f"packs {structure.num_packed_parameters:,} of {structure.num_parameters:,} parameters" in said
    assert f"{experts:,} of experts in one tensor, {2 * 96 * 32:,} of embeddings and head" in said
    assert structure.num_packed_parameters == 2 * (2 * 32 * 32 + 2 * 16 * 32), "queries and outputs, keys and values"


# transformers' own defaults are those of the published model
_QWEN3_NEXT: dict[str, Any] = {"model_type": "qwen3_next"}
_GEMMA3N: dict[str, Any] = {
    "model_type": "gemma3n_text", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_kv_shared_layers": 0,
    "laurel_rank": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96,
    "intermediate_size": [64] * 2, "activation_sparsity_pattern": [0.5, 0.0],
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}


@pytest.mark.parametrize("method", ["lora", "rslora", "loraplus", "qlora", "dora", "pissa", "olora", "eva", "adalora"])
@pytest.mark.parametrize(
    ("config", "num", "gone"),
    [
        (
            _GEMMA3N,
            10,
            {"linear_left", "linear_right", "modality_router", "per_layer_input_gate", "per_layer_projection"},
        ),
        (small("qwen3_next") | _LINEAR, 3, {"in_proj_ba", "shared_expert_gate"}),
    ],
)
def test_all_linear_leaves_out_what_is_narrower_than_the_rank(
    method: str, config: dict[str, Any], num: int, gone: set[str]
) -> None:
    structure = structure_of(config)
    # k_proj is 16 x 32: the smallest of the matrices that limit a rank
    ranks = {"target_rank": 12} if method == "adalora" else {"rank": 16}
    rank = 18 if method == "adalora" else 16
    plan, sources = _resolved(structure, method, **ranks)
    assert plan.rank == 16
    narrow = {x.name for x in structure.linear_layers if x.kind in gone and x.role == "block"}
    reached = {x.name for x in targeted(structure, plan.targets)}
    # what a kernel reads (correction_coefs) is left out for another reason
    assert reached == {x.name for x in structure.linear_layers if x.role == "block"} - narrow
    share = sum(x.num_parameters for x in structure.linear_layers if x.name in narrow) / structure.num_matrix_parameters
    said = f"{num} matrices narrower than rank {rank} ({', '.join(sorted(gone))}: {share:.2%} of the parameters)"
    assert said in sources.found["method.targets"].why
    assert len(narrow) == num


def test_a_published_model_takes_a_rank_above_its_gates() -> None:
    structure = structure_of(_QWEN3_NEXT)
    plan, sources = _resolved(structure, rank=128)
    assert not {"in_proj_ba", "shared_expert_gate"} & set(plan.targets)
    assert {"q_proj", "in_proj_qkvz", "out_proj", "down_proj"} <= set(plan.targets)
    assert "narrower than rank 128 (in_proj_ba, shared_expert_gate: " in sources.found["method.targets"].why
    assert reach(structure, plan.targets, plan.expert_targets).share > 0.999
    with pytest.raises(RecipeError, match=r"method\.rank is 128, but .*in_proj_ba is 64 x 2048"):
        _resolved(structure, rank=128, targets=("all-linear", "in_proj_ba"))


def test_a_narrow_matrix_that_is_named_beside_a_group_is_not_said_to_be_left_out() -> None:
    structure = structure_of(small("qwen3_next"))
    place = place_adapters(structure, ["all-linear", "shared_expert_gate"], rank=8)
    assert "shared_expert_gate" in place.targets
    assert not any("narrower" in said for said in place.left_out)


def test_only_what_lies_within_the_layers_is_counted() -> None:
    place = place_adapters(structure_of(small("qwen3_next")), "all-linear", LayersRecipe(last=1), rank=8)
    (num,) = [num for said, num in place.left_out.items() if said.startswith("matrices narrower")]
    assert num == 1


def test_experts_narrower_than_their_rank_are_left_out_by_a_group_and_refused_by_name(mixture: Structure) -> None:
    # 2 of 4 experts a token: rank 14 is 7 for each
    slim = replace(mixture, experts=tuple(replace(x, num_inputs=6) for x in mixture.experts))
    place = place_adapters(slim, "all-linear", rank=14)
    assert place.expert_targets == ()
    assert place.targets == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert any(said.startswith("matrices of experts narrower than rank 7 (down_proj, gate_up_proj: ")
               for said in place.left_out)  # fmt: skip
    assert place_adapters(slim, "all-linear", rank=13).expert_targets
    with pytest.raises(RecipeError, match=r"method\.rank is 14, 7 for each expert, but .* x 6\n.*at most 13"):
        _resolved(slim, rank=14, targets="experts")


def test_a_rank_above_all_of_a_group_is_refused_and_not_the_group(mixture: Structure) -> None:
    with pytest.raises(RecipeError, match=r"method\.rank is 200, 100 for each expert, but"):
        _resolved(mixture, rank=200, targets="mlp")


def test_a_rank_above_attention_itself_is_still_refused() -> None:
    with pytest.raises(RecipeError, match=r"method\.rank is 24, but .*k_proj is 16 x 32"):
        _resolved(structure_of(small("llama")), rank=24)


def test_a_matrix_that_a_kernel_reads_is_refused_by_hand() -> None:
    with pytest.raises(RecipeError, match=r"out_proj, whose weight other code reads past the module"):
        _resolved(structure_of(small("mamba2")), rank=4, targets=("in_proj", "out_proj"))


@pytest.mark.parametrize("method", ["dora", "pissa", "olora", "eva", "adalora", "ia3"])
def test_methods_that_cannot_be_put_on_experts(method: str) -> None:
    structure = structure_of(small("mixtral"))
    ranks = {"target_rank": 4} if method == "adalora" else {} if method == "ia3" else {"rank": 4}
    with pytest.raises(RecipeError, match=rf"method {method} on experts \(experts\.down_proj, experts\.gate_up_proj\)"):
        _resolved(structure, method, targets="experts", **ranks)
    plan, sources = _resolved(structure, method, targets="all-linear", **ranks)
    assert plan.expert_targets == ()
    assert "left out: 16 matrices of experts" in sources.found["method.targets"].why


def test_groups_and_names_that_mean_experts() -> None:
    structure = structure_of(small("qwen3_next"))
    mlp = place_adapters(structure, "mlp", rank=4)
    assert mlp.expert_targets == ("experts.down_proj", "experts.gate_up_proj")
    assert mlp.experts_by_group
    assert place_adapters(structure, "attention", rank=4).expert_targets == ()
    named = place_adapters(structure, ["experts", "q_proj"])
    assert (named.targets, named.expert_targets) == (("q_proj",), ("experts.down_proj", "experts.gate_up_proj"))
    assert not named.experts_by_group
    both = place_adapters(structure, "down_proj")
    assert (both.targets, both.expert_targets) == (("down_proj",), ("experts.down_proj",))
    one = place_adapters(structure, "experts", LayersRecipe(last=1))
    assert one.expert_targets == ("model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.experts.gate_up_proj")
    assert resolve_targets(structure, "down_proj") == ("down_proj",)


@pytest.fixture
def mixture() -> Structure:
    return structure_of(small("mixtral"))


def _device() -> Device:
    return accelerator(8, is_cpu=True)


def test_a_token_computes_the_adapters_of_its_own_experts_only(
    make_plan: Callable[..., Plan], mixture: Structure
) -> None:
    plan = make_plan({"method": {"name": "lora", "rank": 4}}, structure=mixture)
    workload = workload_of(plan, mixture, _device())
    every = sum(2 * 4 * (x.num_inputs + x.num_outputs) for x in mixture.experts)
    assert workload.expert_rank == 2
    assert workload.num_trainable == plan.method.num_trainable_parameters
    assert workload.num_active_trainable == workload.num_trainable - every / 2
    without = replace(workload, expert_targets=(), expert_rank=0, trainable=workload.num_trainable - every)
    assert layers_flops(workload) - layers_flops(without) == pytest.approx(6 * every / 2)
    assert replace(workload, trainable=None).num_trainable == workload.num_trainable


def test_a_copy_of_the_experts_is_counted_where_peft_makes_one(
    make_plan: Callable[..., Plan], mixture: Structure
) -> None:
    plan = make_plan({"method": {"name": "lora", "rank": 4}}, structure=mixture)
    workload = workload_of(plan, mixture, _device())
    copies = replace(workload, structure=replace(mixture, fuses_experts=False))
    plain, more = (predict_memory(one, _device()).activations_bytes for one in (workload, copies))
    tensors = sum(x.num_parameters for x in mixture.experts) * workload.element_bytes
    # Each worker of micro-batches makes its own.
    assert (workload.num_workers, more - plain) == (2, pytest.approx(2 * 1.5 * tensors))


def test_a_packed_base_holds_experts_as_they_are(make_plan: Callable[..., Plan], mixture: Structure) -> None:
    plan = make_plan({"method": {"name": "qlora", "rank": 4, "quantisation": "int8"}}, structure=mixture)
    workload = workload_of(plan, mixture, _device())
    held = predict_memory(workload, _device()).weights_bytes
    packed = mixture.num_packed_parameters
    wide = mixture.num_parameters - packed
    assert wide > sum(x.num_parameters for x in mixture.experts) + mixture.num_embedding_parameters
    assert held == pytest.approx(1.01 * packed + workload.element_bytes * wide)


def test_experts_that_have_no_room_are_left_out_and_said(
    make_plan: Callable[..., Plan], mixture: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = make_plan({"method": {"name": "lora", "rank": 4}}, structure=mixture)
    assert full.method.expert_targets
    real = predict_memory

    def tight(workload: Workload, device: Device) -> Any:
        found = real(workload, device)
        total = found.total_bytes.model_copy(update={"high": 2.0 if workload.expert_targets else 0.5})
        return found.model_copy(
            update={"total_bytes": total.model_copy(update={"high": total.high * device.memory_bytes})}
        )

    monkeypatch.setattr(fitting, "predict_memory", tight)
    plan = make_plan({"method": {"name": "lora", "rank": 4}}, structure=mixture)
    assert plan.method.expert_targets == ()
    assert plan.method.num_trainable_parameters < full.method.num_trainable_parameters
    assert "experts have no room" in plan.sources["method.targets"].why
    asked = make_plan({"method": {"name": "lora", "rank": 4, "targets": ["all-linear", "experts"]}}, structure=mixture)
    assert asked.method.expert_targets, "who asks for them by name gets them"


def test_a_compiler_and_experts_do_not_go_together(make_plan: Callable[..., Plan], mixture: Structure) -> None:
    recipe = {"method": {"name": "lora", "rank": 4}, "training": {"compile": True}}
    with pytest.raises(RecipeError, match=r"compile is true with adapters on experts"):
        make_plan(recipe, structure=mixture)


def test_plans_without_experts_keep_their_hash(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    document = plan.model_dump(mode="json")
    for name in ("expert_targets", "expert_rank"):
        del document["method"][name]
    old = Plan.model_validate(document)
    assert old.method.expert_targets == ()
    assert old.hash == plan.hash
    routed = plan.method.model_copy(update={"expert_targets": ("experts.down_proj",), "expert_rank": 2})
    assert plan.model_copy(update={"method": routed}).hash != plan.hash
