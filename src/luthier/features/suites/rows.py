"""The rows of a suite's task: read, mapped, thinned, and held against what the judged systems were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import Example, Row
from luthier.core.errors import DataError, LeakageError, RowProblem
from luthier.core.results.suite import ChooseTask, RowTask
from luthier.features.evaluations.service import choose_samples, not_held_out
from luthier.features.recipes.column_maps import map_that_fits
from luthier.features.suites.file import FileFinder
from luthier.features.suites.task_runs import RowsOf

if TYPE_CHECKING:
    from luthier.ml.evaluation.tasks.protocol import TaskRow

NEEDS_ANSWERS: Final = ("generate", "likelihood", "classify", "json", "sql")
"""Kinds of tasks that look at the row's own answer; rows of the others may have a prompt alone."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the judged systems were trained on.

    Attributes:
        examples: Their training rows.
        allows_leakage: Whether rows among them are judged all the same, with a caution.
        columns: The column map of the first of their runs that has one, for tasks that name none.
    """

    examples: tuple[Example, ...] = ()
    allows_leakage: bool = False
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _File:
    rows: tuple[TaskRow, ...]
    sha256: str
    without_answer: frozenset[str] = field(default=frozenset())


def load_task(task: RowTask, find_file: FileFinder, *, seen: Seen, seed: int, is_general: bool = False) -> RowsOf:
    """The rows of a task. find_file: what the names of files in it stand for.

    Raises NotFoundError and DataError for a wrong file, LeakageError for rows that a judged system was trained on,
    RequestError where too few examples can be shown.
    """
    from luthier.ml.evaluation.few_shot import choose_shots

    path = find_file("data", task.data)
    task, read_by = _mapped(task, path, seen)
    read = _read(task, path)
    rows = read.rows
    if task.most_rows is not None:
        # Chosen by a stable hash: a larger number keeps the rows of a smaller one.
        kept = {example.id for example in choose_samples([row.example for row in rows], task.most_rows)}
        rows = tuple(row for row in rows if row.example.id in kept)
    examples = [row.example for row in rows]
    num_leaked, cautions = _leaked(task, examples, read.without_answer, seen, refuses=not is_general)
    if len(rows) < len(read.rows):
        cautions = (f"{len(rows):,} of the file's {len(read.rows):,} rows were judged.", *cautions)
    shots: tuple[Example, ...] = ()
    if task.few_shot and task.few_shot_from is not None:
        shown_path = find_file("few_shot_from", task.few_shot_from)
        shown_by, _ = _mapped(task, shown_path, seen)
        shown = _read(shown_by.model_copy(update={"cluster_by": None}), shown_path)
        # A judged row among the examples would show the model its own answer.
        pool = not_held_out([row.example for row in shown.rows], examples)
        shots = choose_shots(pool, task.few_shot, seed, held_out=examples)
    return RowsOf(
        task=task,
        rows=rows,
        file=task.data,
        sha256=read.sha256,
        num_leaked=num_leaked,
        shots=shots,
        is_general=is_general,
        cautions=(*cautions, read_by) if read_by else cautions,
    )


def _mapped(task: RowTask, file: Path, seen: Seen) -> tuple[RowTask, str]:
    """The task with the column map of the judged run where it names none and the file has its columns, and a note."""
    if task.map or not seen.columns:
        return task, ""
    found = map_that_fits(seen.columns, file, "the column map of the run")
    return (task, "") if found.mapping is None else (task.model_copy(update={"map": found.mapping}), f"{found.note}.")


def _read(task: RowTask, path: Path) -> _File:
    """All rows of a file. A row without an answer of its own gets an empty one, where the kind asks for none.

    Raises NotFoundError and DataError.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.rows.rows import read_rows
    from luthier.ml.evaluation.tasks.protocol import TaskRow

    source = open_source(path)
    everything = list(read_rows(source))
    raw = [row for row in everything if isinstance(row, Row)]
    # `group` names clusters, and is no field of the row's shape.
    mapping = {name: column for name, column in task.map.items() if name != "group"}
    if task.kind in NEEDS_ANSWERS or not raw or all(_has_answer(row.fields, mapping) for row in raw):
        loaded = load_file(path, mapping=mapping or None, group_by=task.cluster_by)
        fields = {row.id: row.fields for row in raw}
        return _File(tuple(TaskRow(one, fields[one.id]) for one in loaded.examples), loaded.sha256)
    return _questions(task, path, everything, mapping)


