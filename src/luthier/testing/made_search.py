"""A search over made curves: the decisions of a study, with a budget in trainings of its own recipe, and no training.

The parts of `luthier.ml.search` decide as in a study; only what trains is made. Also the two searches that a study is
held
against: whole trainings drawn at random, and whole trainings that Optuna's TPE suggests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.core.workflows.study import Result, SamplerName, Space, StudySpec, Trial, Values
from luthier.ml.search.extrapolation import Finished
from luthier.ml.search.priors import start_points
from luthier.ml.search.rungs import REDUCTION, RUNGS, Begin, GoOn, next_step, rung_steps
from luthier.ml.search.sampling import next_values
from luthier.testing.made_curves import OWN, MadeTask

WHOLE_STEPS = 90
"""Steps of the recipe's own training: so that all rungs lie on whole steps."""


@dataclass
class MadeSearch:
    """A study of a made task.

    Attributes:
        task: the task.
        spec: what is asked; its `hours` count whole trainings of its own recipe.
        trials: the trials so far.
        best: (hours spent, lowest loss measured so far, the true loss of the trial that it belongs to).
    """

    task: MadeTask
    spec: StudySpec
    trials: list[Trial] = field(default_factory=list)
    best: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """Hours of all trials."""
        return sum(trial.hours for trial in self.trials)

    def run(self) -> MadeSearch:
        """Search until nothing more is covered."""
        spec = self.spec
        while True:
            step = next_step(
                self.trials,
                num_rungs=len(spec.rungs),
                reduction=spec.reduction,
                most_trials=spec.most_trials,
                may_begin=self._covers(spec.rungs[0]),
            )
            if isinstance(step, Begin):
                step = self._begin()
            if isinstance(step, GoOn) and (why := self._why_hopeless(self.trials[step.number], None)):
                changed = {"state": "stopped", "reason": why}
                self.trials[step.number] = self.trials[step.number].model_copy(update=changed)
                continue
            if step is None or not self._covers(self._price(self.trials[step.number], step.rung)):
                return self
            self._train(step)

    def _covers(self, hours: float) -> bool:
        return self.spent + hours <= self.spec.hours

    def _steps(self, values: Values) -> list[int]:
        batch = float((OWN | values)["training.global_batch_size"])
        steps = round(WHOLE_STEPS * self.task.tokens(values) * 8 / batch)
        return rung_steps(self.spec.rungs, steps, batch / 8, WHOLE_STEPS)

    def _price(self, trial: Trial, rung: int) -> float:
        steps = self._steps(trial.values)
        done = trial.results[-1].step if trial.results else 0
        return self.task.hours(trial.values) * (steps[rung] - done) / steps[-1]

    def _begin(self) -> GoOn | None:
        number = len(self.trials)
        if (values := next_values(self.spec, self.trials, number)) is None:
            return None
        self.trials.append(Trial(number=number, values=values, run_id=f"run-{number}"))
        return GoOn(number, 0)

    def _train(self, step: GoOn) -> None:
        trial, last = self.trials[step.number], len(self.spec.rungs) - 1
        steps = self._steps(trial.values)
        # Whole trainings are validated now and then as well, since a curve is what can be hopeless.
        interval = 10 if last == 0 else steps[0]
        at = sorted({*range(interval, steps[step.rung], interval), steps[step.rung]})
        shares = [one / steps[-1] for one in at]
        curve = list(zip(shares, self.task.curve(trial.values, shares), strict=True))
        done, reason = trial.results[-1].share if trial.results else 0.0, ""
        for place, (share, _) in enumerate(curve):
            # Looked at after each validation that is new; at the last one nothing is left to save.
            if done < share < shares[-1] and (reason := self._why_hopeless(trial, curve[: place + 1])):
                curve = curve[: place + 1]
                break
        hours = trial.hours + self.task.hours(trial.values) * (curve[-1][0] - done)
        # The best checkpoint is kept, so the lowest point of the curve counts, not its end.
        loss, best_share = min((loss, share) for share, loss in curve)
        results = trial.results
        if not reason:
            kept = tuple(point for point in curve if point[0] > done)
            step_done = round(curve[-1][0] * steps[-1])
            own = Result(rung=step.rung, step=step_done, share=curve[-1][0], loss=loss, curve=kept)
            results = (*results, own)
        state = "stopped" if reason else "done" if step.rung == last else "paused"
        changed = {"hours": hours, "results": results, "state": state, "reason": reason}
        self.trials[step.number] = trial.model_copy(update=changed)
        self._note(loss, self.task.truth(trial.values, best_share))

    def _why_hopeless(self, trial: Trial, curve: list[tuple[float, float]] | None) -> str:
        if not self.spec.stops_hopeless or len(self.spec.goals) > 1 or trial.number == 0:
            return ""
        finished = Finished(tuple(trial.curve for trial in self.trials if trial.state == "done"))
        return finished.why_hopeless(curve or trial.curve)

    def _note(self, loss: float, truth: float) -> None:
        if not self.best or loss < self.best[-1][1]:
            self.best.append((self.spent, loss, truth))


def made_spec(
    space: Space,
    *,
    hours: float,
    seed: int,
    sampler: SamplerName = "tpe",
    is_whole: bool = False,
    stops_hopeless: bool = True,
) -> StudySpec:
    """The specification of a made search.

    Args:
        space: What is searched.
        hours: The budget, in whole trainings of its own recipe.
        seed: Of all draws.
        sampler: What suggests values.
        is_whole: Whether every trial is trained to its end, and no start points are known.
        stops_hopeless: Whether trials are stopped whose curve cannot become the best.
    """
    return StudySpec.model_validate(
        {
            "recipe": {"base_model": "made", "data": {"train": "made.jsonl", "validation": 0.1}},
            "space": space,
            "hours": hours,
            "most_trials": 1000,
            "sampler": sampler,
            "seed": seed,
            "rungs": (1.0,) if is_whole else RUNGS,
            "reduction": REDUCTION,
            "own_values": OWN,
            "start": () if is_whole else start_points(space, OWN),
            "stops_hopeless": stops_hopeless and not is_whole,
        }
    )
