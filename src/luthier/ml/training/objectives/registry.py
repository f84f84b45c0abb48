"""The class of an objective: named by `rules` for a built-in one, the entry point for a plug-in."""

from __future__ import annotations

from luthier.core.import_string import import_string
from luthier.core.plan import ObjectivePlan
from luthier.core.registry import OBJECTIVES
from luthier.ml.training.objective_protocol import NO_TOOLS, Objective, Tools
from luthier.ml.training.objectives.rules import RULES


def load_objective(plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> Objective:
    """The objective that a plan names, with the resources that the run provides.

    Raises:
        NotFoundError: the name is not registered.
    """
    if plan.name in RULES:
        objective: Objective = import_string(RULES[plan.name].implementation)(plan, tools)
    else:
        objective = OBJECTIVES.load(plan.name)(plan, tools)
    return objective