def _has_answer(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> bool:
    """Whether the row is of a shape that ends in an answer."""
    from luthier.ml.data.rows.column_names import CONTEXTS, LABEL, is_question_and_answer, plain_name
    from luthier.ml.data.rows.shapes import fitting_shapes, named

    given = named(fields, mapping)
    shapes = fitting_shapes(given)
    is_pair = not shapes and is_question_and_answer(fields) and not any(plain_name(name) in CONTEXTS for name in fields)
    if not mapping and (is_pair or (shapes == ["text"] and LABEL in given)):
        return True
    fits = [shape for shape in shapes if shape not in ("text", "unpaired")]
    if fits == ["chat"]:
        turns = given["messages"]
        return isinstance(turns, list) and bool(turns) and isinstance(turns[-1], dict) and _is_answer(turns[-1])
    return bool(fits)


def _is_answer(turn: Mapping[str, Any]) -> bool:
    return turn.get("role") == "assistant"


def _questions(task: RowTask, path: Path, raw: Sequence[Row | RowProblem], mapping: Mapping[str, str]) -> _File:
    """Rows with a prompt alone: the answer is empty, or of a choice the right option."""
    from luthier.core.digest import sha256_file
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.formats import example_of, problem_in
    from luthier.ml.data.rows.shapes import named
    from luthier.ml.data.tokenise.option_tokens import with_answer
    from luthier.ml.evaluation.tasks.protocol import TaskRow

    rows, problems, without = [], [], []
    for row in raw:
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        fields = named(row.fields, mapping)
        prompt = fields.get("prompt", fields.get("messages"))
        given = {name: value for name, value in fields.items() if name not in ("messages", "label")}
        # A placeholder answer makes these ordinary prompt-completion rows; `with_answer` below replaces it.
        given |= {"prompt": prompt, "completion": "-"}
        if task.cluster_by is not None:
            given[task.cluster_by] = row.fields.get(task.cluster_by)
        try:
            example = example_of(Row(row.file, row.line, given), "prompt_completion", {}, task.cluster_by)
        except BadFieldError as error:
            problems.append(problem_in(row, error, mapping))
            continue
        answer = _right_option(task, row.fields)
        if answer is None:
            without.append(example.id)
        rows.append(TaskRow(with_answer(example, answer or ""), row.fields))
    if problems:
        raise DataError(
            f"task {task.name}: {len(problems):,} of {len(raw):,} rows of {path.name} are wrong",
            expected="a prompt (or messages) in every row",
            do="repair or remove these rows, or say by map which field is which",
            problems=problems,
        )
    return _File(tuple(rows), sha256_file(path), frozenset(without))


def _right_option(task: RowTask, fields: Mapping[str, Any]) -> str | None:
    from luthier.ml.evaluation.tasks.choose import place_of, what_is_wrong

    if not isinstance(task, ChooseTask) or what_is_wrong(fields, task.options, task.answer) is not None:
        return None
    place = place_of(fields[task.options], fields[task.answer])
    return None if place is None else str(fields[task.options][place])


def _leaked(
    task: RowTask, examples: Sequence[Example], without_answer: frozenset[str], seen: Seen, *, refuses: bool
) -> tuple[int, tuple[str, ...]]:
    """How many rows were trained on, and what is to be said of them. Where a row has no answer, its prompt counts."""
    from luthier.ml.data.split.split import leaked_ids

    found = leaked_ids(seen.examples, examples)
    by_prompt = [one for one in found.same_prompt if f"{one.file}:{one.line}" in without_answer]
    exact = (*found.exact, *by_prompt)
    num_same = len(found.same_prompt) - len(by_prompt)
    if exact and refuses and not seen.allows_leakage:
        raise LeakageError(
            f"task {task.name}: {len(exact):,} of {len(examples):,} rows stand in the training rows of a judged run",
            expected="rows that the model was not trained on",
            do="take them out, or pass --allow-leakage (the result will say so)",
            problems=exact,
        )
    said = []
    if exact:
        said.append(f"{len(exact):,} of {len(examples):,} rows were trained on: figures of that run look too good.")
    if num_same:
        said.append(f"{num_same:,} of {len(examples):,} rows have a prompt that was trained on with another answer.")
    return len(exact), tuple(said)
