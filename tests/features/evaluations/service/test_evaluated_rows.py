"""A run whose rows belong together is evaluated by their groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.evaluation import Evaluation
from luthier.features.evaluations.evaluated_rows import BY_PROVENANCE, groups_of, with_earlier_runs
from luthier.features.evaluations.service import evaluate
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.ml.data.rows.formats import load_file
from luthier.platform.home.context import Context
from luthier.testing.records import make_evaluation

NOTE = "These 18 held-out rows are of 6 groups: rows of one group count together in intervals and tests."


def of_customers(first: int, num: int, num_groups: int) -> list[dict[str, Any]]:
    return [chat_row(n) | {"customer": f"{first}: {n % num_groups}"} for n in range(first, first + num)]


def width(evaluation: Evaluation) -> float:
    found = evaluation.systems[-1].metrics["bits_per_byte"]
    return found.high - found.low


def test_a_run_with_groups_is_evaluated_by_them_and_so_is_its_file_later(
    context: Context, make_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        data={"train": "train.jsonl", "held_out": "grouped.jsonl", "group_by": "customer"},
        training={"epochs": 1, "global_batch_size": 20, "precision": "float32", "num_threads": 1},
        evaluation={"few_shot": 0, "max_new_tokens": 2, "metrics": ["bits_per_byte", "exact_match"]},
    )
    write_rows(recipe.parent / "train.jsonl", of_customers(0, 40, 40))
    grouped = write_rows(recipe.parent / "grouped.jsonl", of_customers(200, 18, 6))
    outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
    assert outcome.evaluation is not None
    assert NOTE in outcome.evaluation.rows_notes
    run_id = outcome.record.run_id
    asked: dict[str, Any] = {"metrics": ["bits_per_byte", "exact_match"], "max_new_tokens": 2}
    again = evaluate(context, [run_id, str(tiny_model)], data=grouped, **asked)
    assert NOTE in again.rows_notes
    assert width(again) == pytest.approx(width(outcome.evaluation), rel=1e-3)
    alone = evaluate(
        context,
        [run_id, str(tiny_model)],
        data=write_rows(tmp_path / "alone.jsonl", [chat_row(n) for n in range(200, 218)]),
        **asked,
    )
    assert not any("group" in note for note in alone.rows_notes), "the file does not say which rows belong together"
    assert width(alone) != pytest.approx(width(again), rel=1e-3)
    few = evaluate(
        context, [run_id, str(tiny_model)], data=write_rows(tmp_path / "few.jsonl", of_customers(200, 18, 3)), **asked
    )
    assert few.verdict is not None
    assert any(one.startswith("These 18 held-out rows are of only 3 groups") for one in few.verdict.caveats)
    assert not any("groups" in note for note in few.rows_notes)
    assert width(few) == pytest.approx(width(alone), rel=1e-3), "too few groups: rows count"


def test_rows_that_name_their_document_are_grouped_as_a_split_groups_them(tmp_path: Path) -> None:
    rows = [chat_row(n) | {"provenance": {"file": f"{n % 7}.pdf", "kind": "qa"}} for n in range(14)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    examples = load_file(file).examples
    found = groups_of(examples, file, BY_PROVENANCE)
    assert found is not None
    assert found.num_groups == 7
    assert groups_of(examples, file, None) is None
    assert groups_of(examples, file, "customer") is None, "no row names one"
    assert groups_of(examples, tmp_path / "gone.jsonl", BY_PROVENANCE) is None


def test_a_verdict_says_that_several_runs_were_evaluated_on_its_rows() -> None:
    def of(num: int) -> Any:
        store = SimpleNamespace(num_runs_on=lambda sha256, **_: num if sha256 == "1" * 64 else 0)
        return SimpleNamespace(evaluations=store, runs=SimpleNamespace(project_of=lambda run_id: None))

    run_id = "run-20261125-093000-aaaaaa"
    evaluation = make_evaluation(run_id=run_id, held_out_sha256="1" * 64)
    found = with_earlier_runs(of(11), evaluation).verdict
    assert found is not None
    assert found.caveats[0] == "few rows"
    assert found.caveats[1].startswith("11 other runs were evaluated on the held-out rows of this file before: of")
    assert with_earlier_runs(of(2), evaluation) is evaluation, "a second and a third look change little"
    for other in (
        make_evaluation(run_id=run_id, held_out_sha256="2" * 64),
        make_evaluation(held_out_sha256="1" * 64),
        evaluation.model_copy(update={"verdict": None}),
    ):
        assert with_earlier_runs(of(11), other) is other
