"""Use cases: search for the best recipe within one budget, resume a search, show it, use its recipe.

search      trials on rungs, until the budget is used but for what the end takes
confirm     the best few again with other seeds, since the best of many was also lucky
final       the winner's recipe on all rows, training and validation together, evaluated once on the held-out ones
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import NotFoundError, RecipeError, RequestError
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.recipe import MethodRecipe, ObjectiveRecipe, OptimizerRecipe, Recipe, TrainingRecipe
from luthier.core.workflows.pipeline import Pipeline, Stage, StageStatus
from luthier.core.workflows.study import (
    ALPHA_OVER_RANK,
    GoalName,
    SamplerName,
    Space,
    StartPoint,
    Study,
    StudySpec,
    Trial,
)
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.planning.kept_defaults import changed_defaults, defaults_format, with_values
from luthier.features.planning.service import make_plan
from luthier.features.planning.training_data import TrainingDataLoader
from luthier.features.studies.end import bring_up_own, confirm, finish, with_report
from luthier.features.studies.search import Search, Tell, points_to_begin_with
from luthier.features.studies.trials import expected_hours, price
from luthier.features.studies.workers import worker_pool
from luthier.ml.search.rungs import QUALITY, REDUCTION, RUNGS, usable
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import (
    Outcome,
    PausedError,
    StageSpec,
    Workflow,
    WorkflowRun,
    hold,
    run_stages,
)

_END_SHARE: Final = 1.2
"""What the final training takes, as a share of a trial's whole one: it has the validation rows, too."""


@dataclass(frozen=True, slots=True)
class StudyRequest:
    """What is requested.

    Attributes:
        recipe: With absolute paths.
        hours: For everything; of this and `usd` the smaller counts. One of them must be given.
        usd: For everything.
        most_trials: Trials at most.
        space: A document that narrows the space.
        space_name: Names it in errors.
        sampler: That proposes trials; with several goals it is NSGA-II.
        seed: Of the sampler.
        rungs: Shares of a whole training after which trials are compared.
        num_seeds: How often the best few are repeated with other seeds.
        workers: How many trials train in parallel.
        goals: What is optimised.
        knows_others: Whether it begins with what earlier studies of the project on similar data have found.
    """

    recipe: Recipe
    hours: float | None = None
    usd: float | None = None
    most_trials: int = 40
    space: Any = None
    space_name: str = "the space"
    sampler: SamplerName = "tpe"
    seed: int = 0
    rungs: tuple[float, ...] = RUNGS
    num_seeds: int = 1
    workers: int = 1
    goals: tuple[GoalName, ...] = QUALITY
    knows_others: bool = False


def begin(
    context: Context, request: StudyRequest, *, project_id: str = DEFAULT_PROJECT, study_id: str | None = None
) -> Study:
    """Plan a study: its space, its rungs, and whether its budget covers one trial and the end. Trains nothing.

    Raises:
        RequestError: There is no budget or are no validation rows, or goals, objective or space cannot be searched.
        BudgetTooSmallError: The budget does not cover one trial and the end.
        RecipeError: Values cannot go together or do not fit the rows.
        DataError: Rows are wrong.
        TemplateError: A loss mask cannot be proved.
        NotFoundError: There is no such model or file.
        ModelSourceError: The base model cannot be fetched.
    """
    from luthier.ml.search.comparable import refuse_incomparable
    from luthier.ml.search.space import default_space, narrowed, own_values

    _refuse_goals(request)
    if request.recipe.data.validation is None:
        raise RequestError(
            "a recipe without data.validation",
            expected="rows to compare trials on, separate from those of the final evaluation",
            do="add data.validation: a file, or a fraction such as 0.1",
        )
    plan = make_plan(context, request.recipe, base_dir=Path())
    if plan.objective.draws:
        raise RequestError(
            f"objective {plan.objective.name}: its loss does not show how good a trial is",
            expected="an objective with a comparable loss on validation rows",
            do="search with sft or a preference objective, and use the settings that it finds",
        )
    space = default_space(plan, most_rank=_max_rank(plan))
    if request.space is not None:
        space = narrowed(space, request.space, place=request.space_name)
    refuse_incomparable(space, plan)
    start, notes = _beginning(context, request, plan, space, project_id)
    spec = StudySpec(
        recipe=_named(request.recipe, plan, space),
        space=space,
        hours=_hours(request.hours, request.usd, _usd_per_hour(plan)),
        usd=request.usd,
        most_trials=1 + len(start) if space.has_one_point else request.most_trials,
        sampler="nsga2" if len(request.goals) > 1 else request.sampler,
        seed=request.seed,
        rungs=usable(request.rungs, plan.training.num_steps),
        reduction=REDUCTION,
        num_seeds=request.num_seeds,
        workers=request.workers,
        goals=request.goals,
        own_values=own_values(plan, space),
        start=start,
        stops_hopeless=True,
    )
    _refuse_too_small(context, spec, plan)
    if len(spec.rungs) < len(request.rungs) and not space.has_one_point:
        notes = (*notes, _few_rungs(spec.rungs, plan))
    notes = (*notes, *_crowded(spec, plan))
    study = Study(
        study_id=study_id or new_id("study"),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        status="searching",
        spec=spec,
        usd_per_hour=_usd_per_hour(plan),
        notes=notes,
    )
    context.studies.create(study, project_id)
    return study


