"""Full fine-tuning trains every weight but those that a model's class freezes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.vacuous import nonempty
from tests.zoo.families import make_family

from luthier.core.plan import MethodPlan
from luthier.ml.inference.models.loading import load_model
from luthier.ml.training.methods.full import Full

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
