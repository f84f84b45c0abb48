"""Adapters on experts: what plain PEFT computes with the same targets, in loss, gradients, files and merged weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from tests.architectures import SMALL, small
from tests.vacuous import nonempty
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import RequestError
from luthier.core.plan import MethodPlan
from luthier.core.recipe import MethodRecipe
from luthier.ml.inference.models.expert_product import ExpertProduct
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.merging import merged_model
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning.adapter import reach
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.resolve_method import resolve_method
from luthier.ml.training.methods import ia3, lora, peft_adapter
from luthier.ml.training.methods.protocol import load_method

MIXTURES = (
    "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "qwen3_next", "deepseek_v3", "glm4_moe", "granitemoehybrid",
    "nemotron_h", "phimoe", "afmoe", "llama4_text", "jetmoe",
)  # fmt: skip
NOT_FUSED = ("llama4_text", "jetmoe")
"""Their experts are classes of their own kind, which stay as PEFT computes them."""
REACHED = ("mixtral", "qwen3_moe", "gpt_oss", "qwen3_next", "deepseek_v3", "glm4_moe", "granitemoehybrid")


def _plan(kind: str, method: str = "lora", **settings: Any) -> MethodPlan:
    recipe = MethodRecipe(name=method, **({"rank": 4, "alpha": 8.0, "dropout": 0.0} | settings))
    return resolve_method(recipe, structure_of(small(kind)), "cpu", Provenance())


def _base(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL[kind])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for p in model.parameters():  # the usual start is so small that experts hardly count
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape) * 0.15)
    return model


def _train_ready(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Trained parameters, none of them zero."""
    found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in found:
            p.copy_(torch.randn(p.shape, generator=draw) * 0.2)
    return found


