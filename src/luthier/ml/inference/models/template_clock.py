"""The clock as chat templates see it: one fixed day, whatever today is.

Some templates write the date. What a run learns, and what a proof compares, must not depend on the day: a run that is
resumed tomorrow has to see the tokens that it saw today. So `strftime_now` gives one fixed day wherever Luthier
renders, and engines that render by themselves get the template with the clock taken out.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import jinja2

FIXED_DAY: Final = datetime.datetime(2025, 1, 1)
FILLED_BY_LLAMA_CPP: Final = ("date_string", "datetime")
"""Variables that llama.cpp sets to today's date for every template (`common_chat_extra_context`)."""
_FUNCTION: Final = "strftime_now"
_CALL: Final = re.compile(_FUNCTION + r"\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
_ANY_CALL: Final = re.compile(_FUNCTION + r"\s*\(")
_TEXT: Final = re.compile(r"(?P<quote>['\"])(?P<text>[^'\"\n]*%[^'\"\n]*)(?P=quote)")
_OWN: Final = "luthier_"
_LEXER: Final = jinja2.Environment(keep_trailing_newline=True)  # noqa: S701 - nothing is rendered with it


def fixed_strftime(format: str) -> str:
    """The fixed day, written as `strftime_now` of a template asks for it."""
    return FIXED_DAY.strftime(str(format))


def reads_clock(template: str | Mapping[str, str] | None) -> bool:
    """Whether a template, or one of several by name, asks what day it is."""
    texts: Iterable[str] = template.values() if isinstance(template, Mapping) else (template or "",)
    return any(_ANY_CALL.search(text) is not None for text in texts)


def filled_names(template: str) -> tuple[str, ...]:
    """Which variables of a template llama.cpp would fill with today's date."""
    read = {text for text, is_variable in _tokens(template) if is_variable}
    return tuple(name for name in FILLED_BY_LLAMA_CPP if name in read)


def without_clock(template: str) -> str:
    """The template as it renders on the fixed day, for an engine that would read the clock by itself.

    Calls of `strftime_now` become what they give on that day. Variables that llama.cpp fills with the date get a name
    that it does not know, `own_name`: the template then does what it did in training, where nobody set them.
    """
    # As a JSON string, which is a jinja literal too.
    text = _CALL.sub(lambda call: json.dumps(fixed_strftime(call["format"]), ensure_ascii=False), template)
    if _ANY_CALL.search(text) is not None:  # a format in a variable: one of the texts of the template
        formats = {found["text"]: fixed_strftime(found["text"]) for found in _TEXT.finditer(text)}
        table = json.dumps(formats, ensure_ascii=False)
        text = f"{{%- macro {_FUNCTION}(format) -%}}{{{{- {table}[format] -}}}}{{%- endmacro %}}{text}"
    if not filled_names(text):
        return text
    return "".join(own_name(part) if is_variable else part for part, is_variable in _tokens(text))


def own_name(option: str) -> str:
    """The name of a template's option after `without_clock`."""
    return f"{_OWN}{option}" if option in FILLED_BY_LLAMA_CPP else option


def _tokens(template: str) -> Iterator[tuple[str, bool]]:
    """The template in pieces, and which of these are names of variables; empty where it does not parse."""
    before = ""
    try:
        for _, kind, text in list(_LEXER.lex(template)):
            yield text, kind == "name" and before != "."
            before = text
    except jinja2.TemplateError:
        return
