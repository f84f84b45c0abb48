"""Use cases: workflows that a worker of the server carries out: start, follow, pause, resume, cancel.

A workflow that was ordered is a job. Its record (a pipeline or a study) exists once the job has checked the request and
measured what it needs; until then the job is all that there is to see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.aliases import new_key
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import is_id, new_id
from luthier.core.system.files import replace_text
from luthier.core.text.plain_yaml import has_alias
from luthier.core.workflows.pipeline import PipelineKind
from luthier.core.workflows.study import DATA_FRACTION
from luthier.features.files.references import FileReferences
from luthier.features.workflows.declared_forms import FormName, WorkflowForm
from luthier.features.workflows.forms import fields_of, find_form, recipe_of
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.jobs import orders as jobs
from luthier.platform.jobs.events import JobEvent
from luthier.platform.jobs.named_models import BASE_MODEL, LookUp, NamedModel, models_in
from luthier.platform.jobs.records import ENDED, UNDONE, Job

ASKED: Final = "workflow"
"""The key of the order in the document of its job."""
_MAX_LISTED: Final = 200
_SEARCHED: Final = ("method", "training", "objective")
"""Sections of a recipe that a search space may name; of the others, values are files, models and addresses."""
_KINDS: Final[dict[str, PipelineKind]] = {
    "compare-models": "showdown", "automl": "auto", "distill": "distill", "retrain": "retrain",
}  # fmt: skip

_LOOK_UPS: Final[dict[str, LookUp]] = {
    "model": "weights", "models": "weights", "teacher": "weights", "deployment": "project",
}  # fmt: skip
"""The fields of forms that name models."""


class WorkflowOrder(FrozenModel):
    """What a job is to carry out.

    Attributes:
        form: The form, which is the command that does the same.
        workflow_id: The id that the workflow gets; empty where it follows from the request.
        values: Of the form: ids of files, names of models, and plain values.
        caller: Who asked.
    """

    form: FormName
    workflow_id: str = ""
    values: dict[str, Any]
    caller: Caller


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order and its job.

    Attributes:
        order: What was asked.
        job: The job.
        workflow_id: The id of the workflow; empty before it has a record.
        last_word: The newest event of the job.
    """

    order: WorkflowOrder
    job: Job
    workflow_id: str = ""
    last_word: JobEvent | None = None

    @property
    def form(self) -> WorkflowForm:
        """The form that it was asked by."""
        return find_form(self.order.form)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.job.status in ENDED

    @property
    def mark(self) -> str:
        """Changes with each thing that can be seen to happen."""
        return jobs.mark_of(self.job, self.last_word)

    @property
    def page(self) -> str:
        """Where it is shown: on its own page once there is a record, before that on the page of its job."""
        if self.workflow_id:
            return f"{self.form.page}{self.workflow_id}"
        return f"/pipelines/jobs/{self.job.job_id}"


def start(context: Context, caller: Caller, name: str, values: Mapping[str, Any]) -> OrderView:
    """Queue a workflow.

    Args:
        context: The home.
        caller: Who asks; the files, runs and deployments are those of this project.
        name: Of the form.
        values: As `forms.read_form` gives them.

    Raises:
        NotFoundError: There is no such form, deployment or panel.
        RequestError: A file, model or run that the project does not have, or a recipe with a wrong place.
    """
    form = find_form(name)
    _check(context, caller, form, values)
    order = WorkflowOrder(
        form=form.name,
        workflow_id=new_id(form.id_prefix) if form.id_prefix else "",
        values=dict(values),
        caller=caller,
    )
    document = {ASKED: order.model_dump(mode="json")}
    job = Job(
        job_id=new_id("job"),
        kind="workflow",
        document=document,
        run_id="",
        workflow_id=order.workflow_id,
        project_id=caller.project_id,
    )
    facts = {
        "workflow": form.name,
        "workflow_id": order.workflow_id or None,
        "budget_hours": values.get("budget_hours"),
    }
    with context.database.transaction():
        made = context.jobs.submit(job)
        record(context, caller, "workflow.started", job.job_id, facts)
    return OrderView(order, made)


def order_of(job: Job) -> WorkflowOrder:
    """What a job of this kind is to carry out."""
    return WorkflowOrder.model_validate(job.document[ASKED])


