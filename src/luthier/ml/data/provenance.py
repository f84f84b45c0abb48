"""Where a row comes from: the source document named in its fields, which keeps rows together and shows leaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PROVENANCE: Final = "provenance"
SOURCE_FIELDS: Final = ("source", "document", "file", "url")
LABEL_FIELDS: Final = ("label", "category", "class", "intent")
ROW_ID_FIELDS: Final = ("id", "uid", "row_id")


def source_of(fields: Mapping[str, Any], group: str | None = None) -> str | None:
    """The source document of a row: `group` where that field is named, else `provenance.file`, else a source field.

    None where the row names none.
    """
    if group is not None:
        return _plain(fields.get(group))
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


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        if (found := _plain(fields.get(name))) is not None:
            return found
    return None


def _plain(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) and value != "" else None
