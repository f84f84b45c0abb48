"""The end of a study: the recipe as it came for comparison, the best few again, and the winner on all rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Verdict
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.recipe import BudgetRecipe, Recipe
from luthier.core.run import RunRecord
from luthier.core.workflows.study import Study, StudySpec, Trial, recipe_with
from luthier.features.studies.search import Search, best_of
from luthier.features.studies.trials import expected_hours
from luthier.features.studies.workers import Task
from luthier.ml.search.rungs import front_of
from luthier.platform.home.context import Context

_LATE: Final = 0.8
"""Share of a training before which its lowest validation loss shows that all of its steps are too many."""


def bring_up_own(search: Search) -> bool:
    """Also train the original recipe to its end, within the budget: the reference for the search.

    False where it was stopped.
    """
    last = len(search.study.spec.rungs) - 1

    def next_task() -> Task | None:
        own = search.trials[0]
        if own.state not in ("paused", "waiting") or own.rung == last:
            return None
        return search.task(own, own.rung + 1)

    whole = next_task()
    if whole is None or search.left_hours < search.needed(whole.trial, last, whole.priced):
        return True
    return search.work(next_task)


def confirm(search: Search) -> bool:
    """Repeat the best few with other seeds, within the budget; false where it was stopped."""
    spec, last = search.study.spec, len(search.study.spec.rungs) - 1
    best = [trial for trial in best_of(search.trials, spec.goals) if trial.state == "done"]
    if len(spec.goals) > 1:  # the knee is what the end is about
        named = front_of(spec, search.trials, {})[1]
        # False sorts before True: the knee comes first, the others keep their order.
        best.sort(key=lambda trial: trial.number != named)
    best = best[: spec.num_confirmed]
    wanted = [(trial, n) for n in range(spec.num_seeds) for trial in best] if len(best) > 1 else []
    is_covered = True

    def next_task() -> Task | None:
        nonlocal is_covered
        for trial, n in wanted:
            again = [t for t in search.trials if t.kind == "confirm" and t.of == trial.number]
            # Seeds go round all of the best before any gets another one, so a small budget still compares them evenly.
            if len(again) <= n and is_covered:
                again, is_covered = _begun_again(search, trial, again)
            if len(again) > n and again[n].state == "waiting" and (task := search.task(again[n], last)) is not None:
                return task
        return None

    return search.work(next_task)


def _begun_again(search: Search, trial: Trial, again: list[Trial]) -> tuple[list[Trial], bool]:
    """A copy of a trial, to be trained with another seed, and whether the budget covers that."""
    if search.left_hours < expected_hours(search.trials, trial.predicted_hours or 0.0):
        note = f"trial {trial.number} was not repeated with another seed: the budget does not cover it"
        if note not in search.study.notes:  # an earlier process has come to this before
            search.change(search.study.model_copy(update={"notes": (*search.study.notes, note)}))
        return again, False
    search.change(search.study.model_copy(update={"status": "confirming"}))
    repeated = Trial(
        number=len(search.trials),
        kind="confirm",
        of=trial.number,
        repetition=len(again),
        values=trial.values,
        run_id=new_id("run"),
    )
    return [*again, search.keep(repeated)], True


def finish(search: Search) -> Study:
    """Name the winner and train its recipe on all rows; `paused` where it was stopped or the budget is used up.

    Raises:
        BudgetTooSmallError: No budget is left.
        ConflictError: No trial of the study was successful.
    """
    study, trials = search.study, search.trials
    best = best_of(trials)
    if not best:
        raise ConflictError(
            f"study {study.study_id} has no successful trial",
            expected="at least one trial with a loss",
            do="give it a larger budget, or see why they failed: luthier studies show " + study.study_id,
        )
    repeated = mean_losses(trials)
    winner = best[0]
    # of those that were repeated the best mean counts: one that was not may only have been lucky
    if repeated:
        winner = trials[min(repeated, key=lambda number: (statistics.fmean(repeated[number]), number))]
    if len(study.spec.goals) > 1 and (named := front_of(study.spec, trials, repeated)[1]) is not None:
        winner = trials[named]
    final_run_id = study.final_run_id or new_id("run")
    notes = study.notes
    if keeps_validation(study.spec, winner) and (note := _early_note(winner)) not in notes:
        notes = (*notes, note)
    final = {"winner": winner.number, "final_run_id": final_run_id, "status": "final", "notes": notes}
    # The run's id is stored before it begins: a kill in between finds the same run again.
    search.change(study.model_copy(update=final))
    run = _train_final(search, winner, final_run_id)
    bill, is_done = run.result.bill if run.result is not None else None, run.status == "succeeded"
    spent = search.spent_hours + (0.0 if bill is None else bill.hours)
    needs = None
    if bill is not None and run.stop_cause == "budget":
        # the time of the evaluation is not known: the reserve for the end has room for it
        needs = spent + max(0.0, bill.final_hours.high - bill.hours) + search.end_hours
    changed = {"status": "done" if is_done else "paused", "hours": spent, "needs_hours": needs}
    ended = search.study.model_copy(update=changed)
    if is_done:
        # Before it counts as done: a kill in between writes the page again, and leaves no study without one.
        ended = ended.model_copy(update={"report_path": str(write_report(search.context, ended))})
    search.change(ended)
    return ended


def with_report(context: Context, study: Study) -> Study:
    """A study that is done with its page, which versions up to 0.1 have not written where a kill came before it."""
    if study.report_path is not None or study.final_run_id is None:
        return study
    study = study.model_copy(update={"report_path": str(write_report(context, study))})
    context.studies.save(study)
    return study


def _train_final(search: Search, winner: Trial, run_id: str) -> RunRecord:
    from luthier.features.training.service import resume, train

    # A budget of 0 is none: a run without budget would never be paused.
    context, budget = search.context, BudgetRecipe(hours=max(search.unspent_hours, 1e-3))
    try:
        record = context.runs.get(run_id)
    except NotFoundError:
        recipe = final_recipe(search.study.spec, winner, _trained(search, winner))
        recipe = recipe.model_copy(update={"budget": budget})
        return train(context, recipe, base_dir=Path("/"), run_id=run_id).record
    if record.status == "succeeded":
        return record
    return resume(context, run_id, budget=budget).record


def _trained(search: Search, winner: Trial) -> Plan:
    """The plan of the winner's run; where that was removed, the study's own."""
    try:
        return search.context.runs.plan(winner.run_id)
    except NotFoundError:
        return search.own


def final_recipe(spec: StudySpec, winner: Trial, trained: Plan) -> Recipe:
    """The winner's recipe on all rows but the held-out ones, as long as its best step was late.

    Of an earlier one the validation rows stay apart, so that the run keeps the weights of its best step: the trial was
    chosen by the loss of such weights, and without these rows the weights of the last step would be kept.

    Args:
        spec: of the study.
        winner: the trial that is repeated.
        trained: the plan of the winner's run.
    """
    from luthier.features.recipes.service import recipe_from

    document = recipe_with(spec.recipe, winner.values)
    data, training = document["data"], document.setdefault("training", {})
    if isinstance(data.get("validation"), float):
        data.setdefault("split_seed", training.get("seed", 0))
        if not keeps_validation(spec, winner):
            del data["validation"]
    # As many passes as the trial had: under `max_steps` their number depends on its batch size and its rows.
    training.setdefault("epochs", trained.training.num_steps / trained.training.num_steps_per_epoch)
    # Both defaults depend on the number of rows, and there are more now: the trial was judged with these.
    if "global_batch_tokens" not in training:
        training.setdefault("global_batch_size", trained.training.global_batch_size)
    training.setdefault("learning_rate", trained.training.learning_rate)
    training["early_stopping_patience"] = 0
    return recipe_from(document, base_dir=Path("/"))


def keeps_validation(spec: StudySpec, winner: Trial) -> bool:
    """Whether the final run needs the validation rows that were taken out of the training rows."""
    return isinstance(spec.recipe.data.validation, float) and _best_share(winner) < _LATE


def _best_share(trial: Trial) -> float:
    """The share of its steps at which the validation loss of a trial was lowest; 1 where that was not kept."""
    return min(trial.curve, key=lambda point: (point[1], point[0]), default=(1.0, 0.0))[0]


def _early_note(winner: Trial) -> str:
    return (
        f"the validation loss of trial {winner.number} was lowest after {_best_share(winner):.0%} of its steps: the "
        "final run leaves the validation rows out of training, and keeps the weights of its best step"
    )


def write_report(context: Context, study: Study) -> Path:
    """Write the page of a study into its folder, again where it was there. Raises ConflictError before its end."""
    from luthier.ml.search.report.page import Ending, write_study_page
    from luthier.ml.search.sampling import importances

    trials = context.studies.trials(study.study_id)
    run = None if study.final_run_id is None else context.runs.get(study.final_run_id)
    verdict = final_verdict(context, study)
    ending = Ending(
        recipe=winning_document(study, trials),
        headline="" if verdict is None else verdict.headline,
        report_path="" if run is None else run.report_path or "",
    )
    folder = context.settings.home / "studies" / study.study_id
    folder.mkdir(parents=True, exist_ok=True)
    found = importances(study.spec.space, trials, study.spec.own_values)
    return write_study_page(folder / "report.html", study, trials, found, mean_losses(trials), ending)


def final_verdict(context: Context, study: Study) -> Verdict | None:
    """What the held-out rows say of the final run: against its base, its prompts and every baseline.

    Trials are chosen by validation loss, so these rows have chosen nothing. None before the end of the final run, where
    the recipe names no such rows, and where the run or its evaluation is missing.
    """
    try:
        run = None if study.final_run_id is None else context.runs.get(study.final_run_id)
        return None if run is None or run.evaluation_id is None else context.evaluations.get(run.evaluation_id).verdict
    except NotFoundError:
        return None


def winning_document(study: Study, trials: Sequence[Trial], number: int | None = None) -> dict[str, Any]:
    """The recipe of the winner, or of a trial by its number, ready to run.

    Raises:
        ConflictError: No winner is named yet.
        NotFoundError: A number that no trial has.
    """
    if number is not None:
        if number >= len(trials):
            raise NotFoundError(
                f"study {study.study_id} has no trial {number}",
                expected=f"0 to {len(trials) - 1}",
                do=f"see luthier studies show {study.study_id}",
            )
        return recipe_with(study.spec.recipe, trials[number].values)
    if study.winner is None:
        raise ConflictError(
            f"study {study.study_id} has no winner yet: it is {study.status}",
            expected="a study that is done",
            do=f"resume it: {study.way_on}",
        )
    return recipe_with(study.spec.recipe, trials[study.winner].values)


def mean_losses(trials: Sequence[Trial]) -> dict[int, list[float]]:
    """Losses of the trials that were repeated, and of their repetitions, by the number of the first.

    As many of each: the first is the one that a trial was chosen by, a lucky one, and weighs more in a mean of fewer.
    """
    found: dict[int, list[float]] = {}
    for trial in trials:
        if trial.kind == "confirm" and trial.of is not None and trial.loss is not None:
            first = trials[trial.of].loss
            found.setdefault(trial.of, [] if first is None else [first]).append(trial.loss)
    least = min(map(len, found.values()), default=0)
    return {number: losses[:least] for number, losses in found.items()}
