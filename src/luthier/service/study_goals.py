"""Several goals of a study: what a trial comes to in each before it is trained, the front of them, and its knee."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from luthier.core.plan import Plan
from luthier.core.study import GoalName, StudySpec, Trial
from luthier.service.trials import Priced
from luthier.tune.front import Point, front_numbers, knee, point_of

_BYTES_PER_PARAMETER: Final = 4
"""Adapters are kept in float32."""
UNITS: Final[dict[GoalName, str]] = {"quality": "loss", "latency": "times the base", "size": "bytes", "cost": "h"}


def goals_of(goals: Sequence[GoalName], priced: Priced) -> dict[GoalName, float]:
    """What a trial comes to by the goals other than quality: counted from its plan, not measured."""
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
    added = plan.method.num_trainable_parameters if plan.method.rank else 0
    return 1 + added / max(1, base)


def front_of(
    spec: StudySpec, trials: Sequence[Trial], repeated: Mapping[int, Sequence[float]]
) -> tuple[list[Trial], int | None]:
    """The trials that no other beats in all goals, by quality, and the number of the knee; None where there is none.

    Only whole trainings stand on it: losses of others are not their last. repeated: losses with several seeds, by trial.
    """
    whole = [trial for trial in trials if trial.kind == "search" and trial.state == "done"]
    points: dict[int, Point] = {}
    for trial in whole:
        losses = repeated.get(trial.number)
        points[trial.number] = point_of(trial, spec.goals, quality=statistics.fmean(losses) if losses else trial.loss)
    numbers = front_numbers([points[trial.number] for trial in whole])
    front = [trial for trial, number in zip(whole, numbers, strict=True) if number == 0]
    return sorted(front, key=lambda t: (points[t.number][spec.goals.index("quality")], t.number)), knee(points)
