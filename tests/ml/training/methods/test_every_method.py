"""What every method promises: exact resume, an outcome that others load, a count that is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.ml.training.test_loop import KilledError, run, weights
from tests.vacuous import nonempty
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.merging import merged_model
from luthier.ml.inference.models.quantised import PackedLinear
from luthier.ml.training.checkpoint import save_model
from luthier.ml.training.methods.full import Full
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.model import TrainableModel

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]

ADAPTERS = [name for name in METHODS if name != "full"]
IDS = torch.arange(40).reshape(2, 20)


def trained(plan: Plan, make_model: MakeModel, folder: Path, examples: list[TokenisedExample]) -> TrainableModel:
    """A model that a run has changed; some steps at a high rate, so that what is learned is not lost in rounding."""
    model = make_model(plan)
    run(plan, model, folder, examples, with_validation=False)
    model.module.eval()
    return model


@torch.no_grad()
def logits_of(model: TrainableModel) -> torch.Tensor:
    positions = torch.arange(IDS.shape[1])[None]
    return model.method.hidden(model.body, IDS, positions) @ model.head.t()


# One of a kind in bfloat16 in every run: whole weights, plain pairs of matrices, ranks that move, a packed base.
_IN_BOTH = ("full", "lora", "adalora", "qlora")


@pytest.mark.parametrize(
    ("method", "precision"),
    [(name, "float32") for name in METHODS]
    + [
        pytest.param(name, "bfloat16", marks=() if name in _IN_BOTH else pytest.mark.drill, id=f"{name}-bfloat16")
        for name in METHODS
    ],
)
def test_killed_and_resumed_ends_byte_for_byte_the_same(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    method: str,
    precision: str,
) -> None:
    # AdaLoRA is killed in its reallocation and in its final phase.
    num_steps, kills = (10, (3, 7)) if method == "adalora" else (6, (3, 5))
    plan = make_plan(method, dropout=0.2, precision=precision, num_steps=num_steps)
    undisturbed = make_model(plan)
    whole, _ = run(plan, undisturbed, tmp_path / "a", examples)
    resumed = undisturbed
    for kill_at in (*kills, None):
        resumed = make_model(plan)
        if kill_at is not None:
            with pytest.raises(KilledError):
                run(plan, resumed, tmp_path / "b", examples, kill_at=kill_at)
        else:
            outcome, _ = run(plan, resumed, tmp_path / "b", examples)
    for name, expected in nonempty(weights(undisturbed).items()):
        assert torch.equal(weights(resumed)[name], expected), name
    assert outcome.state.model_copy(update={"seconds": 0}) == whole.state.model_copy(update={"seconds": 0})
    digests = [
        save_model(m, Path(plan.base_model.path), tmp_path / d)[1] for m, d in ((undisturbed, "a"), (resumed, "b"))
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("method", ADAPTERS)
def test_others_load_the_outcome_on_the_original_base_and_it_is_the_same_function(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, method: str
) -> None:
    plan = make_plan(method, learning_rate=0.1, num_steps=12)
    model = trained(plan, make_model, tmp_path, examples)
    folder, _ = save_model(model, Path(plan.base_model.path), tmp_path)
    assert sorted(f.name for f in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    base = load_model(plan.base_model.path, dtype="float32", attention="sdpa", quantisation=plan.method.quantisation)
    with torch.no_grad():
        before = base(IDS).logits
        after = PeftModel.from_pretrained(base, str(folder))(IDS).logits[:, -IDS.shape[1] :]
    expected = logits_of(model)
    tolerance = 2e-5 * float(expected.abs().max())
    torch.testing.assert_close(after, expected, atol=tolerance, rtol=0)
    assert float((expected - before).abs().max()) > 100 * tolerance, "the run must have changed something"
    if method != "prompt_tuning":  # which changes no weights
        _merged_in_fp32_it_is_the_same(plan, folder)


@torch.no_grad()
def _merged_in_fp32_it_is_the_same(plan: Plan, folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32)
    apart = PeftModel.from_pretrained(base, str(folder))(IDS).logits
    merged = merged_model(plan.base_model.path, folder, dtype="float32")(IDS).logits
    torch.testing.assert_close(merged, apart, atol=2e-5 * float(apart.abs().max()), rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_counts_what_is_trained(make_plan: MakePlan, make_model: MakeModel, method: str) -> None:
    plan = make_plan(method, settings={"targets": ("q_proj", "k_proj", "down_proj")})
    assert plan.method.num_trainable_parameters == make_model(plan).num_trainable_parameters


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, method: str
) -> None:
    rates = {"full": 0.005, "loraplus": 0.01, "adalora": 0.1, "ia3": 0.1, "prompt_tuning": 0.3}
    rate = rates.get(method, 0.05)
    plan = make_plan(method, num_steps=50, learning_rate=rate, checkpoint_every_steps=50)
    _, events = run(plan, make_model(plan), tmp_path, examples, with_validation=False)
    losses = [e.loss for e in events if e.kind == "step"]
    # a random model has little that factors or a prompt could bring out
    share = {"ia3": 0.9, "prompt_tuning": 0.95}.get(method, 0.7)
    assert sum(losses[-5:]) < share * sum(losses[:5])


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_base_is_left_as_it_was(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, method: str
) -> None:
    plan = make_plan(method, learning_rate=0.1)
    model = trained(plan, make_model, tmp_path, examples)
    original = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32).state_dict()
    found = 0
    for name, parameter in nonempty(model.module.named_parameters()):
        plain = name.replace("base_model.", "").removeprefix("model.").replace("base_layer.", "")
        for candidate in (plain, f"model.{plain}"):
            if candidate in original and parameter.is_floating_point():
                assert torch.equal(parameter, original[candidate]), name
                found += 1
    packed = {name: layer for name, layer in model.module.named_modules() if isinstance(layer, PackedLinear)}
    for name, layer in packed.items():
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        source = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        source.weight.data = original[f"{plain}.weight"]
        assert torch.equal(type(layer)(source).weight, layer.weight), name
    assert found + len(packed) >= 10


def test_a_whole_outcome_has_what_makes_inputs_of_images(make_plan: MakePlan, tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "preprocessor_config.json").write_text('{"image_mean": [0.5]}', encoding="utf-8")
    (tmp_path / "made").mkdir()
    method = Full(make_plan("full").method)
    method.save(load_model(base, dtype="float32", attention="sdpa"), base, tmp_path / "made")
    assert (tmp_path / "made" / "preprocessor_config.json").read_text(encoding="utf-8") == '{"image_mean": [0.5]}'
    assert (tmp_path / "made" / "tokenizer.json").is_file()
