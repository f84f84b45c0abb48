"""Use cases of the fine-tuning API: create a job, look at it, page through jobs, pause, resume and cancel.

A client's request becomes a recipe, and the plan gives its hyperparameters back.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from luthier.core.access import Caller
from luthier.core.errors import NotAllowedError, NotFoundError, RequestError, UnsupportedError
from luthier.core.events import BillUpdated
from luthier.core.graders import Reward, as_reward
from luthier.core.ids import new_id, tuned_name
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.records.base_model import LocalModel
from luthier.core.records.fine_tuning import FineTuningRequest, ReinforcementHyperparameters
from luthier.core.registry import TRACKERS
from luthier.core.tracking import TrackerRecipe
from luthier.features.models.store import TunedModel
from luthier.features.trackers.service import check_wandb
from luthier.ml.tracking.registry import chosen
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import find_base_model
from luthier.platform.jobs import orders
from luthier.platform.jobs.events import JobEvent
from luthier.platform.jobs.records import Job, Wish

_OBJECTIVES: Final = {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}
_VALIDATIONS_A_RUN: Final = 10
_GRADER: Final = "method.reinforcement.grader"


def check_request(request: FineTuningRequest, *, allows_python: bool = False) -> None:
    """Raise UnsupportedError for values that no recipe can have, while the client still waits for its answer.

    Args:
        request: Of a client.
        allows_python: Whether graders may be code of a request, in a locked-down process.
    """
    if request.method is not None and request.method_name == "reinforcement":
        _check_reinforcement(request, allows_python=allows_python)
    from luthier.ml.planning.learning_rates import NARROWEST

    # The model is not pulled yet, so its width is unknown: the narrowest has the largest default rate, the worst case.
    multiplier, most = request.asked.learning_rate_multiplier, default_rate(request, NARROWEST)
    if multiplier != "auto" and multiplier * most >= 1:
        raise UnsupportedError(
            f"learning_rate_multiplier {multiplier:g} makes a learning rate of up to {multiplier * most:g}",
            expected=f"a rate below 1: the multiplier counts times up to {most:g}, by the width of the model",
            do="lower learning_rate_multiplier",
            code="invalid_value",
            param="hyperparameters.learning_rate_multiplier",
        )


def recipe_of(
    request: FineTuningRequest,
    base: LocalModel,
    train: Path,
    validation: Path | None = None,
    validate_every_steps: int | None = None,
) -> Recipe:
    """The recipe of a job: our defaults where the client says `auto`.

    All epochs are trained, as on the hosted service; where there are validation rows, the best step of them is kept.

    Args:
        request: of the client.
        base: the base model.
        train: file of the training rows.
        validation: file of the validation rows; None for none.
        validate_every_steps: optimizer steps between two validations; None takes the default.
    """
    asked, name = request.asked, _OBJECTIVES[request.method_name]
    # Patience 0 turns early stopping off.
    training: dict[str, Any] = {"seed": request.seed, "early_stopping_patience": 0}
    if asked.n_epochs != "auto":
        training["epochs"] = float(asked.n_epochs)
    if asked.batch_size != "auto":
        training["global_batch_size"] = asked.batch_size
    if asked.learning_rate_multiplier != "auto":
        training["learning_rate"] = asked.learning_rate_multiplier * default_rate(request, _width(base.path))
    if validate_every_steps is not None:
        training["validate_every_steps"] = validate_every_steps
    objective: dict[str, Any] = {"name": name}
    if (beta := getattr(asked, "beta", "auto")) != "auto":
        objective["beta"] = beta
    if name == "grpo":
        objective["rewards"] = [{"grader": _grader(request)}]
    data = {"train": str(train)} | ({} if validation is None else {"validation": str(validation)})
    document = {"base_model": base.name, "data": data, "objective": objective, "training": training}
    return Recipe.model_validate(document | {"tracking": _tracking(request)})


def _tracking(request: FineTuningRequest) -> list[TrackerRecipe] | None:
    """The client's Weights & Biases, in addition to the trackers of this server's environment that are installed."""
    if not request.integrations:
        return None
    asked = request.integrations[0].wandb
    own = TrackerRecipe(
        name="wandb", project=asked.project, run_name=asked.name, entity=asked.entity, tags=asked.tags or None
    )
    # Named in a recipe, one whose package is missing would fail the job.
    others = (one.name for one in chosen(None, os.environ) if not TRACKERS.declaration(one.name).missing())
    return [*(TrackerRecipe(name=name) for name in others if name != "wandb"), own]


def default_rate(request: FineTuningRequest, hidden_size: int) -> float:
    """The learning rate that a multiplier counts from: the default of this method for the width of the model.

    Args:
        request: the job as it was requested.
        hidden_size: of the base model.
    """
    from luthier.ml.planning import learning_rates

    # [0]: the rate; the second value is the sentence that explains it.
    return learning_rates.default_rate("lora", _OBJECTIVES[request.method_name], hidden_size)[0]


def plan_found(request: FineTuningRequest, plan: Plan) -> dict[str, Any]:
    """What is kept with the job of its plan: the hyperparameters as OpenAI names them, and how often it validates."""
    training = plan.training
    # Inverse of `recipe_of`: the wire has a multiplier, the plan a rate.
    rate = training.learning_rate / default_rate(request, _width(plan.base_model.path))
    epochs = training.epochs
    resolved: dict[str, Any] = {
        "n_epochs": int(epochs) if epochs == int(epochs) else epochs,
        "batch_size": training.global_batch_size,
        # Six digits: the division would give 1.9999999999999998 for a request of 2.
        "learning_rate_multiplier": float(f"{rate:.6g}"),
    }
    if plan.objective.name == "dpo":
        resolved["beta"] = plan.objective.beta
    return {
        "hyperparameters": resolved,
        "num_steps": training.num_steps,
        "validate_every_steps": _validation_steps(plan) if plan.data.validation else None,
    }


def _validation_steps(plan: Plan) -> int:
    """About ten validations a run, one of them at the end of each epoch: so that its checkpoint can be evaluated."""
    per_epoch = plan.training.num_steps_per_epoch
    # Ceiling division.
    least = -(-plan.training.num_steps // _VALIDATIONS_A_RUN)
    # The smallest divisor of an epoch that is large enough: only a divisor puts a validation on each epoch's end.
    return next(steps for steps in range(1, per_epoch + 1) if per_epoch % steps == 0 and steps >= min(least, per_epoch))


def _width(model_path: str) -> int:
    from luthier.ml.inference.models.structure import read_structure

    return read_structure(model_path).hidden_size


def _check_reinforcement(request: FineTuningRequest, *, allows_python: bool) -> None:
    """Refuse graders of which no template, formula, scale or source can be used, and code that is not allowed."""
    grader = _grader(request)
    if not allows_python:
        _refuse_python(grader)
    try:
        _check_grader(grader)
    except (ValidationError, RequestError) as error:
        raise _unusable(error.came if isinstance(error, RequestError) else _first_fault(error)) from error


def _check_grader(grader: Mapping[str, Any]) -> None:
    from luthier.ml.evaluation.graders import fields_of
    from luthier.ml.evaluation.rewards import Rewards
    from luthier.ml.evaluation.sandbox.recorded import check_source

    reward = Reward.model_validate({"grader": grader})
    assert reward.grader is not None
    Rewards([reward], {})
    # What its templates name of an answer: what they name of rows is known with the file.
    fields_of(reward.grader)
    for code in reward.code:
        check_source(code)


def _unusable(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"method reinforcement with this grader: {reason}",
        expected="string_check, text_similarity, score_model, label_model, python where the server runs it, or a "
        "multi grader of these",
        do="correct the grader; POST /v1/fine_tuning/alpha/graders/validate checks one alone",
        code="unsupported_method",
        param=_GRADER,
    )


def _refuse_python(grader: Mapping[str, Any]) -> None:
    parts = grader.get("graders")
    for one in (grader, *(parts.values() if isinstance(parts, Mapping) else ())):
        if isinstance(one, Mapping) and one.get("type") == "python":
            raise UnsupportedError(
                f"method reinforcement with the grader {one.get('name', 'python')!r} of type python",
                expected="a grader that runs no code, or a server whose operator allows it "
                "(LUTHIER_PYTHON_GRADERS=true)",
                do="grade with string_check, text_similarity, score_model, label_model, or a multi grader of these",
                code="unsupported_grader",
                param=_GRADER,
            )


def _check_judges(context: Context, caller: Caller, request: FineTuningRequest) -> None:
    """The models that the grader asks are those that the caller may ask.

    Raises:
        NotAllowedError: The key may not ask models.
        UnsupportedError: The project has no such model.
    """
    from luthier.features.serving.models import get_model

    if request.method_name != "reinforcement":
        return
    for name in dict.fromkeys(Reward.model_validate({"grader": _grader(request)}).judges):
        # The training scope alone must not allow to ask models.
        if not caller.may("infer"):
            raise NotAllowedError(
                f"the key {caller.name!r} may not ask models, and the grader asks {name}",
                expected="a key with the scopes train and infer",
                do="use such a key, or a grader that asks no model",
            )
        try:
            get_model(context, caller, name)
        except NotFoundError as error:
            raise UnsupportedError(
                f"the grader asks {name!r}, and {error.came}",
                expected=f"a model of this server that can grade: {error.expected}",
                do="name one of GET /v1/models, or have a deployment of that name route to one",
                code="model_not_found",
                param=_GRADER,
            ) from error


def _grader(request: FineTuningRequest) -> dict[str, Any]:
    """The grader of a request as recipes have it. Raises UnsupportedError without one, and for two of one name."""
    if request.method is None or request.method.reinforcement is None:
        raise _unusable("no grader")
    try:
        return as_reward(request.method.reinforcement.grader)
    except RequestError as error:
        raise _unusable(error.came) from error


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'][1:])) or 'grader'}: {first['msg']}"


JOB: Final = "ftjob"
_PAGE: Final = 100
_LARGEST_SEED: Final = 2**31 - 1
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def create(context: Context, caller: Caller, request: FineTuningRequest) -> Job:
    """Queue a job. Its files are validated before it is trained.

    Raises:
        UnsupportedError: Something that this server does not do, or a model or file that the project does not have.
        NotAllowedError: The grader asks a model, and the key may not.
    """
    # Refused, not ignored: a client that expects its runs in Weights & Biases would wait for them in vain.
    if request.integrations:
        check_wandb(os.environ, num=len(request.integrations))
    base_model = _base_model(context, request.model, caller.project_id)
    for param in ("training_file", "validation_file"):
        if (file_id := getattr(request, param)) is not None:
            _check_file(context, caller.project_id, file_id, param)
    # All that can be refused without files is refused in the request; later errors only reach the job's events.
    check_request(request, allows_python=context.settings.python_graders)
    _check_judges(context, caller, request)
    # Drawn once and stored with the request, so that every attempt of the job trains with the same seed.
    seed = secrets.randbelow(_LARGEST_SEED) if request.seed is None else request.seed
    document = {
        "request": request.model_copy(update={"seed": seed}).model_dump(mode="json", exclude_none=True),
        "base_model": base_model,
    }
    job = Job(
        job_id=new_id(JOB),
        kind="train",
        document=document,
        run_id=new_id("run"),
        project_id=caller.project_id,
        lane="validate",
    )
    facts = {"model": request.model, "training_file": request.training_file}
    with context.database.transaction():
        made = context.jobs.submit(job)
        # Warnings are events after the job exists: the wire format of a job has no field for them.
        for name in _without_effect(request):
            message = f"{name} has no effect here; leave it out to avoid this warning"
            context.job_events.append(job.job_id, f"without-effect-{name}", message, level="warn")
        record(context, caller, "job.created", job.job_id, facts)
    return made


def _without_effect(request: FineTuningRequest) -> list[str]:
    """Requested settings of the hosted service's reinforcement that our GRPO has no counterpart for."""
    asked = request.asked
    if not isinstance(asked, ReinforcementHyperparameters):
        return []
    untouched = ReinforcementHyperparameters()
    names = ("reasoning_effort", "compute_multiplier", "eval_interval", "eval_samples")
    return [name for name in names if getattr(asked, name) != getattr(untouched, name)]


