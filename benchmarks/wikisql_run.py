"""A run on WikiSQL rows that benchmarks build on: trained once, and taken as it is the next time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.platform.home.context import Context


def tuned_run(context: Context, kept: Path, *, model: str, train: Path, training: dict[str, Any]) -> str:
    """The id of a LoRA run on the rows in `train`; it is written to the file `kept` before the run begins.

    A run that was killed continues.
    """
    from luthier.core.errors import NotFoundError
    from luthier.core.ids import new_id
    from luthier.features.recipes.service import recipe_from
    from luthier.features.training.service import resume
    from luthier.features.training.service import train as train_run

    recipe = {
        "base_model": model,
        "data": {"train": str(train)},
        "method": {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.05},
        "training": training | {"learning_rate": 5e-4},
    }
    if not kept.is_file():
        kept.write_text(new_id("run"))
    run_id = kept.read_text()
    try:
        record = context.runs.get(run_id)
    except NotFoundError:
        train_run(context, recipe_from(recipe, base_dir=kept.parent), base_dir=kept.parent, run_id=run_id)
    else:
        if record.status != "succeeded":
            resume(context, run_id)
    return run_id
