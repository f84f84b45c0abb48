"""Figures as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.platform.cli import figures


@pytest.mark.parametrize(
    ("call", "value", "text"),
    [
        (figures.count, 1234, "1,234"),
        (figures.count, 134_515_008, "134.5M"),
        (figures.count, 1_700_000_000, "1.7B"),
        (figures.size, 5, "5 B"),
        (figures.size, 98 << 20, "98 MiB"),
        (figures.size, int(3.5 * (1 << 30)), "3.5 GiB"),
        (figures.duration, 0.25, "0.25 s"),
        (figures.duration, 42.4, "42 s"),
        (figures.duration, 59.7, "1 min 00 s"),
        (figures.duration, 185, "3 min 05 s"),
        (figures.duration, 7800, "2 h 10 min"),
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
