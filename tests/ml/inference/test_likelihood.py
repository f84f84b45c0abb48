import math
from array import array

import pytest
import torch
import torch.nn.functional as F
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError
from luthier.ml.inference import likelihood
from luthier.ml.inference.likelihood import Scorer
from luthier.ml.inference.models.loading import load_model


@pytest.fixture
def model(tiny):
    return load_model(tiny, dtype="float32", attention="sdpa")


def plain_score(model, example) -> tuple[float, int]:
    ids = torch.tensor([list(example.input_ids)])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, :-1]
    learned = torch.tensor(list(example.loss_mask[1:])).bool()
    nll = F.cross_entropy(logits, ids[0, 1:], reduction="none")[learned]
    return float(nll.double().sum()), int((logits.argmax(-1) == ids[0, 1:])[learned].sum())


def test_it_agrees_with_the_plain_computation(model, examples):
    for example, score in nonempty(zip(examples, Scorer(model, pad_id=0).score(examples), strict=True)):
        nll, correct = plain_score(model, example)
        assert score.nll_nats == pytest.approx(nll, rel=1e-5)
        assert score.num_correct == correct


def test_a_shared_beginning_changes_no_score(model):
    shared = list(range(5, 45))
    rows = [
        TokenisedExample(f"a:{n}", array("i", [*shared, 50 + n, *range(60, 60 + own)]), bytes(41) + bytes([1] * own))
        for n, own in enumerate((3, 1, 7))
    ]
    scorer = Scorer(model, pad_id=0)
    beginning = scorer.begin(shared)
    for _ in range(2):  # a beginning is not used up
        for row, score in zip(rows, scorer.score(rows, beginning), strict=True):
            nll, correct = plain_score(model, row)
            assert score.nll_nats == pytest.approx(nll, rel=1e-5)
            assert score.num_correct == correct
    for one, other in zip(scorer.states(rows, beginning), scorer.states(rows), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_window_bounds_what_may_be_shared_and_a_recurrent_state_forbids_it(model):
    scorer = Scorer(model, pad_id=0)
    assert scorer.longest_shared == model.config.max_position_embeddings
    model.config.layer_types = ["full_attention"] + ["sliding_attention"] * (model.config.num_hidden_layers - 1)
    model.config.sliding_window = 24
    assert Scorer(model, pad_id=0).longest_shared == 24
    model.config.layer_types = ["linear_attention"] * model.config.num_hidden_layers
    assert scorer.longest_shared == 0


def test_making_logits_in_chunks_changes_nothing(model, examples, monkeypatch):
    whole = Scorer(model, pad_id=0).score(examples)
    monkeypatch.setattr(likelihood, "MAX_LOGIT_ROWS", 5)
    for one, other in nonempty(zip(whole, Scorer(model, pad_id=0).score(examples), strict=True)):
        assert other.nll_nats == pytest.approx(one.nll_nats, rel=1e-6)
        assert other.num_correct == one.num_correct


def test_an_example_with_nothing_to_learn_scores_zero_over_zero(model):
    (score,) = Scorer(model, pad_id=0).score([TokenisedExample("a:1", array("i", [5, 6, 7]), bytes(3))])
    assert (score.nll_nats, score.num_tokens, score.num_correct) == (0.0, 0, 0)


def test_a_random_model_hesitates_between_all_tokens(tiny, examples):
    model = load_model(tiny, dtype="float32", attention="sdpa")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    for score in nonempty(Scorer(model, pad_id=0).score(examples)):
        assert score.nll_nats / score.num_tokens == pytest.approx(math.log(384), rel=1e-5)


def test_weights_that_are_not_numbers_are_an_error_that_names_the_row(model, examples):
    scorer = Scorer(model, pad_id=0)
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(DivergedError, match=r"rows\.jsonl:1"):
        scorer.score(examples)
    with pytest.raises(DivergedError, match="not a finite number"):
        Scorer(model, pad_id=0)


class _Scaled(torch.nn.Module):
    """A head that does something to the logits outside of itself, as some models do in their forward."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change
        self.config, self.device = model.config, model.device

    def get_decoder(self):
        return self.model.get_decoder()

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, **arguments):
        output = self.model(**arguments)
        output.logits = self.change(output.logits)
        return output


@pytest.mark.parametrize(
    ("change", "scale", "cap"),
    [
        (lambda logits: 2.0 * torch.tanh(logits * 0.5 / 2.0), 0.5, 2.0),
        (lambda logits: 30.0 * torch.tanh(logits / 30.0), 1.0, 30.0),
        (lambda logits: logits * 3, 3.0, None),
        (lambda logits: logits / 6, 1 / 6, None),
    ],
)
def test_scale_and_cap_are_measured_whatever_a_config_calls_them(model, examples, change, scale, cap):
    changed = _Scaled(model, change)
    scorer = Scorer(changed, pad_id=0)
    assert scorer.path.by_head
    assert (scorer.scaled.scale, scorer.scaled.cap) == (scale, cap)
    torch.testing.assert_close(scorer.head, model.lm_head.weight.detach())
    for example, score in nonempty(zip(examples, scorer.score(examples), strict=True)):
        assert score.nll_nats == pytest.approx(plain_score(changed, example)[0], rel=1e-5)


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_scored_by_its_own_forward_pass(model, examples):
    scaled = _Scaled(model, lambda logits: logits * 3 + logits.square())
    scorer = Scorer(scaled, pad_id=0)
    assert not scorer.path.by_head
    assert "logits differ" in scorer.path.describe()
    for example, score in nonempty(zip(examples, scorer.score(examples), strict=True)):
        nll, correct = plain_score(scaled, example)
        assert score.nll_nats == pytest.approx(nll, rel=1e-6)
        assert score.num_correct == correct
    assert scorer.longest_shared == 0
    for ask in (lambda: scorer.head, lambda: scorer.states(examples)):
        with pytest.raises(RequestError, match="logits differ"):
            ask()


def test_own_logits_are_made_a_few_places_at_a_time(model, examples, monkeypatch):
    scaled = _Scaled(model, lambda logits: logits * 3 + logits.square())
    whole = Scorer(scaled, pad_id=0).score(examples)
    monkeypatch.setattr(likelihood, "MAX_OWN_LOGITS", 384 * 3)
    for one, other in nonempty(zip(Scorer(scaled, pad_id=0).score(examples), whole, strict=True)):
        assert one.nll_nats == pytest.approx(other.nll_nats, rel=1e-6)
        assert one.num_correct == other.num_correct
