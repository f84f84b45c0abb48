"""METEOR against NLTK's, without synonyms, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.graders import Reward
from luthier.core.ports import Rollout
from luthier.core.recipe import Recipe
from luthier.ml.charts.judged_rows import metric_heading
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.metrics.reference_based import Meteor, words
from luthier.ml.evaluation.rewards import Rewards

WORDS = st.sampled_from(
    ["the", "cat", "cats", "Cats", "sat", "sitting", "on", "a", "mat", ".", "Grüße", "x1", "running"]
)
TEXT = st.lists(WORDS, max_size=12).map(" ".join)
OUTPUT = (
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is a guide to action that ensures that the military will forever heed Party commands",
)


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, _: str) -> list[Any]:
        return []


def meteor(*pairs: tuple[str, str]) -> float:
    outputs, references = zip(*pairs, strict=True)
    metric = Meteor()
    return float(metric.aggregate(metric.statistics(Observations(outputs=outputs, references=references)).sum(axis=0)))


@given(TEXT, TEXT)
@settings(max_examples=200)
def test_a_sentence_is_scored_as_nltk_does_without_synonyms(output: str, reference: str) -> None:
    from nltk.translate.meteor_score import single_meteor_score

    expected = single_meteor_score(words(reference), words(output), wordnet=NoSynonyms())
    assert meteor((output, reference)) == pytest.approx(expected, abs=1e-12)


def test_the_published_example_of_nltk() -> None:
    # NLTK's own documentation: 0.6944 with WordNet, which aligns no word more in this pair
    assert meteor(OUTPUT) == pytest.approx(0.6944, abs=5e-5)


def test_stems_are_aligned_and_disorder_is_punished_by_hand() -> None:
    assert meteor(("cats", "cat")) == 0.5  # one run among one word: half is taken away
    assert meteor(("the cat sat", "the cat sat")) == pytest.approx(1 - 0.5 * (1 / 3) ** 3)
    # P = R = 1, three runs among three words
    assert meteor(("sat cat the", "the cat sat")) == pytest.approx(0.5)
    # P = 2/2, R = 2/3, one run
    assert meteor(("the cat", "the cat sat")) == pytest.approx((1 - 0.5 / 8) * (2 / 3) / (0.9 + 0.1 * 2 / 3))


def test_a_recipe_names_it_and_reports_call_it_by_its_title() -> None:
    asked = {"base_model": "m", "data": {"train": "x"}, "evaluation": {"metrics": ["meteor"]}}
    assert Recipe.model_validate(asked).evaluation.metrics == ("meteor",)  # type: ignore[union-attr]
    assert metric_heading("meteor") == "METEOR"
    # as a reward, the reference itself is worth nearly 1: one run is less of a penalty the longer it is
    assert Rewards([Reward.model_validate("meteor")], {"row:1": {"reference": "the front is spruce"}})(
        [Rollout("row:1", "the front is spruce", 4, True)]
    )[0].reward == pytest.approx(1 - 0.5 / 4**3)


def test_nothing_in_common_is_zero_and_the_figure_is_the_mean() -> None:
    assert meteor(("", ""), ("", "a"), ("b", "a")) == 0.0
    assert meteor(("cats", "cat"), ("b", "a")) == 0.25
