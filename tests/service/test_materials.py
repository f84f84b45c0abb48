"""Rows are read once for all recipes that make the same of them, and again for those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.service.context import Context
from luthier.service.materials import Materials
from luthier.service.plans import prepare
from luthier.service.recipes import recipe_from


@pytest.fixture
def make(tiny_model, tmp_path):
    rows = [{"prompt": f"say {n}", "completion": f"word{n % 7}"} for n in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def recipe(**training: Any):
        method = training.pop("method", {"name": "lora", "rank": 4})
        data = {"train": "train.jsonl", "validation": 0.2} | training.pop("data", {})
        training = {"num_threads": 1, "precision": "float32"} | training
        document = {"base_model": str(tiny_model), "data": data, "method": method, "training": training}
        return recipe_from(document, base_dir=tmp_path)

    return recipe


def test_what_rows_do_not_depend_on_shares_them(make, tmp_path) -> None:
    materials = Materials()
    with Context.open(tmp_path / "home") as context:
        first = materials.of(context, make(), Path())
        for changed in (
            {"learning_rate": 0.01},
            {"epochs": 3, "global_batch_size": 4, "schedule": "linear", "weight_decay": 0.1},
            {"method": {"name": "dora", "rank": 8}},
            {"validate_every_steps": 2},
        ):
            assert materials.of(context, make(**changed), Path()) is first
        for changed in (
            {"seed": 3},
            {"data": {"validation": 0.4}},
            {"data": {"split_seed": 1}},
            {"max_length_tokens": 64},
            {"overlong": "drop"},
            {"method": {"name": "prompt_tuning", "num_virtual_tokens": 4}},
        ):
            assert materials.of(context, make(**changed), Path()) is not first, changed


def test_a_plan_is_the_same_with_shared_rows(make, tmp_path) -> None:
    materials = Materials()
    with Context.open(tmp_path / "home") as context:
        prepare(context, make(), base_dir=Path(), materials=materials)
        for changed in ({"learning_rate": 0.01}, {"epochs": 2, "method": {"name": "dora", "rank": 2}}):
            shared = prepare(context, make(**changed), base_dir=Path(), materials=materials)
            alone = prepare(context, make(**changed), base_dir=Path())
            assert shared.plan.hash == alone.plan.hash
            assert shared.train.tokenised == alone.train.tokenised
