"""What the rows of a table teach: the answers that are learned, and whether these are classes rather than texts."""

from __future__ import annotations

from typing import Final

import polars as pl

MAX_CLASSES: Final = 50
LONGEST_CLASS_CHARACTERS: Final = 60
FEWEST_ROWS: Final = 20
FEWEST_ROWS_A_CLASS: Final = 5


def learned(frame: pl.DataFrame) -> pl.Series:
    """What is learned of each row: its completion; where the rows are plain text or unmapped, the text."""
    return frame.select(pl.coalesce("completion", "text").alias("learned")).to_series()


def has_completions(frame: pl.DataFrame) -> bool:
    """Whether any row has a prompt and a completion."""
    return frame.height > 0 and frame["completion"].null_count() < frame.height


def classes(frame: pl.DataFrame) -> pl.Series | None:
    """The class of each row (null where it has none), or None where the rows are not about classes.

    The column `label` where any row has one. Otherwise the completions, trimmed, if they look like classes: over at
    least 20 rows at most 50 values, none longer than 60 characters, and 5 rows a value in the mean.
    """
    if not frame.height:
        return None
    if frame["label"].null_count() < frame.height:
        return frame["label"].alias("class")
    return class_answers(frame)


def class_answers(frame: pl.DataFrame) -> pl.Series | None:
    """The completions, trimmed, where they look like classes by the rule of `classes`; else None."""
    answers = frame["completion"]
    num_answers = frame.height - answers.null_count()
    if num_answers < FEWEST_ROWS or int(answers.str.len_bytes().max() or 0) > 4 * LONGEST_CLASS_CHARACTERS:  # type: ignore[arg-type]
        return None
    trimmed = answers.str.strip_chars().alias("class")
    if int(trimmed.str.len_chars().max() or 0) > LONGEST_CLASS_CHARACTERS:  # type: ignore[arg-type]
        return None
    num_classes = trimmed.drop_nulls().n_unique()
    if num_classes > MAX_CLASSES or num_answers < FEWEST_ROWS_A_CLASS * num_classes:
        return None
    return trimmed
