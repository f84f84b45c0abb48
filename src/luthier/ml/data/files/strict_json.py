"""JSON without its silent traps: a key that comes twice, NaN and Infinity, and nesting too deep.

Half of a surrogate pair is no fault here: the texts that are learned are checked for it, with their field; one in a
field that nobody reads keeps no row out.
"""

from __future__ import annotations

import json
from typing import Any

from luthier.core.json_limits import MAX_DEPTH, fault_of, is_shallow


class StrictJsonError(ValueError):
    """The text is not JSON as it should be. `line` and `column` count from 1; 0 where the place is not known."""

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        self.reason, self.line, self.column = reason, line, column
        super().__init__(reason)


def strict_loads(text: str) -> Any:
    """Parse one JSON document.

    Raises:
        StrictJsonError: with the reason and, for bad syntax, line and column.
    """
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise StrictJsonError(_lower_first(error.msg), error.lineno, error.colno) from error
    except RecursionError as error:
        raise StrictJsonError(f"is nested too deeply; expected: at most {MAX_DEPTH} levels") from error
    except StrictJsonError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise StrictJsonError(_lower_first(str(error))) from error
    # A file of rows may hold as many values as it likes.
    if not is_shallow(text) and (fault := fault_of(found, max_values=0, allows_half=True)) is not None:
        place = f" at {fault.place!r}" if fault.place else ""
        raise StrictJsonError(f"has {fault.came}{place}; expected: {fault.expected}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJsonError(f"the key {key!r} stands twice in one object, and only one value could be kept")
            seen.add(key)
    return made


def _constant(name: str) -> Any:
    raise StrictJsonError(f"{name} is not JSON")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
