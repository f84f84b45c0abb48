"""Lines with a limit on their length."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.files.untrusted_input import bounded_lines, too_long


@given(st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")), max_size=8), st.booleans())
def test_lines_within_the_limit_come_whole(lines: list[bytes], ends: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    found = list(bounded_lines(io.BytesIO(data), 31))
    assert b"".join(line for line, _ in found) == data
    assert all(len(line) == length for line, length in found)


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("length", [101, 70_000, 65_536, 65_637, 65_638, 200_000])
def test_a_line_over_the_limit_is_cut_and_its_length_is_known(length: int, end: bytes) -> None:
    file = io.BytesIO(b"a\n" + b"b" * length + end + b"c\n")
    first, second, *rest = bounded_lines(file, 100)
    assert first == (b"a\n", 2)
    assert second[1] == length + (1 if end else 2)
    assert second[0] == b"b" * min(101, length)
    assert len(second[0]) < second[1]
    assert rest == ([(b"c\n", 2)] if end else [])


def test_of_a_long_line_no_more_than_64_kib_are_kept() -> None:
    ((line, length),) = bounded_lines(io.BytesIO(b"x" * 1_000_000), 500_000)
    assert (len(line), length) == (65_536, 1_000_000)


def test_the_reason_names_both_figures() -> None:
    assert "2,000 bytes" in too_long(2_000, 100)
    assert "100" in too_long(2_000, 100)
