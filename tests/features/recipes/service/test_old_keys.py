"""Keys of recipes by the names of an earlier version: wherever they are typed, and where they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core import aliases
from luthier.core.aliases import RECIPE_KEYS, stored_key, with_new_keys, with_stored_keys
from luthier.core.errors import RecipeError
from luthier.core.recipe import Recipe
from luthier.core.workflows.study import recipe_with
from luthier.features.recipes import service
from luthier.features.recipes.service import load_recipe, recipe_from
from luthier.python_api import _read

VALUES: dict[str, Any] = {
    "data.map": {"prompt": "question"},
    "data.part": [0.0, 0.5],
    "data.replay.map": {"prompt": "ask"},
    "objective.divide_by_spread": False,
    "objective.kl_weight": 0.25,
    "objective.num_samples": 6,
    "training.clip_gradient_norm": 2.5,
    "training.order": "shuffled",
    "training.overlong": "drop",
    "training.schedule": "linear",
}


@pytest.fixture(autouse=True)
def _nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "_warned", set())


def document(place: str | None = None, value: Any = None) -> dict[str, Any]:
    """A recipe, with this value at this place."""
    found: dict[str, Any] = {
        "base_model": "m",
        "data": {"train": "t.jsonl", "replay": {"file": "g.jsonl"}},
        "objective": {"name": "grpo"},
        "training": {"epochs": 1},
    }
    if place is not None:
        *sections, key = place.split(".")
        level = found
        for section in sections:
            level = level[section]
        level[key] = value
    return found


def at(recipe: Recipe, place: str) -> Any:
    found: Any = recipe.model_dump(mode="json")
    for part in stored_key(place).split("."):
        found = found[part]
    return found


def warning(old: str) -> str:
    return f"warning: the recipe key {old!r} is now called {RECIPE_KEYS[old]!r}; the old name still works\n"


def by_yaml(folder: Path, place: str, value: Any) -> Recipe:
    (folder / "r.yaml").write_text(yaml.safe_dump(document(place, value)), encoding="utf-8")
    return load_recipe(folder / "r.yaml")


def by_json(folder: Path, place: str, value: Any) -> Recipe:
    (folder / "r.json").write_text(json.dumps(document(place, value)), encoding="utf-8")
    return load_recipe(folder / "r.json")


def by_option(folder: Path, place: str, value: Any) -> Recipe:
    (folder / "r.yaml").write_text(yaml.safe_dump(document()), encoding="utf-8")
    return load_recipe(folder / "r.yaml", [f"{place}={json.dumps(value)}"])


def by_section(folder: Path, place: str, value: Any) -> Recipe:
    section = place.partition(".")[0]
    (folder / "r.yaml").write_text(yaml.safe_dump(document()), encoding="utf-8")
    return load_recipe(folder / "r.yaml", [f"{section}={json.dumps(document(place, value)[section])}"])


def by_mapping(folder: Path, place: str, value: Any) -> Recipe:
    return _read(document(place, value))[0]


WAYS = [by_yaml, by_json, by_option, by_section, by_mapping]


def test_every_key_of_the_table_is_tried() -> None:
    assert VALUES.keys() == RECIPE_KEYS.keys()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("old", RECIPE_KEYS)
def test_an_old_key_sets_what_the_new_one_does_with_one_line_of_warning(
    old: str, way: Callable[[Path, str, Any], Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = way(tmp_path, RECIPE_KEYS[old], VALUES[old])
    assert at(new, old) == VALUES[old]
    assert capsys.readouterr() == ("", "")
    assert way(tmp_path, old, VALUES[old]) == new
    assert capsys.readouterr() == ("", warning(old))
    way(tmp_path, old, VALUES[old])
    assert capsys.readouterr() == ("", ""), "once in a process"


@pytest.mark.parametrize("old", RECIPE_KEYS)
def test_both_names_in_one_recipe_are_an_error_that_names_both(old: str, tmp_path: Path) -> None:
    *sections, key = RECIPE_KEYS[old].split(".")
    both = document(old, VALUES[old])
    level = both
    for section in sections:
        level = level[section]
    level[key] = VALUES[old]
    (tmp_path / "r.yaml").write_text(json.dumps(both), encoding="utf-8")
    for read in (
        lambda: load_recipe(tmp_path / "r.yaml"),
        lambda: recipe_from(both, base_dir=tmp_path),
        lambda: service.read_text(json.dumps(both)),
    ):
        with pytest.raises(RecipeError) as caught:
            read()
        assert old in str(caught.value)
        assert RECIPE_KEYS[old] in str(caught.value)


@pytest.mark.parametrize("old", RECIPE_KEYS)
def test_an_option_replaces_what_the_file_says_by_either_name(old: str, tmp_path: Path) -> None:
    for in_file, in_option in ((old, RECIPE_KEYS[old]), (RECIPE_KEYS[old], old)):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(document(in_file, VALUES[old])), encoding="utf-8")
        assert at(load_recipe(tmp_path / "r.yaml", [f"{in_option}="]), old) is None


def test_what_is_stored_keeps_its_keys_and_is_read_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    stored: dict[str, Any] = document()
    for old, value in VALUES.items():
        *sections, key = old.split(".")
        level = stored
        for section in sections:
            level = level[section]
        level[key] = value
    recipe = Recipe.model_validate_json(json.dumps(stored))
    assert recipe.model_dump(mode="json", exclude_none=True) == stored
    assert recipe_from(stored, base_dir=Path("/")) == recipe_from(with_new_keys(stored), base_dir=Path("/"))
    assert with_stored_keys(with_new_keys(stored)) == stored
    assert [*with_new_keys(stored)["training"]] == [
        "epochs",
        "max_grad_norm",
        "batch_order",
        "on_overlong",
        "lr_schedule",
    ], "in the place of the old ones"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("old", RECIPE_KEYS)
def test_drafts_show_the_new_key(old: str) -> None:
    found = service.read_text(yaml.safe_dump(document(old, VALUES[old])))
    assert service.problems_of(found) == ()
    assert service.value_at(found.keys, old) == service.value_at(found.keys, RECIPE_KEYS[old]) == VALUES[old]
    text = service.write_text(service.with_values(found.keys, {old: VALUES[old]}), {})
    assert f"{RECIPE_KEYS[old].rpartition('.')[2]}:" in text
    assert f" {old.rpartition('.')[2]}:" not in text
    assert service.value_at(service.with_values(found.keys, {RECIPE_KEYS[old]: None}), old) is None


def test_values_of_a_stored_study_are_set_by_either_name() -> None:
    recipe = Recipe.model_validate(document("training.schedule", "cosine"))
    for name in ("training.schedule", "training.lr_schedule"):
        found = recipe_with(recipe, {name: "linear", "data.fraction": 0.5})
        assert (found["training"]["lr_schedule"], found["data"]["subset"]) == ("linear", [0.0, 0.5])
        assert recipe_from(found, base_dir=Path("/")).training.schedule == "linear"  # type: ignore[union-attr]


def test_errors_name_the_new_key(tmp_path: Path) -> None:
    for typed in ("training.schedule", "training.lr_schedule"):
        with pytest.raises(RecipeError, match=r"training\.lr_schedule: has 'x', expected one of cosine"):
            by_yaml(tmp_path, typed, "x")
    with pytest.raises(RecipeError, match=r"unknown key; nearest known: training\.max_grad_norm"):
        by_yaml(tmp_path, "training.clip_grad_norm", 1.0)