def get(context: Context, caller: Caller, job_id: str) -> Job:
    """One job of the project.

    Raises:
        NotFoundError: the project has no such job, or a command of the queue made it.
    """
    job = context.jobs.get(job_id, caller.project_id)
    if "request" not in job.document:
        raise NotFoundError(
            f"no fine-tuning job {job_id!r}", expected="a job made by the API", do="see `luthier jobs show` for others"
        )
    return job


def page_of_jobs(
    context: Context,
    caller: Caller,
    *,
    after: str | None = None,
    limit: int = 20,
    metadata: Mapping[str, str] | None = None,
    without_metadata: bool = False,
) -> tuple[list[Job], bool]:
    """Jobs of the project, newest first, and whether there are more.

    Args:
        context: The home.
        caller: Whose project it is.
        after: The id of the job that the page follows.
        limit: How many jobs at most.
        metadata: Only jobs that have all of these.
        without_metadata: Only jobs that have none.

    Raises:
        NotFoundError: `after` is no job of the project.
    """
    found: list[Job] = []
    is_sifted = without_metadata or bool(metadata)
    # Metadata is inside a JSON document and cannot be filtered by the database; pages are read until enough match.
    # One more than `limit` shows whether there is another page.
    for job in _jobs(context, caller.project_id, after, max(_PAGE, limit + 1) if is_sifted else limit + 1):
        own = job.document["request"].get("metadata") or {}
        if (without_metadata and own) or any(own.get(key) != value for key, value in (metadata or {}).items()):
            continue
        found.append(job)
        if len(found) > limit:
            break
    return found[:limit], len(found) > limit


