"""A home, a tiny base model, and files of rows about which something can be learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.access import Caller
from luthier.service import deployments
from luthier.service.context import Context
from luthier.service.recipes import recipe_from
from luthier.service.training import train


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with Context.open(tmp_path / "home") as opened:
        yield opened


def chat_row(number: int) -> dict[str, Any]:
    question = f"What comes after {number}?"
    answer = f"After {number} comes {number + 1}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes rows and a recipe file, and returns the recipe's path. Keyword arguments replace sections of it."""

    def make(**sections: Any) -> Path:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        write_rows(folder / "train.jsonl", [chat_row(n) for n in range(40)])
        write_rows(folder / "valid.jsonl", [chat_row(n) for n in range(100, 108)])
        write_rows(folder / "test.jsonl", [chat_row(n) for n in range(200, 206)])
        recipe = {
            "base_model": str(tiny_model),
            "data": {"train": "train.jsonl", "validation": "valid.jsonl", "held_out": "test.jsonl"},
            "method": {"name": "lora", "rank": 4, "dropout": 0.1},
            "training": {
                "epochs": 2,
                "global_batch_size": 8,
                "learning_rate": 0.01,
                "precision": "float32",
                "num_threads": 1,
                "validate_every_steps": 3,
                "checkpoint_every_steps": 2,
                "early_stopping_patience": 0,
            },
            "evaluation": {"few_shot": 2, "max_new_tokens": 12},
        } | sections
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """A home with a run that answers to `support`, and the run's id: copied for each test."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder / "train.jsonl", [chat_row(n) for n in range(24)])
    write_rows(folder / "valid.jsonl", [chat_row(n) for n in range(100, 103)])
    write_rows(folder / "test.jsonl", [chat_row(n) for n in range(200, 204)])
    recipe = {
        "base_model": str(tiny_model),
        "data": {"train": "train.jsonl", "validation": "valid.jsonl", "held_out": "test.jsonl"},
        "method": {"name": "lora", "rank": 2},
        "training": {"epochs": 1, "global_batch_size": 12, "precision": "float32", "num_threads": 1},
        "evaluation": {"few_shot": 0, "max_new_tokens": 4},
    }
    with Context.open(folder / "home") as context:
        run_id = train(context, recipe_from(recipe, base_dir=folder), base_dir=folder).record.run_id
        deployments.deploy(context, Caller(), "support", run_id)
    return folder / "home", run_id


@pytest.fixture
def deployed(trained: tuple[Path, str], tmp_path: Path) -> str:
    """The id of the run that answers to `support` in the home of `context`."""
    shutil.copytree(trained[0], tmp_path / "home", dirs_exist_ok=True)
    return trained[1]
