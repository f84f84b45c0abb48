"""Where a study begins: what the best of earlier studies on alike data did, then what is known of all tasks.

Alike: the same objective and method, a base model at most three times as large or as small, and rows whose
number, length and share that is learned from lie near (`distance`). What such a study found is a guess, and costs a
first rung; it decides nothing.
"""

from __future__ import annotations

import math
from typing import Final

from luthier.core.errors import NotFoundError
from luthier.core.plan import Plan
from luthier.core.workflows.study import Space, StartPoint, Study, Values
from luthier.ml.search.priors import start_points
from luthier.ml.search.sampling import lies_in
from luthier.platform.home.context import Context

MAX_STUDIES: Final = 3
_FARTHEST: Final = 1.5
"""The largest distance at which data count as alike: the mean of a factor of 4.5 in each of its parts."""
_MAX_SIZE_FACTOR: Final = 3.0


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
    for far, study, values in alike[:MAX_STUDIES]:
        if values and all(values != point.values for point in found):
            why = f"the winner of {study.study_id}, on alike data (distance {far:.2f})"
            found.append(StartPoint(values=values, why=why))
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
    """(distance, study, its winner's values that lie in the space), nearest first, then newest."""
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
            kept = {name: value for name, value in lies_in(space, values).items() if own.get(name) != value}
            found.append((far, age, study, kept))
    # Only numbers are compared: studies have no order.
    return [(far, study, kept) for far, _, study, kept in sorted(found, key=lambda one: one[:2])]
