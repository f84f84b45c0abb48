"""How a single wrong value travels from the place that sees it to the report: as an exception with field and reason."""

from __future__ import annotations

import json
from typing import Any

from luthier.core.errors import RowProblem

MAX_SHOWN_CHARACTERS = 60


class BadFieldError(Exception):
    """One value of one row is wrong. Caught by the reader, which adds file and line and makes a RowProblem of it."""

    def __init__(self, field: str, value: Any, reason: str) -> None:
        self.field, self.value, self.reason = field, value, reason
        super().__init__(f"{field}: {reason}")


class EmptyAnswerError(BadFieldError):
    """The text to learn exists and is empty: not a fault of the format, so that an audit can distinguish the two."""

    def __init__(self, field: str, value: Any, what: str = "an empty answer") -> None:
        super().__init__(field, value, f"is {what}: nothing to learn")


class _Absent:
    """Marks a missing value; shown as nothing."""


ABSENT = _Absent()


def shorten(value: Any) -> str:
    """A value as JSON on one line, cut to about 60 characters, safe to print (no lone surrogates)."""
    if value is ABSENT:
        return ""
    if isinstance(value, str):
        # Cut before it is encoded: a text of a gigabyte would be copied for 60 characters.
        shown = json.dumps(value[: MAX_SHOWN_CHARACTERS + 1], ensure_ascii=False)
    else:
        shown = json.dumps(value, ensure_ascii=False, default=repr)
    shown = shown.encode("utf-8", "backslashreplace").decode()
    if len(shown) > MAX_SHOWN_CHARACTERS:
        shown = shown[: MAX_SHOWN_CHARACTERS - 1] + "…"
    return shown


def require_text(fields: dict[str, Any], field: str) -> str:
    """The string in `field`.

    Raises:
        BadFieldError: it is absent, null or no text.
    """
    if field not in fields:
        there = ", ".join(fields) or "none"
        raise BadFieldError(field, ABSENT, f"is absent (fields of this row: {there})")
    return check_text(field, fields[field])


def check_text(field: str, value: Any) -> str:
    """`value`, if it is a string that can be written as UTF-8.

    Raises:
        BadFieldError: it is null, no text, or contains half of a surrogate pair.
    """
    if value is None:
        raise BadFieldError(field, None, "is null where text is expected")
    if not isinstance(value, str):
        raise BadFieldError(field, value, f"is {name_of_type(value)} where text is expected")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            reason = f"contains half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is not a character"
            raise BadFieldError(field, value, reason) from error
    return value


def name_of_type(value: Any) -> str:
    """The JSON name of a value's type, with its article: `a number`, `a list`."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    names = {str: "a text", list: "a list", tuple: "a list", dict: "an object", type(None): "null", bytes: "raw bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def problem_of(row_id: str, *, value: str, reason: str, field: str = "") -> RowProblem:
    """The problem of a row.

    Args:
        row_id: as `file:line`; an id of another form is taken as the file, with line 0.
        value: what the field holds, shortened.
        reason: what is wrong with it.
        field: the field; empty for the whole row.
    """
    # From the right: a Windows path or a URL contains colons.
    file, _, line = row_id.rpartition(":")
    if file and line.isdigit():
        return RowProblem(file, int(line), field, value, reason)
    return RowProblem(row_id, 0, field, value, reason)
