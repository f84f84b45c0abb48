"""What a task head learns of rows: their classes or numbers as targets, and the tokens that it reads.

The last answer of a row is its label or its number. The head reads the state of the last token of the prompt, rendered
as for generation, where the model would begin its answer. Behind the prompt lies one slot token with loss mask 1: the
rest of training points at the token before a learned one, so that batches, packing and shared prefixes work as they do
for text. Causal attention never looks at the slot.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.dataset import Example, Split, TokenisedExample
from luthier.core.errors import DataError, RecipeError, RowProblem
from luthier.core.task_head import NumberFormat, TaskHead, TaskHeadKind
from luthier.core.text.written_numbers import (
    marks_note,
    marks_of,
    number_format,
    number_marks,
    read_number,
    write_number,
)
from luthier.ml.baselines.rows import same_label, spellings
from luthier.ml.data.files.bad_field import problem_of, shorten
from luthier.ml.data.files.sequences import changed
from luthier.ml.data.tokenise.proof import check_context

if TYPE_CHECKING:
    from luthier.ml.data.tokenise.template import Template

_SEPARATORS: Final = ("\n", ";", "|", ",", "/")
"""What may lie between the labels of an answer, the least ambiguous first."""
_QUOTED: Final = re.compile(r"""'[^'\\]*'|"[^"\\]*\"""")
_PYTHON_LIST: Final = re.compile(rf"\s*\[\s*(?:(?:{_QUOTED.pattern})\s*(?:,\s*(?:{_QUOTED.pattern})\s*)*)?\]\s*")
_SHOWN: Final = 5
_JUDGED: Final[tuple[Split, ...]] = ("validation", "held_out")


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head as the training rows determine it, before it has weights.

    Attributes:
        head: classes or numbers of the rows.
        notes: what a person should know of how they were read.
    """

    head: TaskHead
    notes: tuple[str, ...] = ()


def fit_task_head(
    kind: TaskHeadKind,
    splits: Mapping[Split, Sequence[Example]],
    width: int,
    *,
    multi_label: bool,
    classes: Sequence[str] = (),
    answers: Mapping[str, int] | None = None,
) -> FittedHead:
    """The classes or the range of numbers of the training rows; the other splits are only looked at for notes.

    Args:
        kind: classify or regress.
        splits: the rows of a run.
        width: of the model's hidden states.
        multi_label: whether an answer may have several labels.
        classes: classify: all classes, in the order of the outputs; empty takes those of the training rows.
        answers: classify: the answers of more training rows than those of `splits`, each with its number of rows.

    Raises:
        DataError: rows without an answer, an answer that is no number, one class only, or the same number everywhere;
            rows of a class that is not among `classes`.
        RecipeError: several labels are asked for, and no answer has several; a class is named twice.
    """
    examples = splits["train"]
    if kind == "regress":
        found = _fit_numbers(examples, _answers(kind, examples), width)
    else:
        counted = Counter(_answers(kind, examples)) if answers is None else answers
        found = _fit_classes(counted, width, multi_label=multi_label, classes=classes)
        if classes and answers is None:
            _refuse_unlisted(examples, found.head)
    return replace(found, notes=(*found.notes, *_notes_of_judged(splits, found.head)))


def _refuse_unlisted(examples: Sequence[Example], head: TaskHead) -> None:
    others = [one for one in examples if class_numbers(one.reference or "", head) is None]
    if others:
        verb = "has" if len(others) == 1 else "have"
        raise DataError(
            f"{len(others):,} of {len(examples):,} training rows {verb} a class that objective.classes does not name",
            expected=f"one of the {len(head.labels):,} classes that are named",
            do="add the class to objective.classes, or take the rows out",
            problems=[
                problem_of(one.id, value=one.reference or "", reason="unknown class", field="answer") for one in others
            ],
        )


def _answers(kind: TaskHeadKind, examples: Sequence[Example]) -> list[str]:
    """The text of the last answer of each row."""
    lost = [e for e in examples if e.prompt is None or not (e.reference or "").strip()]
    if lost:
        what = "label" if kind == "classify" else "number"
        verb = "has" if len(lost) == 1 else "have"
        raise DataError(
            f"{len(lost):,} of {len(examples):,} rows {verb} no answer in words, or no prompt",
            expected=f"a prompt and a {what} in every row",
            do=f"give these rows their {what}, or remove them",
            problems=[problem_of(e.id, value="", reason=f"has no {what}", field="answer") for e in lost],
        )
    return [e.reference or "" for e in examples]


def _fit_classes(answers: Mapping[str, int], width: int, *, multi_label: bool, classes: Sequence[str]) -> FittedHead:
    separator = _separator(answers) if multi_label else ", "
    spelled, counts = Counter[str](), Counter[str]()
    for answer, num in answers.items():
        labels = (_labels(answer, separator) or []) if multi_label else [answer]
        for label in labels:
            spelled[label] += num
        # Of each row a label once, also where the row repeats it.
        for name in dict.fromkeys(map(same_label, labels)):
            counts[name] += num
    # By frequency, then by text: the order does not depend on that of the rows.
    names, forms = sorted(counts, key=lambda name: (-counts[name], name)), spellings(spelled)
    if classes:
        forms = {same_label(label): label for label in classes}
        names = list(forms)
        if len(names) < len(classes):
            raise RecipeError(
                f"objective.classes names {len(classes):,} classes, of which {len(classes) - len(names):,} differ from "
                "another one in case or spaces alone",
                expected="each class once",
                do="remove the others: such labels are one class",
            )
    if len(names) < (1 if multi_label else 2):
        only = repr(forms[names[0]]) if names else "no label at all"
        raise DataError(
            f"all {sum(answers.values()):,} training rows have {only}",
            expected="at least two classes: there is nothing to distinguish",
            do="add rows of other classes, or check data.columns: is the label in the column that is read as answer?",
        )
    notes = _notes_of_classes(names, counts, forms, list(spelled))
    head = TaskHead(
        kind="classify",
        width=width,
        # The spelling that most rows have, so that the head answers as they do.
        labels=tuple(forms[name].strip() for name in names),
        label_counts=tuple(counts[name] for name in names),
        is_multi_label=multi_label,
        label_separator=separator,
    )
    return FittedHead(head, notes)


def _notes_of_classes(
    names: Sequence[str], counts: Mapping[str, int], forms: Mapping[str, str], spelled: Sequence[str]
) -> tuple[str, ...]:
    notes = []
    variants: dict[str, set[str]] = {}
    for text in spelled:
        variants.setdefault(same_label(text), set()).add(text)
    joined = [name for name in names if len(variants.get(name, ())) > 1]
    if joined:
        shown = "; ".join(" = ".join(repr(text) for text in sorted(variants[name])) for name in joined[:_SHOWN])
        more = f" and {len(joined) - _SHOWN:,} more" if len(joined) > _SHOWN else ""
        notes.append(f"labels that differ only in case or spaces are one class: {shown}{more}")
    single = [forms[name] for name in names if counts[name] == 1]
    if single:
        shown = ", ".join(repr(name) for name in single[:_SHOWN])
        more = f" and {len(single) - _SHOWN:,} more" if len(single) > _SHOWN else ""
        verb = "class has" if len(single) == 1 else "classes have"
        notes.append(f"{len(single):,} {verb} a single training row, too few to learn from: {shown}{more}")
    if none := [forms[name] for name in names if not counts[name]]:
        shown = ", ".join(repr(name) for name in none[:_SHOWN])
        more = f" and {len(none) - _SHOWN:,} more" if len(none) > _SHOWN else ""
        verb = "class has" if len(none) == 1 else "classes have"
        notes.append(f"{len(none):,} {verb} no training row that was read: {shown}{more}")
    return tuple(notes)


def _separator(answers: Mapping[str, int]) -> str:
    """What lies between the labels of answers, as most of them write it; empty where answers are lists.

    Raises:
        DataError: some answers are lists, and others are not.
        RecipeError: no answer has several labels.
    """
    others = {answer: num for answer, num in answers.items() if _listed(answer) is None}
    if not others:
        return ""
    if num_lists := sum(answers.values()) - sum(others.values()):
        # Split at its commas, a list would give labels with brackets and quotes.
        raise DataError(
            f"{num_lists:,} of {sum(answers.values()):,} answers are lists of labels, and others are not, such as "
            f"{shorten(next(iter(others)))}",
            expected="a list in every answer, or labels between separators in every answer",
            do='write each answer as a JSON list, such as ["a", "b"], ["a"] or []',
        )
    nums = {sign: sum(num for answer, num in answers.items() if sign in answer.strip()) for sign in _SEPARATORS}
    for sign, num_with in nums.items():
        # A sign that few answers have is part of a label: where others have another sign, it separates nothing.
        if num_with and 2 * num_with >= max(nums.values()):
            spaced = sum(num for answer, num in answers.items() if f"{sign} " in answer.strip())
            return f"{sign} " if sign != "\n" and 2 * spaced >= num_with else sign
    raise RecipeError(
        f"objective.multi_label true, and none of {sum(answers.values()):,} answers has several labels",
        expected=f"JSON lists, or labels separated by one of {' '.join(map(repr, _SEPARATORS))}",
        do="remove objective.multi_label, or check data.columns",
    )


def _listed(answer: str) -> list[str] | None:
    """The labels of a list of texts or numbers, as JSON or Python writes it; None for anything else."""
    if not answer.lstrip().startswith("["):
        return None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        # Tables that Python has written have lists with single quotes.
        found = [one[1:-1] for one in _QUOTED.findall(answer)] if _PYTHON_LIST.fullmatch(answer) else None
    if not isinstance(found, list):
        return None
    labels = [one if isinstance(one, str) else json.dumps(one) for one in found if isinstance(one, str | int | float)]
    return labels if len(labels) == len(found) and all(label.strip() for label in labels) else None


def _labels(answer: str, separator: str) -> list[str] | None:
    """The labels of an answer; None for one that is no list where answers are lists."""
    if not separator:
        return _listed(answer)
    return [part for part in (piece.strip() for piece in answer.split(separator.strip(" "))) if part]


def _fit_numbers(examples: Sequence[Example], answers: Sequence[str], width: int) -> FittedHead:
    marks = number_marks(answers)
    read = [read_number(answer, marks) for answer in answers]
    problems = [
        problem_of(e.id, value=shorten(answer), reason="is no number", field="answer")
        for e, answer, one in zip(examples, answers, read, strict=True)
        if one is None
    ]
    if problems:
        raise _no_numbers(problems, len(answers))
    written = [one for one in read if one is not None]
    values = [one.value for one in written]
    if min(values) == max(values):
        raise DataError(
            f"all {len(values):,} training rows have the number {values[0]:g}",
            expected="different numbers: there is nothing to learn",
            do="add rows with other numbers, or check data.columns",
        )
    forms = Counter((one.before.strip(), one.after.strip()) for one in written)
    notes: tuple[str, ...] = ()
    if len(forms) > 1:
        shown = ", ".join(f"{before}N{after} ({num:,})" for (before, after), num in forms.most_common(_SHOWN))
        notes = (f"numbers are written in {len(forms)} ways, and all are assumed to have the same unit: {shown}",)
    if note := marks_note(answers, marks):
        notes = (*notes, note)
    head = TaskHead(
        kind="regress",
        width=width,
        offset=fmean(values),
        scale=pstdev(values),
        lowest=min(values),
        highest=max(values),
        number_format=number_format(written, marks),
    )
    return FittedHead(head, notes)


def _no_numbers(problems: Sequence[RowProblem], num_rows: int) -> DataError:
    return DataError(
        f"{len(problems):,} of {num_rows:,} answers are not numbers",
        expected="a number in every answer, at most with a short unit, such as 12, 1,234.50, $9 or 3 kg, or with "
        "decimal commas throughout: 1.234,50",
        do="correct or remove these rows, or choose objective: {name: classify} for labels",
        problems=problems,
    )


def targets_of(examples: Sequence[Example], head: TaskHead) -> list[tuple[float, ...] | None]:
    """What the head should give for each row: the numbers of its classes, or its standardised number.

    None for a row with a class that no training row has.

    Raises:
        DataError: a row without an answer, or an answer that is no number.
    """
    answers = _answers(head.kind, examples)
    if head.kind == "classify":
        return [class_numbers(answer, head) for answer in answers]
    found: list[tuple[float, ...] | None] = []
    problems = []
    marks = marks_of(head.number_format)
    for example, answer in zip(examples, answers, strict=True):
        one = read_number(answer, marks)
        if one is None:
            problems.append(problem_of(example.id, value=shorten(answer), reason="is no number", field="answer"))
            continue
        found.append(((one.value - head.offset) / head.scale,))
    if problems:
        raise _no_numbers(problems, len(answers))
    return found


def with_targets(
    examples: Sequence[Example], rows: Sequence[TokenisedExample], head: TaskHead
) -> Sequence[TokenisedExample]:
    """The rows, each with what the head should give for its example.

    Raises:
        DataError: a row without an answer, an answer that is no number, or a class that no training row has.
    """
    targets = targets_of(examples, head)
    unknown = [e for e, target in zip(examples, targets, strict=True) if target is None]
    if unknown:
        raise DataError(
            f"{len(unknown):,} of {len(examples):,} rows have a class that no training row has ({unknown[0].id})",
            expected="classes of the training rows",
            do="add training rows of these classes, or take the rows out",
            problems=[problem_of(e.id, value=e.reference or "", reason="unknown class") for e in unknown],
        )
    return changed(rows, lambda place, row: replace(row, target=targets[place] or ()))


def of_known_classes(examples: Sequence[Example], head: TaskHead) -> list[Example]:
    """The rows without those of a class that no training row has."""
    return [e for e, target in zip(examples, targets_of(examples, head), strict=True) if target is not None]


def _notes_of_judged(splits: Mapping[Split, Sequence[Example]], head: TaskHead) -> tuple[str, ...]:
    """What a person should know of rows used for validation or evaluation and that the head can never get right."""
    notes = []
    for split in _JUDGED:
        examples = splits.get(split, ())
        unreadable = [e for e in examples if not _is_possible(e.reference or "", head)]
        if not unreadable:
            continue
        shown = ", ".join(dict.fromkeys(shorten(e.reference or "") for e in unreadable[:_SHOWN]))
        name, num = split.replace("_", "-"), f"{len(unreadable):,} of {len(examples):,}"
        what = "a class that no training row has" if head.kind == "classify" else "an answer that is no number"
        ends = "they count as wrong" if split == "held_out" else "they are left out of validation"
        notes.append(f"{num} {name} rows have {what} ({shown}): {ends}")
    return tuple(notes)


def _is_possible(answer: str, head: TaskHead) -> bool:
    if head.kind == "classify":
        return class_numbers(answer, head) is not None
    return read_number(answer, marks_of(head.number_format)) is not None


def class_numbers(answer: str, head: TaskHead) -> tuple[int, ...] | None:
    """The numbers of the classes that an answer names, ascending; None where one of them is unknown."""
    numbers = _numbers_by_label(head.labels)
    parts = _labels(answer, head.label_separator) if head.is_multi_label else [answer]
    if parts is None:
        return None
    found = [numbers.get(same_label(part)) for part in parts]
    known = {one for one in found if one is not None}
    return None if None in found else tuple(sorted(known))


def canonical_answer(answer: str, head: TaskHead) -> str:
    """An answer with its labels in the order and the spelling of the head, each once.

    Rows write the labels of an answer in any order, and a head in that of its outputs: as texts, equal sets differ.

    Args:
        answer: of a row or of any system.
        head: that gives several labels.

    Returns:
        The answer unchanged if it names a label that the head does not have.
    """
    own = class_numbers(answer, head)
    return answer if own is None else head.label_text([float(number in own) for number in range(len(head.labels))])


def class_matrix(answers: Sequence[str], head: TaskHead) -> NDArray[np.float64]:
    """[answers, classes]: 1 where an answer has a class, else 0. An answer with an unknown label has none at all."""
    found = np.zeros((len(answers), len(head.labels)))
    for row, answer in enumerate(answers):
        found[row, list(class_numbers(answer, head) or ())] = 1.0
    return found


@lru_cache(maxsize=8)
def _numbers_by_label(labels: tuple[str, ...]) -> Mapping[str, int]:
    return {same_label(label): number for number, label in enumerate(labels)}


def target_text(target: Sequence[float], head: TaskHead) -> str:
    """A target as answers write it: the labels, or the number."""
    if head.kind == "classify":
        return (head.label_separator or ", ").join(head.labels[int(number)] for number in target)
    form = head.number_format or NumberFormat()
    return write_number(head.offset + head.scale * target[0], form) if target else ""


def tokenise_prompt(example: Example, template: Template) -> TokenisedExample:
    """The prompt of a row as it is rendered for generation, and the slot behind it that represents the answer.

    Raises:
        DataError: the row has no prompt.
        TemplateError: the template fails on it, or drops a turn or the tools of it.
    """
    prompt = example.prompt
    if prompt is None:
        problem = problem_of(example.id, value="", reason="has no prompt")
        raise DataError(
            f"{example.id} has no prompt that a head could read",
            expected="a prompt with an answer",
            do="take the row out, or choose objective: {name: sft} for plain text",
            problems=[problem],
        )
    text = template.render(prompt, add_generation_prompt=True)
    check_context(example.id, prompt, text, template)
    ids, _ = template.encode(text)
    # Any id serves as the slot: it is predicted, never read. The last one of the prompt is in every vocabulary.
    return TokenisedExample(example.id, array("i", [*ids, ids[-1]]), bytes([*bytes(len(ids)), 1]))
