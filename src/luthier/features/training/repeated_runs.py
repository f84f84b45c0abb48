"""Use cases: the same recipe on shares of its rows (learning curve), or with other seeds.

Each is an ordinary run: it is stored, can be resumed, and is found again by the hash of its plan, so a second call
costs nothing and a killed one resumes. Held-out rows are not used: the learning curve shows the validation loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from luthier.core.errors import ConflictError, RequestError
from luthier.core.estimate import Estimate
from luthier.core.plan import Plan, ValueSource
from luthier.core.recipe import BudgetRecipe, Recipe, TrainingRecipe
from luthier.core.run import RunRecord
from luthier.core.workflows.learning_curve import CurveFit, CurvePoint, LearningCurve
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.planning.kept_defaults import as_planned, changed_defaults, with_values
from luthier.features.planning.quotes import quote_of
from luthier.features.planning.service import Prepared, prepare, with_batch_and_rate
from luthier.features.recipes.service import with_absolute_paths
from luthier.features.training.service import resume, train_prepared
from luthier.platform.home.context import Context

PARTS: Final = (
    (0.0, 0.125),
    (0.125, 0.25),
    (0.25, 0.375),
    (0.0, 0.25),
    (0.25, 0.5),
    (0.0, 0.5),
    (0.0, 1.0),
)
"""Shares of the rows. Those from 0 on are nested; the others repeat the two smallest sizes, which shows the noise."""

MIN_ROWS: Final = 16
_VALIDATIONS_A_RUN: Final = 4
_USUAL_VALIDATION: Final = 0.1


@dataclass
class _Curve:
    """The state during the runs."""

    points: list[CurvePoint]
    spent_seconds: float = 0.0
    paused_because: str | None = None


def learning_curve(
    context: Context, recipe: Recipe, *, base_dir: Path, hours: float | None = None, prices: Path | None = None
) -> LearningCurve:
    """Train a recipe on shares of its rows, smallest first, and fit a power law to the validation losses.

    Args:
        context: of the home.
        recipe: the request.
        base_dir: folder that its relative paths count from.
        hours: for all runs together, including those of earlier calls. The largest share is halved until the prediction
            fits, and at the cap the current run pauses. None for no cap.
        prices: a file whose entries replace those of the price table.

    Raises:
        RequestError: there are too few rows or hours, or the recipe selects a subset already; or as for `prepare`.
        DivergedError: the loss or a gradient is not a number.
    """
    recipe, notes = _ready(with_absolute_paths(recipe, base_dir.absolute()))
    # All rows are checked before training on the first share.
    whole = prepare(context, recipe, base_dir=Path(), prices=prices)
    recipe = _with_settings(recipe, whole.plan)
    # Training time is proportional to the rows, so the shares add up; none of the runs is evaluated.
    planned = quote_of(context, whole).training_hours.times(sum(end - start for start, end in PARTS))
    share = _share(planned, hours, whole.plan.data.train.num_examples)
    if share < 1:
        notes.append(f"{hours:g} hours are too few for runs on all rows: the largest share is {share:g} of them")
    curve = _Curve([])
    for start, end in PARTS:
        _one(context, recipe, (start * share, end * share), curve, hours=hours, prices=prices)
        # The points so far are a curve as well, though a shorter one.
        if curve.paused_because is not None:
            break
    assert whole.plan.data.validation is not None, "it was requested above"
    fit = _fit(curve.points, notes)
    return LearningCurve(
        points=tuple(curve.points),
        fit=fit,
        planned_hours=planned.times(share),
        spent_hours=curve.spent_seconds / 3600,
        cap_hours=hours,
        num_validation_rows=whole.plan.data.validation.num_examples,
        paused_because=curve.paused_because,
        notes=tuple(notes),
    )


def _ready(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with validation rows and without a budget, and notes on the changes."""
    from luthier.ml.training.objectives.rules import rules_of

    notes = []
    if recipe.data.part is not None:
        raise RequestError(
            f"a learning curve of data.subset {list(recipe.data.part)}",
            expected="a recipe for all of its rows: the curve chooses its own parts",
            do="remove data.subset",
        )
    if recipe.data.validation is None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": _USUAL_VALIDATION})})
        notes.append(f"the recipe names no validation rows: {_USUAL_VALIDATION:.0%} of its training rows serve as such")
    if recipe.budget is not None:
        # A cap on each run would truncate the large shares and bend the curve.
        recipe = recipe.model_copy(update={"budget": None})
        notes.append("the recipe's budget is for the run itself: it does not count here")
    if recipe.objective is not None and rules_of(recipe.objective.name).learns_preferences:
        notes.append(f"losses are those of {recipe.objective.name}, plain numbers, also where they are called nats")
    return recipe, notes


def _with_settings(recipe: Recipe, whole: Plan) -> Recipe:
    """The recipe with batch size, learning rate and passes of all rows.

    The defaults for few rows are others, and a limit of steps would be more passes over a share of them: both bend the
    curve.
    """
    recipe = with_batch_and_rate(recipe, whole)
    if recipe.training is None or recipe.training.max_steps is None:
        return recipe
    passes = {"max_steps": None, "epochs": whole.training.num_steps / whole.training.num_steps_per_epoch}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=passes)})


