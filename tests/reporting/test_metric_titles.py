"""Names of metrics in pages are those that the metrics give themselves."""

from __future__ import annotations

from luthier.evaluate.metrics.registry import BUILT_IN
from luthier.evaluate.names import metric_heading as heading_of_the_metric
from luthier.reporting.metric_titles import metric_heading


def test_every_built_in_metric_is_called_as_it_calls_itself() -> None:
    assert {name: metric_heading(name) for name in BUILT_IN} == {name: heading_of_the_metric(name) for name in BUILT_IN}
    assert metric_heading("my_own") == "My own"
