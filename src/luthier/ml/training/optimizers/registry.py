"""The update rule of an optimizer, loaded when it is used."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.import_string import import_string
from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.protocol import Trained, UpdateRule
from luthier.ml.training.optimizers.rules import rules_of


def load_rule(trained: Sequence[Trained], plan: OptimizerPlan) -> UpdateRule:
    """The rule that a plan names, for these parameters.

    Raises:
        NotFoundError: No table knows the name.
    """
    rule: UpdateRule = import_string(rules_of(plan.name).update_rule)(trained, plan)
    return rule
