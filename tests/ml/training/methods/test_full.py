"""Full fine-tuning trains every weight but those that a model's class freezes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.ml.training.conftest import random_examples
from tests.vacuous import nonempty
from tests.zoo.families import make_family

from luthier.core.plan import MethodPlan, Plan
from luthier.ml.inference.models.loading import load_model
from luthier.ml.training.methods.full import Full
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.optimizer import MasterOptimizer

FULL = MethodPlan(name="full", rank=0, alpha=0.0, dropout=0.0, targets=(), num_trainable_parameters=1)


@pytest.mark.parametrize(("family", "ends"), [("ernie4_5_moe", "e_score_correction_bias"), ("llama", None)])
def test_what_the_class_of_a_model_freezes_stays_frozen(family: str, ends: str | None, tmp_path: Path) -> None:
    """ERNIE's biases for the choice of experts get no gradient, and have two dimensions, which would decay."""
    model = load_model(make_family(family, tmp_path), dtype="float32", attention="sdpa")
    assert all(nonempty(parameter.requires_grad for parameter in model.parameters()))  # as transformers reads a folder
    trained = Full(FULL).prepare(model, 0)
    frozen = {name for name, parameter in trained.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ends is not None and name.endswith(ends)}
    assert bool(frozen) == (ends is not None)


def test_the_indexer_of_sparse_attention_has_no_gradient_and_keeps_its_bytes_under_weight_decay(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """Its choice of keys has no gradient: plain transformers leave `.grad` None there, and torch's AdamW skips it."""
    base = load_model(make_family("deepseek_v32", tmp_path), dtype="float32", attention="sdpa")
    examples = random_examples(4, seed=1)
    base(input_ids=torch.tensor([list(examples[0].input_ids)])).logits.logsumexp(-1).sum().backward()
    without = {name for name, parameter in base.named_parameters() if parameter.grad is None}
    assert any(".indexer." in name for name in without)
    base.zero_grad()
    model = TrainableModel(base, Full(FULL), seed=0)
    optimizer = MasterOptimizer(model.module, make_plan("full", weight_decay=0.1).training)
    before = {name: weight.clone() for name, weight in optimizer.weight_state().items()}
    model.loss_sum(collate(examples, model.pad_id, "cpu"))[0].backward()
    optimizer.collect()
    optimizer.find_unreached()
    optimizer.step(optimizer.gradient_norm(), 1.0)
    unchanged = {name for name, weight in optimizer.weight_state().items() if torch.equal(weight, before[name])}
    trained = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert unchanged == set(optimizer.unreached()) == without & trained


def test_a_whole_model_keeps_what_its_tokenizer_and_templates_are_read_from(tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}", encoding="utf-8")
    Full(FULL).save(load_model(base, dtype="float32", attention="sdpa"), base, tmp_path / "made")
    for name in ("tokenizer.json", "merges.txt", "additional_chat_templates/tool_use.jinja"):
        assert (tmp_path / "made" / name).read_bytes() == (base / name).read_bytes()
