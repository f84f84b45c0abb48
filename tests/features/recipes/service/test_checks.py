"""Typos in a recipe and wrong rows are found before torch is imported, a model is loaded or the machine measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, LuthierError, NotFoundError, RecipeError
from luthier.core.recipe import Recipe
from luthier.features.recipes.checks import check_modules, check_names
from luthier.ml.inference.models.structure import read_structure

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def recipe(tiny_model: Path, **changes: Any) -> Recipe:
    data = {"train": "train.jsonl"} | changes.pop("data", {})
    return Recipe.model_validate({"base_model": str(tiny_model), "data": data} | changes)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"base_model": "smollm3-135m-instruct"}, NotFoundError, "smollm2-135m-instruct"),
        ({"data": {"train": "trian.jsonl"}}, NotFoundError, "train.jsonl"),
        ({"data": {"validation": "val.jsonl"}}, NotFoundError, "val.jsonl"),
        ({"data": {"held_out": "held.jsonl"}}, NotFoundError, "held.jsonl"),
        ({"data": {"replay": {"file": "general.jsonl"}}}, NotFoundError, "general.jsonl"),
        ({"data": {"train": "train.text"}}, NotFoundError, "train.text"),
        ({"data": {"train": "."}}, DataError, "folder"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(
    folder: Path, tiny_model: Path, changes: dict[str, Any], kind: type[LuthierError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        check_names(recipe(tiny_model, **changes), folder)
    assert words in str(caught.value)


def test_names_that_there_are_and_shares_of_rows_pass(folder: Path, tiny_model: Path) -> None:
    check_names(recipe(tiny_model, data={"validation": 0.1, "held_out": 0.2}), folder)


def test_a_matrix_that_the_model_lacks_is_named_with_the_nearest(tiny_model: Path) -> None:
    structure = read_structure(str(tiny_model))
    check_modules(recipe(tiny_model, method={"name": "lora", "targets": ["q_proj"]}), structure)
    check_modules(recipe(tiny_model, method={"name": "lora"}), structure)
    with pytest.raises(RecipeError, match="q_proj"):
        check_modules(recipe(tiny_model, method={"name": "lora", "targets": ["q_prj"]}), structure)


@pytest.mark.parametrize(
    "change", ["base_model=smollm3", "data.train=trian.jsonl", "data.held_out=held.jsonl", "data.held_out=wrong.jsonl"]
)
def test_a_typo_or_a_wrong_row_costs_no_torch_and_no_measurement(folder: Path, tiny_model: Path, change: str) -> None:
    (folder / "wrong.jsonl").write_text('{"prompt": "question 1", "completion": 1}\n{"prompt": "question 2"}\n')
    document = {"base_model": str(tiny_model), "data": {"train": "train.jsonl"}}
    (folder / "recipe.yaml").write_text(json.dumps(document))
    code = (
        "import sys\n"
        "from luthier.cli.main import main\n"
        f"code = main(['train', {str(folder / 'recipe.yaml')!r}, '--set', {change!r}])\n"
        "assert code == 2, code\n"
        "heavy = {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"LUTHIER_HOME": str(folder / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list((folder / "home").glob("cache/rates/*"))
