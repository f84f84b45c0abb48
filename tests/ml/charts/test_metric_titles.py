"""Names of metrics in pages are those that the metrics give themselves."""

from __future__ import annotations

import pytest

from luthier.ml.charts.judged_rows import metric_heading, metric_title, on_scale, start
from luthier.ml.evaluation.metrics.registry import BUILT_IN, load_metrics


def test_metrics_are_called_as_they_call_themselves() -> None:
    assert [metric_title(name) for name in BUILT_IN] == [metric.title for metric in load_metrics(list(BUILT_IN))]


def test_a_metric_whose_package_is_gone_keeps_its_name() -> None:
    assert metric_title("of_a_plug_in") == "of a plug in"


@pytest.mark.parametrize(("text", "said"), [("token F1", "Token F1"), ("chrF", "chrF"), ("BLEU and x", "BLEU and x")])
def test_a_sentence_starts_with_a_capital_unless_the_word_has_its_own(text: str, said: str) -> None:
    assert start(text) == said


def test_a_metric_as_a_heading_begins_with_a_capital() -> None:
    assert metric_heading("rouge_l") == "ROUGE-L"
    assert metric_heading("exact_match_ignoring_case") == "Exact match ignoring case"
    assert metric_heading("chrf") == "chrF"
    assert metric_heading("token_f1") == "Token F1"
    assert metric_heading("my_own") == "My own"


def test_a_scale_is_named_unless_it_is_the_usual_one() -> None:
    assert [on_scale(unit) for unit in ("0 to 100", "1 to 5", "0 to 2")] == [
        " (on 0 to 100)",
        " (on 1 to 5)",
        " (on 0 to 2)",
    ]
    assert {on_scale(unit) for unit in ("0 to 1", "fraction", "F1, 0 to 1", "per token", "")} == {""}