def ask(context: Context, caller: Caller, job_id: str, wish: Wish) -> Job:
    """Pause or cancel a job.

    Raises:
        NotFoundError: there is none in the project.
        ConflictError: its state forbids that.
    """
    # Only a wish is stored; the worker that trains sees it at its next step.
    change = orders.cancel if wish == "cancel" else orders.pause
    return change(context, caller, get(context, caller, job_id), f"job.{wish}")


def resume(context: Context, caller: Caller, job_id: str) -> Job:
    """Queue a paused or failed job again.

    Raises:
        NotFoundError: the project has no such job.
        ConflictError: the job is neither paused nor failed; a job that is still pausing is neither.
    """
    return orders.resume(context, caller, get(context, caller, job_id), "job.resume")


def events(
    context: Context, caller: Caller, job_id: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[JobEvent], bool]:
    """Events of a job, newest first, and whether there are more.

    Args:
        context: of the home.
        caller: whose project the job belongs to.
        job_id: of the job.
        after: id of the event before the page; None for the first page.
        limit: events of a page.

    Raises:
        NotFoundError: no such job.
        RequestError: `after` is no event of it.
    """
    get(context, caller, job_id)
    return context.job_events.page(job_id, after=after, limit=limit)


def checkpoints(context: Context, caller: Caller, job_id: str) -> list[TunedModel]:
    """What the job's model was after each of its last epochs, newest first.

    Raises:
        NotFoundError: the project has no such job.
    """
    get(context, caller, job_id)
    models = context.tuned_models.list(caller.project_id, job_id=job_id)
    kept = [model for model in models if model.step is not None]
    return sorted(kept, key=lambda model: model.step or 0, reverse=True)


