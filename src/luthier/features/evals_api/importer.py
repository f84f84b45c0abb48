"""Use case: an eval of OpenAI's API, as its JSON was retrieved, becomes a suite file with a file of rows.

What has no counterpart is named and left out: nothing is guessed. Rows and prompt come from a run of the eval in the
same JSON, or from a file and a field that the caller names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from luthier.core.errors import NotFoundError, RequestError, validation_reason
from luthier.core.graders import SuiteGrader
from luthier.core.json_limits import fault_of_text, json_text
from luthier.core.ports import Progress, SilentProgress, track
from luthier.core.results.suite import GradedTask, Suite, TaskGrader
from luthier.core.text.counted import counted
from luthier.core.text.plain_yaml import write_yaml
from luthier.core.text.utf8 import read_utf8
from luthier.features.evals_api.data import fault_of_item, messages_of, row_of_line
from luthier.features.evals_api.records import EvalRun, ItemReference, RunRequest, SourceRow, Template, pass_threshold
from luthier.features.serving import graders
from luthier.features.serving.graders import GraderRequest, LabelModelRequest, MultiRequest, ScoreModelRequest
from luthier.ml.data.rows.outputs import write_output
from luthier.ml.evaluation.graders import item_fields

_NOT_PLAIN: Final = re.compile(r"[^a-z0-9]+")
_GRADER: Final[TypeAdapter[GraderRequest]] = TypeAdapter(GraderRequest)
_SUITE_GRADER: Final[TypeAdapter[SuiteGrader]] = TypeAdapter(SuiteGrader)


@dataclass(frozen=True, slots=True)
class ImportedEval:
    """What one eval has become.

    Attributes:
        name: Of the eval.
        suite: The suite file.
        rows: The file of its rows.
        num_rows: Rows in it.
        graders: The names of the graders that the suite has.
        notes: What was left out or is otherwise than before, a sentence each.
    """

    name: str
    suite: Path
    rows: Path
    num_rows: int
    graders: tuple[str, ...]
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "suite": str(self.suite),
            "rows": str(self.rows),
            "num_rows": self.num_rows,
            "graders": list(self.graders),
            "notes": list(self.notes),
        }


def import_evals(
    text: str,
    out: Path,
    *,
    data: Path | None = None,
    prompt: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[ImportedEval]:
    """Write a suite and its rows for each eval of a JSON text.

    Args:
        text: An eval, a list of them, or a page of the API (`{"object": "list", "data": [...]}`); runs among them give
            rows and prompts.
        out: The folder to write to.
        data: JSON lines with `item`, in place of the rows of a run.
        prompt: The field of an item with the prompt, as text or as messages, in place of the prompt of a run.
        force: Replace files of the same name.
        progress: Counts the evals, and the rows of each; None shows nothing.

    Raises:
        RequestError: The text holds no eval, or one that cannot become a suite; says what is missing.
        NotFoundError: There is no file `data`.
        ConflictError: A file is there already.
    """
    documents = _documents(text)
    evals = [one for one in documents if isinstance(one.get("testing_criteria"), list)]
    runs = [one for one in documents if one.get("object") == "eval.run"]
    if not evals:
        raise RequestError(
            "the JSON holds no eval",
            expected="an object with data_source_config and testing_criteria, as client.evals.retrieve returns it",
            do="save it with eval.model_dump_json(), or a list of such objects",
        )
    found = []
    taken: set[str] = set()
    shown = progress or SilentProgress()
    for one in track(shown, "Importing evals", evals, "evals"):
        name = _plain_name(str(one.get("name") or one.get("id") or "eval"), taken)
        own = [run for run in runs if run.get("eval_id") == one.get("id")]
        found.append(_imported(one, own, name, out, data=data, prompt=prompt, force=force, progress=shown))
    return found


def _imported(
    one: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    name: str,
    out: Path,
    *,
    data: Path | None,
    prompt: str | None,
    force: bool,
    progress: Progress,
) -> ImportedEval:
    notes: list[str] = []
    kept = [made for number, grader in enumerate(one["testing_criteria"]) if (made := _grader(number, grader, notes))]
    if not kept:
        raise RequestError(
            f"eval {name}: none of its graders has a counterpart: {' '.join(notes)}",
            expected="a string_check, text_similarity, score_model, label_model, python or multi grader",
            do="see docs/evals.md for what each of them needs",
        )
    run = _newest(runs, notes)
    rows = _rows_of(name, one, run, data, progress)
    if any(row.sample is not None for row in rows):
        notes.append("Answers in the rows (`sample`) were left out: a suite has the evaluated model answer.")
    asked = (getattr(run.data_source, "sampling_params", None) or {}) if run is not None else {}
    if given := sorted(parameter for parameter, value in asked.items() if value is not None):
        left_out = ", ".join(given)
        notes.append(f"The sampling_params of its run were left out: {left_out}. Answers of a suite are greedy.")
    lines = [
        {"prompt": _prompt(name, run, row, prompt), "item": row.item}
        for row in track(progress, "Writing rows", rows, "rows")
    ]
    runs_code = any(grader.grader.type == "python" for grader in kept)
    # allow_code is written into the suite; running it still needs --allow-code.
    task = GradedTask(
        name=name, kind="graded", data=f"{name}.jsonl", item="item", graders=tuple(kept), allow_code=runs_code
    )
    if runs_code:
        notes.append("A grader is Python code: it runs with --allow-code, in the sandbox that docs/tasks.md describes.")
    suite = Suite(name=name, tasks=(task,))
    out.mkdir(parents=True, exist_ok=True)
    rows_path, suite_path = out / f"{name}.jsonl", out / f"{name}.yaml"
    write_output(rows_path, "".join(json_text(line) + "\n" for line in lines).encode(), force=force)
    document = {"name": suite.name, "tasks": [task.model_dump(mode="json", exclude_defaults=True)]}
    write_output(suite_path, write_yaml(document).encode(), force=force)
    names = tuple(grader.grader.name for grader in kept)
    return ImportedEval(str(one.get("name") or name), suite_path, rows_path, len(lines), names, tuple(notes))


def _documents(text: str) -> list[dict[str, Any]]:
    text = text.removeprefix("\ufeff")  # as editors on Windows write it
    # Depth and length are checked on the text: the parser itself would already use the memory.
    if (fault := fault_of_text(text)) is not None:
        raise RequestError(f"{fault.came} at {fault.place or 'the top'}", expected=fault.expected, do="make it smaller")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"the text is not JSON: {str(error)[:200]}",
            expected="an eval as JSON, or a list of evals",
            do="save it with eval.model_dump_json()",
        ) from error
    # A page of the API; its `has_more` does not matter, since the caller chose what to save.
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        found = found["data"]
    listed = found if isinstance(found, list) else [found]
    return [one for one in listed if isinstance(one, dict)]


def _grader(number: int, document: Any, notes: list[str]) -> TaskGrader | None:
    """The grader of a suite; None, with a note, for one that has no counterpart."""
    name = document.get("name", number + 1) if isinstance(document, dict) else number + 1
    try:
        grader = _GRADER.validate_python(_as_requested(document))
        # Sampling parameters are left out below, so that none of them may be wrong.
        is_sampled = isinstance(grader, ScoreModelRequest)
        checked = grader.model_copy(update={"sampling_params": None}) if is_sampled else grader
        graders.check(checked, allows_python=True)
        _check_placeholders(grader)
        spec = _SUITE_GRADER.validate_python(_spec(grader))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        notes.append(f"Grader {name!r} was left out: {place}: {validation_reason(first)}.")
        return None
    except (RequestError, AttributeError) as error:
        reason = error.came if isinstance(error, RequestError) else "it is not an object"
        notes.append(f"Grader {name!r} was left out: {reason}.")
        return None
    if isinstance(grader, ScoreModelRequest | LabelModelRequest):
        notes.append(f"Grader {name!r} asked {grader.model}: here it asks the judge that --judge names.")
        if isinstance(grader, ScoreModelRequest) and grader.sampling_params is not None:
            notes.append(f"The sampling_params of grader {name!r} were left out: the judge answers at temperature 0.")
    return TaskGrader(grader=spec, pass_threshold=pass_threshold(grader))


def _as_requested(document: Mapping[str, Any]) -> dict[str, Any]:
    """A grader as it was requested: the hosted service gives each an id, and clients write what is not set as null."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        # A part of a multi grader may be called id: that one is no text.
        if value is None or (name == "id" and isinstance(value, str)):
            continue
        parts = value if name == "graders" and isinstance(value, list) else None
        if parts is not None:
            found[name] = [_as_requested(one) if isinstance(one, Mapping) else one for one in parts]
        else:
            found[name] = _as_requested(value) if isinstance(value, Mapping) else value
    return found


