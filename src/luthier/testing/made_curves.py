"""Synthetic learning curves of a known task, and searches over them without training.

Not a model of a real task; its shapes are those that a search must cope with: the best learning rate lies anywhere in
the range, above it trainings diverge, a high rate looks bad until the schedule has brought it down (so that curves
cross), more epochs help until rows are memorised, most other settings hardly matter, and every measurement has
noise. Each seed is another task.

In a made search the parts of `luthier.ml.search` decide as in a study; only the training is made up. For comparison
there are whole trainings drawn at random, and whole trainings that Optuna's TPE suggests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from luthier.core.ids import sha256_document
from luthier.core.workflows.study import ALPHA_OVER_RANK, Result, SamplerName, Space, StudySpec, Trial, Values
from luthier.ml.search.rungs import REDUCTION, RUNGS, Begin, Finished, GoOn, next_step, rung_steps
from luthier.ml.search.sampling import next_values
from luthier.ml.search.space import start_points

OWN: Final[Values] = {
    "training.learning_rate": 2e-4,
    "training.global_batch_size": 8,
    "training.epochs": 2,
    "training.schedule": "cosine",
    "training.warmup_fraction": 0.03,
    "training.weight_decay": 0.0,
    "method.name": "lora",
    "method.rank": 16,
    ALPHA_OVER_RANK: 2.0,
    "method.targets": "all-linear",
    "method.dropout": 0.05,
}
"""What the recipe as it came sets, on the plan of `testing.records`."""
START_LOSS: Final = 3.0


@dataclass(frozen=True, slots=True)
class MadeTask:
    """One task.

    Attributes:
        seed: decides the task.
        noise: standard deviation of a whole training's loss between seeds.
    """

    seed: int
    noise: float = 0.008

    def hours(self, values: Values) -> float:
        """What all steps of a training take, where the recipe's own takes 1."""
        own = OWN | values
        cost = float(own["training.epochs"]) / 2 * {"dora": 1.3}.get(str(own["method.name"]), 1.0)
        return cost * (0.95 if own["method.targets"] == "attention" else 1.0) * (1 + float(own["method.rank"]) / 640)

    def tokens(self, values: Values) -> float:
        """What it trains on, as a share of the recipe's own training."""
        return float((OWN | values)["training.epochs"]) / 2

    def curve(self, values: Values, shares: Sequence[float], *, repeat: int = 0) -> list[float]:
        """The validation loss after each share of this training. repeat: another seed of the same one."""
        # By the values themselves, so that one training has the same curve whichever search asks for it.
        noise = random.Random(sha256_document([self.seed, values, repeat]))  # noqa: S311
        level = noise.gauss(0, self.noise)
        return [self.truth(values, share) + level + noise.gauss(0, self.noise / 2) for share in shares]

    def truth(self, values: Values, share: float = 1.0) -> float:
        """The loss after a share of the training without noise."""
        own, drawn = OWN | values, _Drawn.of(self.seed)
        off = _rate(own) - drawn.best_rate  # in factors of ten
        epochs = float(own["training.epochs"]) * share
        # A higher rate learns faster, up to a little above the best one.
        speed = 10 ** (0.9 * min(off, 0.35))
        learned = 1 - (1 + 9 * drawn.pace * speed * epochs / 2) ** -0.9
        # Quadratic beside the optimum, then a steep wall: divergence.
        too_high = 0.5 * max(0.0, off - 0.15) ** 2 + (4.0 * (off - 0.8) if off > 0.8 else 0.0)
        # Noise of large steps, which goes as the schedule brings the rate down: curves of different rates cross.
        unrest = 0.10 * 10 ** (0.7 * min(off, 0.8)) * _rate_left(str(own["training.schedule"]), share)
        room = math.log2(drawn.needed_rank / float(own["method.rank"])) if own["method.rank"] else 0.0
        small = 0.02 * max(0.0, room) + drawn.narrow * (own["method.targets"] == "attention")
        against = 1 - 2.5 * float(own["method.dropout"]) - float(own["training.weight_decay"])
        # Overfitting sets in after a number of epochs, sooner at higher rates.
        by_heart = drawn.by_heart * max(0.0, epochs * speed - 1.6) ** 1.5 * max(0.2, against)
        slower = 0.12 * float(own["method.dropout"]) + 0.02 * (float(own["training.warmup_fraction"]) - 0.03) ** 2
        gain = (START_LOSS - drawn.floor) * learned
        small_things = small + slower + {"dora": -0.004}.get(str(own["method.name"]), 0.0)
        return float(START_LOSS - gain + (too_high + unrest + small_things) * min(1.0, 4 * share) + by_heart)


@dataclass(frozen=True, slots=True)
class _Drawn:
    best_rate: float
    pace: float
    floor: float
    needed_rank: float
    narrow: float
    by_heart: float

    @classmethod
    def of(cls, seed: int) -> _Drawn:
        draw = random.Random(seed)  # noqa: S311
        return cls(
            best_rate=math.log10(2e-4) + draw.uniform(-0.7, 0.8),
            pace=draw.uniform(0.5, 2.0),
            floor=draw.uniform(0.6, 1.4),
            needed_rank=2 ** draw.uniform(2, 6),
            narrow=draw.uniform(0.0, 0.06),
            by_heart=10 ** draw.uniform(-2.5, -0.7),
        )


def _rate(own: Values) -> float:
    """How far a step goes, as a power of ten: the rate, with what its scale and its batch do to it."""
    scale = (
        # rsLoRA scales by alpha / sqrt(rank): equal to a ratio of 2 at rank 16.
        2.0 * float(own["method.rank"]) ** 0.5 / 4 if own["method.name"] == "rslora" else float(own[ALPHA_OVER_RANK])
    )
    by_scale = 0.5 * math.log10(scale / 2.0)
    # The square-root rule: four times the batch allows twice the rate.
    by_batch = -0.5 * math.log10(float(own["training.global_batch_size"]) / 8)
    return math.log10(float(own["training.learning_rate"])) + by_scale + by_batch


def _rate_left(schedule: str, share: float) -> float:
    if schedule == "constant":
        return 1.0
    return 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))


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
