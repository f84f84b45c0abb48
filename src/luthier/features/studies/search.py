"""The search of a study, step by step: where it starts, what is next, whether the budget holds it, do it, store it.

Everything that decides is in the trials and the study as they are stored, so a search that was killed continues with
the same next step. A trial is stored before its run begins.

Hours are the machine's: with N workers a trial has an N-th of it, and so have workers that wait. So what all of them
have spent adds up to what has passed on the clock.

A search starts at the best of earlier studies on similar data, then at what is known of all tasks. Similar means: the
same objective and method, a base model at most three times as large or as small, and rows whose number, length and
learned share are close (`distance`). Such a guess costs a first rung; it decides nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from luthier.core.errors import LuthierError, NotFoundError
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.workflows.study import (
    ALPHA_OVER_RANK,
    GoalName,
    Space,
    StartPoint,
    Study,
    StudySpec,
    Trial,
    Values,
)
from luthier.features.planning.training_data import TrainingDataLoader
from luthier.features.studies.trials import (
    HOPELESS,
    Priced,
    expected_hours,
    finished_trials,
    goals_of,
    may_be_stopped,
    price,
)
from luthier.features.studies.workers import FinishedTask, Task, WorkerPool
from luthier.ml.search.rungs import QUALITY, Begin, GoOn, next_step, ranked
from luthier.ml.search.sampling import lies_in, next_values
from luthier.ml.search.space import fixed_values, narrowed_by, start_points
from luthier.platform.home.context import Context

MAX_STUDIES: Final = 3
_FARTHEST: Final = 1.5
"""The largest distance at which data count as similar: the mean of a factor of 4.5 in each of its parts."""
_MAX_SIZE_FACTOR: Final = 3.0
_SCALE: Final = ("method.rank", ALPHA_OVER_RANK)


def points_to_begin_with(
    context: Context, plan: Plan, space: Space, own: Values, project_id: str | None
) -> tuple[tuple[StartPoint, ...], tuple[str, ...]]:
    """The points to begin with, those of earlier studies first, each once, and a sentence for each study that gave one.

    Args:
        context: The home.
        plan: Of the recipe.
        space: That is searched.
        own: What the recipe itself sets, as `priors.own_values` gives it.
        project_id: Whose studies are used; None for none.
    """
    found: list[StartPoint] = []
    said: list[str] = []
    alike = [] if project_id is None else _alike(context, plan, space, own, project_id)
    fixed = fixed_values(space, own)
    for far, study, values in alike[:MAX_STUDIES]:
        if values and all(values | fixed != point.values for point in found):
            why = f"the winner of {study.study_id}, on similar data (distance {far:.2f})"
            found.append(StartPoint(values=values | fixed, why=why))
            said.append(f"begins with {why}")
    general = [point for point in start_points(space, own) if all(point.values != known.values for known in found)]
    return (*found, *general), tuple(said)


def distance(one: Plan, other: Plan) -> float | None:
    """How far the data of two plans are from each other, 0 for the same; None where they cannot be compared.

    The mean of |ln ratio| of the number of rows, of tokens a row, and of trained tokens a row.
    """
    if one.objective.name != other.objective.name or one.method.name != other.method.name:
        return None
    size = one.base_model.num_parameters / max(1, other.base_model.num_parameters)
    if not 1 / _MAX_SIZE_FACTOR <= size <= _MAX_SIZE_FACTOR:
        return None
    # Logarithms make twice as many and half as many equally far.
    parts = [math.log(a / b) for a, b in zip(_marks(one), _marks(other), strict=True)]
    return sum(map(abs, parts)) / len(parts)


def _marks(plan: Plan) -> tuple[float, ...]:
    rows = plan.data.train
    num = max(1, rows.num_examples)
    return num, max(1.0, rows.num_tokens / num), max(1.0, rows.num_trained_tokens / num)


def _alike(
    context: Context, plan: Plan, space: Space, own: Values, project_id: str
) -> list[tuple[float, Study, Values]]:
    """(distance, study, its winner's values within the space), nearest first, then newest."""
    found = []
    for age, study in enumerate(context.studies.list(project_id)):
        if study.status != "done" or study.winner is None:
            continue
        trials = context.studies.trials(study.study_id)
        try:
            theirs = context.runs.plan(trials[0].run_id)
        except NotFoundError:  # its runs were removed
            continue
        far = distance(plan, theirs)
        if far is not None and far <= _FARTHEST:
            values = study.spec.own_values | trials[study.winner].values
            theirs_here = lies_in(space, values)
            kept = {name: value for name, value in theirs_here.items() if own.get(name) != value}
            # Only good together: the recipe's alpha is none for another rank.
            if not kept.keys().isdisjoint(_SCALE):
                kept = {name: value for name, value in theirs_here.items() if name in kept or name in _SCALE}
            found.append((far, age, study, kept))
    # Only numbers are compared: studies have no order.
    return [(far, study, kept) for far, _, study, kept in sorted(found, key=lambda one: one[:2])]


MOST_FAILURES = 5
"""Consecutive failed trials after which the search gives up, if none has succeeded."""
MAX_DEATHS = 3
"""Workers that die of a trial, one after the other, before it is given up."""

Tell = Callable[[Study, Trial], None]


@dataclass
class Search:
    """A study while it is searched.

    Attributes:
        context: The home.
        study: As stored.
        own: The plan of the recipe as it came.
        final_hours: What the end should take if that recipe wins.
        tell: Called with every trial that has changed.
        pool: Trains the trials.
        began: When the work on it began, by `time.perf_counter`; its hours count from then on.
        data_loader: Keeps the rows that trials share.
        trials: All trials, in the order of their numbers.
    """

    context: Context
    study: Study
    own: Plan
    final_hours: float
    tell: Tell
    pool: WorkerPool
    began: float
    data_loader: TrainingDataLoader
    trials: list[Trial] = field(default_factory=list)
    _ready: dict[int, Priced] = field(default_factory=dict)
    _promised: dict[int, float] = field(default_factory=dict)
    _deaths: Counter[int] = field(default_factory=Counter)
    _since: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Per worker the end of its last task, by `time.perf_counter`; the time up to its next task counts as overhead.
        self._since = [self.began] * self.pool.size
        self.trials = list(self.context.studies.trials(self.study.study_id))
        for trial in self.trials:  # what a kill has left behind
            if trial.state == "running":
                self.keep(trial.model_copy(update={"state": "waiting"}))

    @property
    def spent_hours(self) -> float:
        """What all trials have taken, and what was neither training nor judging."""
        return sum(trial.hours for trial in self.trials) + self.study.overhead_hours

    @property
    def unspent_hours(self) -> float:
        """What is left of the budget, the end included: all but what is spent and promised."""
        return self.study.spec.hours - self.spent_hours - sum(self._promised.values())

    @property
    def left_hours(self) -> float:
        """What is left of it for more trials."""
        return self.unspent_hours - self.end_hours

    @property
    def end_hours(self) -> float:
        """The reserve for the end: its expected cost with the most expensive of the current possible winners."""
        there = [trial for trial in self.trials if trial.state == "done"]
        best = best_of(there, self.study.spec.goals)
        if len(self.study.spec.goals) == 1:  # with several goals any may become the knee
            best = best[: self.study.spec.num_confirmed]
        return max((self._end_with(trial.predicted_hours) for trial in best), default=self.final_hours)

    def _end_with(self, hours: float | None) -> float:
        """The expected cost of the end with the recipe of a trial of that many hours."""
        own = self.trials[0].predicted_hours if self.trials else None
        return self.final_hours * max(1.0, hours / own if hours and own else 1.0)

    def run(self) -> bool:
        """Search until the budget or the space is used up; false where it was stopped before.

        Raises:
            StudyFailedError: No trial succeeds.
        """
        return self.work(self._next)

    def work(self, next_task: Callable[[], Task | None]) -> bool:
        """Run all tasks, as many in parallel as there are workers; false where it was stopped before.

        Args:
            next_task: The next one, None where there is none for now: it is called again when another has ended.
        """
        is_stopped = False
        while True:
            while self.pool.has_room and not is_stopped:
                is_stopped = self.pool.stop_requested() is not None
                if is_stopped or (task := next_task()) is None:
                    break
                self._begin_task(task)
            if not self._promised:
                return not is_stopped
            is_stopped = self._take(self.pool.wait()) or is_stopped

    def task(self, trial: Trial, rung: int) -> Task | None:
        """A trial ready to be trained up to a rung; None where it cannot be, which is written down."""
        priced = self._priced(trial)
        if priced is None:
            return None
        return Task(self.trials[trial.number], rung, priced, finished_trials(self.study.spec, self.trials))

    def rest(self) -> None:
        """Count the time since the last task of each worker: there is nothing more for them to do."""
        now = time.perf_counter()
        idle = sum(now - since for since in self._since)
        self._since = [now] * self.pool.size
        self.add_overhead(idle / self.pool.size)

    def _begin_task(self, task: Task) -> None:
        self.context.check_access()
        # The state is stored before the training begins, so that a kill leaves a trial that is known to have begun.
        hours = task.priced.hours
        goals = task.trial.goals or goals_of(self.study.spec.goals, task.priced)
        trial = self.keep(task.trial.model_copy(update={"state": "running", "predicted_hours": hours, "goals": goals}))
        # Reserved from the budget until the task ends: parallel workers must not spend the same hours twice.
        self._promised[trial.number] = self.needed(task.trial, task.rung, task.priced)
        self.pool.begin(replace(task, trial=trial))

    def _take(self, done: FinishedTask) -> bool:
        """Write down what came of a task; whether it was stopped before its end."""
        before, now = done.task.trial, time.perf_counter()
        del self._promised[before.number]
        # Time of this worker since its last task that was not training: starting the process, loading libraries.
        idle = now - self._since[done.worker] - done.seconds
        self._since[done.worker] = now
        self.add_overhead(max(0.0, idle) / self.pool.size)
        if done.trial is None:
            self._take_death(done)
            return False
        del self._deaths[before.number]
        trained = done.trial
        # Its hours are now what its run has been billed: without what a worker that died had spent on starting, say.
        spent = before.hours * 3600 + done.task.priced.machine_share * done.seconds
        self.add_overhead(max(0.0, spent - trained.hours * 3600))
        # Hours of the study at which the loss was known, for the chart of progress over time.
        if made := trained.results[len(before.results) :]:
            hours = {"study_hours": self._spent_with(trained), "hours": trained.hours}
            results = (*before.results, *(result.model_copy(update=hours) for result in made))
            trained = trained.model_copy(update={"results": results})
        self.keep(trained)
        if trained.state in ("done", "failed", "stopped"):
            self._ready.pop(trained.number, None)
        return trained.state == "waiting"

    def _take_death(self, done: FinishedTask) -> None:
        """A worker died: its trial continues from its newest checkpoint, and is given up where that does not help."""
        trial = done.task.trial
        self._deaths[trial.number] += 1
        hours = trial.hours + done.task.priced.machine_share * done.seconds / 3600
        trial = self.keep(trial.model_copy(update={"state": "waiting", "hours": hours}))
        # Usually the kernel's out-of-memory killer, so all points that need as much memory go with it.
        if self._deaths[trial.number] >= MAX_DEATHS:
            self._leave_out(trial, f"{MAX_DEATHS} times in a row {done.died}: memory may have run out")

    def _spent_with(self, trained: Trial) -> float:
        """Hours of the study up to now, those of trials included that others are training at this moment."""
        others = sum(trial.hours for trial in self.trials if trial.number != trained.number)
        under_way = sum(time.perf_counter() - since for since in self._since) / self.pool.size / 3600
        return others + trained.hours + self.study.overhead_hours + under_way

    def keep(self, trial: Trial) -> Trial:
        """Write a trial down."""
        self.context.studies.put_trial(self.study.study_id, trial)
        if trial.number < len(self.trials):
            self.trials[trial.number] = trial
        else:
            self.trials.append(trial)
        self.tell(self.study, trial)
        return trial

    def fail(self, trial: Trial, reason: str) -> None:
        """Store a trial as failed."""
        self.keep(trial.model_copy(update={"state": "failed", "reason": reason}))

    def change(self, study: Study) -> None:
        """Store the current study."""
        self.study = study
        self.context.studies.save(self.study)

    def add_overhead(self, seconds: float) -> None:
        """Count time that was spent on neither training nor judging."""
        hours = self.study.overhead_hours + seconds / 3600
        self.change(self.study.model_copy(update={"overhead_hours": hours}))

    def _next(self) -> Task | None:
        """The next step of the search; None where there is none, or none as long as others are at work."""
        while True:
            self._refuse_hopeless()
            spec = self.study.spec  # which a trial may have narrowed
            step = next_step(
                self.trials,
                num_rungs=len(spec.rungs),
                reduction=spec.reduction,
                most_trials=spec.most_trials,
                may_begin=self._may_begin(),
                goals=spec.goals,
            )
            if isinstance(step, Begin) and (step := self._begin()) is None:
                continue
            if step is None:
                return None
            if self._is_stopped(self.trials[step.number]):
                continue
            if (task := self.task(self.trials[step.number], step.rung)) is None:
                continue
            if self._can_pay(task.trial, task.rung, task.priced):
                return task
            if task.trial.rung < 0 and not self._promised:  # else one that ends may leave something for it
                self.fail(task.trial, "not begun: what is left of the budget does not cover it")
            return None

    def _is_stopped(self, trial: Trial) -> bool:
        """Whether a trial that is due cannot become the best, which is written down."""
        if not (
            may_be_stopped(trial) and (why := finished_trials(self.study.spec, self.trials).why_hopeless(trial.curve))
        ):
            return False
        self.keep(trial.model_copy(update={"state": "stopped", "reason": HOPELESS + why}))
        return True

    def _begin(self) -> GoOn | None:
        """Write a new trial down; None where the space has no other point: then no more are begun."""
        spec, number = self.study.spec, len(self.trials)
        values = next_values(spec, self.trials, number)
        if values is None:
            note = f"the space has no other point: {number} trials are all there are"
            self._narrow(spec.model_copy(update={"most_trials": number}), note)
            return None
        self.keep(Trial(number=number, values=values, run_id=new_id("run")))
        return GoOn(number, 0)

    def _leave_out(self, trial: Trial, reason: str) -> None:
        """Store a trial as failed, and take out of the space what needs at least as much memory."""
        space, said = narrowed_by(self.study.spec.space, trial.values)
        # First the space: after a kill in between the trial fails again, and nothing more is taken out.
        if said and space != self.study.spec.space:
            self._narrow(self.study.spec.model_copy(update={"space": space}), said)
        self.fail(trial, reason)

    def _narrow(self, spec: StudySpec, note: str) -> None:
        self.change(self.study.model_copy(update={"spec": spec, "notes": (*self.study.notes, note)}))

    def _priced(self, trial: Trial) -> Priced | None:
        """A trial made ready; None where it cannot be trained, which is written down, or not on this machine."""
        if trial.number in self._ready:
            return self._ready[trial.number]
        spec = self.study.spec
        try:
            priced = price(self.context, spec, trial, self.own, self.data_loader)
        except LuthierError as error:
            self.fail(trial, error.came)
            return None
        if not priced.fits:
            at_once = "" if spec.workers == 1 else f" {spec.workers} times in parallel"
            self._leave_out(trial, f"it does not fit into this machine's memory{at_once}")
            return None
        self._ready[trial.number] = priced
        return priced

    def _may_begin(self) -> bool:
        """Whether there is room for one more trial on its first rung, as the ones before make one expect."""
        known = [trial.predicted_hours for trial in self.trials if trial.predicted_hours]
        typical = sum(known) / len(known) if known else 0.0
        share = self.study.spec.rungs[0]
        return self.left_hours >= expected_hours(self.trials, typical) * share

    def _can_pay(self, trial: Trial, rung: int, priced: Priced) -> bool:
        """Whether the budget covers a trial up to a rung. The recipe's own, which comes first, is always begun."""
        if trial.number == 0 and rung == 0:
            return True
        is_last = rung == len(self.study.spec.rungs) - 1
        dearer = self._end_with(priced.hours) - self.end_hours if is_last else 0.0  # if it wins, it is trained again
        return self.left_hours >= self.needed(trial, rung, priced) + max(0.0, dearer)

    def needed(self, trial: Trial, rung: int, priced: Priced) -> float:
        """What a trial should take up to a rung, from where it is."""
        left = max(0, priced.steps[rung] - self._step_of(trial))
        return expected_hours(self.trials, priced.hours) * left / priced.steps[-1]

    def _step_of(self, trial: Trial) -> int:
        """The step from which a trial is trained on."""
        reached = trial.results[-1].step if trial.results else 0
        if trial.state != "waiting":
            return reached
        try:
            run = self.context.runs.get(trial.run_id)
        except NotFoundError:
            return reached
        # One that was stopped in good order has a checkpoint there, and its hours are counted already. A kill leaves
        # an older one, and hours that are not counted.
        return max(reached, run.step) if run.status == "paused" else reached

    def _refuse_hopeless(self) -> None:
        last = [trial for trial in self.trials if trial.state == "failed"]
        if len(last) == len(self.trials) and len(last) >= MOST_FAILURES:
            reasons = "\n    ".join(f"trial {t.number}: {t.reason}" for t in last[-MOST_FAILURES:])
            raise StudyFailedError(
                f"all of the first {len(last)} trials have failed:\n    {reasons}",
                expected="a recipe that can be trained on this machine",
                do="correct the recipe, or narrow the space with --space",
            )


class StudyFailedError(LuthierError):
    """No trial of a study has succeeded."""


def best_of(trials: Sequence[Trial], goals: Sequence[GoalName] = QUALITY) -> list[Trial]:
    """Trials that have reached the highest rung that any has, best first."""
    order = ranked(trials, goals)
    return [trial for trial in order if trial.rung == order[0].rung]
