"""The recipes that we ship are ones that Luthier takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from luthier.features.recipes.service import load_recipe
from luthier.ml.inference.models import catalog

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_loads_and_its_model_is_known(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.base_model in catalog.entries()
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_leaves_the_learning_rate_to_the_width_of_the_model(path: Path) -> None:
    """One figure is right for one width: of a recipe that is copied for another model it would be several times off."""
    training = load_recipe(path).training
    assert training is None or training.learning_rate is None


def test_the_recipe_of_the_reference_page_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml").method is not None
    assert yaml.safe_load(text).keys() == {"base_model", "data", "method", "objective", "training", "evaluation"}
