"""Figures as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.ml.charts import figures as page_figures
from luthier.platform.cli import figures


@pytest.mark.parametrize(
    ("call", "value", "text"),
    [
        (figures.count, 1234, "1,234"),
        (figures.count, 134_515_008, "134.5M"),
        (figures.count, 1_700_000_000, "1.7B"),
        (figures.count, 999_999_999, "1.0B"),
        (figures.count, 999_949_999, "999.9M"),
        (figures.count, 999_999, "999,999"),
        (figures.size, 5, "5 B"),
        (figures.size, 98 << 20, "98 MiB"),
        (figures.size, int(3.5 * (1 << 30)), "3.5 GiB"),
        (figures.duration, 0.25, "0.25 s"),
        (figures.duration, 42.4, "42 s"),
        (figures.duration, 59.7, "1 min 00 s"),
        (figures.duration, 185, "3 min 05 s"),
        (figures.duration, 7800, "2 h 10 min"),
        (figures.duration, 7190, "2 h 00 min"),
        (figures.duration, 0.0012, "0.0012 s"),
        (figures.utc, 1_700_000_000.0, "2023-11-14 22:13"),
        (lambda moment: figures.utc(moment, is_exact=True), 1_700_000_000.0, "2023-11-14 22:13:20"),
        (figures.number, None, "-"),
        (figures.number, 0.00012345, "0.0001234"),
        (figures.number, 12345.6, "12,346"),
        (figures.plain, True, "yes"),
        (figures.plain, ["a", 1, 0.5], "a, 1, 0.5"),
        (figures.plain, {"a": 1}, "a=1"),
        (figures.plain, 2e-4, "0.0002"),
    ],
)
def test_figures(call: Any, value: Any, text: str) -> None:
    assert call(value) == text


def test_a_time_is_the_same_in_a_terminal_and_on_a_page() -> None:
    for seconds in (10.0, 59.4, 59.6, 61, 3599.4, 3599.6, 7169, 7171, 7199, 36_000_000):
        assert figures.duration(seconds) == page_figures.duration(seconds).replace("\N{NO-BREAK SPACE}", " ")
