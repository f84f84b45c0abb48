"""How to do it again: the recipe as it was asked, and the commands."""

from __future__ import annotations

import yaml

from luthier.core.aliases import with_new_keys
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.ml.evaluation.report.outcome import eval_command


def recipe_yaml(plan: Plan) -> str:
    """The recipe as YAML, without what was not asked for."""
    document = with_new_keys(plan.recipe.model_dump(mode="json", exclude_none=True))
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100))


def commands(record: RunRecord, plan: Plan) -> list[tuple[str, str]]:
    """(what it does, command), in the order in which they are typed."""
    found = [
        ("Get the base model", f"luthier models pull {plan.base_model.name}"),
        ("Look at the plan before it runs", "luthier plan recipe.yaml"),
        ("Train", "luthier train recipe.yaml"),
    ]
    if plan.data.held_out is not None:
        found.append(("Judge this run again", eval_command(record, plan, plan.data.held_out.file)))
    return found
