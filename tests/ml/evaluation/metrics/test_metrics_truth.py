"""The benchmark that holds every metric against its reference, on few rows."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "benchmarks"))
metrics_truth = pytest.importorskip("metrics_truth")


@pytest.mark.parametrize("part", metrics_truth.PARTS, ids=lambda part: part.__name__)
def test_every_metric_is_its_reference(part):
    found = list(part(80, 3))
    assert found
    for metric, against, ours, theirs in found:
        assert ours == pytest.approx(theirs, abs=metrics_truth.MOST), f"{metric} against {against}"
