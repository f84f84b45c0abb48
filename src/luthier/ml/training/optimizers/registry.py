"""Which update rules there are: a table of "module:Class" strings, so that only the one that is used is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.import_string import import_string
from luthier.core.plan import OptimizerPlan
from luthier.core.recipe import OptimizerName
from luthier.ml.training.optimizers.protocol import Trained, UpdateRule

RULES: Final[dict[OptimizerName, str]] = {
    "adamw": "luthier.ml.training.optimizers.adamw:AdamW",
    "adamw_8bit": "luthier.ml.training.optimizers.adamw_8bit:AdamW8bit",
    "paged_adamw_8bit": "luthier.ml.training.optimizers.adamw_8bit:PagedAdamW8bit",
    "adafactor": "luthier.ml.training.optimizers.adafactor:Adafactor",
    "muon": "luthier.ml.training.optimizers.muon:Muon",
}


def load_rule(trained: Sequence[Trained], plan: OptimizerPlan) -> UpdateRule:
    """The rule that a plan names, for these parameters."""
    rule: UpdateRule = import_string(RULES[plan.name])(trained, plan)
    return rule
