"""Ratings of pairs with a known better answer, and a judge that finds it: for tests of features built on both."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from luthier.core.results.human_eval import Preference, RatingRow, columns_of

GOOD = "good"


def pair_ratings(*, num: int = 60, raters: Sequence[str] = ("ann", "bob")) -> list[RatingRow]:
    """The answer that says `good` is better, and people see it; every fifth pair is a tie. Systems: `m` and `other`."""
    return [_rating(item, rater) for item in range(num) for rater in raters]


def write_ratings(rows: Sequence[RatingRow], file: Path) -> Path:
    """As `luthier human-eval export` writes them, as CSV."""
    columns = columns_of(rows)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows(zip(*(["" if v is None else v for v in column] for column in columns.values()), strict=True))
    return file


def reading_judge(question: str) -> str:
    """The verdict of a judge that reads, on what `evaluate.judge.questions.pairwise_question` asks of such a pair."""
    # The form of the question puts an answer on the line below its heading.
    first, second = (question.split(f"[answer {name}, ")[1].split("\n")[1] for name in "AB")
    return json.dumps({"better": "A" if first == GOOD else "B" if second == GOOD else "tie"})


def _rating(item: int, rater: str) -> RatingRow:
    word: Preference = "tie" if item % 5 == 0 else "a" if item % 2 == 0 else "b"
    return RatingRow(
        panel_id="panel-1",
        kind="pairwise",
        item=item,
        row_id=f"r{item}",
        rater=rater,
        prompt=f"question {item}",
        system_a="m",
        answer_a=GOOD if word == "a" else f"plain {item}",
        system_b="other",
        answer_b=GOOD if word == "b" else "plain",
        preference=word,
    )
