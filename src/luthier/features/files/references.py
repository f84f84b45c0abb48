"""Names of files and models that network callers use, resolved to this machine: the one place for both.

A request, a recipe, a suite or a row never names a path. Where a file is expected it names the id of a file of its own
project; where a model is expected, a base model by its name in the API. Anything else is refused here, before any file
is opened: paths, `file:` addresses, links, files of other projects. Commands on this machine do not come by here: they
name the user's own files by their paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from luthier.core.data_sources import MAX_NAME, SourceRecipe, names_of
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import is_id
from luthier.core.tracking import hide_folders
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths, redacted_errors
from luthier.platform.jobs.records import Job
from luthier.platform.processes.analysis import Question, answer_to

Ask = Callable[[Context, Question, dict[str, Any]], dict[str, Any]]
"""What answers a question, as `analysis.answer_to` does."""

RECIPE_FILES: Final = ("train", "validation", "held_out")
"""Fields of a recipe's `data` that name files; the last two may be a share instead."""
REPLAY_FILES: Final = ("file", "held_out")
"""Fields of `data.replay` that name files; the last one may be a share instead."""
SUITE_FILES: Final = ("data", "few_shot_from", "database", "corpus", "json_schema")
"""Fields of a suite's task that name files; a schema may be written out instead."""


@dataclass(frozen=True, slots=True)
class FileReference:
    """A file of a project as answers name it.

    Attributes:
        id: Its id.
        name: The name that it was uploaded under.
    """

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """What to audit; ids of files and names of models. The rest is as in `file_audits.AuditOptions`.

    Attributes:
        file_id: The file to audit.
        against: The held-out file, for contamination.
        model: The base model whose tokens count.
        only: Ids of checks; None for all.
        mapping: Column map, as for training.
        against_mapping: That of the held-out file; None takes `mapping`.
        group_by: The field that names a row's source document.
        method: How the file will be trained.
        most_lines: For how many rows of each finding the lines are listed.
    """

    file_id: str
    against: str | None = None
    model: str | None = None
    only: tuple[str, ...] | None = None
    mapping: Mapping[str, str] | None = None
    against_mapping: Mapping[str, str] | None = None
    group_by: str | None = None
    method: str = "lora"
    most_lines: int = 0


def stored_file(context: Context, project_id: str, place: str, file_id: Any) -> StoredFile:
    """The file of a project that a caller names.

    Args:
        context: The home.
        project_id: The project of the caller.
        place: The field that names it, for the error.
        file_id: The value of that field.

    Raises:
        RequestError: it is not an id of a file of this project.
    """
    from luthier.platform.files.service import get_file

    wrong = RequestError(
        f"{place} is {str(file_id)[:100]!r}",
        expected="the id of a file of this project, such as file-20261125-093000-1f2e3d",
        do="upload the file first (POST /v1/files), and name it by its id",
    )
    # The form is checked before any lookup: what looks like a path never reaches code that opens files.
    if not isinstance(file_id, str) or not is_id(file_id, "file"):
        raise wrong
    try:
        return get_file(context, project_id, file_id)
    except NotFoundError:
        # One error for "no such id" and "another project's id", so that ids cannot be probed. `from None` keeps the
        # inner message, which may name paths, out of logs of the API.
        raise wrong from None


