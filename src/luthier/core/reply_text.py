"""What a model replied, as others read it: without its thoughts, and the JSON objects that are in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

# Each "{" may begin an object, and each is tried; replies are short, so that more are rubbish.
_MAX_BRACES: Final = 64
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
# Some templates write the opening tag themselves, so that a reply has the closing one alone.
_REST_OF_THOUGHT = re.compile(r"\A.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_LEADING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_OPEN_THOUGHT = re.compile(r"<(think|thinking|reasoning)>", re.IGNORECASE)


class _DuplicateKeyError(ValueError):
    pass


def without_thoughts(reply: str) -> str:
    """The reply without what is in <think> tags, and without space around it."""
    # Whole thoughts first: what is left of a closing tag then belongs to a thought without an opening one.
    return _REST_OF_THOUGHT.sub("", _THOUGHT.sub("", reply)).strip()


def split_tags(answer: str) -> tuple[str | None, str]:
    """The thought in `<think>` tags that an answer of a row begins with, and the rest; None and all of it without."""
    found = _LEADING.match(answer)
    return (None, answer) if found is None else (found[1].strip() or None, answer[found.end() :])


def ends_in_thoughts(text: str) -> bool:
    """Whether a text that `without_thoughts` has given still has thoughts, which then never ended."""
    return _OPEN_THOUGHT.search(text) is not None


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, in fences or with prose around them, and those one level down in them.

    Numbers come as the text that they were written as: 1.50 is no 1.5 in a price. Line breaks inside of strings are
    taken; an object with a key that occurs twice is passed over, since only one of the values could be kept.
    """
    decoder = json.JSONDecoder(
        # strict=False takes line breaks inside of strings, which models write. Numbers stay text.
        strict=False,
        object_pairs_hook=_without_duplicates,
        parse_float=str,
        parse_int=str,
        parse_constant=_no_constant,
    )
    position, num_tried = text.find("{"), 0
    while position >= 0 and num_tried < _MAX_BRACES:
        num_tried += 1
        try:
            document, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            # No object begins here: go on behind this brace. Behind an object the search goes on at its end.
            end = position + 1
        else:
            if isinstance(document, dict):
                yield document
                yield from _inner(document)
        position = text.find("{", end)


def _inner(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Objects one level down: {"pair": {...}}, {"pairs": [{...}]}."""
    for value in document.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield inner


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    # The hook sees the pairs before a dict swallows duplicates.
    if len(made) != len(pairs):
        raise _DuplicateKeyError("a key stands twice, and only one value could be kept")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
