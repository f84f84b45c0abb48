"""The search of a study, step by step: what is next, is there room for it in the budget, do it, write it down.

Everything that decides is in the trials and the study as they are stored, so a search that was killed goes on with the
same next step. A trial is stored before its run begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from luthier.core.errors import LuthierError
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.study import Study, StudySpec, Trial, Values
from luthier.service.context import Context
from luthier.service.trials import Priced, expected_hours, price, train_to
from luthier.tune.narrowing import narrowed_by
from luthier.tune.rungs import Begin, GoOn, next_step, ranked
from luthier.tune.sampling import suggest

MOST_FAILURES = 5
"""Trials that fail one after another before the search gives up, none of them having come to anything."""

Tell = Callable[[Study, Trial], None]


@dataclass
class Search:
    """A study while it is searched. tell: told of every trial that has changed."""

    context: Context
    study: Study
    own: Plan
    final_hours: float
    tell: Tell
    trials: list[Trial] = field(default_factory=list)
    _ready: dict[int, Priced] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trials = list(self.context.studies.trials(self.study.study_id))
        for trial in self.trials:  # what a kill has left behind
            if trial.state == "running":
                self.keep(trial.model_copy(update={"state": "waiting"}))

    @property
    def left_hours(self) -> float:
        """What is left of the budget for trials: all but what is spent, and what the final run should take."""
        spent = sum(trial.hours for trial in self.trials) + self.study.overhead_hours
        return self.study.spec.hours - spent - self.final_hours

    def run(self) -> bool:
        """Search until the budget or the space is used up; false where it was asked to stop before.

        Raises StudyFailedError where nothing that is tried comes to anything.
        """
        while True:
            began, spec = time.perf_counter(), self.study.spec  # which a trial may have narrowed
            self._refuse_hopeless()
            step = next_step(
                self.trials,
                num_rungs=len(spec.rungs),
                reduction=spec.reduction,
                most_trials=spec.most_trials,
                may_begin=self._may_begin(),
            )
            if isinstance(step, Begin) and (step := self._begin()) is None:
                continue
            if step is None:
                return True
            trial = self.trials[step.number]
            if (priced := self._priced(trial)) is None:
                continue
            if not self._can_pay(trial, step.rung, priced):
                if trial.rung < 0:
                    self.fail(trial, "not begun: what is left of the budget does not cover it")
                return True
            trial = self.keep(trial.model_copy(update={"state": "running", "predicted_hours": priced.hours}))
            self.add_overhead(time.perf_counter() - began)
            trial = self.train(trial, step.rung, priced)
            if trial.state in ("done", "failed"):
                self._ready.pop(trial.number, None)
            if trial.state == "waiting":
                return False

    def train(self, trial: Trial, rung: int, priced: Priced) -> Trial:
        """Train a trial up to a rung and write down what came of it."""
        trained = train_to(self.context, trial, rung, priced)
        if trained.results != trial.results:
            others = sum(t.hours for t in self.trials if t.number != trial.number)
            spent = others + trained.hours + self.study.overhead_hours
            last = trained.results[-1].model_copy(update={"study_hours": spent})
            trained = trained.model_copy(update={"results": (*trained.results[:-1], last)})
        return self.keep(trained)

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
        """Write a trial down as one that comes to nothing."""
        self.keep(trial.model_copy(update={"state": "failed", "reason": reason}))

    def change(self, study: Study) -> None:
        """Write the study down as it is now."""
        self.study = study
        self.context.studies.save(self.study)

    def add_overhead(self, seconds: float) -> None:
        """Count time that was spent on neither training nor judging."""
        hours = self.study.overhead_hours + seconds / 3600
        self.change(self.study.model_copy(update={"overhead_hours": hours}))

    def _begin(self) -> GoOn | None:
        """Write a new trial down; None where the space has no other point: then no more are begun."""
        spec, number = self.study.spec, len(self.trials)
        values: Values = {}
        if number:
            found = suggest(
                spec.space,
                self.trials,
                sampler=spec.sampler,
                seed=spec.seed,
                number=number,
                num_rungs=len(spec.rungs),
            )
            if found is None:
                note = f"the space has no other point: {number} trials are all there are"
                self._narrow(spec.model_copy(update={"most_trials": number}), note)
                return None
            values = found
        self.keep(Trial(number=number, values=values, run_id=new_id("run")))
        return GoOn(number, 0)

    def _narrow(self, spec: StudySpec, note: str) -> None:
        self.change(self.study.model_copy(update={"spec": spec, "notes": (*self.study.notes, note)}))

    def _priced(self, trial: Trial) -> Priced | None:
        """A trial made ready; None where it cannot be trained, which is written down, or not on this machine."""
        if trial.number in self._ready:
            return self._ready[trial.number]
        spec = self.study.spec
        try:
            priced = price(self.context, spec, trial, self.own)
        except LuthierError as error:
            self.fail(trial, error.came)
            return None
        if not priced.fits:
            self.fail(trial, "it does not fit into this machine's memory")
            space, said = narrowed_by(spec.space, trial.values)
            if said:
                self._narrow(spec.model_copy(update={"space": space}), said)
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
        share = priced.steps[rung] - (trial.results[-1].step if trial.results else 0)
        return self.left_hours >= expected_hours(self.trials, priced.hours) * share / priced.steps[-1]

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
    """Nothing that a study has tried came to anything."""


def best_of(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that have reached the highest rung that any has, best first."""
    order = ranked(trials)
    return [trial for trial in order if trial.rung == order[0].rung]
