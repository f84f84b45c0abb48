"""Figures that others have published of 1 to 1,024 devices: each lies in the interval that is stated for it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from luthier.ml.planning.speed import TIME_SPREAD

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def published() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("published_figures")


@pytest.fixture(scope="module")
def rows(published: ModuleType) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = published.compare(BENCHMARKS / "published_scale.yaml")
    return found


def test_sources_and_scales_are_many(rows: list[dict[str, Any]]) -> None:
    assert len({row["source"] for row in rows}) >= 8
    assert {8, 64, 512} <= {row["num_devices"] for row in rows}


@pytest.mark.parametrize("kind", ["tokens_per_second", "memory"])
def test_every_figure_lies_in_its_interval(kind: str, rows: list[dict[str, Any]]) -> None:
    found = {row["name"]: row[kind] for row in rows if kind in row}
    assert len(found) >= 6
    outside = {name: one for name, one in found.items() if not one["low"] <= one["published"] <= one["high"]}
    assert outside == {}


@pytest.mark.parametrize(("kind", "spread"), [("copies", "gpu"), ("experts", "experts")])
def test_the_interval_is_as_wide_as_the_largest_error_of_a_source_that_was_left_out(
    kind: str, spread: str, published: ModuleType, rows: list[dict[str, Any]]
) -> None:
    needed = max(published.leave_one_source_out(rows)[kind].values()) - 1
    assert 0 < needed <= TIME_SPREAD[spread]


def test_leaving_a_source_out_takes_the_others_for_the_bias(published: ModuleType) -> None:
    def row(source: str, predicted: float, num_devices: int = 8, *, has_experts: bool = False) -> dict[str, Any]:
        one = {"predicted": predicted, "published": 1.0}
        return {
            "source": source,
            "num_devices": num_devices,
            "has_experts": has_experts,
            "tokens_per_second": one,
        }

    rows = [row("a", 2.0), row("a", 2.0), row("b", 2.0), row("c", 4.0), row("one device", 9.0, num_devices=1)]
    assert published.leave_one_source_out(rows) == {"copies": {"a": 1.414, "b": 1.414, "c": 2.0}, "experts": {}}
    assert published.leave_one_source_out(rows[:2]) == {}
    divided = published.leave_one_source_out([*rows, row("c", 4.0, has_experts=True)])
    assert divided == {"copies": {"a": 1.414, "b": 1.414, "c": 2.0}, "experts": {"c": 2.0}}


def test_models_have_the_parameters_that_their_source_counts(published: ModuleType) -> None:
    """LLM Foundry's table counts them, with learned positions that these descriptions leave out."""
    import yaml

    from luthier.ml.inference.models.structure import structure_of

    models = yaml.safe_load((BENCHMARKS / "published_scale.yaml").read_text(encoding="utf-8"))["models"]
    for name, count in (("mpt-1b", 1_315_950_592), ("mpt-7b", 6_658_859_008), ("mpt-30b", 29_975_214_080)):
        assert structure_of(models[name]).num_parameters == pytest.approx(count, rel=0.005)