def go_on(
    context: Context,
    study_id: str,
    *,
    hours: float | None = None,
    usd: float | None = None,
    tell: Tell = lambda _study, _trial: None,
) -> Study:
    """Search, confirm and train to the end, from any state of the study; returns the final study.

    SIGTERM and SIGINT leave it `paused`, with every trial at a checkpoint; so does a budget that is used up before the
    end of the final run. Once that has begun, nothing more is searched.

    Args:
        context: The home.
        study_id: Of the study.
        hours: A budget in place of its own, counted from the beginning of the study.
        usd: The same in money.
        tell: Called with every trial that changes.

    Raises:
        ConflictError: Another process works on it, or its rows have changed.
        BudgetTooSmallError: The budget is used up already.
        RequestError: A budget in money where the price of an hour is unknown.
        StudyFailedError: None of its trials has trained.
    """
    began, study, data_loader = time.perf_counter(), context.studies.get(study_id), TrainingDataLoader()
    lock = context.settings.home / "studies" / study_id / "lock"
    owner = context.owner_project_id or context.studies.project_of(study_id)
    with hold(lock, f"study {study_id}") as held, context.owned_by(owner), ExitStack() as pool:
        study = context.studies.get(study_id)  # the former holder may have continued
        # Nothing is searched again; the caller gets the stored result.
        if study.status == "done":
            return with_report(context, study)
        study = _with_budget(study, hours, usd)
        # Planned again, which refuses rows that have changed since.
        own = make_plan(context, study.spec.recipe, base_dir=Path())
        study, own = _with_first_defaults(context, study, own)
        final_hours = _final_hours(context, study, own, data_loader)
        workers = pool.enter_context(worker_pool(context, study, held))
        search = Search(context, study, own, final_hours, tell, workers, began, data_loader)
        material = {"search": search, "pool": pool}
        # Nothing about stages is stored: they follow from the trials, so a kill between two writes leaves no
        # contradiction.
        run = WorkflowRun(context, Caller(), WORKFLOW, _record(study), study.spec, material)
        with suppress(PausedError):  # the study records it
            run_stages(run, lambda pipeline: _keep(search, pipeline))
        return search.study


def _with_first_defaults(context: Context, study: Study, own: Plan) -> tuple[Study, Plan]:
    """The study and the plan of its recipe, with the defaults of its first trial.

    A version with other defaults would train the remaining trials otherwise than those that they are held against.

    Args:
        context: The home.
        study: The study.
        own: The plan of its recipe, as made now.
    """
    trials = context.studies.trials(study.study_id)
    try:
        first = context.runs.plan(trials[0].run_id) if trials else own
    except NotFoundError:  # it was not begun, or its run was removed
        return study, own
    if not (kept := changed_defaults(study.spec.recipe, own, first)):
        return study, own
    recipe = with_values(study.spec.recipe, kept)
    try:
        own = make_plan(context, recipe, base_dir=Path())
    except RecipeError as error:
        note = f"it began with other defaults than those of this version, which cannot be kept: {error.came}"
        return study.model_copy(update={"notes": tuple(dict.fromkeys((*study.notes, note)))}), own
    note = f"it keeps defaults that it began with, and that this version has otherwise: {defaults_format(kept)}"
    spec = study.spec.model_copy(update={"recipe": recipe})
    return study.model_copy(update={"spec": spec, "notes": (*study.notes, note)}), own


def _record(study: Study) -> Pipeline:
    """The stages as the study has them. What decides about a search is in its trials: each resume replays them
    again, until the final run is named."""
    found: StageStatus = "waiting" if study.final_run_id is None else "done"
    stages = (Stage(name="search", status=found), Stage(name="confirm", status=found), Stage(name="final"))
    asked = study.spec.model_dump(mode="json")
    return Pipeline(pipeline_id=study.study_id, kind="tune", asked=asked, stages=stages)


def _keep(search: Search, pipeline: Pipeline) -> None:
    """Store that a search is running or paused; its stages store everything else with their results."""
    stage = pipeline.next_stage
    if stage is not None and stage.status == "paused":
        search.change(search.study.model_copy(update={"status": "paused"}))
    elif stage is not None and (stage.name, stage.status) == ("search", "running") and search.study.status == "paused":
        search.change(search.study.model_copy(update={"status": "searching"}))


