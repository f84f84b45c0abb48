import pytest

from luthier.core.evaluation import Comparison, Metric, SystemResult
from luthier.ml.evaluation.verdict_text import further_details, primary_details


def system(name, *, shots=0, rows=16, **values):
    metrics = {
        key: Metric(value=v, low=v, high=v, unit="", higher_is_better=key != "perplexity") for key, v in values.items()
    }
    return SystemResult(name=name, model="m", num_few_shot=shots, num_samples=rows, metrics=metrics, seconds=1.0)


def compared(baseline, word, metric="rouge_l", *, difference=0.02, half=0.04, p_value=0.2, rows_needed=None):
    return Comparison(
        baseline=baseline.name,
        candidate="tuned",
        metric=metric,
        difference=difference,
        low=difference - half,
        high=difference + half,
        p_value=p_value,
        verdict=word,
        rows_needed=rows_needed,
    )


ALL = {"rouge_l": 0.29, "rouge_1": 0.3, "bleu": 2.0, "perplexity": 3.0, "exact_match": 0.0}
BASE, SHOTS, TUNED = system("base", **ALL), system("base + 4 examples", shots=4, **ALL), system("tuned", **ALL)
SYSTEMS = [BASE, SHOTS, TUNED]


def only(comparison):
    (text,) = primary_details(TUNED, [comparison], SYSTEMS)
    return text


def test_what_cannot_be_told_says_how_many_rows_would():
    assert only(compared(BASE, "not distinguishable", rows_needed=107)) == (
        "Not distinguishable from the base model: ROUGE-L 0.290 against 0.290 (+0.020, 95% interval -0.020 to 0.060, "
        "p = 0.20; 16 held-out rows); about 110 held-out rows would settle a difference of this size."
    )


def test_equal_is_said_plainly_and_names_no_number_of_rows():
    assert only(compared(BASE, "not distinguishable", "exact_match", difference=0, half=0, p_value=1.0)) == (
        "Equal to the base model: exact match 0.00 against 0.00 on 16 held-out rows; "
        "no number of rows can be named for a difference of 0."
    )


@pytest.mark.parametrize("difference", [0.0, 1e-6])
def test_a_difference_that_rounds_to_nothing_names_no_number_of_rows(difference):
    text = only(compared(BASE, "not distinguishable", difference=difference, rows_needed=10**11))
    assert text.startswith("Not distinguishable from the base model")
    assert "95% interval -0.040 to 0.040" in text
    assert "no number of rows that would settle it can be named" in text
    assert "10" not in text.replace("100", "").replace("p = 0.20", "")


def test_one_row_cannot_say_how_many_are_needed():
    text = only(compared(BASE, "not distinguishable", difference=0.3, half=0, p_value=1.0))
    assert "with so few it is unknown how many rows would settle it" in text


@pytest.mark.parametrize(("p_value", "said"), [(0.0001, "p < 0.001"), (0.0123, "p = 0.012"), (0.34, "p = 0.34")])
def test_p_values(p_value, said):
    assert said in only(compared(BASE, "better", p_value=p_value))


def both(metric, base, shots, **settings):
    return [compared(BASE, base, metric, **settings), compared(SHOTS, shots, metric, **settings)]


def test_metrics_that_say_the_same_share_a_sentence_and_others_get_one_each():
    found = both("rouge_l", "not distinguishable", "worse")
    own = [
        *found,
        *both("rouge_1", "not distinguishable", "worse"),
        *both("bleu", "not distinguishable", "worse"),
        *both("perplexity", "better", "worse"),
        *both("exact_match", "not distinguishable", "not distinguishable", difference=0, half=0),
    ]
    assert further_details(own, found, SYSTEMS) == (
        "ROUGE-1 and BLEU say the same.",
        "Perplexity: better than the base model, worse than it with 4 examples in the prompt.",
        "Exact match: equal to both.",
    )


def test_the_order_of_comparisons_does_not_matter():
    found = both("rouge_l", "better", "worse")
    own = [*both("bleu", "better", "worse")[::-1], *found[::-1]]
    assert further_details(own, found, SYSTEMS) == ("BLEU says the same.",)


def test_a_metric_compared_with_one_baseline_only_claims_nothing_of_the_other():
    found = both("rouge_l", "better", "better")
    own = [*found, compared(BASE, "better", "perplexity")]
    assert further_details(own, found, SYSTEMS) == ("Perplexity: better than the base model.",)


def test_one_baseline_and_one_metric_leave_nothing_to_add():
    found = [compared(BASE, "better")]
    assert further_details(found, found, SYSTEMS) == ()
    other = [*found, compared(BASE, "not distinguishable", "bleu")]
    assert further_details(other, found, SYSTEMS) == ("BLEU: not clearly different from the base model.",)
