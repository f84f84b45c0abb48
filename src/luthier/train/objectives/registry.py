"""Which objectives there are. A table of "module:Class" strings is the door: built-ins and plug-ins use the same one.

Entry points in the group `luthier.objectives` add to it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from luthier.core.errors import NotFoundError
from luthier.core.plan import ObjectivePlan
from luthier.core.recipe import OBJECTIVE_ENTRY_POINTS
from luthier.train.objectives.protocol import NO_TOOLS, Objective, Tools

BUILT_IN = {
    "sft": "luthier.train.objectives.sft:Sft",
    "dpo": "luthier.train.objectives.dpo:Dpo",
    "ipo": "luthier.train.objectives.dpo:Ipo",
    "orpo": "luthier.train.objectives.orpo:Orpo",
    "kto": "luthier.train.objectives.kto:Kto",
    "simpo": "luthier.train.objectives.simpo:Simpo",
    "grpo": "luthier.train.objectives.grpo:Grpo",
    "pretraining": "luthier.train.objectives.pretraining:Pretraining",
    "distillation": "luthier.train.objectives.distillation:Distillation",
}


def load_objective(plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> Objective:
    """The objective that a plan names, with what the run lends it. Raises NotFoundError for an unknown name."""
    known = {entry.name: entry.value for entry in entry_points(group=OBJECTIVE_ENTRY_POINTS)} | BUILT_IN
    if plan.name not in known:
        raise NotFoundError(
            f"objective {plan.name!r}",
            expected=f"one of {', '.join(sorted(known))}",
            do="correct objective.name, or install the package that brings it (entry point group luthier.objectives)",
        )
    module, _, name = known[plan.name].partition(":")
    objective: Objective = getattr(import_module(module), name)(plan, tools)
    return objective
