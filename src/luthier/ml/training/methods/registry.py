"""The class that trains by a method: of a built-in as `rules` names it, of a plug-in its entry point."""

from __future__ import annotations

from luthier.core.import_string import import_string
from luthier.core.plan import MethodPlan
from luthier.core.registry import METHODS
from luthier.ml.training.methods.protocol import Method
from luthier.ml.training.methods.rules import RULES


def load_method(plan: MethodPlan) -> Method:
    """The method that a plan names.

    Raises:
        NotFoundError: No table knows the name.
    """
    if plan.name in RULES:
        method: Method = import_string(RULES[plan.name].implementation)(plan)
    else:
        method = METHODS.load(plan.name)(plan)
    return method
