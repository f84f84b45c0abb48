import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.evaluation import Comparison, Metric, SystemResult
from luthier.ml.evaluation.verdict_text import LONGEST, headline

WORDS = ("better", "worse", "not distinguishable")
SAID = {"better": "better than", "worse": "worse than", "not distinguishable": "not clearly different from"}
METRICS = ("rouge_l", "perplexity", "exact_match_ignoring_case")


def system(name, *, shots=0, rows=120, adapter=None):
    metric = Metric(value=0.5, low=0.4, high=0.6, unit="", higher_is_better=True)
    return SystemResult(
        name=name,
        model="m",
        adapter=adapter,
        num_few_shot=shots,
        num_samples=rows,
        metrics=dict.fromkeys(METRICS, metric),
        seconds=1.0,
    )


BASE, SHOTS, TUNED = system("base"), system("base + 4 examples", shots=4), system("tuned", adapter="a")


def against(baseline, word, metric="rouge_l", candidate="tuned"):
    low, high = {"better": (0.1, 0.3), "worse": (-0.3, -0.1), "not distinguishable": (-0.1, 0.1), "equal": (0, 0)}[word]
    return Comparison(
        baseline=baseline.name,
        candidate=candidate,
        metric=metric,
        difference=(low + high) / 2,
        low=low,
        high=high,
        p_value=0.01,
        verdict="not distinguishable" if word == "equal" else word,
    )


def say(*words, metric="rouge_l", baselines=(BASE, SHOTS), tuned=TUNED):
    found = [against(one, word, metric) for one, word in zip(baselines, words, strict=False)]
    return headline(tuned, found, [*baselines, tuned])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("words", [*product(WORDS, WORDS), *product(WORDS)])
def test_it_is_one_short_sentence_without_figures(words, metric):
    text = say(*words, metric=metric)
    assert len(text) <= LONGEST
    assert text.count(".") == 1
    assert text.endswith(".")
    assert "interval" not in text
    assert re.findall(r"\d+", text) in ([], ["4"], ["120"])


@pytest.mark.parametrize(("first", "second"), list(product(WORDS, WORDS)))
def test_it_claims_exactly_what_was_found_against_each_baseline(first, second):
    text = say(first, second)
    if first == second == "not distinguishable":
        both = "the base model, with or without 4 examples in the prompt"
        assert text == f"The tuned model is not clearly different from {both}, by ROUGE-L."
    else:
        joint = " and" if first == second else ", but"
        also = f"{SAID[second]} it with 4 examples in the prompt"
        assert text == f"The tuned model is {SAID[first]} the base model{joint} {also}, by ROUGE-L."


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("better", "The tuned model is better than the base model, by perplexity."),
        ("worse", "The tuned model is worse than the base model, by perplexity."),
        (
            "not distinguishable",
            "By perplexity, 120 held-out rows do not show a difference between the tuned model and the base model.",
        ),
        ("equal", "By perplexity, the tuned model and the base model are equal on 120 held-out rows."),
    ],
)
def test_one_baseline(word, text):
    assert say(word, metric="perplexity", baselines=(BASE,)) == text


def test_models_of_other_names_are_named():
    one, other, run = system("smollm2"), system("gemma3"), system("run-20261125-020639-e21596", adapter="a")
    text = say("better", "not distinguishable", baselines=(one, other), tuned=run)
    assert text == (
        "run-20261125-020639-e21596 is better than smollm2, but not clearly different from gemma3, by ROUGE-L."
    )


def test_a_few_shot_system_without_its_bare_model_keeps_its_name():
    assert say("worse", baselines=(SHOTS,)) == "The tuned model is worse than base + 4 examples, by ROUGE-L."


def test_what_is_too_long_to_name_is_counted():
    many = [system(f"a-rather-long-name-of-a-model-{n}") for n in range(4)]
    text = say("better", "worse", "not distinguishable", "better", baselines=many)
    assert text == (
        "Of 4 other systems, the tuned model is better than 2, worse than 1 and not clearly different from 1, "
        "by ROUGE-L."
    )
    assert say(*["better"] * 4, baselines=many) == (
        "The tuned model is better than each of the 4 other systems, by ROUGE-L."
    )
    assert say(*["not distinguishable"] * 4, baselines=many) == (
        "The tuned model is not clearly different from any of the 4 other systems, by ROUGE-L."
    )


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
def test_no_worse_result_is_left_out_and_none_is_made_up(words):
    text = say(*words, baselines=[system(f"a-rather-long-name-of-a-model-{n}") for n in range(len(words))])
    for word in ("better", "worse"):
        assert (SAID[word] in text) == (word in words)
    assert len(text) <= LONGEST
