"""Sizes as people write them, read exactly and written so that they are read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import RequestError
from luthier.core.text.byte_sizes import bytes_of, exact_size, size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("5 B", 5),
        ("20GiB", 20 << 30),
        (" 1.5 gib ", 3 << 29),
        ("500 MB", 500_000_000),
        ("0.1tb", 100_000_000_000),
        ("1 PiB", 1 << 50),
    ],
)
def test_units_are_binary_or_decimal(text: str, num_bytes: int) -> None:
    assert bytes_of(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1 GiB", "1 GiB 2", "ten", "1e9", "1 XB", "2048 PiB", "9" * 30, "1,5 GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="the size") as refused:
        bytes_of(text)
    assert "20 GiB" in refused.value.expected


@given(st.integers(0, 1 << 60))
def test_an_exact_size_is_read_again(num_bytes: int) -> None:
    assert bytes_of(exact_size(num_bytes)) == num_bytes


def test_exact_sizes_have_the_largest_unit_that_fits() -> None:
    assert [exact_size(one) for one in (20 << 30, 1_500_000_000, (1 << 20) + 1, 0)] == [
        "20 GiB",
        "1500 MB",
        "1048577",
        "0",
    ]
    assert size((7 << 29) + 5) == "3.76 GB"
