"""Rows as a baseline sees them: the prompt as one text, and the answer."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from luthier.core.dataset import Example
from luthier.ml.evaluation.sampling import choose_by_hash

MAX_ROWS: Final = 20_000
"""Training rows that a baseline is fitted on; more are sampled by a hash of their content."""
MAX_CHARACTERS: Final = 8_000
"""Of a prompt; what a longer one says at its end, where the question is, counts."""
WORDS: Final = r"(?u)\b\w+\b"
"""What vectorisers take for a word: single letters and digits, too."""
_SPACE: Final = re.compile(r"\s+")
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row.

    Attributes:
        prompt: the turns before the answer, joined by line ends, without their roles.
        answer: the text of the last learned answer.
    """

    prompt: str
    answer: str


class NotApplicable(Exception):  # noqa: N818 - no error: the reason why a baseline is left out
    """The rows are not of the kind that a baseline is made for; the message is the reason, as a sentence fragment."""


def task_rows(examples: Sequence[Example]) -> list[TaskRow]:
    """The rows that have a prompt and a text answer; of more than `MAX_ROWS` a sample by a hash of their content.

    The sample does not depend on the order of the rows, and equal rows give equal samples on every machine.
    """
    rows = [
        TaskRow(prompt_text(example), example.reference)
        for example in examples
        if example.prompt is not None and example.reference is not None
    ]
    # surrogatepass: half a surrogate has no UTF-8 otherwise.
    return list(
        choose_by_hash(rows, MAX_ROWS, lambda row: f"{row.prompt}\0{row.answer}".encode("utf-8", "surrogatepass"))
    )


def prompt_text(example: Example) -> str:
    """The turns before the answer, joined by line ends; the last `MAX_CHARACTERS` characters of them."""
    prompt = example.prompt
    turns = () if prompt is None else prompt.messages
    text = "\n".join(message.content for message in turns if message.content)
    return text[-MAX_CHARACTERS:]


def evenly(rows: Sequence[_Row], most: int) -> Sequence[_Row]:
    """All rows, or `most` of them at equal distances: the first rows of a file that is sorted by answer are alike."""
    num = len(rows)
    return rows if num <= most else [rows[place * num // most] for place in range(most)]


def within(rows: Sequence[TaskRow], max_characters: int) -> Sequence[TaskRow]:
    """All rows, or equally spaced ones whose prompts have at most about that many characters in total."""
    num_characters = sum(len(row.prompt) for row in rows)
    return rows[:: max(1, -(-num_characters // max_characters))]


def same_label(answer: str) -> str:
    """What answers have in common that differ only in case, in spaces or in how characters are composed."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", answer)).strip().casefold()


def spellings(answers: Iterable[str] | Mapping[str, int]) -> dict[str, str]:
    """Of each label (`same_label`) its commonest spelling; of equally common ones the first in the rows.

    answers: in the order of the rows; or different ones in that order, with how often each is there.
    """
    counts: dict[str, dict[str, int]] = {}
    for answer, num in Counter(answers).items():  # keeps the order of the rows
        counts.setdefault(same_label(answer), {})[answer] = num
    # max keeps the first of equals.
    return {label: max(forms, key=lambda form: forms[form]) for label, forms in counts.items()}
