"""Rows whose answers are numbers: how they are read, and how far they are off beside how many are equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.features.evaluations.baselines import NO_TRAINING_ROWS
from luthier.features.evaluations.service import evaluate
from luthier.platform.home.context import Context


def write_prices(file: Path, num: int, first: int = 0, *, is_german: bool = True) -> Path:
    """A square metre is 12.35; in German 1.234,50 is what is 1,234.50 elsewhere."""
    signs = str.maketrans(",.", ".,") if is_german else {}
    sizes = range(30 + first, 30 + first + num)
    prices = {size: f"{12.35 * size:,.2f}".translate(signs) for size in sizes}
    rows = [{"prompt": f"A flat of {size} m2.", "completion": price} for size, price in prices.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("is_german", [True, False])
def test_how_far_numbers_are_off_is_measured_beside_how_many_are_equal(
    context: Context, tiny_model: Path, tmp_path: Path, is_german: bool
) -> None:
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_prices(tmp_path / "test.jsonl", 12, first=40, is_german=is_german),
        few_shot=1,
        few_shot_from=write_prices(tmp_path / "train.jsonl", 120, is_german=is_german),
        metrics=["exact_match"],
        max_new_tokens=3,
    )
    ridge = next(system for system in found.systems if system.kind == "ridge")
    assert ridge.metrics["nmae"].value < 0.05
    assert {system.name for system in found.systems if "nmae" not in system.metrics} == set()
    assert found.verdict is not None
    assert found.verdict.metric == "exact_match"
    assert any("decimal comma" in note for note in found.rows_notes) == is_german


def test_answers_that_are_no_numbers_have_no_distance(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": "abcdefghijkl"[n:]} for n in range(12)]
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = evaluate(context, [str(tiny_model)], data=file, metrics=["exact_match"], max_new_tokens=3)
    assert list(found.systems[0].metrics) == ["exact_match", "exact_match_ignoring_case"]


def test_an_evaluation_without_training_rows_says_why_it_has_no_baselines(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    data = write_prices(tmp_path / "test.jsonl", 12)
    found = evaluate(context, [str(tiny_model)], data=data, metrics=["exact_match"], max_new_tokens=3)
    assert found.baselines_left_out == (NO_TRAINING_ROWS,)
    likelihood = evaluate(context, [str(tiny_model)], data=data, metrics=["perplexity"])
    assert likelihood.baselines_left_out == ()
