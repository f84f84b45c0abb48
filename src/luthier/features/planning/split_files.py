"""The files of a recipe, read and cut into splits: what stands in them, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.dataset import Example, Split
from luthier.core.errors import RecipeError
from luthier.core.recipe import Recipe
from luthier.features.planning.memorisation_probes import planted
from luthier.features.planning.replay import load_replay

if TYPE_CHECKING:
    from luthier.ml.data.rows.formats import LoadedFile


@dataclass(frozen=True, slots=True)
class Part:
    """The examples of one split, and the file they came from. planted: canaries beside them."""

    source: LoadedFile
    path: Path
    examples: Sequence[Example]
    planted: Sequence[Example] = ()


def load_splits(recipe: Recipe, base_dir: Path) -> dict[Split, Part]:
    """Read the files that the recipe names and take out of the training rows what it asks for as fractions."""
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.rows.part import part_of
    from luthier.ml.data.split.split import split_by_fraction
    from luthier.ml.planning.resolve_objective import check_shape

    asked: dict[Split, str | float | None] = {"validation": recipe.data.validation, "held_out": recipe.data.held_out}
    train_path = base_dir / recipe.data.train
    train = load_file(train_path, mapping=recipe.data.map, group_by=recipe.data.group_by)
    check_shape(recipe.objective, train.shape)
    fractions = {split: value for split, value in asked.items() if isinstance(value, float)}
    parts: dict[Split, Sequence[Example]] = {"train": train.examples}
    if fractions:
        seed = recipe.training.seed if recipe.training and recipe.training.seed is not None else 0
        # A seed of its own for the split: trials that change the training seed still judge on the same rows.
        seed = recipe.data.split_seed if recipe.data.split_seed is not None else seed
        parts = dict(
            split_by_fraction(
                train.examples,
                validation=fractions.get("validation", 0.0),
                held_out=fractions.get("held_out", 0.0),
                seed=seed,
            )
        )
    if recipe.data.part is not None:
        parts["train"] = part_of(parts["train"], recipe.data.part)
    found = {split: Part(train, train_path, examples) for split, examples in parts.items() if examples}
    if recipe.data.canaries is not None:
        found["train"] = replace(found["train"], planted=planted(recipe, train.shape, len(parts["train"])))
    for split, value in asked.items():
        if isinstance(value, str):
            path = base_dir / value
            loaded = load_file(path, mapping=recipe.data.map, group_by=recipe.data.group_by)
            if loaded.shape == "text" or train.shape == "text":
                _refuse_mixed(train, loaded)
            elif split == "validation":
                check_shape(recipe.objective, loaded.shape)
            found[split] = Part(loaded, path, loaded.examples)
    return found | {split: Part(*part) for split, part in load_replay(recipe, base_dir).items()}


def _refuse_mixed(train: LoadedFile, other: LoadedFile) -> None:
    if train.shape != other.shape:
        raise RecipeError(
            f"{train.file} holds {train.shape} rows, {other.file} {other.shape} rows",
            expected="plain text in all files or in none",
            do="give all splits the same kind of rows",
        )
