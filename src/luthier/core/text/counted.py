"""Numbers with their nouns: `1 row`, `2 rows`."""

from __future__ import annotations


def counted(num: int, noun: str, plural: str = "") -> str:
    """A number with thousands separators and what is counted: `1 row`, `1,200 rows`.

    Pages translate both forms: the extraction of texts knows this function.

    Args:
        num: How many.
        noun: For one; a verb may follow it, as in `row is`.
        plural: For any other number; empty for the noun with an s.
    """
    return f"{num:,} {noun if num == 1 else plural or f'{noun}s'}"


def plural_unit(unit: str) -> str:
    """The unit of a progress in the plural: `rows` of `row`, `batches` of `batch`; plurals stay."""
    return unit if unit.endswith("s") else f"{unit}es" if unit.endswith("ch") else f"{unit}s"
