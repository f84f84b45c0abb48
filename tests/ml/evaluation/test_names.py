import pytest

from luthier.core.evaluation import SystemResult
from luthier.ml.evaluation.metrics.registry import BUILT_IN, load_metrics
from luthier.ml.evaluation.names import listed, metric_heading, metric_title, start, system_title


def system(name, *, model="m", shots=0, adapter=None):
    return SystemResult(
        name=name, model=model, adapter=adapter, num_few_shot=shots, num_samples=1, metrics={}, seconds=1.0
    )


def test_metrics_are_called_as_they_call_themselves():
    assert [metric_title(name) for name in BUILT_IN] == [metric.title for metric in load_metrics(list(BUILT_IN))]


def test_a_metric_whose_package_is_gone_keeps_its_name():
    assert metric_title("of_a_plug_in") == "of a plug in"


@pytest.mark.parametrize(("text", "said"), [("token F1", "Token F1"), ("chrF", "chrF"), ("BLEU and x", "BLEU and x")])
def test_a_sentence_starts_with_a_capital_unless_the_word_has_its_own(text, said):
    assert start(text) == said


def test_few_shot_systems_are_named_after_their_model():
    base, shots = system("base"), system("base + 1 examples", shots=1)
    tuned, other = system("tuned", adapter="a"), system("x + 4 examples", model="x", shots=4)
    results = [base, shots, tuned, other]
    assert system_title(tuned, results) == "the tuned model"
    assert system_title(shots, results) == "the base model with 1 example in its prompt"
    assert system_title(other, results) == "x + 4 examples"


@pytest.mark.parametrize(("words", "said"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_lists(words, said):
    assert listed(list(words)) == said


def test_a_metric_as_a_heading_begins_with_a_capital() -> None:
    assert metric_heading("rouge_l") == "ROUGE-L"
    assert metric_heading("exact_match_ignoring_case") == "Exact match ignoring case"
    assert metric_heading("chrf") == "chrF"
    assert metric_heading("token_f1") == "Token F1"
