"""The rows of a distillation, written once: the gold answers, the held-out rows, and what the teacher answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, LeakageError, RequestError
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import TimedOutcome

if TYPE_CHECKING:
    from luthier.core.dataset import Example

_TRAIN, _HELD_OUT, _ANSWERS, _GOLD = "train.jsonl", "held_out.jsonl", "answers.jsonl", "gold.jsonl"


class StudentRows(TimedOutcome):
    """Files of chat rows, in one order.

    Attributes:
        taught: What the taught student learns.
        gold: What the other learns.
        held_out: What all are judged on.
        num_rows: In each of the first two.
        num_refused: Rows of which the teacher's answer could not be used, in neither.
    """

    taught: Path = Path()
    gold: Path = Path()
    held_out: Path = Path()
    num_rows: int = 0
    num_refused: int = 0

    def lines(self) -> Sequence[str]:
        """How many rows are learned."""
        return [f"{self.num_rows:,} rows learned, {self.num_refused:,} left out"] if self.num_rows else []


def write_gold(
    folder: Path, data: Path, held_out: Path | float, *, mapping: Mapping[str, str] | None, seed: int
) -> tuple[int, int, int]:
    """Write the gold rows that are trained on and those that judge; files that lie there stay.

    Returns how many are trained on, how many judge, and how many of these ask what a training row asks.

    held_out: a file, or the fraction of the rows to keep back, drawn by a stable hash so that equal texts never part.
    Only the last answer of a row is learned, as it is of those that a teacher writes.

    Raises DataError for rows without a prompt and an answer, LeakageError where a held-out row is trained on.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.rows.write_rows import write_rows
    from luthier.ml.data.split.split import leaked_ids, split_by_fraction

    if isinstance(held_out, float) and not 0 < held_out < 1:
        raise RequestError(
            f"held-out fraction {held_out:g}", expected="more than 0 and less than 1, or a file", do="try 0.2"
        )
    fields = dict(mapping) if mapping else None
    examples: Sequence[Example] = load_file(data, mapping=fields).examples
    if isinstance(held_out, float):
        parts = split_by_fraction(examples, validation=0.0, held_out=held_out, seed=seed)
        examples, judging = parts["train"], tuple(parts["held_out"])
    else:
        judging = load_file(held_out, mapping=fields).examples
    found = leaked_ids(examples, judging)
    if found.exact:
        raise LeakageError(
            f"{len(found.exact):,} of {len(judging):,} held-out rows stand in the rows that are trained on",
            expected="rows that no student was trained on",
            do="take them out, or have the rows split: --held-out 0.2",
            problems=found.exact,
        )
    for name, chosen in ((_TRAIN, examples), (_HELD_OUT, judging)):
        rows = _gold_rows(chosen)
        # Read and checked at every resume, but written once: what was trained on must not change.
        if not (folder / name).exists():
            write_rows(rows, folder / name)
    return len(examples), len(judging), len(found.same_prompt)


def write_taught(
    context: Context, folder: Path, *, teacher: str | None, max_new_tokens: int, num_rows: int
) -> StudentRows:
    """Have the teacher answer the prompts that are trained on, and leave the rows it could not answer out of both.

    Args:
        context: The home.
        folder: Of the distillation.
        teacher: None where it does not write, but gives its logits: both then learn the gold rows.
        max_new_tokens: Of an answer.
        num_rows: Gold rows to train on.

    Raises:
        DataError: No answer could be used.
        WorkError: The teacher gives no answer.
    """
    from luthier.features.datasets.answers import answer
    from luthier.ml.data.rows.write_rows import write_rows

    train, held_out = folder / _TRAIN, folder / _HELD_OUT
    if teacher is None:
        return StudentRows(taught=train, gold=train, held_out=held_out, num_rows=num_rows, num_refused=0)
    answers, gold = folder / _ANSWERS, folder / _GOLD
    if not gold.exists():
        answer(context, train, teacher=teacher, output=answers, max_new_tokens=max_new_tokens, force=True)
        # `source_row` is FILE:LINE with lines from 1, hence the enumeration from 1 below.
        answered = {int(row["provenance"]["source_row"].rpartition(":")[2]) for row in _read(answers)}
        rows = (row for number, row in enumerate(_read(train), start=1) if number in answered)
        write_rows(rows, gold)  # last: where it lies, the answers do
    num_kept = len(_read(gold))
    refused = num_rows - num_kept
    return StudentRows(taught=answers, gold=gold, held_out=held_out, num_rows=num_kept, num_refused=refused)


def _gold_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.answer_prompts import gold_row
    from luthier.ml.data.tokenise.row_problem import problem_of

    rows, problems = [], []
    for example in examples:
        try:
            rows.append(gold_row(example))
        except BadFieldError as error:
            problems.append(problem_of(example.id, value="", reason=f"{error.field} {error.reason}"))
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(examples):,} rows have no prompt with an answer in words",
            expected="rows with both: the student without a teacher learns these answers, and all three are judged by "
            "those of the held-out rows",
            do="give prompt and completion, or messages that end with the assistant's; or map the fields: "
            "--map completion=COLUMN",
            problems=problems,
        )
    return rows


def _read(file: Path) -> list[dict[str, Any]]:
    # Not splitlines: it also splits at U+2028 and U+0085, which JSON leaves unescaped inside a text.
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]
