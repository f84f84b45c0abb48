"""The `tracking` of recipes and plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.core.plan import ValueSource
from luthier.core.tracking import TrackerPlan, without_credentials
from luthier.features.recipes.service import load_recipe, recipe_from
from luthier.testing.records import make_plan

RECIPE = {"base_model": "tiny", "data": {"train": "train.jsonl"}}


@pytest.mark.parametrize("written", [["mlflow"], [{"name": "mlflow"}]])
def test_a_tracker_is_written_by_its_name_or_with_settings(written: object) -> None:
    recipe = recipe_from(RECIPE | {"tracking": written}, base_dir=Path())
    assert [(one.name, one.project) for one in recipe.tracking or ()] == [("mlflow", None)]


def test_none_and_an_empty_list_differ(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("base_model: tiny\ndata: {train: train.jsonl}\n")
    assert load_recipe(tmp_path / "recipe.yaml").tracking is None
    assert load_recipe(tmp_path / "recipe.yaml", ["tracking=[]"]).tracking == ()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["mlfow"], "nearest: mlflow"),
        (["mlflow", {"name": "mlflow", "project": "a"}], "each tracker once"),
        ([{"name": "mlflow", "location": "https://me:secret@host"}], "without user, password and query"),
        ([{"name": "wandb", "location": "https://host?key=secret"}], "without user, password and query"),
        ([{"name": "wandb", "projekt": "a"}], "tracking[0]"),
        ("mlflow", "expected a list"),
    ],
)
def test_what_is_wrong_is_named(written: object, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from(RECIPE | {"tracking": written}, base_dir=Path())
    assert said in caught.value.came


def test_a_folder_counts_from_the_recipe_and_an_address_does_not(tmp_path: Path) -> None:
    asked = [{"name": "tensorboard", "location": "curves"}, {"name": "mlflow", "location": "http://host:5000"}]
    recipe = recipe_from(RECIPE | {"tracking": asked}, base_dir=tmp_path)
    assert [one.location for one in recipe.tracking or ()] == [str(tmp_path / "curves"), "http://host:5000"]


def test_tags_are_a_list_in_a_recipe(tmp_path: Path) -> None:
    recipe = recipe_from(RECIPE | {"tracking": [{"name": "wandb", "tags": ["october"]}]}, base_dir=tmp_path)
    assert [one.tags for one in recipe.tracking or ()] == [("october",)]
    with pytest.raises(RecipeError, match="expected a list"):
        recipe_from(RECIPE | {"tracking": [{"name": "wandb", "tags": "october"}]}, base_dir=tmp_path)


def test_trackers_are_shown_in_the_plan_and_do_not_change_its_hash() -> None:
    plan = make_plan()
    source = ValueSource(source="asked", why="in the recipe")
    trackers = (TrackerPlan(name="wandb", project="mails", entity="team", location="https://host"),)
    tracked = plan.model_copy(update={"tracking": trackers, "sources": plan.sources | {"tracking": source}})
    assert tracked.hash == plan.hash
    assert tracked.values()[-1]["value"] == ["wandb: team/mails at https://host"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://me:secret@host:80/a?key=1#x", "https://host:80/a"),
        ("postgresql://me:secret@host/db", "postgresql://host/db"),
        ("sqlite:////tmp/runs.db", "sqlite:////tmp/runs.db"),
        ("runs/october", "runs/october"),
    ],
)
def test_addresses_are_kept_without_credentials(given: str, expected: str) -> None:
    assert without_credentials(given) == expected
