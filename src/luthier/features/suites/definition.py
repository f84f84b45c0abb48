"""The definition of a suite: its YAML file, the rows of its tasks, and the suite of general ability.

Every problem in the file is named by file and line. Rows are read, mapped, subsampled, and compared with what the
evaluated systems were trained on. The suite of general ability runs with every suite of a tuned model and measures what
tuning cost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel, ValidationError

from luthier.core.dataset import Example, Row
from luthier.core.errors import DataError, LeakageError, NotFoundError, RequestError, RowProblem, library_reason
from luthier.core.results.suite import (
    ChooseTask,
    CitationsTask,
    JsonTask,
    LmEvalTask,
    RowTask,
    SqlTask,
    Suite,
    SuiteTask,
)
from luthier.core.text.counted import counted
from luthier.features.evaluations.leakage import not_held_out
from luthier.features.recipes.checks import map_that_fits
from luthier.features.recipes.file import FileKind, describe_problems, read_recipe_file
from luthier.features.suites.lm_eval import files_named_in
from luthier.features.suites.task_runs import RowsOf
from luthier.ml.evaluation import general
from luthier.ml.evaluation.sampling import choose_samples

if TYPE_CHECKING:
    from luthier.ml.evaluation.tasks.protocol import TaskRow

FileFinder = Callable[[str, str], Path]
"""(field, what it holds) -> the file. Raises RequestError for a file that may not be named there."""

SUITE: Final = FileKind(
    word="suite",
    needs="a mapping with the keys name and tasks",
    begin="write `name: NAME` and `tasks:` with one task or more",
    hint="give the suite's path; row files are named inside it, as data of each task",
    refuse=RequestError,
)
# The word in `kind:` -> the spec of that kind, read from the union of specs, so that a new kind needs no entry here.
_SPECS: Final[dict[str, type[BaseModel]]] = {
    get_args(spec.model_fields["kind"].annotation)[0]: spec for spec in (*get_args(RowTask), LmEvalTask)
}


def load_suite(path: Path) -> Suite:
    """Read a suite; paths in it stay as they are written (`files_of` finds them).

    Raises:
        NotFoundError: No such file.
        RequestError: Wrong YAML; unknown keys, kinds, types or values: all of them.
    """
    document = read_recipe_file(path, SUITE)
    problems = _problems(document.keys, document.lines)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RequestError(
            "\n    ".join([f"suite {path} has {count}:", *problems]),
            expected="only known keys, each with a value of its kind",
            do="correct the places named",
        )
    return Suite.model_validate_json(json.dumps(document.keys))


def files_in(folder: Path) -> FileFinder:
    """Files by paths that count from the folder of a suite: for the user's own suites, on the user's own machine."""
    return lambda _, name: folder / name


def files_of(task: SuiteTask) -> list[tuple[str, str]]:
    """The files and folders that a task reads: the field, and what the suite writes there."""
    if isinstance(task, LmEvalTask):
        return [("task", task.task)] if task.task.endswith((".yaml", ".yml")) else []
    named: list[tuple[str, str | None]] = [("data", task.data), ("few_shot_from", task.few_shot_from)]
    if isinstance(task, JsonTask) and isinstance(task.json_schema, str):
        named.append(("json_schema", task.json_schema))
    if isinstance(task, SqlTask):
        named.append(("database", task.database))
    if isinstance(task, CitationsTask):
        named.append(("corpus", task.corpus))
    return [(place, name) for place, name in named if name is not None]


def digests_of(suite: Suite, folder: Path, find_file: FileFinder | None = None) -> dict[str, str]:
    """The SHA-256 of each file that the suite reads, by its name as written; of a folder that of all its files.

    Args:
        suite: The suite.
        folder: The folder of its file.
        find_file: What names refer to; None takes paths that count from the folder.

    Raises:
        NotFoundError: A file is missing; the message names the task.
    """
    found: dict[str, str] = {}
    find = find_file or files_in(folder)
    for task in suite.tasks:
        for place, name in files_of(task):
            path = find(place, name)
            if not path.exists():
                raise NotFoundError(
                    f"task {task.name}: no file {name} in {folder}",
                    expected="paths relative to the suite's folder, or absolute",
                    do="correct the path",
                )
            found[name] = digest_of(path)
            if isinstance(task, LmEvalTask):
                # Its task file is little more than the names of others.
                named = files_named_in(path, folder)
                found |= {f"{name}: {one}": digest_of(file) for one, file in named.items()}
    return found


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files with their names."""
    from luthier.core.ids import sha256_document, sha256_file

    if path.is_file():
        return sha256_file(path)
    files = sorted(one for one in path.rglob("*") if one.is_file())
    # Relative names, so that the digest does not depend on the suite's path.
    return sha256_document([[one.relative_to(path).as_posix(), sha256_file(one)] for one in files])


