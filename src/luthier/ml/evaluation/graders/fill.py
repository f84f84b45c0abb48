"""Texts with places to fill, as graders write them: `{{sample.output_text}}`, `{{item.reference}}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.errors import RequestError

_PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_OUTPUT = "sample.output_text"


def item_fields(template: str) -> tuple[str, ...]:
    """The fields of the row that a template asks for: `{{item.answer.value}}` asks for `answer`.

    Raises:
        RequestError: a place that is neither of the row nor the written text.
    """
    names = []
    for place in _PLACE.findall(template):
        if place == _OUTPUT:
            continue
        kind, _, rest = place.partition(".")
        if kind != "item" or not rest:
            raise RequestError(
                f"a grader with the place {{{{{place}}}}}",
                expected=f"{{{{{_OUTPUT}}}}} or {{{{item.FIELD}}}} with a field of the row",
                do="correct objective.rewards",
            )
        names.append(rest.split(".")[0])
    return tuple(dict.fromkeys(names))


def filled(template: str, output: str, item: Mapping[str, Any]) -> str:
    """The template with its places filled; what is no text is written as JSON.

    Raises:
        RequestError: the row has no such field.
    """

    def value(match: re.Match[str]) -> str:
        place = match[1]
        if place == _OUTPUT:
            return output
        found = _at(item, place.split(".")[1:])
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    # One pass: places inside an inserted text are left as they are.
    return _PLACE.sub(value, template)


def _at(item: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = item
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            known = ", ".join(sorted(found)) if isinstance(found, Mapping) else type(found).__name__
            raise RequestError(
                f"a grader asks for item.{'.'.join(path)}, and a row has no {name!r}",
                expected=f"one of {known}",
                do="correct objective.rewards, or give every row that field",
            )
        found = found[name]
    return found
