"""Use cases: search for the best recipe within one budget, go on with a search, look at it, take its recipe over.

search      trials on rungs, until the budget is used but for what the end takes
confirm     the best few once more with other seeds, since the best of many was also lucky
final       the winner's recipe on all rows, training and validation together, judged once on the held-out ones
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import ConflictError, RequestError
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.recipe import BudgetRecipe, Recipe
from luthier.core.study import SamplerName, Space, Study, StudySpec, Trial, recipe_with
from luthier.service.budgets import BudgetTooSmallError
from luthier.service.context import Context
from luthier.service.plans import make_plan
from luthier.service.study_search import Search, Tell, best_of
from luthier.service.trials import expected_hours, price

RUNGS: Final = (1 / 9, 1 / 3, 1.0)
_LOCK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class StudyRequest:
    """What is asked. recipe: with absolute paths. hours, usd: for everything. space: a document that narrows it."""

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


def begin(context: Context, request: StudyRequest, *, project_id: str = DEFAULT_PROJECT) -> Study:
    """Plan a study: its space, its rungs, and whether its budget covers one trial and the end. Trains nothing.

    Raises RequestError (no budget, no validation rows, a space that cannot be), BudgetTooSmallError, and what
    `service.plans.prepare` raises.
    """
    from luthier.tune.space import default_space, narrowed

    if request.recipe.data.validation is None:
        raise RequestError(
            "a recipe without data.validation",
            expected="rows that trials are compared on, apart from those that judge at the end",
            do="add data.validation: a file, or a fraction such as 0.1",
        )
    plan = make_plan(context, request.recipe, base_dir=Path())
    if plan.objective.draws:
        raise RequestError(
            f"objective {plan.objective.name}: its loss says nothing of how good a trial is",
            expected="an objective whose loss on validation rows can be compared",
            do="search with sft or a preference objective, and take the settings over",
        )
    space = default_space(plan, most_rank=_most_rank(plan))
    if request.space is not None:
        space = narrowed(space, request.space, place=request.space_name)
    spec = StudySpec(
        recipe=request.recipe,
        space=space,
        hours=_hours(plan, request),
        usd=request.usd,
        most_trials=1 if space.has_one_point else request.most_trials,
        sampler=request.sampler,
        seed=request.seed,
        rungs=request.rungs,
        num_seeds=request.num_seeds,
    )
    _refuse_too_small(context, spec, plan)
    notes = ("the space has one point: its recipe is trained, nothing is searched",) if space.has_one_point else ()
    study = Study(
        study_id=new_id("study"),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        status="searching",
        spec=spec,
        usd_per_hour=_usd_per_hour(plan),
        notes=notes,
    )
    context.studies.create(study, project_id)
    return study


def go_on(context: Context, study_id: str, *, tell: Tell = lambda _study, _trial: None) -> Study:
    """Search, confirm and train to the end, from wherever the study is; the study as it is then.

    SIGTERM and SIGINT leave it `paused`, with every trial at a checkpoint. tell: told of every trial that changes.

    Raises ConflictError where another process works on it or its rows have changed, StudyFailedError.
    """
    from luthier.store.file_lock import file_lock

    study = context.studies.get(study_id)
    if study.status == "done":
        return study
    lock = context.settings.home / "studies" / study_id / "lock"
    with file_lock(lock, what=f"study {study_id}", timeout_seconds=_LOCK_SECONDS):
        own = make_plan(context, study.spec.recipe, base_dir=Path())
        search = Search(context, study, own, _final_hours(context, study, own), tell)
        if study.status in ("searching", "paused"):
            search.change(study.model_copy(update={"status": "searching"}))
        if not search.run() or not _bring_up_own(search) or not _confirm(search):
            search.change(search.study.model_copy(update={"status": "paused"}))
            return search.study
        return _finish(search)


def trial_line(trial: Trial) -> str:
    """A trial in one line: what it sets, how far it got, and its loss."""
    values = ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in trial.values.items())
    loss = "" if trial.loss is None else f", loss {trial.loss:.4f} on rung {trial.rung + 1}"
    return f"trial {trial.number} ({values or 'the recipe as it is'}): {trial.state}{loss}"


def winning_document(study: Study, trials: Sequence[Trial]) -> dict[str, Any]:
    """The recipe of the winner, ready to run. Raises ConflictError where none is named yet."""
    if study.winner is None:
        raise ConflictError(
            f"study {study.study_id} has no winner yet: it is {study.status}",
            expected="a study that is done",
            do=f"go on with it: luthier tune --resume {study.study_id}",
        )
    return recipe_with(study.spec.recipe, trials[study.winner].values)


def mean_losses(trials: Sequence[Trial]) -> dict[int, list[float]]:
    """Losses of the trials that were repeated, and of their repetitions, by the number of the first."""
    found: dict[int, list[float]] = {}
    for trial in trials:
        if trial.kind == "confirm" and trial.of is not None and trial.loss is not None:
            first = trials[trial.of].loss
            found.setdefault(trial.of, [] if first is None else [first]).append(trial.loss)
    return found


def _bring_up_own(search: Search) -> bool:
    """Train the recipe as it came to its end, too, as far as the budget goes: what the search is held against.

    False where it was asked to stop.
    """
    own, spec = search.trials[0], search.study.spec
    last = len(spec.rungs) - 1
    if own.state not in ("paused", "waiting") or own.rung == last:
        return True
    priced = price(search.context, spec, own, search.own)
    share = 1 - (own.results[-1].share if own.results else 0.0)
    if search.left_hours < expected_hours(search.trials, priced.hours) * share:
        return True
    for rung in range(own.rung + 1, last + 1):
        own = search.train(search.keep(own.model_copy(update={"state": "running"})), rung, priced)
        if own.state != "paused":
            break
    return own.state != "waiting"


def _confirm(search: Search) -> bool:
    """Repeat the best few with other seeds, as far as the budget goes; false where it was asked to stop."""
    spec = search.study.spec
    best = [trial for trial in best_of(search.trials) if trial.state == "done"][: spec.num_confirmed]
    wanted = [(trial, n) for n in range(spec.num_seeds) for trial in best] if len(best) > 1 else []
    for trial, n in wanted:
        again = [t for t in search.trials if t.kind == "confirm" and t.of == trial.number]
        if len(again) > n and again[n].state in ("done", "failed"):
            continue
        if len(again) <= n:
            if search.left_hours < expected_hours(search.trials, trial.predicted_hours or 0.0):
                note = f"trial {trial.number} was not repeated with another seed: the budget does not cover it"
                search.change(search.study.model_copy(update={"notes": (*search.study.notes, note)}))
                return True
            search.change(search.study.model_copy(update={"status": "confirming"}))
            repeated = Trial(
                number=len(search.trials), kind="confirm", of=trial.number, values=trial.values, run_id=new_id("run")
            )
            search.keep(repeated)
        else:
            repeated = again[n]
        priced = price(search.context, spec, repeated, search.own)
        repeated = search.keep(repeated.model_copy(update={"state": "running", "predicted_hours": priced.hours}))
        last = len(spec.rungs) - 1
        if search.train(repeated, last, priced).state == "waiting":
            return False
    return True


def _finish(search: Search) -> Study:
    """Name the winner and train its recipe on all rows."""
    study, trials = search.study, search.trials
    best = best_of(trials)
    if not best:
        raise ConflictError(
            f"study {study.study_id} has no trial that came to anything",
            expected="at least one trial with a loss",
            do="give it a larger budget, or look at why they failed: luthier studies show " + study.study_id,
        )
    repeated = mean_losses(trials)
    winner = min(best, key=lambda t: (statistics.fmean(repeated.get(t.number, [t.loss or 0.0])), t.number))
    # of those that were repeated the best mean counts: one that was not may only have been lucky
    if repeated:
        winner = trials[min(repeated, key=lambda number: (statistics.fmean(repeated[number]), number))]
    final_run_id = study.final_run_id or new_id("run")
    search.change(study.model_copy(update={"winner": winner.number, "final_run_id": final_run_id, "status": "final"}))
    began = time.perf_counter()
    status = _train_final(search, winner, final_run_id)
    hours = search.study.hours + (time.perf_counter() - began) / 3600
    spent = sum(trial.hours for trial in trials) + search.study.overhead_hours + hours
    is_done = status == "succeeded"
    search.change(search.study.model_copy(update={"status": "done" if is_done else "paused", "hours": spent}))
    if is_done:
        report = write_report(search.context, search.study)
        search.change(search.study.model_copy(update={"report_path": str(report)}))
    return search.study


def write_report(context: Context, study: Study) -> Path:
    """Write the page of a study into its folder, anew where it was there. Raises ConflictError before its end."""
    from luthier.tune.importance import importances
    from luthier.tune.report.page import Ending, write_study_page

    trials = context.studies.trials(study.study_id)
    run = None if study.final_run_id is None else context.runs.get(study.final_run_id)
    verdict = None
    if run is not None and run.evaluation_id is not None:
        verdict = context.evaluations.get(run.evaluation_id).verdict
    ending = Ending(
        recipe=winning_document(study, trials),
        headline="" if verdict is None else verdict.headline,
        report_path="" if run is None else run.report_path or "",
    )
    folder = context.settings.home / "studies" / study.study_id
    folder.mkdir(parents=True, exist_ok=True)
    found = importances(study.spec.space, trials)
    return write_study_page(folder / "report.html", study, trials, found, mean_losses(trials), ending)


def _train_final(search: Search, winner: Trial, run_id: str) -> str:
    from luthier.core.errors import NotFoundError
    from luthier.service.training import resume, train

    context, budget = search.context, BudgetRecipe(hours=max(search.left_hours + search.final_hours, 1e-3))
    try:
        record = context.runs.get(run_id)
    except NotFoundError:
        recipe = final_recipe(search.study.spec, winner, search.own).model_copy(update={"budget": budget})
        return train(context, recipe, base_dir=Path("/"), run_id=run_id).record.status
    if record.status == "succeeded":
        return record.status
    return resume(context, run_id, budget=budget).record.status


def final_recipe(spec: StudySpec, winner: Trial, own: Plan) -> Recipe:
    """The winner's recipe on all rows but the held-out ones, as long as its best step was late."""
    from luthier.service.recipes import recipe_from

    document = recipe_with(spec.recipe, winner.values)
    data, training = document["data"], document.setdefault("training", {})
    if isinstance(data.get("validation"), float):
        data.setdefault("split_seed", training.get("seed", 0))
        del data["validation"]
    training.setdefault("epochs", own.training.num_steps / own.training.num_steps_per_epoch)
    training["early_stopping_patience"] = 0
    return recipe_from(document, base_dir=Path("/"))


