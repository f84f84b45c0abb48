"""What can be wrong with the names in a recipe, found before torch is imported or the machine is measured.

A typo is answered within a second or two; the checks that need rows and weights follow where these are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import RecipeError
from luthier.core.recipe import Recipe

if TYPE_CHECKING:
    from luthier.ml.inference.models.chat_template import ChatTemplate
    from luthier.ml.inference.models.structure import Structure


def check_names(recipe: Recipe, base_dir: Path) -> None:
    """Check the base model's name and every data file that a recipe names.

    Args:
        recipe: of which relative paths count from `base_dir`.
        base_dir: its folder.

    Raises:
        NotFoundError: no model of that name, or no such file; the nearest are named.
        RequestError: a malformed name of a model.
        DataError: a file whose name or content is of no known format.
        RecipeError: answers are to be joined for an objective that has no use for it.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.inference.models import names

    check_reset_template(recipe)
    names.parse(recipe.base_model)
    for path in recipe.data.files().values():
        open_source(base_dir / path)


def check_modules(recipe: Recipe, structure: Structure) -> None:
    """Check the names of matrices against the model's, before rows are tokenised.

    Raises:
        RecipeError: a name that matches no matrix of the model; the nearest are named.
    """
    from luthier.ml.planning.adapter import resolve_targets

    if recipe.method is not None and recipe.method.targets is not None and recipe.method.name != "full":
        resolve_targets(structure, recipe.method.targets)


def check_reset_template(recipe: Recipe) -> None:
    """Raise RecipeError where answers are to be joined and the objective learns none of the rows' own, or no turns."""
    from luthier.ml.training.objectives.rules import rules_of

    if recipe.data.reset_template is None or recipe.objective is None:
        return
    rules = rules_of(recipe.objective.name)
    if not rules.packs and "num_samples" not in rules.settings:
        return
    why = "learns plain text, which has no turns" if rules.packs else "draws its answers to the prompts of inference"
    raise RecipeError(
        f"data.reset_template: {recipe.data.reset_template} with objective {recipe.objective.name}, which {why}",
        expected="an objective that learns the answers of conversations, such as sft",
        do="remove data.reset_template: it would change nothing",
    )


def check_template_options(recipe: Recipe, template: ChatTemplate) -> None:
    """Raise RecipeError for an option of the recipe that the chat template never reads."""
    check_options_are_read(recipe.data.template_options or {}, template, recipe.base_model)


def check_options_are_read(options: Iterable[str], template: ChatTemplate, base_model: str) -> None:
    """Raise RecipeError for an option that the chat template of a base model never reads."""
    known = sorted(template.names.options)
    for name in options:
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            raise RecipeError(
                f"data.template_options.{name}, which the chat template of {base_model} never reads",
                expected=f"one of its own: {', '.join(known)}" if known else "none: this template has no options",
                do=f"write {nearest[0]}" if nearest else "remove it: it would change nothing",
            )
