"""Where float32 does not settle whether a gradient is right, float64 does: rounding passes, a fault does not."""

import pytest
import torch
from tests.ml.training.architectures import ARCHITECTURES, make
from tests.ml.training.test_forward_proof import FULL, rows
from tests.zoo import gradients, plain
from tests.zoo.walk import Outcome, Stage, WrongError

from luthier.ml.training.methods.full import Full
from luthier.ml.training.model import TrainableModel

KIND, ENTRIES = ARCHITECTURES["gemma4 text"]
DEEP = ENTRIES | {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


def settled(stage, change=0.0):
    """Our four layers of Gemma 4 against those of transformers, one of whose weights is changed by a share."""
    base, other, some = make("gemma4 deep"), make("gemma4 deep"), tuple(rows())
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[0, 0] *= 1 + change
    model = TrainableModel(base, Full(FULL), seed=0)
    model.module.eval()
    ours = {"padded": gradients._ours(model, some, ())[1]}
    theirs = plain.loss_and_gradients(other, some)[1]
    gradients._settle_in_float64(stage, model, some, other, theirs, {"padded": ()}, ours)


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "gemma4 deep", (KIND, DEEP))
    return Stage(Outcome("loss", "works"))


def test_rounding_passes_and_is_written_down(stage):
    settled(stage)
    measures = stage.outcome.measures
    assert measures["padded_loss_float64"] < 1e-13
    assert measures["padded_gradient_float64"] < 1e-11
    assert 0 < measures["plain_gradient_rounding"] < 1e-3
    assert measures["padded_gradient_excess"] <= plain.GRADIENT_SHARE


def test_a_fault_smaller_than_rounding_does_not_pass(stage):
    """A weight that is wrong by a part in a million is lost in float32's rounding of this model, not in float64's."""
    with pytest.raises(WrongError, match="float64"):
        settled(stage, 1e-6)
