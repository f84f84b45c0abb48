"""What a student is trained by: the recipe's settings, with the base model, the rows and the objective of each side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.errors import RecipeError
from luthier.core.recipe import Recipe
from luthier.core.workflows.student import DistilKind
from luthier.features.recipes.file import read_recipe_file
from luthier.features.recipes.service import override_value, recipe_from

# What a recipe may say of the rows here: all else would part the two trainings, or is said by the command.
_KEPT_OF_DATA = ("template", "replay", "validation")
_PARTING_DATA = ("subset", "group_by")
# Above what full fine-tuning takes by default: each layer that is left must learn to follow upon another one.
_HEALING_RATE = 2e-4
_OBJECTIVES = {"sequence": ("sft",), "logit": ("distillation",)}


def read_settings(path: Path | None, overrides: Sequence[str], kind: DistilKind) -> dict[str, Any]:
    """The sections of a recipe file that both trainings share; `base_model` and the files of `data` are left out.

    overrides: as `training.epochs=3`. Raises RecipeError for what would make the two trainings differ in more than the
    teacher: a budget, a part of the rows, validation rows as a fraction, another objective.
    """
    keys = dict(read_recipe_file(path).keys) if path is not None else {}
    for override in overrides:
        override_value(keys, override)
    data = dict(keys.get("data") or {})
    objective = keys.get("objective")
    named = objective.get("name") if isinstance(objective, dict) else objective
    problems = [
        ("budget", "budget" in keys, "caps would stop the two at different steps"),
        *((f"data.{name}", data.get(name) is not None, "the rows are split by --held-out") for name in _PARTING_DATA),
        ("data.validation", isinstance(data.get("validation"), float), "name a file: both must see the same rows"),
        (
            f"objective {named}",
            objective is not None and named not in _OBJECTIVES[kind],
            f"--kind {kind} trains with {_OBJECTIVES[kind][0]}, and the student without the teacher with sft",
        ),
    ]
    for name, is_there, why in problems:
        if is_there:
            raise RecipeError(
                f"{name} in the recipe of a distillation",
                expected=f"two trainings that differ in the teacher alone: {why}",
                do="take it out of the recipe",
            )
    folder = path.absolute().parent if path is not None else Path.cwd()
    kept = {name: data[name] for name in _KEPT_OF_DATA if data.get(name) is not None}
    if isinstance(kept.get("validation"), str):
        kept["validation"] = str(folder / Path(kept["validation"]).expanduser())
    if isinstance(kept.get("replay"), dict) and isinstance(kept["replay"].get("file"), str):
        kept["replay"] = kept["replay"] | {"file": str(folder / Path(kept["replay"]["file"]).expanduser())}
    return {name: value for name, value in keys.items() if name not in ("base_model", "data")} | {"data": kept}


def recipe_of(settings: dict[str, Any], *, student: str, rows: Path, teacher: str | None, is_whole: bool) -> Recipe:
    """The recipe of one training. teacher: whose logits are learned, None for plain supervised fine-tuning.

    is_whole: where the recipe names no method, train every weight: a student that has lost layers must find its way
    again in all of the others. Raises RecipeError.
    """
    document = {name: value for name, value in settings.items() if name not in ("evaluation", "objective")}
    document |= {"base_model": student, "data": {**settings["data"], "train": str(rows)}}
    training = dict(document.get("training") or {})
    if is_whole and document.get("method") is None:
        document["method"] = {"name": "full"}
        training.setdefault("learning_rate", _HEALING_RATE)
    training.setdefault("early_stopping_patience", 0)  # the same number of steps for both
    document["training"] = training
    if teacher is not None:
        asked = settings.get("objective")
        document["objective"] = {
            **(asked if isinstance(asked, dict) else {}),
            "name": "distillation",
            "teacher": teacher,
        }
    return recipe_from(document, base_dir=rows.parent)


def evaluation_of(settings: dict[str, Any]) -> Recipe:
    """The recipe with its evaluation alone, checked. Raises RecipeError."""
    asked = settings.get("evaluation")
    document = {"base_model": "none", "data": {"train": "none"}} | ({"evaluation": asked} if asked else {})
    return recipe_from(document, base_dir=Path.cwd())
