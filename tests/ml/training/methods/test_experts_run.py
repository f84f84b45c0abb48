"""Runs with adapters on experts: resumed to the byte, loaded by others, over a packed base, and as planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.architectures import SMALL
from tests.ml.training.test_loop import KilledError, run, weights
from tests.vacuous import nonempty
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.ml.inference.models.expert_product import ExpertProduct
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.merging import merged_model
from luthier.ml.training.checkpoint import save_model
from luthier.ml.training.model import TrainableModel

IDS = torch.arange(40).reshape(2, 20)
SETTINGS = {"targets": "all-linear"}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of four experts, of which a token meets two, in place of the dense model of other tests."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mixture")
    config = AutoConfig.for_model("qwen3_next", **SMALL["qwen3_next"] | {"vocab_size": 384})
    # of bfloat16's precision, as published models are: a packed base is merged from what lies in that precision
    AutoModelForCausalLM.from_config(config).bfloat16().float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("method", "precision"), [("lora", "float32"), ("rslora", "bfloat16"), ("qlora", "float32")])
def test_killed_and_resumed_ends_byte_for_byte_the_same(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    examples: list[TokenisedExample],
    tmp_path: Path,
    method: str,
    precision: str,
) -> None:
    plan = make_plan(method, dropout=0.2, precision=precision, settings=SETTINGS)
    assert plan.method.expert_targets == ("experts.down_proj", "experts.gate_up_proj")
    whole, resumed = make_model(plan), make_model(plan)
    assert whole.num_trainable_parameters == plan.method.num_trainable_parameters
    assert any(isinstance(module.forward, ExpertProduct) for module in whole.module.modules())
    outcome, _ = run(plan, whole, tmp_path / "a", examples)
    with pytest.raises(KilledError):
        run(plan, resumed, tmp_path / "b", examples, kill_at=3)
    resumed = make_model(plan)
    again, _ = run(plan, resumed, tmp_path / "b", examples)
    for name, expected in nonempty(weights(whole).items()):
        assert torch.equal(weights(resumed)[name], expected), name
    assert outcome.state.model_copy(update={"seconds": 0}) == again.state.model_copy(update={"seconds": 0})
    digests = [save_model(m, Path(plan.base_model.path), tmp_path / d)[1] for m, d in ((whole, "a"), (resumed, "b"))]
    assert digests[0] == digests[1]
    b = {name: p for name, p in whole.module.named_parameters() if ".experts." in name and "lora_B" in name}
    assert len([name for name, p in b.items() if p.any()]) == 4, (
        "two tensors of experts in each of two layers have learned"
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_others_load_the_outcome_and_it_is_the_same_function(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    examples: list[TokenisedExample],
    tmp_path: Path,
    method: str,
) -> None:
    plan = make_plan(method, learning_rate=0.1, num_steps=12, settings=SETTINGS)
    model = make_model(plan)
    run(plan, model, tmp_path, examples, with_validation=False)
    model.module.eval()
    folder, _ = save_model(model, Path(plan.base_model.path), tmp_path)
    base = load_model(plan.base_model.path, dtype="float32", attention="sdpa", quantisation=plan.method.quantisation)
    with torch.no_grad():
        before = base(IDS).logits
        after = (attach_adapter if method == "qlora" else PeftModel.from_pretrained)(base, str(folder))(IDS).logits
        expected = model.method.hidden(model.body, IDS, torch.arange(20)[None]) @ model.head.t()
        merged = merged_model(plan.base_model.path, folder, dtype="float32", quantisation=plan.method.quantisation)(
            IDS
        ).logits
    tolerance = 2e-5 * float(expected.abs().max())
    assert float((expected - before).abs().max()) > 100 * tolerance, "the run must have changed something"
    torch.testing.assert_close(after, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(merged, expected, atol=tolerance, rtol=0)