def _problems(keys: Mapping[str, Any], lines: Mapping[str, int]) -> list[str]:
    """What is wrong, a line each: of every task by the spec of its kind, then of the suite around them."""
    tasks = keys.get("tasks")
    problems: list[str] = []
    for place, task in enumerate(tasks if isinstance(tasks, list) else ()):
        where = f"tasks[{place}]"
        line = f"line {lines[where]}, " if where in lines else ""
        if not isinstance(task, dict):
            problems.append(f"{line}{where}: has {task!r}, expected a mapping with name, kind and data")
            continue
        kind = task.get("kind")
        if not isinstance(kind, str) or kind not in _SPECS:
            near = get_close_matches(str(kind), _SPECS, n=1)
            meant = f"; nearest: {near[0]}" if near else ""
            came = f"has {kind!r}" if "kind" in task else "is missing"
            problems.append(f"{line}{where}.kind: {came}, expected one of {', '.join(_SPECS)}{meant}")
            continue
        # Lines of this task alone, by paths that count from it, as its spec reports them.
        own = {key.removeprefix(f"{where}."): number for key, number in lines.items() if key.startswith(f"{where}.")}
        problems += _wrong(_SPECS[kind], task, own, prefix=f"task {task.get('name', place + 1)}: ")
    if not problems:
        # Only once every task is right: the union over task kinds would repeat each fault for each kind.
        problems = _wrong(Suite, keys, lines, prefix="")
    return problems


def _wrong(spec: type[BaseModel], keys: Mapping[str, Any], lines: Mapping[str, int], *, prefix: str) -> list[str]:
    try:
        # By way of JSON, since there strict means: a list for a tuple, but no text and no true for a number.
        spec.model_validate_json(json.dumps(keys), strict=True)
    except ValidationError as error:
        return [f"{prefix}{one}" for one in describe_problems(error, lines, (), spec=spec)]
    except (TypeError, ValueError, RecursionError) as error:
        return [f"{prefix}contains something that is not a plain value: {library_reason(error)}"]
    return []


NEEDS_ANSWERS: Final = ("generate", "likelihood", "classify", "json", "sql")
"""Kinds of tasks that look at the row's own answer; rows of the others may have a prompt alone."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the evaluated systems were trained on.

    Attributes:
        examples: Their training rows; those beyond the memory for rows are on the disk.
        allows_leakage: Whether rows among them are evaluated all the same, with a caution.
        columns: The column map of the first of their runs that has one, for tasks that name none.
    """

    examples: Sequence[Example] = ()
    allows_leakage: bool = False
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _File:
    rows: tuple[TaskRow, ...]
    sha256: str
    without_answer: frozenset[str] = field(default=frozenset())