def _check_placeholders(grader: GraderRequest) -> None:
    """Raise RequestError for a template that names what a suite does not keep of an answer, such as `choices`."""
    for part in grader.by_name.values() if isinstance(grader, MultiRequest) else (grader,):
        for text in graders.templates_of(part):
            item_fields(text)


def _spec(grader: GraderRequest) -> dict[str, Any]:
    document = grader.model_dump(mode="json", exclude_none=True)
    for unused in ("pass_threshold", "model", "sampling_params"):
        document.pop(unused, None)
    if isinstance(grader, ScoreModelRequest | LabelModelRequest):
        document["input"] = [{"role": one.role, "content": one.text} for one in grader.input]
    if isinstance(grader, MultiRequest):
        parts = {name: part.model_dump(mode="json", exclude_none=True) for name, part in grader.by_name.items()}
        document["graders"] = {name: _without_threshold(part) for name, part in parts.items()}
    return document


def _without_threshold(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != "pass_threshold"}


def _newest(runs: Sequence[Mapping[str, Any]], notes: list[str]) -> RunRequest | None:
    """The newest run of the eval that can be read, for its rows and its prompt."""
    for run in sorted(runs, key=lambda one: one.get("created_at") or 0, reverse=True):
        source = _without_nulls(run.get("data_source"))
        try:
            return RunRequest.model_validate({"data_source": source})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            notes.append(f"Run {run.get('id')} was not used: {place}: {validation_reason(first)}.")
    return None


