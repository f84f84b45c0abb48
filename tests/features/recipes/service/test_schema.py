"""The JSON Schema of recipes: it takes what Luthier takes, explains it, and is named by the recipes that we ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from tests.vacuous import nonempty

from luthier.core import registry
from luthier.features.recipes.file import known_keys
from luthier.features.recipes.schema import FILE_NAME, LINE, recipe_schema, schema_text, write_schema

ROOT = Path(__file__).resolve().parents[4]
SMALL = {"base_model": "tiny", "data": {"train": "train.jsonl"}}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found = recipe_schema()
    Draft202012Validator.check_schema(found)
    return found


def wrong(schema: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(recipe)]


def test_every_recipe_of_ours_is_taken(schema: dict[str, Any]) -> None:
    files = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "examples").glob("*/*.yaml")]
    recipes = {file: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    recipes = {file: recipe for file, recipe in recipes.items() if {"base_model", "data"} <= recipe.keys()}
    for file, recipe in nonempty(recipes.items()):
        assert wrong(schema, recipe) == [], file


@pytest.mark.parametrize(
    "more",
    [
        {"training": {"optimizer": "muon", "lr_schedule": "linear", "schedule": "linear"}},
        {"training": {"optimizer": {"name": "adamw", "beta2": "auto"}, "packing": "auto"}},
        {"data": {"train": "a", "canaries": 8, "columns": {"prompt": "q"}, "replay": {"file": "b", "columns": {}}}},
        {"objective": {"name": "grpo", "num_generations": 4, "kl_coef": 0.1, "rewards": [{"metric": "token_f1"}]}},
        {"evaluation": {"good_enough": 0.9, "metrics": ["rouge"]}},
        {"tracking": ["mlflow", {"name": "wandb", "project": "mails"}]},
        {"tracking": []},
    ],
)
def test_short_and_long_forms_are_taken(schema: dict[str, Any], more: dict[str, Any]) -> None:
    assert wrong(schema, SMALL | more) == []


@pytest.mark.parametrize(
    "more",
    [
        {"trainig": {}},
        {"training": {"epochs": "three"}},
        {"training": {"optimizer": "adamwx"}},
        {"method": {"name": "lora", "rank": 0}},
        {"tracking": ["mlfow"]},
        {"data": {"validation": 0.1}},
    ],
)
def test_what_is_wrong_is_found(schema: dict[str, Any], more: dict[str, Any]) -> None:
    assert wrong(schema, SMALL | more)


def test_it_has_every_key_each_with_its_meaning(schema: dict[str, Any]) -> None:
    def resolved(field: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in field:
            field = schema["$defs"][field["$ref"].rpartition("/")[2]]
        return next((resolved(one) for one in field.get("anyOf", ()) if "properties" in resolved(one)), field)

    for key in nonempty(known_keys()):
        level, described = schema, ""
        for part in key.split("."):
            field = resolved(level)["properties"][part]
            level, described = field, field.get("description") or resolved(field).get("description", "")
        assert described, key


def test_old_names_are_marked(schema: dict[str, Any]) -> None:
    data = schema["$defs"]["DataRecipe"]["properties"]
    assert data["map"]["deprecated"] is True
    assert data["map"]["description"] == "Now `columns`."
    assert "deprecated" not in data["columns"]


def test_the_shipped_file_is_that_of_this_version_and_our_recipes_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests register plug-ins, which the shipped file has none of.
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    found = (ROOT / "recipes" / FILE_NAME).read_text(encoding="utf-8")
    assert found == schema_text(), "run `luthier recipe schema -o recipes/recipe.schema.json --force`"
    for file in nonempty(sorted((ROOT / "recipes").glob("*.yaml"))):
        assert file.read_text(encoding="utf-8").startswith(LINE), file


def test_it_is_written_beside_a_recipe_and_replaces_no_other_file(tmp_path: Path) -> None:
    path = write_schema(tmp_path)
    assert path == tmp_path / FILE_NAME
    assert json.loads(path.read_text())["title"] == "Luthier recipe"
    path.write_text(json.dumps({"title": "Luthier recipe", "of": "an earlier version"}))
    assert write_schema(tmp_path) == path
    assert path.read_text() == schema_text()
    for other in ('{"title": "mine"}', "[]", "no JSON"):
        path.write_text(other)
        assert write_schema(tmp_path) is None
        assert path.read_text() == other
