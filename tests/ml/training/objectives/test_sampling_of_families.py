"""Answers drawn in training are those of the model, whatever it keeps from token to token."""

from array import array
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tests.zoo.families import make_family

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.ml.inference.decoding_proof import own_logits
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.objectives.sampling import draw_samples


@pytest.fixture(scope="module", params=["lfm2", "gemma3"])
def drawn_from(request, tmp_path_factory):
    folder = make_family(request.param, tmp_path_factory.mktemp("zoo") / request.param)
    return load_model(folder, dtype="float32", attention="sdpa"), ChatTemplate.load(folder)


def trainable(base, prompt=None):
    """As much of a trainable model as draws answers."""

    @contextmanager
    def as_decoder():
        yield base

    return SimpleNamespace(
        method=SimpleNamespace(virtual_prompt=lambda: prompt), pad_id=0, as_decoder=as_decoder, is_training=True
    )


def rows(template):
    found = []
    for number, text in enumerate(("Which wood is used for the front of a violin?", "Glue?")):
        ids = template.ids(text)
        mask = bytes(len(ids) - 1) + b"\1"
        found.append(TokenisedExample(f"rows:{number}", array("i", ids), mask))
    return found


def test_several_answers_to_a_prompt_have_the_likelihoods_of_the_model(drawn_from):
    base, template = drawn_from
    groups = draw_samples(
        trainable(base), template, rows(template), num_samples=3, max_new_tokens=5, temperature=0.7, seed="7"
    )
    assert [len(group) for group in groups] == [3, 3]
    for sample in (one for group in groups for one in group):
        ids = list(sample.tokens.input_ids)
        logits = own_logits(base, ids) / 0.7
        first = sample.num_prompt_tokens
        own = torch.log_softmax(logits, -1)[torch.arange(first - 1, len(ids) - 1), ids[first:]]
        assert len(own) == sample.tokens.num_trained_tokens > 0
        assert list(sample.log_probabilities) == pytest.approx(own.tolist(), abs=1e-3)
    assert len({tuple(one.tokens.input_ids) for one in groups[0]}) > 1


def test_a_trained_prompt_is_refused_where_no_beginning_can_be_shared(drawn_from):
    base, template = drawn_from
    prompt = torch.zeros(4, base.config.get_text_config().hidden_size)
    wish = {"num_samples": 2, "max_new_tokens": 3, "temperature": 0.0, "seed": "7"}
    if base.config.get_text_config().model_type == "lfm2":
        with pytest.raises(RequestError, match="over the model's own cache"):
            draw_samples(trainable(base, prompt), template, rows(template), **wish)
    else:
        with pytest.raises(RequestError, match="sliding windows"):
            draw_samples(trainable(base, prompt), template, rows(template), **(wish | {"max_new_tokens": 64}))