@dataclass(frozen=True, slots=True)
class FileReferences:
    """Files by id and models by name, resolved to this machine.

    Attributes:
        context: The home.
        project_id: The project whose files may be named.
        shown: What answers show in place of a path or a file name; filled as files are resolved.
    """

    context: Context
    project_id: str
    shown: dict[str, str] = field(default_factory=dict)

    def file(self, place: str, file_id: Any) -> str:
        """Place a local copy of a file of the project and return its path. Raises RequestError for anything else."""
        from luthier.platform.files.service import local_path

        stored = self.stored(place, file_id)
        path = str(local_path(self.context, stored))
        # Error messages of libraries quote the path on this machine; these labels replace it in answers.
        self.shown[path] = stored.file_id
        # Rows are named by the last part of the path, as `NAME:17`, which several files may share.
        name = PurePosixPath(path).name
        known = self.shown.get(name, stored.filename)
        self.shown[name] = known if stored.filename in known.split(" or ") else f"{known} or {stored.filename}"
        return path

    def stored(self, place: str, file_id: Any) -> StoredFile:
        """The record of a file of the project. Raises RequestError for anything else."""
        return stored_file(self.context, self.project_id, place, file_id)

    def reference(self, place: str, file_id: Any) -> FileReference:
        """How answers name a file of the project. Raises RequestError for anything else."""
        stored = self.stored(place, file_id)
        return FileReference(stored.file_id, stored.filename)

    def model(self, place: str, name: Any) -> str:
        """The name of a base model as recipes know it.

        Raises:
            RequestError: There is no base model of this name.
        """
        from luthier.platform.home.model_names import find_base_model

        try:
            found = find_base_model(self.context, str(name), self.project_id)
        except NotFoundError as error:
            raise RequestError(f"{place}: {error.came}", expected=error.expected, do=error.do) from None
        self.shown[found] = str(name)
        return found

    def run(self, place: str, run_id: Any) -> str:
        """The id of a run of the project. Raises RequestError for anything else."""
        if self.context.runs.project_of(str(run_id)) != self.project_id:
            raise RequestError(
                f"{place}: no run {str(run_id)[:64]}",
                expected="the id of a run of this project",
                do="list them with GET /api/v1/runs",
            )
        return str(run_id)

    @property
    def path_labels(self) -> dict[str, str]:
        """What is shown in place of which path."""
        return home_paths(self.context) | self.shown


def job_file(context: Context, job: Job) -> Callable[[str, str], Path]:
    """The function that resolves what a job's suite and its rows name: to copies of the job's own, which stay.

    It takes the field and its value. It raises RequestError for all but ids of files of the job's project.
    """
    from luthier.platform.jobs.attempt import own_copy

    def resolve(place: str, name: str) -> Path:
        stored = stored_file(context, job.project_id, place, name)
        # A copy: the uploaded file may be deleted or expire while the job is still queued.
        return own_copy(context, job, stored.file_id, stored.file_id)

    return resolve


def check_suite_files(context: Context, project_id: str, task: Mapping[str, Any]) -> None:
    """Raises RequestError for a task of a suite, as plain keys, that names anything but files of the project."""
    for key in SUITE_FILES:
        if isinstance(value := task.get(key), str):
            stored_file(context, project_id, f"task {str(task.get('name'))[:64]}: {key}", value)


def plan_of(
    context: Context, project_id: str, recipe: Mapping[str, Any], *, ask: Ask = answer_to, compares: bool = False
) -> dict[str, Any]:
    """The complete plan and the quote of a recipe that names files by id: what `luthier plan --json` prints.

    Args:
        context: The home.
        project_id: The project.
        recipe: The recipe as plain keys.
        ask: What answers the question.
        compares: Add `advice` on the method, and what the run takes on other `devices`.

    Raises:
        RequestError: It names no file or model of the project.
        LuthierError: The recipe cannot be planned.
    """
    # Files are placed by this process, since the child must not need the database to find them.
    names = FileReferences(context, project_id)
    recipe = with_chosen_columns(context, project_id, recipe)
    document = with_files(recipe, file=names.file, model=names.model, run=names.run)
    found = _redacted(names, lambda: ask(context, "plan", {"recipe": document, "compares": compares}))
    # Those of the server's environment, which no reference of the recipe names.
    hide_folders(found["plan"])
    return found


