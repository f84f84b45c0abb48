"""Which objectives there are. A table of "module:Class" strings names them, built-ins and plug-ins alike.

Entry points in the group `luthier.objectives` add to it.
"""

from __future__ import annotations

from luthier.core.entry_points import entry_points
from luthier.core.errors import NotFoundError
from luthier.core.import_string import import_string
from luthier.core.plan import ObjectivePlan
from luthier.core.recipe import OBJECTIVE_ENTRY_POINTS
from luthier.ml.training.objective_protocol import NO_TOOLS, Objective, Tools

BUILT_IN = {
    "sft": "luthier.ml.training.objectives.sft:Sft",
    "dpo": "luthier.ml.training.objectives.dpo:Dpo",
    "ipo": "luthier.ml.training.objectives.dpo:Ipo",
    "orpo": "luthier.ml.training.objectives.orpo:Orpo",
    "kto": "luthier.ml.training.objectives.kto:Kto",
    "simpo": "luthier.ml.training.objectives.simpo:Simpo",
    "grpo": "luthier.ml.training.objectives.grpo:Grpo",
    "pretraining": "luthier.ml.training.objectives.pretraining:Pretraining",
    "distillation": "luthier.ml.training.objectives.distillation:Distillation",
}


def load_objective(plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> Objective:
    """The objective that a plan names, with what the run lends it.

    Raises:
        NotFoundError: an unknown name.
    """
    known = {entry.name: entry.value for entry in entry_points(group=OBJECTIVE_ENTRY_POINTS)} | BUILT_IN
    if plan.name not in known:
        raise NotFoundError(
            f"objective {plan.name!r}",
            expected=f"one of {', '.join(sorted(known))}",
            do="correct objective.name, or install the package that brings it (entry point group luthier.objectives)",
        )
    objective: Objective = import_string(known[plan.name])(plan, tools)
    return objective
