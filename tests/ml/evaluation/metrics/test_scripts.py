"""Which metrics see anything of an answer, by the script it is written in."""

from __future__ import annotations

import pytest

from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.metrics.registry import load_metrics
from luthier.ml.evaluation.metrics.scripts import is_seen_by_rouge, num_words, text_metrics_in_order

RUSSIAN = "Скрипка делается из ели, потому что она лёгкая и прочная."
ARABIC = "يصنع الكمان من خشب التنوب لأنه خفيف وقوي."
CHINESE = "小提琴的面板由云杉制成，因为它又轻又结实。"
GERMAN = "Für die Geige nimmt man Fichte, weil sie größer wächst und schön klingt."


@pytest.mark.parametrize("text", [RUSSIAN, ARABIC, CHINESE, "Το βιολί είναι από έλατο.", "वायलिन स्प्रूस से बनता है।"])
def test_rouge_does_not_see_other_scripts_and_chrf_does(text: str) -> None:
    same = Observations(outputs=[text], references=[text])
    rouge, chrf = (
        float(metric.aggregate(metric.statistics(same).sum(axis=0))) for metric in load_metrics(["rouge_l", "chrf"])
    )
    assert (rouge, chrf) == (0.0, pytest.approx(100.0))
    assert not is_seen_by_rouge([text])
    assert text_metrics_in_order([text])[0] == "chrf"


@pytest.mark.parametrize("text", [GERMAN, "The front is made of spruce.", "12.50 €", "", "👍"])
def test_latin_texts_and_texts_without_letters_are_compared_by_rouge(text: str) -> None:
    assert is_seen_by_rouge([text])
    assert text_metrics_in_order([text])[0] == "rouge_l"


def test_most_letters_of_all_texts_together_decide() -> None:
    assert is_seen_by_rouge(["spruce and maple wood", "ель"])
    assert not is_seen_by_rouge(["ok", RUSSIAN])


def test_metrics_of_words_come_last_where_no_spaces_are_written() -> None:
    assert text_metrics_in_order([CHINESE])[1] == "perplexity"
    assert text_metrics_in_order([RUSSIAN])[1] == "bleu"


@pytest.mark.parametrize(
    ("text", "num"),
    [
        ("maple wood - spruce", 4),
        ("投诉", 1),
        ("客户投诉", 2),
        ("小提琴的面板由云杉制成。", 6),  # 11 signs
        ("用Python写", 2),
        ("ร้องเรียน", 3),  # 9 signs, vowels and tones among them
        ("", 0),
    ],
)
def test_signs_of_scripts_without_spaces_are_counted_as_parts_of_words(text: str, num: int) -> None:
    assert num_words(text) == num
