"""Where a row comes from: the source document named in its fields, which keeps rows together and shows leaks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

PROVENANCE: Final = "provenance"
DOCUMENT: Final = f"{PROVENANCE}.file"
"""The field that names the document of a row."""
PASSAGE: Final = f"{PROVENANCE}.source_row"
"""The field that names the passage that a row was written from."""
OWN_GROUPS: Final = (DOCUMENT, PASSAGE)
SOURCE_FIELDS: Final = ("source", "document", "file", "url")
LABEL_FIELDS: Final = ("label", "category", "class", "intent")
ROW_ID_FIELDS: Final = ("id", "uid", "row_id")


def source_of(fields: Mapping[str, Any], group: str | None = None) -> str | None:
    """The source document of a row: `group` where that field is named, else `provenance.file`, else a source field.

    None where the row names none.
    """
    if group is not None:
        return field_at(fields, group)
    provenance = fields.get(PROVENANCE)
    if isinstance(provenance, dict) and (file := _plain(provenance.get("file"))) is not None:
        return file
    return _first(fields, SOURCE_FIELDS)


def label_of(fields: Mapping[str, Any]) -> str | None:
    """The class of a row, where a field of a usual name gives one."""
    return _first(fields, LABEL_FIELDS)


def row_id_of(fields: Mapping[str, Any]) -> str | None:
    """The id that the row itself carries, where it has one."""
    return _first(fields, ROW_ID_FIELDS)


def field_at(fields: Mapping[str, Any], name: str) -> str | None:
    """The plain value of a field, or of one inside of objects (`provenance.file`), as text; None without one."""
    value = fields.get(name)
    if value is None:
        value = fields
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return _plain(value)


def has_field(names: Collection[str], name: str) -> bool:
    """Whether there is a column for a field, or for the object that it is inside of."""
    return name in names or name.partition(".")[0] in names


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        if (found := _plain(fields.get(name))) is not None:
            return found
    return None


def _plain(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) and value != "" else None