def models_of(context: Context, job: Job) -> Iterator[NamedModel]:
    """The models that a workflow names: in its form, and in the record of one that has begun.

    A workflow that is resumed by its id alone has no values: its record says what was asked.
    """
    order = order_of(job)
    for field in fields_of(order.form):
        value = order.values.get(field.entry.name)
        names = value if isinstance(value, list | tuple) else [value]
        if value is not None and field.entry.kind in _LOOK_UPS:
            yield from (NamedModel(str(name), _LOOK_UPS[field.entry.kind]) for name in names)
        elif field.entry.kind == "yaml":
            yield from models_in(value, (BASE_MODEL,))
    try:
        if order.form == "tune":
            study = context.studies.get(order.workflow_id, job.project_id)
            yield from models_in(study.spec.recipe.model_dump(mode="json"), (BASE_MODEL,))
        elif order.workflow_id:
            yield from _asked_models(order.form, context.pipelines.get(order.workflow_id, job.project_id).asked)
    except NotFoundError:
        return  # it has not begun


def _asked_models(form: FormName, asked: Mapping[str, Any]) -> Iterator[NamedModel]:
    if form == "retrain":
        yield NamedModel(str(asked["model"]), "project")
        yield from (NamedModel(str(asked[key])) for key in ("run_id", "judged_against") if asked.get(key))
        return
    yield from (NamedModel(str(one["model"])) for one in asked.get("contenders", ()))
    yield from models_in(dict(asked), ("models", "student", BASE_MODEL))


def show_order(context: Context, caller: Caller, job_id: str) -> OrderView:
    """One order.

    Raises:
        NotFoundError: The project has no such job, or the job is no workflow.
    """
    job = context.jobs.get(job_id[:64], caller.project_id)
    if job.kind != "workflow":
        raise NotFoundError(
            f"job {job_id} is not a workflow", expected="the id of a workflow's job", do="see the page of studies"
        )
    return _view(context, job)


def list_orders(context: Context, caller: Caller, *, limit: int = 20) -> list[OrderView]:
    """Orders without a record that wait, run or have failed, newest first, among the newest 200 such jobs."""
    # Succeeded ones are listed by their own records.
    found = context.jobs.list(project_id=caller.project_id, kinds=("workflow",), status=UNDONE, limit=_MAX_LISTED)
    views = [_view(context, job) for job in found]
    return [view for view in views if not view.workflow_id][:limit]


def order_for(context: Context, caller: Caller, workflow_id: str, asked: Mapping[str, Any]) -> OrderView | None:
    """The newest order that made a workflow; None where a command made it.

    Args:
        context: The home.
        caller: Whose project it belongs to.
        workflow_id: Of the pipeline or the study.
        asked: Its request, which names the files of the job.
    """
    # The newest: a record that was resumed with a larger budget, or begun by a command, has a later job.
    if workflow_id and (job := context.jobs.of_workflow(workflow_id, caller.project_id)) is not None:
        return _view(context, job)
    folder = re.escape(str(context.settings.jobs_folder))
    named = re.search(rf"{folder}/(job-[A-Za-z0-9-]+)/", json.dumps(dict(asked)))
    try:
        return None if named is None else show_order(context, caller, named[1])
    except NotFoundError:
        return None


def pause(context: Context, caller: Caller, job_id: str) -> OrderView:
    """Have it stop where it can continue.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has ended or is paused.
    """
    jobs.pause(context, caller, show_order(context, caller, job_id).job, "workflow.paused")
    return show_order(context, caller, job_id)


def cancel(context: Context, caller: Caller, job_id: str) -> OrderView:
    """End it; what its stages have made stays.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has ended.
    """
    jobs.cancel(context, caller, show_order(context, caller, job_id).job, "workflow.cancelled")
    return show_order(context, caller, job_id)


def resume(context: Context, caller: Caller, job_id: str) -> OrderView:
    """Continue one that is paused or has failed, with the access of the caller, whoever started it.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It is neither.
    """
    jobs.resume(context, caller, show_order(context, caller, job_id).job, "workflow.resumed")
    return show_order(context, caller, job_id)


def _view(context: Context, job: Job) -> OrderView:
    order = order_of(job)
    return OrderView(order, job, _record_of(context, job, order), jobs.newest_event(context, job))


def _record_of(context: Context, job: Job, order: WorkflowOrder) -> str:
    """The id of the workflow, where it has a record."""
    if not order.workflow_id:
        place = str(context.settings.jobs_folder / job.job_id)
        kind = _KINDS[order.form]
        made = context.pipelines.list(job.project_id, kind, limit=_MAX_LISTED)
        return next((one.pipeline_id for one in made if place in str(one.asked.get("data", ""))), "")
    try:
        if order.form == "tune":
            context.studies.get(order.workflow_id, job.project_id)
        else:
            context.pipelines.get(order.workflow_id, job.project_id)
    except NotFoundError:
        return ""
    return order.workflow_id