def with_chosen_columns(context: Context, project_id: str, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe with the columns that were chosen for its rows, where it names none of its own, and its sources named.

    Recipes from before `data.columns` was called so name them `map`.
    """
    data = recipe.get("data")
    if not isinstance(data, dict):
        return recipe
    listed = {key: value for key in RECIPE_FILES if isinstance(value := data.get(key), list)}
    if listed:
        data = data | {key: _named(context, project_id, sources) for key, sources in listed.items()}
        recipe = dict(recipe) | {"data": data}
    if data.get("columns") is not None or data.get("map") is not None:
        return recipe
    train = data.get("train")
    if isinstance(train, list):
        return dict(recipe) | {"data": data | _with_columns(context, project_id, data)}
    if not isinstance(train, str):
        return recipe
    chosen = context.datasets.columns_of_file(project_id, train)
    found: dict[str, Any] = {"columns": chosen} if chosen else {}
    for key in RECIPE_FILES:
        value = data.get(key)
        own = context.datasets.columns_of_file(project_id, value) if isinstance(value, str) else {}
        if own and own != chosen:
            found[key] = [{"path": value, "columns": own}]  # a list of one, since `data.columns` are those of `train`
    return dict(recipe) | {"data": data | found} if found else recipe


def _named(context: Context, project_id: str, sources: list[Any]) -> list[Any]:
    """Sources without a name, with that of their file: its path on this machine would name it otherwise."""
    from luthier.platform.files.service import get_file

    known: list[SourceRecipe] = []
    for one in sources:
        path, name = (one.get("path"), one.get("name")) if isinstance(one, dict) else (None, None)
        if not isinstance(path, str) or not is_id(path, "file") or not isinstance(name, str | None):
            return sources  # refused with what else is wrong in it
        with suppress(NotFoundError):
            path = get_file(context, project_id, path).filename
        # A folder in front: no filename is then taken for the address of a remote source.
        known.append(SourceRecipe.model_construct(path=f"./{path}", name=name))
    names = names_of(known)
    return [one | {"name": name} if len(name) <= MAX_NAME else one for one, name in zip(sources, names, strict=True)]


def _with_columns(context: Context, project_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a recipe of several sources, each with the columns that were chosen for its own file."""

    def with_own(source: Any) -> Any:
        if not isinstance(source, dict) or source.get("columns") is not None or not isinstance(source.get("path"), str):
            return source
        chosen = context.datasets.columns_of_file(project_id, source["path"])
        return source | {"columns": chosen} if chosen else source

    found: dict[str, Any] = {}
    for key in RECIPE_FILES:
        value = data.get(key)
        if isinstance(value, list):
            found[key] = [with_own(one) for one in value]
        elif isinstance(value, str) and "columns" in (source := with_own({"path": value})):
            # `data.columns` would be those of every source: a file alone becomes a list of one.
            found[key] = [source]
    return found


def with_files(
    recipe: Mapping[str, Any],
    *,
    file: Callable[[str, Any], str],
    model: Callable[[str, Any], str],
    run: Callable[[str, Any], str],
) -> dict[str, Any]:
    """The recipe with what `file`, `model` and `run` say of each file, model and run that it names, given its place.

    A share to take out of the training rows stays what it is.
    """
    document = dict(recipe)
    if "base_model" in document:
        document["base_model"] = model("base_model", document["base_model"])
    if isinstance(objective := document.get("objective"), dict):
        document["objective"] = _with_objective_models(objective, model)
    if isinstance(evaluation := document.get("evaluation"), dict):
        document["evaluation"] = _with_judging_models(evaluation, model, run)
    if isinstance(data := document.get("data"), dict):
        document["data"] = _with_data_files(file, data)
    return document


def _with_objective_models(objective: Mapping[str, Any], model: Callable[[str, Any], str]) -> dict[str, Any]:
    """The objective with what `model` says of its teacher and of the models that its graders ask."""

    def graded(place: str, grader: Any) -> Any:
        if not isinstance(grader, dict):
            return grader
        made = dict(grader)
        if made.get("model") is not None:
            made["model"] = model(f"{place}.model", made["model"])
        if isinstance(parts := made.get("graders"), dict):
            made["graders"] = {name: graded(f"{place}.graders.{name}", part) for name, part in parts.items()}
        return made

    found = dict(objective)
    if found.get("teacher") is not None:
        found["teacher"] = model("objective.teacher", found["teacher"])
    if isinstance(rewards := found.get("rewards"), list):
        found["rewards"] = [
            one | {"grader": graded(f"objective.rewards[{place}].grader", one["grader"])}
            if isinstance(one, dict) and "grader" in one
            else one
            for place, one in enumerate(rewards)
        ]
    return found


def audit_of(context: Context, project_id: str, request: AuditRequest) -> dict[str, Any]:
    """The audit of a file of the project, as a plain document.

    The audit is given the names that its answer is to show, so that nothing in the answer has to be changed: a row may
    say what looks like a path, or like the name of a file.

    Args:
        context: The home.
        project_id: The project of the caller.
        request: What to audit.

    Returns:
        What `luthier data audit --json` prints, with ids of files in place of paths, and `files`: a reference (`id` and
        `name`) to the file and to the one that it was compared with, null without one.

    Raises:
        RequestError: It names no file or model of the project, or its options do not go together.
        NotFoundError: There is no such check.
        DataError: The file as a whole cannot be read.
        ModelSourceError: The model cannot be fetched.
        WorkError: The process that makes the audit has failed, or too many are being made.
    """
    names = FileReferences(context, project_id)
    file = names.reference("file_id", request.file_id)
    against = None if request.against is None else names.reference("against", request.against)
    given = {
        "file": names.file("file_id", request.file_id),
        "against": None if request.against is None else names.file("against", request.against),
        "model": None if request.model is None else names.model("model", request.model),
        "only": request.only,
        "mapping": None if request.mapping is None else dict(request.mapping),
        "against_mapping": None if request.against_mapping is None else dict(request.against_mapping),
        "group_by": request.group_by,
        "method": request.method,
        "most_lines": request.most_lines,
        # Labels go in: the child writes them into its findings. Replacing text afterwards could change row contents.
        "shown": {"file": file.name, "against": against and against.name, "model": request.model},
    }
    # Errors alone are redacted here: the answer was made with the shown names and holds no path.
    with redacted_errors(names.path_labels):
        found = answer_to(context, "audit", given)
    files = {"file": asdict(file), "against": against and asdict(against)}
    return found | {"file": request.file_id, "against": request.against, "files": files}


def answer_about(
    context: Context,
    project_id: str,
    question: Question,
    file_id: str,
    given: Mapping[str, Any],
    *,
    against: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """The answer to a question about the rows of a file.

    Args:
        context: The home.
        project_id: The project.
        question: A key of the analysis child's table.
        file_id: The file.
        given: The rest of the question.
        against: The id of a second file.
        model: The name of a base model.

    Raises:
        RequestError: A file or model that the project does not have.
        LuthierError: The question cannot be answered.
    """
    names = FileReferences(context, project_id)
    asked = dict(given) | {
        "file": names.file("file_id", file_id),
        "against": None if against is None else names.file("against", against),
        "model": None if model is None else names.model("model", model),
    }
    with redacted_errors(names.path_labels):
        return answer_to(context, question, asked)


def _with_judging_models(
    evaluation: dict[str, Any], model: Callable[[str, Any], str], run: Callable[[str, Any], str]
) -> dict[str, Any]:
    named = dict(evaluation)
    if (earlier := named.get("reference_run")) is not None:
        named["reference_run"] = run("evaluation.reference_run", earlier)
    search = named.get("optimised_prompt")
    # Addresses are not names of base models, so a remote caller cannot have rows sent anywhere.
    if isinstance(search, dict) and (reflection := search.get("reflection_model")) is not None:
        place = "evaluation.optimised_prompt.reflection_model"
        named["optimised_prompt"] = search | {"reflection_model": model(place, reflection)}
    return named


def _with_data_files(file: Callable[[str, Any], str], data: dict[str, Any]) -> dict[str, Any]:
    laid = data | {
        key: file(f"data.{key}", value)
        for key in RECIPE_FILES
        # `train` is never a share, so a number there goes to `file`, which refuses it.
        if (value := data.get(key)) is not None and (key == "train" or not _is_share(value))
        if not isinstance(value, list)
    }
    for key in RECIPE_FILES:
        if isinstance(sources := data.get(key), list):
            laid[key] = [
                source | {"path": file(f"data.{key}[{place}].path", source["path"])}
                if isinstance(source, dict) and "path" in source
                else source  # refused with the other wrong values of the recipe
                for place, source in enumerate(sources)
            ]
    if isinstance(replay := data.get("replay"), dict):
        laid["replay"] = replay | {
            key: file(f"data.replay.{key}", value)
            for key in REPLAY_FILES
            if (value := replay.get(key)) is not None and (key == "file" or not _is_share(value))
        }
    return laid


def _is_share(value: Any) -> bool:
    # A share is a number (0.1 or a row count); a string is taken as a file id.
    return isinstance(value, int | float)


def _redacted(names: FileReferences, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, or the error, without paths."""
    with redacted_errors(names.path_labels):
        found: dict[str, Any] = redact_paths(answer(), names.path_labels)
    return found
