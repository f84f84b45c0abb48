"""Spans of time as people write them."""

from __future__ import annotations

import pytest

from luthier.core.errors import RequestError
from luthier.platform.home.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("5m", 300), ("12h", 43_200), ("30d", 2_592_000), (" 2W ", 1_209_600)]
)
def test_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text, option="--expires") == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5h", "30 d", "1d12h", "101w0", "99999w", "٣d", "1mo"])
def test_anything_else_is_told(text: str) -> None:
    with pytest.raises(RequestError, match="--expires") as caught:
        parse_duration(text, option="--expires")
    assert "30d" in caught.value.do