def _check(context: Context, caller: Caller, form: WorkflowForm, values: Mapping[str, Any]) -> None:
    """Refuse what can be refused without reading rows. Paths and addresses are refused: only names are known here."""
    names = FileReferences(context, caller.project_id)
    for field in fields_of(form.name):
        entry, value = field.entry, values.get(field.entry.name)
        if value is None:
            continue
        if entry.kind == "file":
            names.stored(entry.label, value)
        elif entry.kind == "model":
            names.model(entry.label, value)
        elif entry.kind == "models":
            for one in value:
                names.model(entry.label, one)
        elif entry.kind == "teacher":
            teacher_of(names, value)
        elif entry.kind == "deployment":
            context.deployments.get(caller.project_id, value)
        elif entry.kind == "panels":
            for one in value:
                context.rating_panels.get(caller.project_id, one)
    if form.name == "tune":
        from luthier.features.training.recipe_job import checked

        _check_space(values.get("space"))
        checked(context, caller.project_id, recipe_of(form.name, values))
    if form.name == "distill":
        _check_distillation(values)


def teacher_of(names: FileReferences, name: str) -> str:
    """A run of the project, or a base model on this machine. Raises RequestError for anything else."""
    return names.run("Teacher", name) if is_id(name, "run") else names.model("Teacher", name)


def _check_space(space: Any) -> None:
    """Refuse a search space that names files, models or addresses: its values go into recipes as they are."""
    parameters = space.get("parameters") if isinstance(space, Mapping) else None
    for key, value in parameters.items() if isinstance(parameters, Mapping) else ():
        # A parameter that is written as a mapping may have its name inside, too.
        for name in (key, value.get("name", key) if isinstance(value, Mapping) else key):
            place = new_key(str(name))
            section, _, last = place.partition(".")
            if place != DATA_FRACTION and (section not in _SEARCHED or not last or place == "objective.teacher"):
                raise RequestError(
                    f"the search space has {str(name)[:80]!r}",
                    expected=f"keys of {', '.join(_SEARCHED)} (without objective.teacher), or {DATA_FRACTION}",
                    do="remove it from the space",
                )


def _check_distillation(values: Mapping[str, Any]) -> None:
    if "student" not in values and "layers" not in values:
        raise RequestError(
            "no student", expected="a base model, or a number of layers of the teacher", do="choose one of the two"
        )
    for line in str(values.get("overrides", "")).splitlines():
        key, is_pair, value = line.strip().partition("=")
        section = key.strip().partition(".")[0]
        # Files and models of a recipe are paths and addresses on the machine: those are for commands.
        # Aliases expand: a line of nested ones grows to gigabytes.
        is_plain = is_pair and value.strip() and not has_alias(value)
        if line.strip() and not (is_plain and section in ("training", "method")):
            raise RequestError(
                f"the recipe value {line.strip()[:80]!r}",
                expected="KEY=VALUE a line, of training or method, such as training.epochs=3",
                do="correct it",
            )


def local_files(context: Context, job: Job, order: WorkflowOrder, names: FileReferences) -> dict[str, Path]:
    """The job's own copies of the files that an order names, by the field; each keeps the name that people know."""
    from luthier.platform.jobs.attempt import own_copy

    found: dict[str, Path] = {}
    stems: dict[str, str] = {}
    for field in fields_of(order.form):
        if field.entry.kind != "file" or field.entry.name not in order.values:
            continue
        file_id = str(order.values[field.entry.name])
        # A copy made by an earlier attempt is used, although the project has deleted the file since.
        stem = next((known for known, of in stems.items() if of == file_id), "") or _stem(context, job, file_id, stems)
        stems[stem] = file_id
        found[field.entry.name] = own_copy(context, job, file_id, stem)
        names.shown[str(found[field.entry.name])] = found[field.entry.name].name
    return found


def _stem(context: Context, job: Job, file_id: str, taken: Mapping[str, str]) -> str:
    kept = context.settings.jobs_folder / job.job_id / "stems.json"
    known: dict[str, str] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if file_id not in known:
        from luthier.platform.files import service as files

        named = Path(files.get_file(context, job.project_id, file_id).filename).stem
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", named).strip("-")[:60] or file_id
        known[file_id] = file_id if stem in {*taken, *known.values()} else stem
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_text(kept, json.dumps(known))  # half of it would end each later attempt
    return known[file_id]
