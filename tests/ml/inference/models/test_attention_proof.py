"""A model is loaded with fused attention only where that computes what its eager attention does."""

import pytest
import torch
from tests.vacuous import nonempty
from tests.zoo.families import make_family

from luthier.ml.inference.models import attention_proof
from luthier.ml.inference.models.architecture import language_model
from luthier.ml.inference.models.attention_proof import attention_of, why_eager
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.transformers_engine import TransformersEngine

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def falcon(tmp_path_factory):
    return make_family("falcon_alibi", tmp_path_factory.mktemp("zoo") / "falcon_alibi")


@torch.no_grad()
def test_a_model_whose_fused_attention_is_another_function_is_loaded_with_its_eager_one(falcon):
    eager = load_model(falcon, dtype="float32", attention="eager")
    loaded = load_model(falcon, dtype="float32", attention="sdpa")
    torch.testing.assert_close(loaded(IDS).logits, eager(IDS).logits, rtol=0, atol=0)
    assert "sdpa attention the logits of a row differ by" in why_eager(loaded)
    assert why_eager(eager) == ""


@torch.no_grad()
def test_the_engine_says_so(falcon):
    engine = TransformersEngine.open(str(falcon), dtype="float32")
    assert ["is computed by its eager attention" in note for note in engine.notes] == [True]


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom", "llama4"])
def test_a_model_whose_fused_attention_is_proved_keeps_it_and_its_weights(name, tmp_path):
    folder = make_family(name, tmp_path / name)
    eager = load_model(folder, dtype="bfloat16", attention="eager")
    fused = load_model(folder, dtype="bfloat16", attention="sdpa")
    assert attention_of(language_model(fused)) == ("eager" if name == "bloom" else "sdpa")
    assert why_eager(fused) == ""
    weights = fused.state_dict()
    assert weights
    for key, weight in nonempty(eager.state_dict().items()):
        assert weight.dtype == weights[key].dtype
        assert torch.equal(weight, weights[key])


def test_it_is_proved_once_for_models_of_one_config(tiny, monkeypatch):
    load_model(tiny, dtype="float32", attention="sdpa")
    monkeypatch.setattr(attention_proof, "_why_eager", lambda _: pytest.fail("proved again"))
    assert attention_of(language_model(load_model(tiny, dtype="float32", attention="sdpa"))) == "sdpa"
