"""A size is the same figure in a terminal and on a page."""

from __future__ import annotations

import pytest

from luthier.ml.charts import figures as page_figures
from luthier.platform.cli import figures


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [
        (2_640_000_000, "2.64 GB"),
        (25_216_344_064, "25.2 GB"),
        (8 << 30, "8 GiB"),
        (269_060_552, "269 MB"),
        (1_536, "1.54 kB"),
        (5, "5 B"),
    ],
)
def test_a_terminal_writes_a_size_as_pages_do(num_bytes: int, shown: str) -> None:
    assert figures.size(num_bytes) == shown
    assert page_figures.with_spaces(page_figures.size(num_bytes)) == shown


def test_what_is_compared_with_a_limit_is_in_its_unit() -> None:
    assert figures.size(2_640_000_000, 8 << 30) == "2.46 GiB"
    assert figures.size(2_640_000_000, 25_216_344_064) == "2.64 GB"
