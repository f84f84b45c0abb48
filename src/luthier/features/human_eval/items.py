"""From answers to what is shown: pairs or single answers in no telling order, with attention checks among them.

An attention check is an item whose right answer is known. Where the row has an answer of its own, that is shown beside
the words of another row's answer in no order; where not, and where single answers are rated, the text itself says what
to choose (instructed response items: Meade and Craig, "Identifying Careless Responses in Survey Data", 2012, table 1).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Final

from luthier.core.results.human_eval import AttentionCheck, RatedAnswer, RatingItem, RatingKind
from luthier.features.human_eval.answers import AnsweredRow, AnsweredRows

CHECK_SYSTEM: Final = "attention check"
MIN_CHECKS: Final = 2
_MIN_WORDS: Final = 8
"""Fewer words in no order may still make sense."""


def make_items(
    kind: RatingKind, answered: AnsweredRows, *, attention: float, seed: int
) -> tuple[list[RatingItem], int]:
    """All items of a panel, and how many pairs are not shown because both answers are the same text.

    attention: attention checks as a share of the real items, rounded up, and two at least unless it is 0.
    """
    # One generator for all draws in a fixed order: the same seed makes the same panel.
    drawn = random.Random(seed)  # noqa: S311 - an order that can be made again
    if kind == "pairwise":
        pairs = [
            (row, (first, second))
            for row in answered.rows
            for first, second in itertools.combinations(answered.systems, 2)
        ]
        shown = [(row, names) for row, names in pairs if row.answers[names[0]].strip() != row.answers[names[1]].strip()]
        num_same = len(pairs) - len(shown)
    else:
        shown = [(row, (name,)) for row in answered.rows for name in answered.systems]  # type: ignore[misc]
        num_same = 0
    made = [_item(row, [RatedAnswer(system=name, text=row.answers[name]) for name in names]) for row, names in shown]
    if attention > 0 and made:
        # Two at least: one failed check may be a slip, two are a pattern.
        num_checks = max(MIN_CHECKS, math.ceil(attention * len(made)))
        make = _pairwise_checks if kind == "pairwise" else _likert_checks
        made += make(answered.rows, num_checks, drawn)
    # Checks are shuffled in with the rest; the item number is assigned after it and so reveals nothing.
    drawn.shuffle(made)
    return [item.model_copy(update={"item": number}) for number, item in enumerate(made)], num_same


def _pairwise_checks(rows: Sequence[AnsweredRow], number: int, drawn: random.Random) -> list[RatingItem]:
    wordy = [row for row in rows if len(set(row.reference.split())) >= _MIN_WORDS]
    made = []
    for place in range(number):
        if len(wordy) > 1:
            row = wordy[place % len(wordy)]
            # Another row's words: a garbled version of the same answer would have the right vocabulary.
            other = drawn.choice([one for one in wordy if one is not row])
            texts = [row.reference, _garbled(other.reference, drawn)]
            # "a" is the right one in the stored item; which side it is shown on is drawn for each rater.
            how = AttentionCheck(how="garbled", preference="a")
        else:
            row = rows[place % len(rows)]
            words = "This text checks whether answers are read. Please choose the answer with this sentence as better."
            texts = [words, next(iter(row.answers.values()))]
            how = AttentionCheck(how="instructed", preference="a")
        made.append(_item(row, [RatedAnswer(system=CHECK_SYSTEM, text=text) for text in texts], how))
    return made


def _likert_checks(rows: Sequence[AnsweredRow], number: int, drawn: random.Random) -> list[RatingItem]:
    made = []
    # Without 3: a rater who always picks the middle must fail.
    scores = [1, 5, 2, 4]
    drawn.shuffle(scores)
    for place in range(number):
        score = scores[place % len(scores)]
        words = f"This text checks whether answers are read. Please give {score} to every question about it."
        check = AttentionCheck(how="instructed", score=score)
        made.append(_item(rows[place % len(rows)], [RatedAnswer(system=CHECK_SYSTEM, text=words)], check))
    return made


def _item(row: AnsweredRow, answers: Sequence[RatedAnswer], check: AttentionCheck | None = None) -> RatingItem:
    return RatingItem(
        item=0, row_id=row.row_id, prompt=row.prompt, messages=row.messages, answers=tuple(answers), check=check
    )


def _garbled(text: str, drawn: random.Random) -> str:
    """The words in another order, which is never the first one."""
    words = text.split()
    mixed = words[:]
    while mixed == words:
        drawn.shuffle(mixed)
    return " ".join(mixed)
