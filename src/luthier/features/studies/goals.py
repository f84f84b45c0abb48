"""What a trial comes to by the goals of its study other than quality, known before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.plan import Plan
from luthier.core.workflows.study import GoalName
from luthier.features.studies.trials import Priced

_BYTES_PER_PARAMETER: Final = 4
"""Adapters are kept in float32."""


def goals_of(goals: Sequence[GoalName], priced: Priced) -> dict[GoalName, float]:
    """What a trial comes to by the goals other than quality: counted from its plan, not measured."""
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
    added = plan.method.num_trainable_parameters if plan.method.rank else 0
    return 1 + added / max(1, base)