def _share(planned: Estimate, hours: float | None, num_rows: int) -> float:
    """The largest share of the rows that fits into the hours: 1, or halves of it."""
    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise RequestError(
            f"--budget-hours {hours}", expected="a finite number above 0", do="write for example: --budget-hours 1"
        )
    share = 1.0
    # Halving keeps the shares nested, so runs of an earlier, larger budget are found again by the hash of their plans.
    while hours is not None and planned.value * share > hours:
        share /= 2
    smallest = num_rows * share * PARTS[0][1]
    if smallest < MIN_ROWS:
        least = planned.times(MIN_ROWS / (num_rows * PARTS[0][1]))
        came = f"{num_rows:,} training rows" if share == 1 else f"{hours:g} hours for a learning curve"
        raise RequestError(
            f"{came}: the smallest run would have {smallest:.0f} rows",
            expected=f"at least {MIN_ROWS} in it, which is an eighth of the largest"
            + ("" if share == 1 else f": about {least.value:.2g} hours [{least.low:.2g}, {least.high:.2g}]"),
            do="collect more rows first" if share == 1 else "give more hours",
        )
    return share


def _one(
    context: Context,
    recipe: Recipe,
    part: tuple[float, float],
    curve: _Curve,
    *,
    hours: float | None,
    prices: Path | None,
) -> None:
    """Train one share, or find its existing run; adds its point, or why there is none."""
    began = time.perf_counter()
    asked = recipe.model_copy(update={"data": recipe.data.model_copy(update={"part": part})})
    prepared = prepare(context, asked, base_dir=Path(), prices=prices)
    plan = _few_validations(prepared.plan)
    # The hash covers data and settings but not the budget, so that a run is found regardless of its cap.
    record = _known(context, plan)
    before = _spent_seconds(context, record)
    left = None if hours is None else hours * 3600 - curve.spent_seconds - before
    if record is None or record.status != "succeeded":
        if left is not None and left <= 0:
            curve.paused_because = f"budget of {hours:g} h for the learning curve is spent"
            return
        record = _train(context, replace(prepared, plan=plan), record, began, before, left, prices, curve)
    # Also for existing runs: the spend of earlier calls counts.
    curve.spent_seconds += _spent_seconds(context, record)
    if record is None or record.result is None or record.status != "succeeded":
        return
    loss = record.result.best_validation_loss
    assert loss is not None, "every run of a curve validates"
    curve.points.append(
        CurvePoint(
            part=part,
            num_rows=plan.data.train.num_examples,
            loss=loss,
            run_id=record.run_id,
            hours=_spent_seconds(context, record) / 3600,
        )
    )


def _train(
    context: Context,
    prepared: Prepared,
    record: RunRecord | None,
    began: float,
    before: float,
    left: float | None,
    prices: Path | None,
    curve: _Curve,
) -> RunRecord | None:
    """Start or resume the run of a share with the remaining hours; returns its final record."""
    # A run's cap counts from its own beginning, so its previous spend is added to the remaining hours.
    cap = None if left is None else BudgetRecipe(hours=(before + left) / 3600)
    try:
        if record is not None:
            outcome = resume(context, record.run_id, budget=cap, prices=prices, is_judged=False)
        else:
            plan = prepared.plan
            if cap is not None and plan.budget is not None:
                plan = plan.model_copy(update={"budget": plan.budget.model_copy(update={"hours": cap.hours})})
            outcome = train_prepared(context, replace(prepared, plan=plan, held_out=None), began=began, prices=prices)
    except BudgetTooSmallError as error:
        curve.paused_because = error.came
        return record
    if outcome.record.status != "succeeded":
        curve.paused_because = outcome.record.stopped_because or outcome.record.status
    return outcome.record


def _few_validations(plan: Plan) -> Plan:
    """The plan with four validations per run: in a short run more of them would cost more than the steps."""
    # An explicit setting of the recipe is kept.
    if plan.sources["training.validate_every_steps"].source == "asked":
        return plan
    every = max(1, math.ceil(plan.training.num_steps / _VALIDATIONS_A_RUN))
    source = ValueSource(source="derived", why=f"{_VALIDATIONS_A_RUN} times a run of a learning curve")
    return plan.model_copy(
        update={
            "training": plan.training.model_copy(update={"validate_every_steps": every}),
            "sources": plan.sources | {"training.validate_every_steps": source},
        }
    )


def _known(context: Context, plan: Plan) -> RunRecord | None:
    """The run of exactly this plan: a finished one, otherwise the newest."""
    # `list` is newest first.
    found = [record for record in context.runs.list() if record.plan_hash == plan.hash]
    return next((record for record in found if record.status == "succeeded"), found[0] if found else None)


