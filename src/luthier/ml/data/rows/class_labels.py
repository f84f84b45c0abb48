"""A column `label` beside a text: whether it holds classes to be learned, and what a class is as text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from luthier.core.errors import DataError

_MAX_DIFFERENT: Final = 100_000
_FEWEST_ROWS: Final = 20
_MAX_DIFFERENT_FRACTION: Final = 0.5


@dataclass
class LabelScan:
    """The labels of all rows.

    Attributes:
        num_filled: rows with one plain value as label.
        num_nested: rows whose label is a list or an object.
        different: the different labels as texts, at most 100,000.
    """

    num_filled: int = 0
    num_nested: int = 0
    different: set[str] = field(default_factory=set)

    def add(self, value: Any) -> None:
        """Take the label of one row into account."""
        if isinstance(value, dict | list):
            self.num_nested += 1
        elif value is not None and value != "":
            self.num_filled += 1
            if len(self.different) < _MAX_DIFFERENT:
                self.different.add(as_text(value))


def check_classes(file: str, labels: LabelScan, num_rows: int, column: str) -> None:
    """Check that the labels beside the texts of a file are clearly classes to be learned.

    Args:
        file: name of the file, for the message.
        labels: the labels of all rows.
        num_rows: rows of the file.
        column: name of the label's column.

    Raises:
        DataError: labels are nested, missing in some rows, or too many to be classes.
    """
    num = len(labels.different)
    if labels.num_nested:
        what = f"{labels.num_nested:,} rows of {file} have a {column} of several values beside their text"
    elif labels.num_filled < num_rows:
        without = num_rows - labels.num_filled
        what = f"{without:,} of {num_rows:,} rows of {file} have a text and no {column}, the others have both"
    elif num_rows >= _FEWEST_ROWS and num > _MAX_DIFFERENT_FRACTION * num_rows:
        what = f"{file} has {num:,} different values of {column} beside {num_rows:,} texts, too many for classes"
    else:
        return
    raise DataError(
        what,
        expected="a text and its class in each row, or to know what is to be learned",
        do=f"name it: --map text=text learns the texts alone, --map prompt=text --map completion={column} the {column}",
    )


def as_text(value: Any) -> Any:
    """A class as the text that a model learns: numbers and booleans as JSON writes them, anything else as it is."""
    return json.dumps(value) if isinstance(value, bool | int | float) else value
