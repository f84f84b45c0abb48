from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.evaluation import Metric
from luthier.ml.charts import figures


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (0.0004, "<0.01 s"),
        (0.0099, "<0.01 s"),
        (0.01, "0.01 s"),
        (0.04, "0.04 s"),
        (42.4, "42 s"),
        (59.7, "1 min 00 s"),
        (372, "6 min 12 s"),
        (3599.6, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert figures.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


@given(st.floats(min_value=0, max_value=1e9))
def test_no_duration_shows_sixty_of_anything(seconds: float) -> None:
    assert "60" not in figures.duration(seconds).split("h")[-1]


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (2_640_000_000, "2.64 GB")]
)
def test_sizes_take_the_unit_that_fits(num_bytes: int, text: str) -> None:
    assert figures.size(num_bytes).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (8 << 30, "8 GiB"),
        (3 << 29, "1.5 GiB"),
        (80 << 30, "80 GiB"),
        (512 << 20, "512 MiB"),
        (1000 << 20, "1,000 MiB"),
        (64 << 10, "64 KiB"),
        (1 << 10, "1 KiB"),
        (2 << 40, "2 TiB"),
        (1280, "1.28 kB"),
        (512, "512 B"),
        ((8 << 30) + 1, "8.59 GB"),
        (23_546 << 20, "24.7 GB"),
        (float(24 << 30), "24 GiB"),
    ],
)
def test_what_a_binary_unit_writes_exactly_is_written_in_it(num_bytes: float, text: str) -> None:
    assert figures.size(num_bytes).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("num_bytes", "beside", "text"),
    [
        (2_640_000_000, 8 << 30, "2.46 GiB"),
        (2_640_000_000, 25_170_000_000, "2.64 GB"),
        (8 << 30, 25_170_000_000, "8.59 GB"),
        (0, 8 << 30, "0 B"),
        (1023 << 20, 8 << 30, "1,023 MiB"),
    ],
)
def test_sizes_that_are_compared_have_one_kind_of_unit(num_bytes: int, beside: int, text: str) -> None:
    assert figures.size(num_bytes, beside).replace("\N{NO-BREAK SPACE}", " ") == text


def test_sizes_of_one_column_have_one_kind_of_units() -> None:
    written = [figures.size(num_bytes, in_decimal=True) for num_bytes in (1 << 30, 9728 << 20, 1_180_000_000)]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in written] == ["1.07 GB", "10.2 GB", "1.18 GB"]
    assert figures.size(1 << 30).endswith("GiB"), "else a limit is written as it was set"


@given(st.integers(min_value=0, max_value=1 << 50))
def test_no_size_has_an_exponent_or_a_thousand_of_a_decimal_unit(num_bytes: int) -> None:
    digits, _, unit = figures.size(num_bytes).partition("\N{NO-BREAK SPACE}")
    assert "e" not in digits
    assert "," not in digits or "i" in unit or unit == "TB"


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [(0.271, 0.352, 3), (16.7, 20.1, 1), (1.0, 1.0, 2), (0, 900, 0), (0.1, 0.1000001, 5)],
)
def test_an_interval_gets_two_digits_of_its_width(low: float, high: float, decimals: int) -> None:
    assert figures.decimals_for(low, high) == decimals


def test_differences_carry_their_sign_and_a_true_minus() -> None:
    assert figures.signed(0.2291, 3) == "+0.229"
    assert figures.signed(-12.24, 1) == "−12.2"
    assert figures.signed(-0.0001, 2) == "0.00"
    assert figures.number(-1234.5, 0) == "−1,234"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0001, "<\N{NO-BREAK SPACE}0.001"), (0.0123, "0.012"), (0.3112, "0.31"), (1.0, "1.00")]
)
def test_p_values(value: float, text: str) -> None:
    assert figures.p_value(value) == text


def test_systems_of_one_metric_share_their_decimals() -> None:
    def metric(low: float, high: float) -> Metric:
        return Metric(value=low, low=low, high=high, unit="", higher_is_better=True)

    assert figures.common_decimals([metric(16.7, 20.1), metric(5.61, 5.93), metric(0, 0)]) == 2
    assert figures.common_decimals([metric(0, 0)]) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "yes"),
        (12345, "12,345"),
        (5e-4, "0.0005"),
        (3.0, "3"),
        (("q", "k"), "q, k"),
        ([], "none"),
        ({"kind": "ema", "decay": 0.9, "from_step": None}, "kind ema, decay 0.9"),
    ],
)
def test_values_of_the_plan(value: object, text: str) -> None:
    assert figures.plain(value) == text


def test_names_and_times() -> None:
    assert figures.when("2026-11-25T09:30:00+00:00") == "25 November 2026, 09:30 UTC"
    assert figures.when("2026-11-25T09:30:00") == "25 November 2026, 09:30 UTC"
    assert figures.rough(1056.2) == "1,056"
    assert figures.rough(-0.00333) == "−0.00333"


def test_an_interval_of_energy_has_one_unit() -> None:
    def shown(*kwh: float) -> list[str]:
        return [figures.with_spaces(figures.energy(one, kwh[-1])) for one in kwh]

    assert shown(0.00007, 0.00024, 0.00329) == ["0.07 Wh", "0.24 Wh", "3.29 Wh"]
    assert shown(0.02, 0.05, 0.15) == ["0.02 kWh", "0.05 kWh", "0.15 kWh"]
    assert shown(1.6e-7, 4e-6, 0.002) == ["under 0.01 Wh", "under 0.01 Wh", "2 Wh"]
    assert [figures.with_spaces(figures.energy(one)) for one in (0.0, 0.0008, 1.5)] == ["0 Wh", "0.8 Wh", "1.5 kWh"]