def estimated_finish(context: Context, job: Job) -> float | None:
    """When a running job should be done, in seconds since 1970; None where it is not known yet."""
    if job.status != "running" or job.lane != "train":
        return None
    bill = context.runs.last(job.run_id, "bill")
    if not isinstance(bill, BillUpdated):  # also where the run is not there yet
        return None
    try:
        record = context.runs.get(job.run_id)
    except NotFoundError:
        return None
    if record.is_trained or record.num_steps <= bill.step:
        return None
    # The bill was last written some steps ago: its remaining time is scaled by the steps that are left since.
    share = max(0, record.num_steps - record.step) / (record.num_steps - bill.step)
    return datetime.fromisoformat(record.updated_at).timestamp() + bill.bill.left_seconds * share


def _jobs(context: Context, project_id: str, after: str | None, at_once: int) -> Iterator[Job]:
    """The jobs of a project, newest first, read a few at a time."""
    while True:
        found = context.jobs.list(project_id=project_id, prefix=f"{JOB}-", after=after, limit=at_once)
        yield from found
        # A short page is the last one, which saves the empty query at the end.
        if len(found) < at_once:
            return
        after = found[-1].job_id


def _base_model(context: Context, name: str, project_id: str) -> str:
    try:
        return find_base_model(context, name, project_id)
    except NotFoundError as error:
        if name.startswith("ft:"):
            raise UnsupportedError(
                f"the model {name!r} was tuned before",
                expected="a base model: a tuned one is not tuned further here",
                do="name its base model, and train on the rows of both jobs",
                code="unsupported_model",
                param="model",
            ) from error
        raise UnsupportedError(
            error.came, expected=error.expected, do=error.do, code="model_not_found", param="model"
        ) from error


def _check_file(context: Context, project_id: str, file_id: str, param: str) -> None:
    from luthier.platform.files import service as files

    def wrong(came: str, expected: str, do: str) -> UnsupportedError:
        return UnsupportedError(came, expected=expected, do=do, code="invalid_file", param=param)

    try:
        file = files.get_file(context, project_id, file_id)
    except NotFoundError as error:
        raise wrong(f"{param} {file_id!r} does not exist", error.expected, error.do) from error
    if file.purpose != "fine-tune":
        do = "upload it again with that purpose"
        raise wrong(f"{param} {file_id} has the purpose {file.purpose}", "the purpose fine-tune", do)


def model_id(job: Job) -> str:
    """What the outcome of a job is called: `ft:BASE:PROJECT:SUFFIX:ID`, the id made from that of the job."""
    request = job.document["request"]
    suffix = _NOT_IN_A_NAME.sub("-", request.get("suffix") or "")
    return tuned_name(request["model"], job.project_id, suffix, job.job_id)
