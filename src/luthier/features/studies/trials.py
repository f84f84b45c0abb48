"""One trial of a study: its recipe, its price, its goals, and its training up to a rung.

A trial is a run like any other. It stops on a rung with a checkpoint, and continues from there when it is promoted, so
that it ends byte for byte as one that was never stopped, and no step is done twice. After each validation its curve is
checked: can it still become the best? Goals other than quality are known before it is trained.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.errors import DivergedError, NotFoundError, RequestError
from luthier.core.events import Event, RunStarted, StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.recipe import Recipe
from luthier.core.run import StopReason, TrainResult
from luthier.core.workflows.study import GoalName, Result, StudySpec, Trial, TrialState, recipe_with
from luthier.features.planning.judges import replies_of
from luthier.features.planning.service import Prepared, prepare
from luthier.features.planning.training_data import TrainingDataLoader
from luthier.features.recipes.service import recipe_from
from luthier.features.training.launchers.here import Hooks, InProcessLauncher, train_worker
from luthier.ml.search.comparable import why_incomparable
from luthier.ml.search.rungs import Finished, rung_steps
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import stop_signals

if TYPE_CHECKING:
    from luthier.core.results.cost import Prediction
    from luthier.ml.training.budget import Meter

HOPELESS = "it cannot become the best: "
"""What a run that was stopped for it says first."""


class CurveWatch:
    """Follows the validations of a trial.

    Args:
        finished: The trials that it is compared with.
        num_steps: Of the whole training.
    """

    def __init__(self, finished: Finished, num_steps: int) -> None:
        self._finished, self._num_steps = finished, num_steps
        self._losses: dict[int, float] = {}

    def begin(self, events: Sequence[Event], from_step: int) -> None:
        """Take over what an earlier part of the training has measured up to a step; a kill may have left more."""
        found = [event for event in events if isinstance(event, ValidationDone) and event.step <= from_step]
        self._losses = {event.step: event.loss for event in found}

    def note(self, event: Event) -> None:
        """Take in what has happened."""
        if isinstance(event, ValidationDone):
            self._losses[event.step] = event.loss

    def stop_requested(self) -> str | None:
        """Why the training has to stop now; None where it may continue."""
        curve = [(step / self._num_steps, loss) for step, loss in sorted(self._losses.items())]
        reason = self._finished.why_hopeless(curve)
        return StopReason(HOPELESS + reason, "hopeless") if reason else None


def finished_trials(spec: StudySpec, trials: Sequence[Trial]) -> Finished:
    """What other trials are held against; nothing where the study stops none, or has other goals than quality."""
    if not spec.stops_hopeless or len(spec.goals) > 1:
        return Finished(())
    return Finished(tuple(t.curve for t in trials if t.kind == "search" and t.state == "done" and t.curve))


def may_be_stopped(trial: Trial) -> bool:
    """Whether a trial may be stopped for its curve: not the recipe as it came, which all are held against."""
    return trial.kind == "search" and trial.number > 0


ON_A_RUNG: Final = StopReason("on a rung of its study", "rung")


class UntilStep(InProcessLauncher):
    """Trains up to a step, and stops there as after a request to stop.

    Args:
        step: After which it stops.
        stop_requested: What else says that it is to stop; None takes SIGTERM and SIGINT for it while it trains.
        tell_step: Called with each step that is done.
        watch: Follows its curve, and says when it is hopeless; None never does.
    """

    def __init__(
        self,
        step: int,
        stop_requested: Callable[[], str | None] | None = None,
        tell_step: Callable[[int], None] = lambda _step: None,
        watch: CurveWatch | None = None,
    ) -> None:
        super().__init__()
        self._watch = watch
        self._step, self._stop_requested, self._tell_step = step, stop_requested, tell_step

    def train(
        self,
        context: Context,
        run_id: str,
        prepared: Prepared,
        meter: Meter,
        emit: EventSink,
        lock: int,  # noqa: ARG002
    ) -> TrainResult:
        """As `InProcessLauncher.train`."""
        # The rung is checked in `stop_requested`, between two steps; `note` only records how far the training is.
        reached, watch = 0, self._watch

        def note(event: Event) -> None:
            nonlocal reached
            emit(event)
            if watch is not None:
                watch.note(event)
            if isinstance(event, RunStarted):
                reached = event.from_step
                if watch is not None:
                    watch.begin(context.runs.events(run_id), reached)
            elif isinstance(event, StepDone):
                reached = event.step
                self._tell_step(reached)

        with nullcontext(self._stop_requested) if self._stop_requested else stop_signals() as signalled:

            def stop_requested() -> str | None:
                if (reason := signalled()) is not None:
                    return reason
                if reached >= self._step:
                    return ON_A_RUNG
                return None if watch is None else watch.stop_requested()

            folder = context.settings.run_folder(run_id)
            replies = replies_of(context)
            return train_worker(prepared, Hooks(folder, note, context.progress, meter, stop_requested, replies=replies))


@dataclass(frozen=True, slots=True)
class Priced:
    """A trial that is ready to begin.

    Attributes:
        prepared: Its plan and rows.
        hours: Predicted, of all of its steps and validations, without an evaluation.
        steps: The steps of its rungs.
        fits: Whether it fits into memory, with as many others as train in parallel.
        machine_share: How much of the machine it has while it trains; its hours are multiplied by it.
    """

    prepared: Prepared
    hours: float
    steps: tuple[int, ...]
    fits: bool
    machine_share: float = 1.0


def trial_recipe(
    spec: StudySpec, trial: Trial, *, whole_steps: float | None = None, num_threads: int | None = None
) -> Recipe:
    """The recipe of a trial: the study's with its values, validated at the rungs, never stopped early, not evaluated.

    Args:
        spec: of the study.
        trial: with the values that it tries.
        whole_steps: steps after which it is validated; None leaves that to the plan.
        num_threads: that train it; None leaves that to the plan.

    Raises:
        RecipeError: the values cannot go together.
    """
    document = recipe_with(spec.recipe, trial.values)
    # The study has one budget for everything: a trial that its own cap has paused could never reach its rung.
    document.pop("budget", None)
    training = document.setdefault("training", {})
    # The study decides which trials stop: one that stopped by itself would never reach its rung.
    training["early_stopping_patience"] = 0
    data = document["data"]
    # Pins the split to the study's seed: a trial with another seed must validate on the same rows.
    own = spec.recipe.training
    data.setdefault("split_seed", (own.seed if own is not None else None) or 0)
    if trial.kind == "confirm":
        # Plus one: no confirming seed equals that of the search. All of the best have the same ones, so that a seed
        # that is kind to every recipe favours none of them.
        further = trial.number if trial.repetition is None else trial.repetition
        training["seed"] = int(training.get("seed", 0)) + 1 + further
    if whole_steps is not None:
        training["validate_every_steps"] = int(whole_steps)
    if num_threads is not None:
        training["num_threads"] = num_threads
    return recipe_from(document, base_dir=Path("/"))  # all paths are absolute


def price(
    context: Context, spec: StudySpec, trial: Trial, own: Plan, data_loader: TrainingDataLoader | None = None
) -> Priced:
    """Make a trial ready and predict what it takes.

    Args:
        context: The home.
        spec: Of the study.
        trial: The trial.
        own: The plan of the study's own recipe, by whose tokens rungs are counted.
        data_loader: Keeps the rows that trials share; None reads them again.

    Raises:
        RecipeError: Values that cannot go together, such as a rank above that of a matrix.
        DataError: Rows that cannot be trained on. OverlongError: rows over the length.
        RequestError: The recipe has no validation rows, or the plan's rehearsal fails.
    """
    from luthier.features.planning.quotes import quote_of

    num_threads = None if spec.workers == 1 else max(1, own.training.num_threads // spec.workers)
    data_loader = data_loader or TrainingDataLoader()
    prepared = _prepared(context, trial_recipe(spec, trial, num_threads=num_threads), data_loader)
    steps = _rungs(spec, prepared.plan, own)
    # Two passes: the first plan says how many steps there are, on which the rungs and so the validations depend.
    if prepared.plan.training.validate_every_steps != steps[0]:
        recipe = trial_recipe(spec, trial, whole_steps=steps[0], num_threads=num_threads)
        prepared = _prepared(context, recipe, data_loader)
    if prepared.validation is None:
        raise RequestError(
            "a recipe without validation rows",
            expected="rows that trials are compared on",
            do="add data.validation to the recipe: a file, or a fraction such as 0.1",
        )
    if why := why_incomparable(prepared.plan, own):
        raise RequestError(
            why,
            expected="trials that are validated on the same rows by the same measure",
            do="leave what makes the difference out of the space",
        )
    quote = quote_of(context, prepared)
    # A trial is not evaluated; the end of the study is.
    hours = quote.training_hours.value
    return Priced(prepared, hours, steps, _fit_together(quote.prediction, spec.workers), 1 / spec.workers)


def train_to(
    context: Context,
    trial: Trial,
    rung: int,
    priced: Priced,
    *,
    stop_requested: Callable[[], str | None] | None = None,
    tell_step: Callable[[int], None] = lambda _step: None,
    finished: Finished | None = None,
) -> Trial:
    """Train a trial up to a rung, from where it is.

    Args:
        context: The home.
        trial: The trial, which may be running.
        rung: Its number, from 0 on.
        priced: The trial made ready.
        stop_requested: As in `UntilStep`.
        tell_step: As in `UntilStep`.
        finished: Finished trials that it is compared with after each validation; None never stops it for its curve.

    Returns:
        The updated trial: `done` on the last rung, `paused` on one before, `failed` where it diverged, `stopped`
        where it cannot become the best, `waiting` where a stop was requested.
    """
    began, share = time.perf_counter(), priced.machine_share
    watch = None if finished is None or not may_be_stopped(trial) else CurveWatch(finished, priced.steps[-1])
    launcher = UntilStep(priced.steps[rung], stop_requested, tell_step, watch)
    try:
        _go_on(context, trial, priced, launcher)
    except DivergedError as error:
        return _ended(context, trial, "failed", began, share, reason=error.came)
    record = context.runs.get(trial.run_id)
    if record.status == "paused" and record.stop_cause == "hopeless":
        return _ended(context, trial, "stopped", began, share, reason=str(record.stopped_because))
    if record.status == "paused" and record.stop_cause != "rung":
        return _ended(context, trial, "waiting", began, share, reason=str(record.stopped_because))
    result = _result(context, trial, rung, priced.steps, after=trial.results[-1].step if trial.results else 0)
    # A training with fewer tokens than a rung ends on it, and so has reached all that follow: it could never win there.
    ended = record.status == "succeeded"
    reached = len(priced.steps) if ended else rung + 1
    later = [result.model_copy(update={"rung": number, "curve": ()}) for number in range(rung + 1, reached)]
    trial = trial.model_copy(update={"results": (*trial.results, result, *later)})
    return _ended(context, trial, "done" if ended else "paused", began, share)


def expected_hours(trials: Sequence[Trial], priced_hours: float) -> float:
    """What a training of that price really takes, by what the ones before have taken for theirs."""
    # A trial that was stopped between two rungs has spent more than its last result took. Versions up to 0.1 have not
    # stored what that took: there only trials on a rung count.
    ratios = [
        (trial.results[-1].hours or trial.hours) / (trial.predicted_hours * trial.results[-1].share)
        for trial in trials
        if trial.predicted_hours and trial.results and trial.hours
        if trial.results[-1].hours or trial.state not in ("stopped", "failed", "waiting")
    ]
    return priced_hours * (statistics.median(ratios) if ratios else 1.0)


def _go_on(context: Context, trial: Trial, priced: Priced, launcher: UntilStep) -> None:
    """Drawing a report takes longer than many a rung: those of trials are drawn on request."""
    from luthier.features.training.service import resume, train_prepared

    try:
        status = context.runs.get(trial.run_id).status
    except NotFoundError:
        began = time.perf_counter()
        train_prepared(context, priced.prepared, began=began, run_id=trial.run_id, launcher=launcher, draws_page=False)
        return
    if status != "succeeded":
        resume(context, trial.run_id, is_judged=False, launcher=launcher, ready=priced.prepared, draws_page=False)


def _result(context: Context, trial: Trial, rung: int, steps: Sequence[int], *, after: int) -> Result:
    """The lowest loss on the validation rows so far: the weights that gave it are those that are kept.

    after: the step of the rung before.
    """
    step = steps[rung]
    found = [e for e in context.runs.events(trial.run_id) if isinstance(e, ValidationDone) and e.step <= step]
    if not found:
        raise RequestError(
            f"run {trial.run_id} has no validation up to step {step}",
            expected="one on each rung",
            do="report this: a rung should be where the run is validated",
        )
    # Not the last loss: the best weights are what the run keeps, so the trial is evaluated by them. Weights that cannot
    # be kept (AdaLoRA before its last reallocation) count only where there are no others yet.
    best = min([event for event in found if event.is_best] or found, key=lambda event: event.loss)
    losses = {event.step: event.loss for event in found if event.step > after}
    curve = tuple((at / steps[-1], loss) for at, loss in sorted(losses.items()))
    return Result(rung=rung, step=step, share=step / steps[-1], loss=best.loss, curve=curve)


def _fit_together(prediction: Prediction, num_trials: int) -> bool:
    """Whether that many trials like this one fit together, distributed over the devices."""
    device = prediction.device
    # Ceiling division: the fullest device decides.
    at_once = -(-num_trials // device.num_devices)
    needed = prediction.peak_memory.total_bytes.value * at_once
    return prediction.fits and (at_once == 1 or needed <= device.memory_bytes)


def _ended(context: Context, trial: Trial, state: TrialState, began: float, share: float, *, reason: str = "") -> Trial:
    result = context.runs.get(trial.run_id).result
    bill = None if result is None else result.bill
    took = share * (time.perf_counter() - began) / 3600
    hours = trial.hours + took if bill is None else share * bill.hours
    return trial.model_copy(update={"state": state, "reason": reason, "hours": hours})


def _prepared(context: Context, recipe: Recipe, data_loader: TrainingDataLoader) -> Prepared:
    """Ready, and its held-out rows left out of it: they are for the end."""
    return replace(prepare(context, recipe, base_dir=Path(), data_loader=data_loader), held_out=None)


def _rungs(spec: StudySpec, plan: Plan, own: Plan) -> tuple[int, ...]:
    # Mean trained tokens per step of this trial; `whole` is the same budget of tokens for every trial, so that trials
    # with different batch sizes are compared after the same amount of training.
    mean = plan.data.train.num_trained_tokens / plan.training.num_steps_per_epoch
    whole = own.data.train.num_trained_tokens / own.training.num_steps_per_epoch * own.training.num_steps
    return tuple(rung_steps(spec.rungs, plan.training.num_steps, mean, whole))


_BYTES_PER_PARAMETER: Final = 4
"""Adapters are kept in float32."""


def goals_of(goals: Sequence[GoalName], priced: Priced) -> dict[GoalName, float]:
    """The values of a trial for the goals other than quality: counted from its plan, not measured."""
    if set(goals) <= {"quality"}:
        return {}
    plan = priced.prepared.plan
    known: dict[GoalName, float] = {
        "latency": weights_read(plan),
        "size": float(plan.method.num_trainable_parameters * _BYTES_PER_PARAMETER),
        "cost": priced.hours,
    }
    return {goal: known[goal] for goal in goals if goal != "quality"}


def weights_read(plan: Plan) -> float:
    """Weights read for each token where the adapter is served unmerged, as a multiple of the base model's own.

    Writing a token is bound by reading weights once (Pope et al., 2022, "Efficiently Scaling Transformer Inference",
    arXiv:2211.05102, section 2). A method that changes the weights themselves adds none.
    """
    base = plan.base_model.num_parameters - plan.base_model.num_embedding_parameters
    method = plan.method
    # Embeddings and head that were trained in whole are read in place of those of the base.
    added = method.num_trainable_parameters - method.num_saved_parameters if method.rank else 0
    return 1 + added / max(1, base)
