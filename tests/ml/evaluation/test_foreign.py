"""Figures of another judge in our words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import t

from luthier.core.errors import RequestError
from luthier.ml.evaluation.foreign import Foreign, as_task_result


def foreign(name: str, right: int, *, error: Any = 0.05, with_samples: bool = True) -> Foreign:
    samples = [
        {"doc_id": n, "doc_hash": str(n), "target": "x", "arguments": [["ask", " x"]], "filtered_resps": ["x"],
         "filter": "none"} | ({"acc": float(n < right)} if with_samples else {})
        for n in range(20)
    ]  # fmt: skip
    answer = {
        "results": {"t": {"alias": "t", "acc,none": right / 20, "acc_stderr,none": error, "acc,strict-match": 0.5}},
        "higher_is_better": {"t": {"acc": True}},
        "samples": {"t": samples},
    }
    return Foreign(name, name, None, 0, answer)


def test_standard_errors_become_intervals_and_samples_are_compared_row_by_row() -> None:
    found = as_task_result("t", [foreign("base", 5), foreign("tuned", 15)], primary=None, file="f", sha256="0", seed=0)
    acc = found.systems[0].metrics["acc"]
    half = t.isf(0.025, 19) * 0.05 / (0.25 * 0.75)
    assert (acc.value, acc.low, acc.high) == (
        0.25,
        *(pytest.approx(expit(logit(0.25) + sign * half)) for sign in (-1, 1)),
    )
    paired = next(one for one in found.comparisons if one.metric == "acc")
    assert (paired.difference, paired.verdict, paired.test) == (0.5, "better", "mcnemar")
    assert "acc_strict_match" in found.systems[0].metrics
    assert "no standard error of acc_strict_match" in found.cautions[-1].replace("The harness gives ", "")
    assert [one.metric for one in found.comparisons] == ["acc"], "nothing is told of a figure without either"


def test_without_values_of_samples_two_standard_errors_decide() -> None:
    systems = [foreign("base", 5, with_samples=False), foreign("tuned", 7, with_samples=False)]
    (one,) = as_task_result("t", systems, primary="acc", file="f", sha256="0", seed=0).comparisons
    assert one.difference == pytest.approx(0.1)
    # Fisher's z with Student's t: a little wider than 1.96 standard errors, and never beyond 1.
    half = t.isf(0.025, 19) * 0.05 * 2**0.5 / (1 - 0.1**2)
    assert (one.low, one.high) == tuple(pytest.approx(np.tanh(np.arctanh(0.1) + sign * half)) for sign in (-1, 1))
    assert one.verdict == "not distinguishable"
    assert one.rows_needed is not None
    assert one.test == "unpaired_t"


def test_values_that_are_no_shares_are_compared_by_the_bootstrap() -> None:
    systems = [foreign("base", 5), foreign("tuned", 15)]
    for system, part in zip(systems, (0.25, 0.75), strict=True):
        for sample in system.answer["samples"]["t"]:
            sample["acc"] = part
    (one,) = as_task_result("t", systems, primary="acc", file="f", sha256="0", seed=0).comparisons
    assert one.test == "bootstrap"


def test_an_unknown_primary_is_refused() -> None:
    with pytest.raises(RequestError, match="primary 'f1'; the harness gave acc"):
        as_task_result("t", [foreign("base", 5)], primary="f1", file="f", sha256="0", seed=0)


def test_the_likeliest_option_is_shown() -> None:
    one = foreign("base", 5)
    one.answer["samples"]["t"][0] |= {
        "filtered_resps": [(-3.0, False), (-1.0, True)],
        "arguments": {"gen_args_0": {"arg_0": "q"}},
    }
    sample = as_task_result("t", [one], primary=None, file="f", sha256="0", seed=0).systems[0].samples[0]
    assert (sample.output, sample.prompt) == ("option 1", "q")


def test_none_right_is_no_certainty_and_few_right_no_share_below_0() -> None:
    found = as_task_result(
        "t",
        [foreign("base", 0, error=0.0), foreign("tuned", 1, error=0.05)],
        primary="acc",
        file="f",
        sha256="0",
        seed=0,
    )
    none, few = (one.metrics["acc"] for one in found.systems)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.161, abs=1e-3)  # Wilson's of 0 of 20
    assert 0 < few.low < few.value == 0.05 < few.high < 0.4


def test_a_figure_that_a_task_counts_from_0_to_100_is_no_fraction() -> None:
    one = foreign("base", 5)
    one.answer["results"]["t"] = {"alias": "t", "f1,none": 84.3, "f1_stderr,none": 1.2}
    found = as_task_result("t", [one], primary="f1", file="f", sha256="0", seed=0)
    metric = found.systems[0].metrics["f1"]
    assert metric.unit == "as lm-eval counts it"
    assert metric.low < 84.3 < metric.high