def _without_nulls(value: Any) -> Any:
    """Clients write what is not set as null; rows keep theirs."""
    if isinstance(value, dict):
        return {
            key: inner if key in ("item", "sample") else _without_nulls(inner)
            for key, inner in value.items()
            if inner is not None
        }
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _rows_of(
    name: str, one: Mapping[str, Any], run: RunRequest | None, data: Path | None, progress: Progress
) -> list[SourceRow]:
    from luthier.ml.evaluation.metrics.structured_output import SchemaCheck

    item_schema = _item_schema(one)
    check = None if item_schema is None else SchemaCheck(item_schema)
    rows: list[SourceRow] = []
    problems = []
    for place, row in track(progress, "Checking rows", _given_rows(name, run, data), "rows"):
        fault = row if isinstance(row, str) else None
        if check is not None and item_schema is not None and isinstance(row, SourceRow):
            fault = fault_of_item(item_schema, check, row.item)
        if fault is not None:
            problems.append(f"{place}: {fault}")
        elif isinstance(row, SourceRow):
            rows.append(row)
    if problems:
        raise RequestError(
            f"eval {name}: {counted(len(problems), 'row does', 'rows do')} not fit: {'; '.join(problems[:5])}",
            expected='JSON lines {"item": {...}}, each item as the schema of the eval',
            do="correct these rows",
        )
    if not rows:
        raise RequestError(f"eval {name}: no rows", expected="at least one row", do="name a file by --data")
    return rows


def _item_schema(one: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema of items, as an eval has it when it is retrieved or when it is made; None where it has none."""
    config = _object(one.get("data_source_config"))
    # `schema` is a method of the client's classes: `model_dump_json()` writes the name of its field instead.
    schema = _object(config.get("schema") or config.get("schema_"))
    item = _object(schema.get("properties")).get("item") or config.get("item_schema")
    return item if isinstance(item, dict) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _given_rows(name: str, run: RunRequest | None, data: Path | None) -> list[tuple[str, SourceRow | str]]:
    """The rows, each with its place: the line of a file, or the row of the run."""
    if data is not None:
        if not data.is_file():
            raise NotFoundError(f"no file {data}", expected="JSON lines with `item`", do="correct --data")
        lines = enumerate(read_utf8(data, "the file of rows").split("\n"), 1)
        return [(f"line {number:,}", row_of_line(line)) for number, line in lines if line.strip()]
    source = None if run is None else run.data_source.source
    if source is None or source.type != "file_content":
        where = "no run of it is in the JSON" if source is None else f"its run names them by {source.type}"
        raise RequestError(
            f"eval {name} has no rows, and {where}",
            expected="a file of rows",
            do='download it, and name it: --data FILE (JSON lines {"item": {...}})',
        )
    # Already validated rows: they came through RunRequest.
    return [(f"row {number:,}", row) for number, row in enumerate(source.content, 1)]


def _prompt(name: str, run: RunRequest | None, row: SourceRow, field: str | None) -> Any:
    """The prompt of a row: a text, or messages."""
    source = None if run is None else run.data_source
    asked = getattr(source, "input_messages", None)
    if field is None and isinstance(asked, Template | ItemReference):
        assert run is not None
        own = EvalRun(
            eval_run_id="", eval_id="", project_id="", job_id="", result_id="", name="", model="", data_source=source
        )  # fmt: skip
        return messages_of(own, row.item)
    if field is None:
        raise RequestError(
            f"eval {name} does not contain the prompt: no run with input_messages is in the JSON",
            expected="the field of an item with the prompt",
            do="name it: --prompt FIELD, or put a run of the eval into the JSON",
        )
    if field not in row.item:
        raise RequestError(
            f"eval {name}: an item has no field {field!r}",
            expected=f"one of {', '.join(sorted(row.item))}",
            do="correct --prompt",
        )
    value = row.item[field]
    return value if isinstance(value, list) else str(value)


def _plain_name(name: str, taken: set[str]) -> str:
    # File names from a text of the caller: letters, digits and underscores alone, so that no path leads out of `out`.
    plain = _NOT_PLAIN.sub("_", name.lower()).strip("_")[:60] or "eval"
    number, free = 2, plain
    while free in taken:
        free, number = f"{plain}_{number}", number + 1
    taken.add(free)
    return free
