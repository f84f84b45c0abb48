"""Where a text differs from another, word by word, to be marked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, Literal

_WORDS: Final = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS: Final = 800
"""Blanks and signs count, too. Longer texts are not compared: nobody reads marks in them, and it takes long."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the text.

    Attributes:
        kind: `ins` where only it has this, `del` where only the other has.
    """

    kind: Literal["", "ins", "del"]
    text: str


def word_differences(other: str, text: str) -> list[Stretch] | None:
    """The text with what sets it apart from the other one; None where one of them is too long."""
    if other == text:
        return [Stretch("", text)] if text else []
    before, after = _WORDS.findall(other), _WORDS.findall(text)
    if max(len(before), len(after)) > MAX_WORDS:
        return None
    found = []
    # autojunk ignores words that are frequent in texts of 200 and more, which would mark too much.
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(Stretch("", "".join(after[k:m])))
            continue
        if i < j:
            found.append(Stretch("del", "".join(before[i:j])))
        if k < m:
            found.append(Stretch("ins", "".join(after[k:m])))
    return found
