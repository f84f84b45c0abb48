"""`luthier plan` and `luthier train` of rows that teach a task head little or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.fixtures.cli import Luthier
from tests.fixtures.head_rows import CASES
from tests.fixtures.service import write_rows

from luthier.platform.home.context import Context


def write_recipe(folder: Path, tiny_model: Path, name: str) -> Path:
    """The recipe of a case, with its rows beside it."""
    case = CASES[name]
    data = {"train": "train.jsonl"} | ({"held_out": "held_out.jsonl"} if case.held_out else {})
    write_rows(folder / "train.jsonl", list(case.train))
    write_rows(folder / "held_out.jsonl", list(case.held_out))
    document = {"base_model": str(tiny_model), "objective": case.objective, "data": data}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.parametrize("name", CASES)
def test_a_plan_refuses_the_rows_or_says_what_is_special(
    luthier: Luthier, name: str, tmp_path: Path, tiny_model: Path
) -> None:
    case = CASES[name]
    done = luthier("plan", write_recipe(tmp_path, tiny_model, name))
    assert case.said in (done.err if case.is_refused else done.out)
    assert done.code == (2 if case.is_refused else 0)
    if case.is_refused:
        assert "  expected: " in done.err
        assert "  what to do: " in done.err


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_refused])
def test_no_run_is_made_of_rows_that_are_refused(
    luthier: Luthier, home: Path, name: str, tmp_path: Path, tiny_model: Path
) -> None:
    done = luthier("train", write_recipe(tmp_path, tiny_model, name))
    assert (done.code, done.out) == (2, "")
    assert CASES[name].said in done.err
    with Context.open(home) as context:
        assert context.runs.list() == []


@pytest.mark.parametrize(
    ("objective", "mapping"),
    [
        ("embed", {"prompt": "anchor", "completion": "positive"}),
        ("rank", {"prompt": "query", "chosen": "positive", "rejected": "negative"}),
    ],
)
def test_columns_of_a_retrieval_dataset_are_proposed(
    luthier: Luthier, objective: str, mapping: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{column: f"{column} {place}" for column in mapping.values()} for place in range(8)]
    write_rows(tmp_path / "train.jsonl", rows)
    data = {"train": "train.jsonl"}
    recipe = tmp_path / "recipe.yaml"
    document = {"base_model": str(tiny_model), "objective": {"name": objective}, "data": data}
    recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    refused = luthier("plan", recipe)
    assert refused.code == 2
    assert " ".join(f"--map {target}={column}" for target, column in mapping.items()) in refused.err
    recipe.write_text(yaml.safe_dump(document | {"data": data | {"columns": mapping}}), encoding="utf-8")
    assert luthier("plan", recipe).code == 0
