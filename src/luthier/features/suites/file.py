"""A suite from a YAML file, with every wrong place named by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.library_errors import library_reason
from luthier.core.results.suite import CitationsTask, JsonTask, LmEvalTask, RowTask, SqlTask, Suite, SuiteTask
from luthier.features.recipes.file import FileKind, read_recipe_file
from luthier.features.recipes.problems import describe_problems

FileFinder = Callable[[str, str], Path]
"""(field, what it holds) -> the file. Raises RequestError for a file that may not be named there."""

SUITE: Final = FileKind(
    word="suite",
    needs="a mapping with the keys name and tasks",
    begin="write `name: NAME` and `tasks:` with one task or more",
    hint="give the suite's path; row files are named inside it, as data of each task",
    refuse=RequestError,
)
_SPECS: Final[dict[str, type[BaseModel]]] = {
    get_args(spec.model_fields["kind"].annotation)[0]: spec for spec in (*get_args(RowTask), LmEvalTask)
}


def load_suite(path: Path) -> Suite:
    """Read a suite; paths in it stay as they are written (`files_of` finds them).

    Raises NotFoundError (no such file), RequestError (wrong YAML; unknown keys, kinds, types or values: all of them).
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
    return [(field, name) for field, name in named if name is not None]


def digests_of(suite: Suite, folder: Path, find_file: FileFinder | None = None) -> dict[str, str]:
    """The SHA-256 of each file that the suite reads, by its name as written; of a folder that of all its files.

    find_file: what names stand for; None takes paths that count from the folder.

    Raises NotFoundError, naming the task.
    """
    found: dict[str, str] = {}
    find = find_file or files_in(folder)
    for task in suite.tasks:
        for field, name in files_of(task):
            path = find(field, name)
            if not path.exists():
                raise NotFoundError(
                    f"task {task.name}: no file {name} in {folder}",
                    expected="paths relative to the suite's folder, or absolute",
                    do="correct the path",
                )
            found[name] = digest_of(path)
    return found


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files with their names."""
    from luthier.core.digest import sha256_document, sha256_file

    if path.is_file():
        return sha256_file(path)
    files = sorted(one for one in path.rglob("*") if one.is_file())
    # Relative names, so that the digest does not depend on where the suite lies.
    return sha256_document([[str(one.relative_to(path)), sha256_file(one)] for one in files])


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
        return [f"{prefix}holds something that is no plain value: {library_reason(error)}"]
    return []