def _final_hours(context: Context, study: Study, own: Plan) -> float:
    """What the end should take: the recipe's own training once more, on a few more rows."""
    del own
    first = Trial(number=0, values={}, run_id=new_id("run"))
    known = context.studies.trials(study.study_id)
    hours = known[0].predicted_hours if known and known[0].predicted_hours else None
    if hours is None:
        hours = price(context, study.spec, first, make_plan(context, study.spec.recipe, base_dir=Path())).hours
    return expected_hours(known, hours) * 1.2


def _refuse_too_small(context: Context, spec: StudySpec, plan: Plan) -> None:
    priced = price(context, spec, Trial(number=0, values={}, run_id=new_id("run")), plan)
    needed = priced.hours * (1 + 1.2)
    if spec.hours < needed:
        raise BudgetTooSmallError(
            f"a budget of {spec.hours:.3g} h: one trial should take {priced.hours:.3g} h, and the end as long again",
            expected=f"at least {needed:.2g} h, and some ten times that to search",
            do="give it more hours, fewer epochs or fewer rows",
        )


def _hours(plan: Plan, request: StudyRequest) -> float:
    if request.hours is None and request.usd is None:
        raise RequestError(
            "no budget", expected="--budget-hours or --budget-usd", do="say what the whole search may take"
        )
    per_hour = _usd_per_hour(plan)
    if request.usd is not None and not per_hour:
        raise RequestError(
            f"--budget-usd {request.usd}: nobody knows what an hour of this machine costs",
            expected="a price for this machine",
            do="give --budget-hours, or a price table with --prices",
        )
    by_money = request.usd / per_hour if request.usd is not None and per_hour else None
    return min(hours for hours in (request.hours, by_money) if hours is not None)


def _most_rank(plan: Plan) -> int:
    from luthier.models.structure import read_structure

    return min(min(layer.num_inputs, layer.num_outputs) for layer in read_structure(plan.base_model.path).linear_layers)


def _usd_per_hour(plan: Plan) -> float | None:
    rate = plan.budget.usd_per_hour if plan.budget is not None else None
    return None if rate is None else rate.high


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


__all__ = ["Space", "StudyRequest", "begin", "final_recipe", "go_on", "mean_losses", "trial_line", "winning_document"]
