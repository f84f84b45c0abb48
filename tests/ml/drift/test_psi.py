"""The population stability index and its interval."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.ml.drift.evidence import Floats, binned, matched, psi


def test_equal_laws_are_near_nought_and_the_known_figure_comes_out() -> None:
    assert psi(np.array([500.0, 500.0]), np.array([500.0, 500.0])).value == 0.0
    found = psi(np.array([5e6, 5e6]), np.array([8e6, 2e6]))
    assert found.value == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4), rel=1e-4)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(8)
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.2, 0.3, 0.2, 0.3])
    truth = float(((q - p) * np.log(q / p)).sum())
    held = 0

    def drawn(num: int, shares: Floats) -> Floats:
        return generator.multinomial(num, shares).astype(np.float64)

    for _ in range(400):
        low, high = psi(drawn(800, p), drawn(400, q)).ends(0.025)
        held += low <= truth <= high
    assert 0.91 <= held / 400 <= 0.985


def test_bins_hold_a_tenth_each_and_an_empty_one_stays_finite() -> None:
    before, now = np.arange(1_000.0), np.full(50, 5_000.0)
    counts, of_now = binned(before, now)
    assert counts.tolist() == pytest.approx([100] * 10, abs=1)
    assert of_now[-1] == 50
    assert np.isfinite(psi(counts, of_now).value)
    assert [one.tolist() for one in binned(np.ones(10), np.ones(5))] == [[10.0, 0.0], [5.0, 0.0]]
    assert [one.tolist() for one in matched(np.array([0.0, 2.0]), np.array([2.0]), 4)] == [[1.0, 1.0], [0.0, 1.0]]


def test_an_index_that_is_hardly_known_has_an_interval_above_0() -> None:
    low, high = psi(np.array([30.0, 20.0]), np.array([16.0, 7.0])).ends(0.025)
    assert 0 <= low < high < 3