def _loss(model: nn.Module) -> Tensor:
    ids = torch.randint(3, 96, (3, 17), generator=torch.Generator().manual_seed(5))
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def _plain(kind: str, plan: MethodPlan, saved: Path) -> PeftModel:
    """The same adapter as plain PEFT makes it, from the config that lies in the files."""
    config = LoraConfig.from_pretrained(str(saved))
    config.inference_mode, config.base_model_name_or_path = False, None
    with quiet_peft():
        return get_peft_model(_base(kind), config, autocast_adapter_dtype=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", MIXTURES)
def test_loss_and_gradients_are_those_of_plain_peft(kind: str, tmp_path: Path) -> None:
    plan = _plan(kind)
    method = load_method(plan)
    ours = method.prepare(_base(kind), 0)
    method.save(ours, tmp_path, tmp_path)
    theirs = _plain(kind, plan, tmp_path)
    mine, other = _train_ready(ours), _train_ready(theirs)
    assert [name for name, _ in mine] == [name for name, _ in other]
    loss, wanted = _loss(ours), _loss(theirs)
    assert abs(loss.item() - wanted.item()) <= 1e-6 * wanted.item()
    loss.backward()
    wanted.backward()
    assert len(mine) > 4
    for (name, p), (_, q) in zip(mine, other, strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm() + 1e-9, name
    assert any("experts" in name or kind == "jetmoe" for name, _ in mine)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_are_computed_without_copies_where_their_class_allows_it(kind: str) -> None:
    model = load_method(_plan(kind)).prepare(_base(kind), 0)
    outer = [
        m for m in model.modules() if isinstance(m, ParamWrapper) and not isinstance(m.get_base_layer(), nn.Linear)
    ]
    assert outer
    fused = [m for m in outer if isinstance(m.forward, ExpertProduct)]
    assert bool(fused) == (kind not in NOT_FUSED)
    assert structure_of(small(kind)).fuses_experts == bool(fused)
    b = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert all(nonempty(not p.any() for p in b)), "the proof leaves no trace"


@pytest.mark.parametrize("kind", REACHED)
def test_all_linear_reaches_nearly_all_matrices(kind: str) -> None:
    structure, plan = structure_of(small(kind)), _plan(kind)
    assert plan.expert_targets
    assert plan.expert_rank == 2, "rank 4 over two experts a token"
    found = reach(structure, plan.targets, plan.expert_targets)
    assert found.share >= 0.95
    model = load_method(plan).prepare(_base(kind), 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == plan.num_trainable_parameters


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_saved_adapter_gives_the_same_in_plain_peft(kind: str, tmp_path: Path) -> None:
    method = load_method(_plan(kind))
    model = method.prepare(_base(kind), 0)
    _train_ready(model)
    method.save(model, tmp_path, tmp_path)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(_base(kind), str(tmp_path))
    torch.testing.assert_close(_loss(loaded), _loss(model), atol=1e-6, rtol=1e-6)
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert document["lora_dropout"] == 0.0
    assert document["target_parameters"] == sorted(document["target_parameters"])


@pytest.mark.parametrize("method", ["rslora", "loraplus"])
def test_kin_of_lora_train_experts_too(method: str, tmp_path: Path) -> None:
    plan = _plan("mixtral", method)
    made = load_method(plan)
    ours = made.prepare(_base("mixtral"), 0)
    made.save(ours, tmp_path, tmp_path)
    theirs = _plain("mixtral", plan, tmp_path)
    _train_ready(ours)
    _train_ready(theirs)
    torch.testing.assert_close(_loss(ours), _loss(theirs), atol=1e-6, rtol=1e-6)
    scales = {m.scaling["default"] for m in ours.modules() if isinstance(m, ParamWrapper)}
    assert scales == {8.0 / 2**0.5 if method == "rslora" else 2.0}


def test_a_shared_expert_keeps_its_own_adapter(tmp_path: Path) -> None:
    """PEFT by itself would take the shared expert's gate_proj for the experts' gate_up_proj."""
    plan = _plan("qwen3_next", targets=("gate_proj", "up_proj", "q_proj"))
    assert plan.expert_targets == ()
    method = load_method(plan)
    model = method.prepare(_base("qwen3_next"), 0)
    adapted = {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert "model.layers.0.mlp.shared_expert.gate_proj" in adapted
    assert not any(name.endswith("experts") for name in adapted)
    _train_ready(model)
    method.save(model, tmp_path, tmp_path)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(_base("qwen3_next"), str(tmp_path))
    torch.testing.assert_close(_loss(loaded), _loss(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["lora", "pissa", "olora", "adalora", "rslora"])
def test_every_method_names_a_shared_expert_so_that_peft_finds_it(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"targets": ("gate_proj", "up_proj", "down_proj")}
    if name == "adalora":
        recipe = MethodRecipe(name="adalora", target_rank=3, initial_rank=4, alpha=8.0, dropout=0.0, **settings)
        plan = resolve_method(recipe, structure_of(small("qwen3_next")), "cpu", Provenance())
    else:
        plan = _plan("qwen3_next", name, **settings)
    method = load_method(plan)
    model = method.prepare(_base("qwen3_next"), 0)
    _train_ready(model)
    method.save(model, tmp_path, tmp_path)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(_base("qwen3_next"), str(tmp_path))
    torch.testing.assert_close(_loss(loaded), _loss(model), atol=2e-6, rtol=2e-6)


def test_dora_where_peft_cannot_is_refused_with_the_reason() -> None:
    plan = _plan("qwen3_next", "dora", targets=("gate_proj", "up_proj"))
    with pytest.raises(RequestError, match=r"dora on gate_proj, up_proj, which PEFT takes for experts"):
        load_method(plan).prepare(_base("qwen3_next"), 0)


def test_an_adapter_on_something_else_than_planned_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_it_is(_: nn.Module, config: LoraConfig) -> LoraConfig:
        return config

    monkeypatch.setattr(lora, "meant_for_peft", as_it_is)
    plan = _plan("qwen3_next", targets=("gate_proj", "up_proj"))
    with pytest.raises(RequestError) as caught:
        load_method(plan).prepare(_base("qwen3_next"), 0)
    assert "it left out model.layers.0.mlp.shared_expert.gate_proj" in str(caught.value)
    assert "it added model.layers.0.mlp.experts.gate_up_proj" in str(caught.value)


def test_what_peft_refuses_is_no_raw_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("Target modules {'x'} not found in the base model")

    monkeypatch.setattr(lora, "get_peft_model", fails)
    with pytest.raises(RequestError, match="PEFT cannot put method lora on"):
        load_method(_plan("mixtral")).prepare(_base("mixtral"), 0)


def test_dropout_acts_on_single_matrices_and_not_on_experts() -> None:
    plan = _plan("qwen3_moe", dropout=0.5)
    assert plan.dropout == 0.5
    model = load_method(plan).prepare(_base("qwen3_moe"), 0).train()
    _train_ready(model)
    assert _loss(model).item() != _loss(model).item()
    only = load_method(_plan("qwen3_moe", dropout=0.5, targets="experts")).prepare(_base("qwen3_moe"), 0).train()
    _train_ready(only)
    assert _loss(only).item() == _loss(only).item()


@pytest.mark.parametrize("targets", [("down_proj",), ("experts.gate_up_proj",), "experts"])
def test_one_tensor_of_experts_alone(targets: str | tuple[str, ...], tmp_path: Path) -> None:
    plan = _plan("gpt_oss", targets=targets)
    method = load_method(plan)
    ours = method.prepare(_base("gpt_oss"), 0)
    method.save(ours, tmp_path, tmp_path)
    theirs = _plain("gpt_oss", plan, tmp_path)
    _train_ready(ours)
    _train_ready(theirs)
    torch.testing.assert_close(_loss(ours), _loss(theirs), atol=1e-6, rtol=1e-6)
    outer: list[Callable[..., Tensor]] = [m.forward for m in ours.modules() if isinstance(m, ParamWrapper)]
    assert any(isinstance(forward, ExpertProduct) for forward in outer)


def test_conv1d_is_a_matrix_the_other_way_around(tmp_path: Path) -> None:
    for name in ("lora", "pissa", "dora"):
        method = load_method(_plan("gpt2", name))
        model = method.prepare(_base("gpt2"), 0)
        _train_ready(model)
        folder = tmp_path / name
        folder.mkdir()
        method.save(model, folder, folder)
        with quiet_peft():
            loaded = PeftModel.from_pretrained(_base("gpt2"), str(folder))
        torch.testing.assert_close(_loss(loaded), _loss(model), atol=1e-5, rtol=1e-5)


def test_names_that_peft_leaves_alone_stay_modules() -> None:
    config = LoraConfig(target_modules=["q_proj", "o_proj"], lora_dropout=0.1)
    found = peft_adapter.meant_for_peft(_base("qwen3_next"), config)
    assert found.target_modules == {"q_proj", "o_proj"}
    assert not found.target_parameters
    assert found.lora_dropout == 0.1


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_next", "gpt_oss", "deepseek_v3", "granitemoehybrid", "llama4_text"])
def test_a_merged_model_and_its_files_give_the_same(kind: str, tmp_path: Path) -> None:
    base, adapter, whole = (tmp_path / name for name in ("base", "adapter", "merged"))
    _base(kind).save_pretrained(base)
    adapter.mkdir()
    method = load_method(_plan(kind))
    model = method.prepare(load_model(base, dtype="float32", attention="eager"), 0)
    _train_ready(model)
    method.save(model, base, adapter)
    merged = merged_model(base, adapter, dtype="float32")
    torch.testing.assert_close(_loss(merged), _loss(model), atol=2e-5, rtol=2e-5)
    merged.save_pretrained(whole)
    torch.testing.assert_close(
        _loss(load_model(whole, dtype="float32", attention="eager")), _loss(model), atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("kind", ["qwen3_next", "gpt2", "mixtral"])
def test_ia3_is_held_against_the_plan_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = MethodRecipe(name="ia3")
    plan = resolve_method(recipe, structure_of(small(kind)), "cpu", Provenance())
    assert load_method(plan).prepare(_base(kind), 0)
    monkeypatch.setattr(ia3, "planned_targets", lambda *_: frozenset({"model.no_such_matrix"}))
    with pytest.raises(RequestError, match=r"it left out model\.no_such_matrix; it added"):
        load_method(plan).prepare(_base(kind), 0)
