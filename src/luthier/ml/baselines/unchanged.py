"""The text of the prompt as the answer: what a rewriting has to beat, such as a correction or another style.

Where little of a text changes, a copy of it is already close to every reference by ROUGE or chrF.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

from luthier.ml.baselines.rows import NotApplicable, TaskRow, evenly

_LOOKED_AT: Final = 200
"""Training rows by which it is decided what prompts have in common, equally spaced."""
_LEAST_ROWS: Final = 10
_LEAST_WORDS: Final = 5
_LEAST_ALIKE: Final = 0.5
"""Of the words of text and answer, that both have (F1); of unrelated texts of one language it is 0.1 to 0.3."""
_MOST_UNLIKE: Final = 0.05
"""Of the prompts, that may begin or end in another way than the others."""
_WORD: Final = re.compile(r"\w+")


def unchanged_texts(rows: Sequence[TaskRow], prompts: Sequence[str]) -> list[str]:
    """Each prompt without what nearly all prompts begin and end with, such as an instruction.

    Raises:
        NotApplicable: too few rows, short answers, or answers that are no versions of their prompts.
    """
    some = evenly(rows, _LOOKED_AT)
    if len(some) < _LEAST_ROWS:
        raise NotApplicable("fewer than ten rows")
    if statistics.median(len(_WORD.findall(row.answer)) for row in some) < _LEAST_WORDS:
        raise NotApplicable("the answers are short")
    ends = _common_ends([row.prompt for row in some])
    alike = statistics.fmean(_shared(_without(row.prompt, ends), row.answer) for row in some)
    if alike < _LEAST_ALIKE:
        raise NotApplicable("the answers are no versions of their prompts")
    return [_without(prompt, ends) for prompt in prompts]


def _common_ends(texts: Sequence[str]) -> tuple[str, str]:
    """What nearly all texts begin with, and what they end with, in whole words."""
    before = _common_start(texts)
    after = _common_start([text[len(before) :][::-1] if text.startswith(before) else text[::-1] for text in texts])
    return before, after[::-1]


def _common_start(texts: Sequence[str]) -> str:
    # In order, all texts between two have what these two begin with alike: the ends of the order may be others.
    ordered = sorted(texts)
    num = int(_MOST_UNLIKE * len(ordered))
    one, other = ordered[num], ordered[-1 - num]
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    found = one[:length]
    # Up to the last space: words that happen to begin alike are part of the text.
    return found[: max(found.rfind(" "), found.rfind("\n")) + 1]


def _without(prompt: str, ends: tuple[str, str]) -> str:
    return prompt.removeprefix(ends[0]).removesuffix(ends[1]).strip()


def _shared(text: str, answer: str) -> float:
    """F1 of the bags of words."""
    one, other = (Counter(_WORD.findall(part.casefold())) for part in (text, answer))
    num = one.total() + other.total()
    return 2 * (one & other).total() / num if num else 0.0