def _search_stage(run: WorkflowRun) -> Outcome:
    search: Search = run.material["search"]
    if not search.study.is_searched:
        if not search.run():
            return _ended(search, False)
        # Stored: the trainings below add results to rungs, by which a search that is replayed would promote more.
        search.change(search.study.model_copy(update={"is_searched": True}))
    return _ended(search, bring_up_own(search))


def _confirm_stage(run: WorkflowRun) -> Outcome:
    search: Search = run.material["search"]
    ended = _ended(search, confirm(search))
    search.rest()
    return ended


def _final_stage(run: WorkflowRun) -> Outcome:
    run.material["pool"].close()  # the final run has the machine to itself
    study = finish(run.material["search"])
    if study.status != "done":
        raise PausedError(f"the study is {study.status}", expected="a final run at its end", do=study.way_on)
    return Outcome()


def _ended(search: Search, is_through: bool) -> Outcome:
    if not is_through:
        search.rest()
        raise PausedError("it was stopped", expected="the end of the search", do=search.study.way_on)
    return Outcome()


WORKFLOW: Final = Workflow(
    kind="tune",
    noun="a study",
    request=StudySpec,
    stages=lambda _spec: [
        StageSpec("search", "Trials on rungs, until the budget is used but for what the end takes", _search_stage),
        StageSpec("confirm", "The best few again with other seeds", _confirm_stage),
        StageSpec("final", "The winner's recipe on all rows, evaluated once on the held-out ones", _final_stage),
    ],
    folder="studies",
)


def trial_line(trial: Trial) -> str:
    """A trial in one line: what it sets, how far it got, and its loss."""
    values = ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in trial.values.items())
    loss = "" if trial.loss is None else f", loss {trial.loss:.4f} on rung {trial.rung + 1}"
    return f"trial {trial.number} ({values or 'the original recipe'}): {trial.state}{loss}"


def _refuse_goals(request: StudyRequest) -> None:
    if "quality" not in request.goals or len(set(request.goals)) < len(request.goals):
        raise RequestError(
            f"goals {', '.join(request.goals) or 'none'}",
            expected="each goal once, including quality: the smallest adapter has learned nothing",
            do="write for example: --objective quality,size",
        )
    # `tpe` is the default, and is replaced where there are several goals.
    if len(request.goals) > 1 and request.sampler in ("tpe", "nsga2"):
        return
    if len(request.goals) > 1 or request.sampler == "nsga2":
        raise RequestError(
            f"sampler {request.sampler} for {', '.join(request.goals)}",
            expected="nsga2 for several goals; tpe, cmaes or random for quality alone",
            do="leave --sampler out",
        )


def _final_hours(context: Context, study: Study, own: Plan, data_loader: TrainingDataLoader) -> float:
    """The expected cost of the end: the recipe's training again, on a few more rows, and its evaluation, with the whole
    machine.
    """
    known = context.studies.trials(study.study_id)
    # Trial 0 is the recipe as it came.
    hours = known[0].predicted_hours if known else None
    hours = hours or _own_hours(context, study.spec, own, data_loader)
    taken, workers = expected_hours(known, hours), study.spec.workers
    # trials that share the machine do not show how long one that has all of it takes: at most as long as they took on
    # the clock, at least as long as they took of the machine, and between the two the planner is believed
    return min(max(taken, hours), taken * workers) * _END_SHARE + _judging_hours(own)


def _judging_hours(own: Plan) -> float:
    """What the evaluation of the final run should take; 0 where no rows are held out."""
    judging = None if own.budget is None else own.budget.first.judging
    return 0.0 if judging is None else judging.value / 3600


def _own_hours(context: Context, spec: StudySpec, own: Plan, data_loader: TrainingDataLoader | None = None) -> float:
    """What the recipe as it came should take. own: its plan."""
    return price(context, spec, Trial(number=0, values={}, run_id=new_id("run")), own, data_loader).hours


def _refuse_too_small(context: Context, spec: StudySpec, plan: Plan) -> None:
    hours = _own_hours(context, spec, plan)
    # One trial and the end, with its evaluation, are the least that gives a result.
    needed = hours * (1 + _END_SHARE) + _judging_hours(plan)
    if spec.hours < needed:
        raise BudgetTooSmallError(
            f"a budget of {spec.hours:.3g} h: one trial should take {hours:.3g} h, and the final run as long again",
            expected=f"at least {needed:.2g} h, and about ten times that for a search",
            do="give it more hours, fewer epochs or fewer rows",
        )


def _crowded(spec: StudySpec, plan: Plan) -> Sequence[str]:
    """A note on more workers than threads, if there are."""
    if plan.training.device != "cpu" or spec.workers <= plan.training.num_threads:
        return ()
    threads = f"{plan.training.num_threads} {'thread' if plan.training.num_threads == 1 else 'threads'}"
    return (f"{spec.workers} workers share {threads}: more of them than threads get in each other's way",)


