"""Use cases: have the server evaluate a model, by a job, and follow it.

Models are named as a project knows them and rows by the ids of its files: nothing that comes over the network becomes a
path, an address to call, or code that is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import is_id, new_id
from luthier.features.files.references import check_suite_files
from luthier.features.generation.configured_teacher import CONFIGURED, check_is_configured, configured_teacher
from luthier.features.generation.engines import is_address
from luthier.features.judges import service as judges
from luthier.features.model_cards import service as project_models
from luthier.features.models.names import is_tuned_name
from luthier.features.serving import targets as served_targets
from luthier.platform.audit_log.service import record
from luthier.platform.files import service as files
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.jobs import orders
from luthier.platform.jobs.events import JobEvent
from luthier.platform.jobs.named_models import NamedModel
from luthier.platform.jobs.records import ENDED, UNDONE, Job
from luthier.platform.jobs.twins import open_twin

OrderKind = Literal["rows", "safety", "suite"]
MAX_AGAINST: Final = 7


class EvaluationOrder(FrozenModel):
    """What a job of the kind `evaluation` is to judge, and by what.

    Attributes:
        kind: On rows, by a suite, for safety, a run of an eval of OpenAI's API, which `evals_api` carries out, or a
            judge against people.
        result_id: The id that the result will have.
        candidate: The evaluated run or base model; of a calibration the judge.
        against: What it is compared with.
        file_id: The held-out rows or the suite, a file of the project.
        suite_file: A suite of the operator, by its path; None for uploaded ones.
        label: What pages call the rows, suite or probes.
        probes: The set of safety probes.
        most_rows: How many rows are evaluated at most; None for all.
        allow_leakage: Judge although rows were trained on.
        panel: Of a calibration, the panel whose ratings the judge is compared with.
    """

    kind: OrderKind | Literal["eval", "calibration"]
    result_id: str
    candidate: str
    against: Annotated[tuple[str, ...], Field(max_length=MAX_AGAINST)] = ()
    file_id: str | None = None
    suite_file: str | None = None
    label: str = ""
    probes: Literal["default", "full"] = "default"
    most_rows: Annotated[int, Field(ge=1)] | None = None
    allow_leakage: bool = False
    panel: str | None = None


ASKED: Final = "evaluation"
_PREFIX: Final = "job-"
_IDS: Final[dict[OrderKind, str]] = {"rows": "eval", "safety": "safety", "suite": "suite"}
_MAX_SUITE_BYTES: Final = 1 << 20
_PAGES: Final = {"rows": "", "safety": "safety/", "suite": "suites/", "eval": "suites/"}


@dataclass(frozen=True, slots=True)
class OrderView:
    """An evaluation that was requested.

    Attributes:
        order: What to judge, and by what.
        job: The job that does it.
        last_word: The newest event of the job; None before the first, and in lists.
    """

    order: EvaluationOrder
    job: Job
    last_word: JobEvent | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.job.status in ENDED

    @property
    def mark(self) -> str:
        """Changes with each thing that can be seen to happen."""
        return orders.mark_of(self.job, self.last_word)

    @property
    def words(self) -> str:
        """What it is, in short."""
        label = self.order.label
        by = {
            "rows": f"on {label}",
            "safety": "for safety",
            "suite": f"by the suite {label}",
            "eval": f"by {label}",
            "calibration": f"as a judge, compared with {label}",
        }
        return f"{self.order.candidate} {by[self.order.kind]}"

    @property
    def result_page(self) -> str:
        """Where the result is, once it exists."""
        if self.order.kind == "calibration":
            return "/evaluations/judges"
        return f"/evaluations/{_PAGES[self.order.kind]}{self.order.result_id}"


def start(
    context: Context,
    caller: Caller,
    kind: OrderKind,
    candidate: str,
    *,
    against: Sequence[str] = (),
    file_id: str | None = None,
    probes: Literal["default", "full"] = "default",
    most_rows: int | None = None,
    allow_leakage: bool = False,
    joins: bool = False,
) -> OrderView:
    """Queue an evaluation of a model that the project has tuned.

    Args:
        context: The home.
        caller: Whose project it is.
        kind: On rows, by a suite, or for safety.
        candidate: A run that has succeeded, or the name of its model.
        against: More of them, and base models; without any, the base of the candidate.
        file_id: The held-out rows, or the suite, a file of the project.
        probes: The set of safety probes.
        most_rows: How many rows are evaluated at most; None for all.
        allow_leakage: Judge although rows were trained on.
        joins: Give the same evaluation that waits or runs already, in place of a second one.

    Raises:
        NotFoundError: No such model or file in the project.
        ConflictError: The run has not succeeded.
        RequestError: A checkpoint, a base model as the candidate, or a suite that a server does not carry out.
    """
    run_id = _run(context, caller, candidate)
    stored = None if kind == "safety" else _file(context, caller, kind, file_id)
    # dict.fromkeys drops repetitions, also of a run under two names, and keeps the order of the table.
    asked = dict.fromkeys(_system(context, caller, name) for name in against if name)
    # A model against itself has no difference to test.
    names = [name for name in asked if name != run_id]
    if len(names) > MAX_AGAINST:
        raise RequestError(
            f"{len(names)} models to compare it with", expected=f"at most {MAX_AGAINST}", do="name fewer models"
        )
    if kind == "safety" and len(names) > 1:
        raise RequestError(
            f"{len(names)} models to compare it with",
            expected="one: the safety check compares two models",
            do="name fewer models",
        )
    if kind == "rows" and not names:
        names = [served_targets.base_of(context, context.runs.plan(run_id).base_model.name).name]
    if kind == "suite" and stored is not None:
        check_suite(context, caller.project_id, stored)
    order = EvaluationOrder(
        kind=kind,
        result_id=new_id(_IDS[kind]),
        candidate=run_id,
        against=tuple(names),
        file_id=None if stored is None else stored.file_id,
        label=probes if stored is None else stored.filename,
        probes=probes,
        most_rows=most_rows,
        allow_leakage=allow_leakage,
    )
    document = {ASKED: order.model_dump(mode="json")}
    job = Job(job_id=new_id("job"), kind="evaluation", document=document, run_id="", project_id=caller.project_id)
    facts = {"result_id": order.result_id, "kind": kind, "candidate": run_id, "file_id": order.file_id}
    with context.database.transaction():
        if joins and (twin := open_twin(context, job, ASKED, apart_from="result_id")) is not None:
            return OrderView(order_of(twin), twin)
        made = context.jobs.submit(job)
        record(context, caller, "evaluation.started", job.job_id, facts)
    return OrderView(order, made)


def start_calibration(context: Context, caller: Caller, judge: str, panel_id: str) -> OrderView:
    """Queue the comparison of a judge with the people of a panel.

    Of judges behind addresses only the one that the operator has configured may be named, by `CONFIGURED`: nobody who
    is not at the machine may have texts and the keys of the server sent anywhere.

    Args:
        context: The home.
        caller: Whose project it is.
        judge: A run that has succeeded, the name of its model, a base model on this machine, or `CONFIGURED`.
        panel_id: A panel of the project.

    Raises:
        NotFoundError: No such model or panel in the project.
        ConflictError: The run has not succeeded.
        DataError: Too few items are rated.
    """
    panel = context.rating_panels.get(caller.project_id, panel_id)
    judges.people_ratings(context, caller.project_id, panel=panel_id)
    if judge == CONFIGURED and (teacher := configured_teacher(context)) is not None:
        candidate = teacher.address
    else:
        found = _system(context, caller, judge)
        # A base model by its name here: where it is, is found by the worker.
        candidate = found if is_id(found, "run") else judge
    order = EvaluationOrder(
        kind="calibration",
        result_id=new_id("calibration"),
        candidate=candidate,
        label=panel.name,
        panel=panel_id,
    )
    document = {ASKED: order.model_dump(mode="json")}
    job = Job(job_id=new_id("job"), kind="evaluation", document=document, run_id="", project_id=caller.project_id)
    facts = {"kind": order.kind, "judge": candidate, "panel": panel_id}
    with context.database.transaction():
        made = context.jobs.submit(job)
        record(context, caller, "evaluation.started", job.job_id, facts)
    return OrderView(order, made)


def models_of(_context: Context, job: Job) -> Iterator[NamedModel]:
    """The models that an evaluation asks: the evaluated one, or the judge, and what it is compared with."""
    order = order_of(job)
    yield from (NamedModel(name) for name in (order.candidate, *order.against) if not is_address(name))


def judge_of(context: Context, job: Job, order: EvaluationOrder) -> str:
    """The judge of a calibration, as commands name it.

    Raises:
        NotFoundError: The base model is no longer on this machine.
        ConflictError: The operator has configured another model than the one behind an address.
    """
    if is_address(order.candidate):
        check_is_configured(context, order.candidate)
        return order.candidate
    if is_id(order.candidate, "run"):
        return order.candidate
    return served_targets.base_model(context, order.candidate, job.project_id).name


def list_orders(context: Context, caller: Caller, *, limit: int = 20) -> list[OrderView]:
    """Those that wait, run or have failed, newest first."""
    # Succeeded ones are listed as results; here is only what has none.
    found = context.jobs.list(project_id=caller.project_id, kinds=("evaluation",), status=UNDONE, limit=limit)
    return [OrderView(order_of(job), job) for job in found]


def show_order(context: Context, caller: Caller, job_id: str) -> OrderView:
    """One of them.

    Raises:
        NotFoundError: The project has no such job, or the job is no evaluation.
    """
    # The id comes from an address; the cut bounds what goes into the query and the error.
    job = context.jobs.get(job_id[:64], caller.project_id)
    if job.kind != "evaluation":
        raise NotFoundError(
            f"job {job_id} is not an evaluation",
            expected="the id of an evaluation's job",
            do="see the list of evaluations",
        )
    return OrderView(order_of(job), job, orders.newest_event(context, job))


def cancel(context: Context, caller: Caller, job_id: str) -> None:
    """Cancel it; nothing is left of it.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has ended.
    """
    orders.cancel(context, caller, show_order(context, caller, job_id).job, "evaluation.cancelled")


def forget_answers(context: Context, job: Job) -> None:
    """Remove the answers that attempts of a cancelled job have stored."""
    answers_file(context, job.job_id).unlink(missing_ok=True)


def answers_file(context: Context, job_id: str) -> Path:
    """Where the attempts of a job store answers as they come."""
    return context.settings.jobs_folder / job_id / "answers.jsonl"


def retry(context: Context, caller: Caller, job_id: str) -> None:
    """Run a failed one again, behind the answers that it has stored and with the access of the caller.

    Raises:
        NotFoundError: The project has no such evaluation.
        ConflictError: The evaluation has neither failed nor paused.
    """
    orders.resume(context, caller, show_order(context, caller, job_id).job, "evaluation.retried")


def order_of(job: Job) -> EvaluationOrder:
    """What a job of this kind is to carry out."""
    return EvaluationOrder.model_validate(job.document[ASKED])


def keep_suite(context: Context, caller: Caller, text: str, *, filename: str = "suite.yaml") -> StoredFile:
    """Store a suite that was written as text as a file of the project.

    Args:
        context: The home.
        caller: Whose project it is.
        text: The suite.
        filename: The name of the file.

    Raises:
        RequestError: It is no plain YAML with tasks, or a task needs code, a judge or a path.
        NotFoundError: A file that it names does not exist.
    """
    _checked(context, caller.project_id, "the suite", text)
    with files.incoming_file(context) as incoming:
        # A form may contain unpaired surrogates, which UTF-8 cannot encode.
        incoming.write(text.encode("utf-8", "replace"))
        return files.keep_file(context, caller.project_id, incoming, filename=filename, purpose="user_data")


def check_suite(context: Context, project_id: str, stored: StoredFile) -> Mapping[str, Any]:
    """A suite whose files are named by id, as plain keys.

    Raises:
        RequestError: A task is wrong, or names a file that the project does not have; the message names the task.
        NotFoundError: The file of the suite was deleted.
    """
    with files.local_path(context, stored).open("rb") as file:
        # One byte more than allowed shows that the file is too large without reading all of it.
        text = file.read(_MAX_SUITE_BYTES + 1).decode("utf-8", "replace")
    return _checked(context, project_id, stored.filename, text)


def _checked(context: Context, project_id: str, name: str, text: str) -> Mapping[str, Any]:
    from luthier.core.text.plain_yaml import has_alias, parse_yaml

    # Aliases expand: a few lines of nested ones grow to gigabytes when they are parsed ("billion laughs").
    if len(text) > _MAX_SUITE_BYTES or has_alias(text):
        raise RequestError(
            f"{name} is larger than 1 MiB, or repeats a part by its name (*name)",
            expected="a plain YAML file",
            do="write its tasks out",
        )
    keys, _ = parse_yaml(name, text)
    tasks = keys.get("tasks") if isinstance(keys, dict) else None
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise RequestError(
            f"{name} holds no tasks", expected="a mapping with name and tasks", do="see docs/release_gates.md for one"
        )
    for task in tasks:
        _check_task(context, project_id, task)
    found: Mapping[str, Any] = keys
    return found


def check_is_for_servers(suite: Mapping[str, Any]) -> None:
    """Raise RequestError for a suite, as plain keys, with a task that runs code or asks a judge."""
    for task in suite["tasks"]:
        _refuse_for_operators(task)


OPERATORS_KINDS: Final = ("lm_eval", "code", "pairwise", "rubric")
"""Tasks that run code or ask a judge: for who is at the machine."""


def _check_task(context: Context, project_id: str, task: Mapping[str, Any]) -> None:
    _refuse_for_operators(task)
    check_suite_files(context, project_id, task)


def _refuse_for_operators(task: Mapping[str, Any]) -> None:
    name = str(task.get("name"))[:64]
    # A caller over the network must not get code run, or a third party's model called with the server's key.
    if needs_operator(task):
        raise RequestError(
            f"task {name} is of the kind {task.get('kind')}, which runs code, or uses a judge",
            expected="tasks that need neither: a server runs no others",
            do="run this suite on the machine of the server: luthier eval RUN --suite FILE",
        )


def needs_operator(task: Mapping[str, Any]) -> bool:
    """Whether a task of a suite, as plain keys, runs code or asks a judge: nobody but the operator may order that.

    What has another form is refused when the suite is read.
    """
    if task.get("kind") in OPERATORS_KINDS or task.get("entailment"):
        return True
    if task.get("kind") != "graded" or not isinstance(task.get("graders"), list):
        return False
    kinds = [one["grader"].get("type") for one in task["graders"] if isinstance(one, dict) and _has_grader(one)]
    return any(kind in ("python", "score_model", "label_model") for kind in kinds)


def _has_grader(one: Mapping[str, Any]) -> bool:
    return isinstance(one.get("grader"), dict)


def _file(context: Context, caller: Caller, kind: OrderKind, file_id: str | None) -> StoredFile:
    if file_id is None or not is_id(file_id, "file"):
        raise RequestError(
            f"{'no file' if not file_id else repr(file_id[:100])} to evaluate by",
            expected="the id of a file of this project: held-out rows" if kind == "rows" else "that of a suite",
            do="choose one, or upload it first",
        )
    return files.get_file(context, caller.project_id, file_id)


def _run(context: Context, caller: Caller, name: str) -> str:
    """The run behind the candidate."""
    run_id, tuned = project_models.run_of(context, caller, name)
    if tuned is not None and tuned.step is not None:
        raise RequestError(
            f"{name!r} is a checkpoint", expected="the outcome of a run", do="evaluate the model of its run"
        )
    if run_id is None:
        raise RequestError(
            f"the model {name[:200]!r} to evaluate",
            expected="a tuned model of this project; base models are what it is compared with",
            do="choose one of the tuned models",
        )
    if context.runs.project_of(run_id) != caller.project_id:
        raise NotFoundError(f"no run {run_id!r}", expected="the id of a run of this project", do="see the list of runs")
    status = context.runs.get(run_id).status
    if status != "succeeded":
        raise ConflictError(f"run {run_id} is {status}", expected="a run that has succeeded", do="wait for it")
    return run_id


def _system(context: Context, caller: Caller, name: str) -> str:
    """One that the candidate is held against, as commands name it."""
    is_tuned = is_id(name, "run") or is_tuned_name(name)
    return _run(context, caller, name) if is_tuned else served_targets.base_model(context, name, caller.project_id).name
