"""The power law: planted ones are found, and where there is nothing to find it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.workflows.learning_curve import CurvePoint, LearningCurve
from luthier.ml.planning.learning_curve import curve_band, fit_power_law, write_learning_curve_chart

SIZES = (125, 125, 125, 250, 250, 500, 1000)


def points(
    law: Callable[[int], float], sizes: Sequence[int] = SIZES, *, noise: float = 0.0, seed: int = 0
) -> list[CurvePoint]:
    draw = np.random.default_rng(seed)
    return [CurvePoint(part=(0.0, 1.0), num_rows=n, loss=law(n) + noise * draw.standard_normal()) for n in sizes]


def test_a_planted_law_is_recovered_and_extrapolated() -> None:
    fit = fit_power_law(points(lambda n: 0.5 + 3.0 * n**-0.4))
    assert fit.word == "useful"
    assert fit.floor.value == pytest.approx(0.5, abs=0.02)
    assert fit.exponent.value == pytest.approx(0.4, rel=0.04)
    assert fit.scale == pytest.approx(3.0, rel=0.06)
    assert [gain.more_rows for gain in fit.gains] == [200, 1000, 3000]
    for gain in fit.gains:
        n = 1000 + gain.more_rows
        assert gain.loss.value == pytest.approx(0.5 + 3.0 * n**-0.4, rel=0.005)
        assert gain.bought.value == pytest.approx(3.0 * (1000**-0.4 - n**-0.4), rel=0.05)


@settings(deadline=None, max_examples=25)
@given(floor=st.floats(0.1, 2.0), scale=st.floats(1.0, 10.0), exponent=st.floats(0.1, 1.0))
def test_any_planted_law_foretells_twice_the_rows(floor: float, scale: float, exponent: float) -> None:
    fit = fit_power_law(points(lambda n: floor + scale * n**-exponent))
    assert fit.gains[1].loss.value == pytest.approx(floor + scale * 2000**-exponent, rel=0.01)


def test_the_fit_is_that_of_another_least_squares_solver() -> None:
    noisy = points(lambda n: 0.8 + 4.0 * n**-0.5, noise=0.005, seed=3)
    sizes, losses = [p.num_rows for p in noisy], [p.loss for p in noisy]
    (a, b, c), _ = curve_fit(
        lambda n, a, b, c: a + b * np.asarray(n, dtype=float) ** -c, sizes, losses, p0=(0.5, 3.0, 0.4), maxfev=20000
    )
    fit = fit_power_law(noisy)
    assert fit.gains[1].loss.value == pytest.approx(a + b * 2000.0**-c, rel=0.003)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    def law(n: int) -> float:
        return 0.6 + 5.0 * n**-0.45

    held = 0
    for seed in range(60):
        gain = fit_power_law(points(law, noise=0.01, seed=seed)).gains[1]
        held += gain.loss.low <= law(2000) <= gain.loss.high
    assert held >= 54


def test_more_noise_makes_wider_intervals() -> None:
    widths = []
    for noise in (0.001, 0.01, 0.05):
        loss = fit_power_law(points(lambda n: 0.5 + 3.0 * n**-0.4, noise=noise, seed=1)).gains[2].loss
        widths.append(loss.high - loss.low)
    assert widths == sorted(widths)
    assert widths[2] > 3 * widths[0]


def test_a_flat_curve_says_nothing() -> None:
    for seed in range(10):
        fit = fit_power_law(points(lambda n: 1.5, noise=0.02, seed=seed))
        assert fit.word in ("flat", "unclear", "rising"), seed
        assert fit.enough_rows is None
    flat = fit_power_law(points(lambda n: 1.5))
    assert flat.word == "flat"
    assert flat.words.startswith("the fit shows nothing: from 125 to 1,000 rows")


def test_a_rising_curve_says_that_rows_are_not_what_is_missing() -> None:
    fit = fit_power_law(points(lambda n: 1.0 + n / 2000, noise=0.001))
    assert fit.word == "rising"
    assert "more rows would hardly help" in fit.words


def test_a_noisy_curve_says_little() -> None:
    words = [fit_power_law(points(lambda n: 0.5 + 3.0 * n**-0.4, noise=0.15, seed=seed)).word for seed in range(20)]
    assert "unclear" in words
    assert words.count("useful") <= 6


def test_enough_rows_is_where_twice_as_many_buy_less_than_a_hundredth() -> None:
    fit = fit_power_law(points(lambda n: 0.5 + 3.0 * n**-0.4))
    assert fit.enough_rows is not None

    def law(n: float) -> float:
        return 0.5 + 3.0 * n**-0.4

    assert law(fit.enough_rows) - law(2 * fit.enough_rows) < 0.0105 * law(fit.enough_rows)
    before = fit.enough_rows / 1.3
    assert law(before) - law(2 * before) > 0.0095 * law(before)


@pytest.mark.parametrize(
    "sizes", [(), (10,), (10, 20, 40), (10, 10, 10, 20), (10, 10, 20, 20, 20), (60, 61, 60, 122, 121)]
)
def test_too_few_points_or_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"points of \d sizes[\s\S]*three unknowns"):
        fit_power_law(points(lambda n: 1.0 + 1 / n, sizes))


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_that_is_none_is_refused(loss: float) -> None:
    spoilt = [*points(lambda n: 1.0 + 1 / n)[:-1], CurvePoint(part=(0.0, 1.0), num_rows=1000, loss=loss)]
    with pytest.raises(RequestError, match="may have diverged"):
        fit_power_law(spoilt)


def test_the_band_holds_the_curve() -> None:
    rows = np.array([100.0, 500.0, 4000.0])
    middle, low, high = curve_band(points(lambda n: 0.5 + 3.0 * n**-0.4, noise=0.01, seed=2), rows)
    assert np.all(low <= middle)
    assert np.all(middle <= high)
    assert high[2] - low[2] > high[1] - low[1]


def test_the_chart_is_written_with_and_without_a_law(tmp_path: Path) -> None:
    made = points(lambda n: 0.5 + 3.0 * n**-0.4, (60, 61, 61, 122, 121, 243, 486), noise=0.01)
    curve = LearningCurve(
        points=tuple(made), fit=fit_power_law(made), planned_hours=Estimate(value=1, low=1, high=1), spent_hours=1.0,
        cap_hours=None, num_validation_rows=8, paused_because=None, notes=(),
    )  # fmt: skip
    write_learning_curve_chart(tmp_path / "curve.svg", curve)
    svg = (tmp_path / "curve.svg").read_text(encoding="utf-8")
    for text in ("61", "122", "243", "486", "972", "1,944", "expected beyond", "training rows"):
        assert f">{text}</text>" in svg
    assert ">60</text>" not in svg, "two labels on one place"
    without = curve.model_copy(update={"points": curve.points[:2], "fit": None})
    write_learning_curve_chart(tmp_path / "points.png", without)
    assert (tmp_path / "points.png").read_bytes().startswith(b"\x89PNG")
