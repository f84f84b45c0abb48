"""How many general rows a step replays, and what that does to a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.ml.planning.conftest import profile

from luthier.core.errors import RecipeError
from luthier.core.plan import ObjectivePlan, Plan, ReplayPlan
from luthier.core.recipe import Recipe
from luthier.ml.planning.batch_shapes import num_replayed, num_replayed_per_step


def asked(fraction: float | None, size: int | None = None) -> Recipe:
    replay = {"file": "general.jsonl"} | ({} if fraction is None else {"fraction": fraction})
    document: dict[str, Any] = {"base_model": "tiny", "data": {"train": "t.jsonl", "replay": replay}}
    if size is not None:
        document["training"] = {"global_batch_size": size}
    return Recipe.model_validate(document)


@pytest.mark.parametrize(
    ("fraction", "size", "num"),
    [(None, None, 2), (0.1, 16, 2), (0.25, 16, 4), (0.01, 16, 1), (0.0, 16, 0), (0.4, 2, 1), (0.6, 3, 2)],
)
def test_the_nearest_number_and_at_least_one(fraction: float | None, size: int | None, num: int) -> None:
    assert num_replayed_per_step(asked(fraction, size)) == (num, size or 16)


@pytest.mark.parametrize(("fraction", "size"), [(0.1, 1), (0.9, 4)])
def test_a_step_needs_a_row_of_the_task(fraction: float, size: int) -> None:
    with pytest.raises(RecipeError, match=f"of the {size} examples"):
        num_replayed_per_step(asked(fraction, size))


def test_without_replay_a_plan_keeps_its_hash_and_with_it_files_count_by_digest(make_plan: Callable[..., Plan]) -> None:
    plain = make_plan()

    def with_rows(file: str, sha256: str) -> Plan:
        rows = profile("replay", 40, file=file, sha256=sha256)
        data = plain.data.model_copy(update={"replay": ReplayPlan(num_per_step=2, fraction=0.125, rows=rows)})
        return plain.model_copy(update={"data": data})

    document = plain.model_dump(mode="json")
    del document["data"]["replay"]
    assert Plan.model_validate(document).hash == plain.hash
    replayed = with_rows("general.jsonl", "e" * 64)
    assert replayed.hash != plain.hash
    assert with_rows("/elsewhere/general.jsonl", "e" * 64).hash == replayed.hash
    assert with_rows("general.jsonl", "f" * 64).hash != replayed.hash


def test_pairs_are_not_replayed(make_plan: Callable[..., Plan]) -> None:
    data = make_plan().data
    replayed = data.model_copy(update={"replay": ReplayPlan(num_per_step=2, fraction=0.125)})
    assert num_replayed(replayed, ObjectivePlan(name="sft")) == 2
    assert num_replayed(data, ObjectivePlan(name="dpo")) == 0
    with pytest.raises(RecipeError, match="objective dpo"):
        num_replayed(replayed, ObjectivePlan(name="dpo"))