def _spent_seconds(context: Context, record: RunRecord | None) -> float:
    from luthier.ml.training.ledger import Ledger

    return 0.0 if record is None else Ledger(context.settings.run_folder(record.run_id)).last().settled().seconds


def _fit(points: Sequence[CurvePoint], notes: list[str]) -> CurveFit | None:
    from luthier.ml.planning.learning_curve import fit_power_law

    try:
        return fit_power_law(points)
    except RequestError as error:
        notes.append(f"no curve is fitted: {error.came}, {error.expected}")
        return None


def runs_of_other_seeds(context: Context, run_id: str, num: int) -> list[str]:
    """The runs of the recipe of `run_id` with the next `num` seeds, in their order. New ones are of its project.

    Raises:
        ConflictError: one of them ends without trained weights, or base model, rows or teacher have changed since.
        DivergedError: The loss of one is not a number.
        StorageFullError: The disk is full.
    """
    from luthier.features.planning.service import prepare, prepare_again
    from luthier.features.training.service import train_prepared

    plan = context.runs.plan(run_id)
    data, found = plan.recipe.data, []
    # Without a file of general rows for evaluation, some of the replayed rows are held out.
    takes_general = data.replay is not None and not isinstance(data.replay.held_out, str)
    takes_own = any(isinstance(share, float) for share in (data.validation, data.held_out))
    if data.split_seed is None and (takes_own or takes_general):
        # Otherwise another seed would be another split and train on rows that are held out here.
        data = data.model_copy(update={"split_seed": plan.training.seed})
    # A version or a machine with other defaults would train something else, and not another seed of the same.
    same = with_batch_and_rate(plan.recipe.model_copy(update={"data": data}), plan)
    for seed in range(plan.training.seed + 1, plan.training.seed + 1 + num):
        training = (same.training or TrainingRecipe()).model_copy(update={"seed": seed})
        recipe = same.model_copy(update={"training": training})
        wanted = _content(recipe, plan)
        known = _with_content(context, wanted, plan)
        if known is None:
            began = time.perf_counter()
            prepared = prepare(context, recipe, base_dir=Path())
            if kept := changed_defaults(recipe, prepared.plan, plan):
                prepared = prepare(context, with_values(recipe, kept), base_dir=Path())
            prepare_again(context, plan, ready=prepared)  # rejects other content at the same paths
            # Not evaluated here: the caller evaluates all seeds together.
            prepared = replace(prepared, held_out=None, replay_held_out=None)
            with _owned_by(context, context.runs.project_of(run_id)):
                record = train_prepared(context, prepared, began=began).record
            if record.status != "succeeded" or record.result is None or record.result.adapter_path is None:
                raise ConflictError(
                    f"run {record.run_id} with seed {seed} is {record.status}",
                    expected="a run that ends with trained weights",
                    do=f"resume it (luthier train --resume {record.run_id}), then evaluate again",
                )
            known = record.run_id
        found.append(known)
    return found


@contextmanager
def _owned_by(context: Context, project_id: str | None) -> Iterator[None]:
    """Runs that begin here have no job of their own: they are of the project of the run that they repeat."""
    before = context.owner_project_id
    context.owner_project_id = before or project_id
    try:
        yield
    finally:
        context.owner_project_id = before


def _with_content(context: Context, wanted: tuple[Recipe, object], like: Plan) -> str | None:
    """The newest successful run of this content; None where there is none.

    Args:
        context: The home.
        wanted: As of `_content`.
        like: A plan with the same names of method, objective and optimizer.
    """
    for record in context.runs.list():
        if record.status != "succeeded" or record.method != like.method.name:
            continue
        plan = context.runs.plan(record.run_id)
        # Names first: of a plug-in that was removed the settings are not known any more.
        if _names(plan) == _names(like) and _content_of(plan) == wanted:
            return record.run_id
    return None


def _names(plan: Plan) -> tuple[str, str, str]:
    return plan.method.name, plan.objective.name, plan.training.optimizer.name


def _content_of(plan: Plan) -> tuple[Recipe, object]:
    return _content(plan.recipe, plan)


def _content(recipe: Recipe, plan: Plan) -> tuple[Recipe, object]:
    """A key for what a recipe trains: digests of the plan instead of names, since content at a path may change.

    Not the plan itself, which also depends on the capabilities of this machine.
    """
    from luthier.features.planning.service import profiles

    names = ("train", "validation", "held_out", "replay.file", "replay.held_out")
    digests = {name: one.sha256 for name, one in zip(names, profiles(plan.data), strict=True) if one is not None}
    named = recipe.data.files()
    # Of several sources the digest of the file that was mixed of them.
    data = recipe.data.with_files({name: digests.get(name.partition("[")[0], file) for name, file in named.items()})
    teacher = plan.objective.teacher
    asked = ([teacher] if teacher else []) + list(plan.objective.judges or ())
    return (
        # With the values of the plan: a recipe that leaves them open is another one under other defaults.
        as_planned(recipe, plan).model_copy(update={"data": data, "base_model": plan.base_model.sha256}),
        tuple((one.sha256, one.adapter_sha256) for one in asked),
    )
