"""The figures of a grader: the share that passes, and the mean score where that is something else."""

from __future__ import annotations

import numpy as np

from luthier.core.records.bounds import REAL_LINE, UNIT, Bounds
from luthier.features.evals_api.report import _figures, _task_names


def test_low_scores_on_a_scale_are_scores_and_not_right_and_wrong() -> None:
    """A grader from 0 to 10 with a threshold of 7 that gave 0 and 1 alone: nothing passes, and the mean is 0.4."""
    scores, passed = np.array([0.0, 1.0, 1.0, 0.0, 0.0]), np.zeros(5)
    found = _figures(passed, scores, Bounds(0.0, 10.0))
    assert {name: one.value for name, one in found.items()} == {"pass_rate": 0.0, "score": 0.4}
    assert list(_figures(scores, scores, UNIT)) == ["pass_rate"]
    assert list(_figures(scores, scores, REAL_LINE)) == ["pass_rate"]
    assert list(_figures(scores, scores / 2, UNIT)) == ["pass_rate", "score"]


def test_each_grader_has_a_name_of_its_own_in_the_report() -> None:
    names = _task_names(["Score", "score 3", "score", "All graders", "?", "score"])
    assert names[:2] == ["score", "score_3"]
    assert len(set(names)) == 6
    assert "all_graders" not in names