def load_task(task: RowTask, find_file: FileFinder, *, seen: Seen, seed: int, is_general: bool = False) -> RowsOf:
    """The rows of a task.

    Args:
        task: The task.
        find_file: Finds the file that a field of the task names.
        seen: What the evaluated systems were trained on.
        seed: Of the examples in prompts.
        is_general: Whether rows that a system was trained on are evaluated all the same, with a caution.

    Raises:
        NotFoundError, DataError: A file of the task is missing or wrong.
        LeakageError: Rows that an evaluated system was trained on.
        RequestError: Too few examples can be shown, or the task may not name a file.
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
        cautions = (
            f"{counted(len(rows), 'row was', 'rows were')} evaluated, of {len(read.rows):,} in the file.",
            *cautions,
        )
    shots: tuple[Example, ...] = ()
    if task.few_shot and task.few_shot_from is not None:
        shown_path = find_file("few_shot_from", task.few_shot_from)
        shown_by, _ = _mapped(task, shown_path, seen)
        shown = _read(shown_by.model_copy(update={"cluster_by": None}), shown_path)
        # An evaluated row among the examples would show the model its own answer.
        # A row with the prompt of an evaluated one is left out, too, whatever its answer.
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
    """The task with the column map of the evaluated run where it has none and the file has its columns, and a note."""
    if task.map or not seen.columns:
        return task, ""
    found = map_that_fits(seen.columns, file, "the column map of the run")
    return (task, "") if found.mapping is None else (task.model_copy(update={"map": found.mapping}), f"{found.note}.")


def _read(task: RowTask, path: Path) -> _File:
    """All rows of a file. A row without an answer gets an empty one, where the kind needs none.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file, or one of its rows, is wrong.
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
    from luthier.ml.data.rows.columns import CONTEXTS, LABEL, is_question_and_answer, plain_name
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
    from luthier.core.ids import sha256_file
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.formats import example_of, problem_in
    from luthier.ml.data.rows.shapes import named
    from luthier.ml.data.tokenise.loss_mask import with_answer
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
    from luthier.ml.evaluation.tasks.choices import place_of, what_is_wrong

    if not isinstance(task, ChooseTask) or what_is_wrong(fields, task.options, task.answer) is not None:
        return None
    place = place_of(fields[task.options], fields[task.answer])
    return None if place is None else str(fields[task.options][place])


def _leaked(
    task: RowTask, examples: Sequence[Example], without_answer: frozenset[str], seen: Seen, *, refuses: bool
) -> tuple[int, tuple[str, ...]]:
    """How many rows were trained on, and the caution about them. Where a row has no answer, its prompt counts."""
    from luthier.ml.data.split.split import leaked_ids

    found = leaked_ids(seen.examples, examples)
    by_prompt = [one for one in found.same_prompt if f"{one.file}:{one.line}" in without_answer]
    exact = (*found.exact, *by_prompt)
    num_same = len(found.same_prompt) - len(by_prompt)
    if exact and refuses and not seen.allows_leakage:
        raise LeakageError(
            f"task {task.name}: {len(exact):,} of {len(examples):,} rows are in the training rows of an evaluated run",
            expected="rows that the model was not trained on",
            do="take them out, or pass --allow-leakage (the result will note it)",
            problems=exact,
        )
    said = []
    if exact:
        said.append(
            f"{counted(len(exact), 'row is also a training row', 'rows are also training rows')}, of "
            f"{len(examples):,}: figures of that run look too good."
        )
    if num_same:
        said.append(
            f"{counted(num_same, 'row has', 'rows have')} the prompt of a training row with another answer, of "
            f"{len(examples):,}."
        )
    return len(exact), tuple(said)


def general_tasks(*, seen: Seen, seed: int) -> list[RowsOf]:
    """Its tasks with their rows, which come with the package.

    Args:
        seen: As `load_task`; nothing is refused for it here.
        seed: Of the choice of rows.
    """
    folder = Path(general.__path__[0])
    suite = load_suite(folder / "suite.yaml")
    return [
        load_task(task, files_in(folder), seen=seen, seed=seed, is_general=True)
        for task in suite.tasks
        if task.kind != "lm_eval"
    ]
