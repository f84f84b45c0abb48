"""Which column of a file is a field of a shape: that of its name, else the one that differs in capitals and spaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from luthier.core.errors import DataError

QUESTION_AND_ANSWER: Final = ("question", "answer")
"""Columns of these names are a prompt and its completion."""
CONTEXTS: Final = ("context", "passage", "document", "documents", "options", "choices", "input", "history")
"""What a question beside such a column may not do without."""
LABEL: Final = "label"
OTHER_CLASSES: Final = ("category", "class", "intent", "sentiment", "topic", "target", "labels")
"""Names of columns that may hold the class of a text, or a fact about it."""


def plain_name(name: str) -> str:
    """A name without outer spaces and capitals, by which columns are compared."""
    return " ".join(name.casefold().split())


def columns_like(name: str, columns: Iterable[str]) -> list[str]:
    """The column of that very name; else all that differ from it in capitals and spaces only."""
    columns = list(columns)
    return [name] if name in columns else [column for column in columns if plain_name(column) == plain_name(name)]


def resolve(mapping: Mapping[str, str], fields: Iterable[str], columns: Iterable[str]) -> dict[str, str]:
    """A mapping with the columns as they are written, and with the fields that only one column can be.

    A column that is not there, or may be several, stays as it is written; a field that may be several is left out.

    Args:
        mapping: field -> column, as a person wrote it.
        fields: fields of shapes; a column with the name of one represents it.
        columns: of the file.
    """
    columns = list(columns)
    found = {}
    for target, column in mapping.items():
        like = columns_like(column, columns)
        found[target] = like[0] if len(like) == 1 else column
    # A column that a person has mapped is not also taken for the field that it resembles.
    taken = set(found.values())
    for name in fields:
        if name in found or name in columns:
            continue
        like = [column for column in columns_like(name, columns) if column not in taken]
        if len(like) == 1:
            found[name] = like[0]
    return found


def refuse_ambiguous(file: str, target: str, name: str, columns: Iterable[str]) -> None:
    """Check that at most one column can be meant by a name.

    Args:
        file: name of the file, for the message.
        target: the field that the column is for.
        name: the name as it was written.
        columns: of the file.

    Raises:
        DataError: several columns differ from the name in capitals and spaces only.
    """
    like = columns_like(name, columns)
    if len(like) > 1:
        raise DataError(
            f"{file} has {len(like)} columns that may be {name!r}: {', '.join(map(repr, like))}",
            expected=f"one column for {target}",
            do=f"name it: --map {target}={like[0]!r}, or rename the others",
        )


def is_question_and_answer(fields: Mapping[str, Any]) -> bool:
    """Whether a row holds a question and its answer under these names, both filled."""
    filled = {plain_name(name) for name, value in fields.items() if value is not None}
    return filled.issuperset(QUESTION_AND_ANSWER)
