from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

import pytest

from luthier.ml.data.files.cell_text import cell_text


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [
        (None, "General", ""),
        (3.0, "General", "3"),
        (1 / 3, "General", "0.333333333333333"),
        (12, "@", "12"),
        (-0.5, "0", "-1"),
        (2.675, "0.00", "2.68"),
        (1.5, "0.0##", "1.5"),
        (0.5, "#.00", ".50"),
        (1234567.891, "#,##0", "1,234,568"),
        (1234567, "#,##0,", "1,235"),
        (-5, "#,##0;(#,##0)", "(5)"),
        (0, '0;-0;"none"', "none"),
        (19.9, '"$"#,##0.00', "$19.90"),
        (19.9, "#,##0.00\\ [$€-407]", "19.90 €"),
        (-3.5, "[Red]-0.0", "--3.5"),
        (0.256, "0.0%", "25.6%"),
        (1e27, "0.00", "1" + "0" * 27 + ".00"),
        (-1.5e300, "#,##0%", "-150" + ",000" * 100 + "%"),
        (1e308, "0", "1" + "0" * 308),
        (10**29 + 7, "0", "1" + "0" * 28 + "7"),
        (10**400, "General", "1" + "0" * 400),
        (10**400, "0.00E+00", "1" + "0" * 400),
        (float("inf"), "0.00", "inf"),
        (12345, "0.00E+00", "1.23E+04"),
        (0.75, "# ?/?", "0.75"),
        (5, "[>3]0", "5"),
        (datetime(2024, 3, 5, 14, 7, 9), "yyyy-mm-dd hh:mm:ss", "2024-03-05 14:07:09"),
        (datetime(2024, 3, 5, 14, 7), "d mmm yy h:mm AM/PM", "5 Mar 24 2:07 PM"),
        (datetime(2024, 3, 5), 'dddd, d. mmmm yyyy "noon"', "Tuesday, 5. March 2024 noon"),
        (datetime(2024, 3, 5, 14, 7), "m/d/yy h:mm", "2024-03-05 14:07:00"),
        (time(9, 5), "h:mm", "9:05"),
        (timedelta(hours=30, minutes=5), "[h]:mm:ss", "30:05:00"),
    ],
)
def test_a_value_as_its_format_shows_it(value: Any, number_format: str, shown: str) -> None:
    assert cell_text(value, number_format) == shown