def _few_rungs(rungs: Sequence[float], plan: Plan) -> str:
    steps = f"the recipe's own training has {plan.training.num_steps} steps"
    if len(rungs) == 1:
        return f"{steps}: every trial is trained to its end, since less of it would say nothing"
    return f"{steps}: trials are compared after {rungs[0]:.0%} of it at the earliest, since less would say nothing"


def _hours(hours: float | None, usd: float | None, usd_per_hour: float | None) -> float:
    for name, given in (("--budget-hours", hours), ("--budget-usd", usd)):
        if given is not None and not (isfinite(given) and given > 0):
            raise RequestError(
                f"{name} {given:g}", expected="a finite number above 0", do=f"write for example: {name} 2"
            )
    if hours is None and usd is None:
        raise RequestError(
            "no budget", expected="--budget-hours or --budget-usd", do="set a limit for the whole search"
        )
    if usd is not None and not usd_per_hour:
        raise RequestError(
            f"--budget-usd {usd}: the price of an hour of this machine is not known",
            expected="a price for this machine",
            do="give --budget-hours",
        )
    by_money = usd / usd_per_hour if usd is not None and usd_per_hour else None
    return min(one for one in (hours, by_money) if one is not None)


def _with_budget(study: Study, hours: float | None, usd: float | None) -> Study:
    """The study with another budget, if one is given. Raises BudgetTooSmallError where that is spent already."""
    needs = study.needs_hours
    if hours is None and usd is None:
        if needs is None:
            return study
        raise BudgetTooSmallError(
            f"a budget of {study.spec.hours:.3g} h, which was used up before the final run had finished",
            expected=f"about {needs:.3g} h, counted from the beginning of the study",
            do=study.way_on,
        )
    budget = _hours(hours, usd, study.usd_per_hour)
    if needs is not None and budget <= study.hours:
        raise BudgetTooSmallError(
            f"a budget of {budget:.3g} h: the study has spent {study.hours:.3g} h",
            expected=f"about {needs:.3g} h, counted from the beginning of the study",
            do=study.way_on,
        )
    # A larger budget continues the search, unless the final run is named.
    is_searched = study.is_searched and (study.final_run_id is not None or budget <= study.spec.hours)
    spec = study.spec.model_copy(update={"hours": budget, "usd": usd})
    return study.model_copy(update={"spec": spec, "is_searched": is_searched})


def _beginning(
    context: Context, request: StudyRequest, plan: Plan, space: Space, project_id: str
) -> tuple[tuple[StartPoint, ...], tuple[str, ...]]:
    """The points to begin with after the recipe itself, and notes on them."""
    from luthier.ml.search.space import fixed_values, own_values

    own = own_values(plan, space)
    if not space.has_one_point:
        return points_to_begin_with(context, plan, space, own, project_id if request.knows_others else None)
    if values := fixed_values(space, own):
        point = StartPoint(values=values, why="the one point of the space")
        return (point,), ("the space has one point: it is trained beside the recipe, nothing is searched",)
    return (), ("the space has one point: its recipe is trained, nothing is searched",)


def _named(recipe: Recipe, plan: Plan, space: Space) -> Recipe:
    """The recipe with the names of its plan where keys beside them are searched: a rank alone names no method.

    The rank, too, where alpha is searched as a multiple of it.
    """
    from luthier.ml.training.methods.rules import rules_of

    searched = [parameter.name for parameter in space.parameters]
    changed: dict[str, Any] = {}
    if any(name.startswith("method.") for name in searched):
        method = recipe.method or MethodRecipe(name=plan.method.name)
        if ALPHA_OVER_RANK in searched and method.rank is None and "rank" in rules_of(method.name).settings:
            method = method.model_copy(update={"rank": plan.method.rank})
        changed["method"] = method
    if recipe.objective is None and any(name.startswith("objective.") for name in searched):
        changed["objective"] = ObjectiveRecipe(name=plan.objective.name)
    training = recipe.training or TrainingRecipe()
    if training.optimizer is None and any(name.startswith("training.optimizer.") for name in searched):
        optimizer = OptimizerRecipe(name=plan.training.optimizer.name)
        changed["training"] = training.model_copy(update={"optimizer": optimizer})
    return recipe.model_copy(update=changed)


def _max_rank(plan: Plan) -> int:
    from luthier.ml.inference.models.structure import read_structure

    return min(min(layer.num_inputs, layer.num_outputs) for layer in read_structure(plan.base_model.path).linear_layers)


def _usd_per_hour(plan: Plan) -> float | None:
    rate = plan.budget.usd_per_hour if plan.budget is not None else None
    return None if rate is None else rate.high


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
