"""Names of metrics in pages are those that the metrics give themselves."""

from __future__ import annotations

from luthier.ml.charts.metric_titles import metric_heading, on_scale
from luthier.ml.evaluation.metrics.registry import BUILT_IN
from luthier.ml.evaluation.names import metric_heading as heading_of_the_metric


def test_every_built_in_metric_is_called_as_it_calls_itself() -> None:
    assert {name: metric_heading(name) for name in BUILT_IN} == {name: heading_of_the_metric(name) for name in BUILT_IN}
    assert metric_heading("my_own") == "My own"


def test_a_scale_is_named_unless_it_is_the_usual_one() -> None:
    assert [on_scale(unit) for unit in ("0 to 100", "1 to 5", "0 to 2")] == [
        " (on 0 to 100)",
        " (on 1 to 5)",
        " (on 0 to 2)",
    ]
    assert {on_scale(unit) for unit in ("0 to 1", "fraction", "F1, 0 to 1", "per token", "")} == {""}
