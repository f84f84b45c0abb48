"""Every interval of an evaluation counts groups of rows: rows that are there nine times are no more evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows
from tests.vacuous import nonempty

from luthier.features.evaluations.service import evaluate
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.platform.home.context import Context

NUM_COPIES = 9
"""An interval that counted copies as rows would be a third as wide."""
NUM_HELD_OUT = 24
NAMES = ("name", "system", "candidate", "baseline", "metric")
COLOURS = ("red", "green", "blue")
TRAINING = {"epochs": 2, "global_batch_size": 10, "precision": "float32", "num_threads": 1, "learning_rate": 0.01}


def _class_row(number: int) -> dict[str, Any]:
    # Every fifth label does not follow from the prompt, so that some answers are wrong.
    label = COLOURS[(number if number % 5 else number + 1) % 3]
    return {"prompt": f"thing {number}: like {COLOURS[number % 3]}", "completion": label}


def _number_row(number: int) -> dict[str, Any]:
    return {"prompt": f"a flat of {number} rooms", "completion": str(2 * number + number % 7)}


def _vector_row(number: int) -> dict[str, Any]:
    return {"prompt": f"question {number}", "completion": f"passage {number} of {COLOURS[number % 3]}"}


CASES: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any], set[str]]] = {
    "sft": (chat_row, {"name": "sft"}, {"perplexity", "rouge_l", "kl_to_base"}),
    "classify": (_class_row, {"name": "classify"}, {"exact_match", "macro_f1", "auroc", "calibration_error"}),
    "regress": (_number_row, {"name": "regress"}, {"absolute_error", "nmae"}),
    "embed": (_vector_row, {"name": "embed"}, {"ndcg_at_10", "recall_at_1"}),
}
"""Rows, objective, and figures that must be among those with an interval."""


def _intervals(document: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every width of an interval in a document, with its place."""
    if isinstance(document, dict):
        ends = document.get("low"), document.get("high")
        if all(isinstance(end, float) for end in ends):
            yield place, ends[1] - ends[0]
        # Bins of confidence have ends of their own, which are no interval.
        for name, inner in ((key, value) for key, value in document.items() if key != "bins"):
            yield from _intervals(inner, (*place, name))
    elif isinstance(document, list | tuple):
        for number, inner in enumerate(document):
            # By their names: what is not distinguishable may come in another order.
            names = [inner[key] for key in NAMES if key in inner] if isinstance(inner, dict) else []
            yield from _intervals(inner, (*place, " ".join(names) or str(number)))


@pytest.mark.parametrize("name", CASES)
def test_nine_copies_of_each_row_in_one_group_leave_every_interval_as_wide(
    context: Context, make_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path, name: str
) -> None:
    row, objective, wanted = CASES[name]
    recipe = make_recipe(
        data={"train": "train.jsonl", "group_by": "group"},
        objective=objective,
        training=TRAINING,
        evaluation={"few_shot": 0},
    )
    rows = write_rows(recipe.parent / "train.jsonl", [row(number) | {"group": f"g{number}"} for number in range(60)])
    run_id = train(context, load_recipe(recipe), base_dir=recipe.parent).record.run_id
    held_out = [row(number) | {"group": f"g{number}"} for number in range(100, 100 + NUM_HELD_OUT)]
    found = [
        evaluate(
            context,
            [run_id, *([str(tiny_model)] if name == "sft" else [])],
            data=write_rows(tmp_path / f"{num}.jsonl", [one for one in held_out for _ in range(num)]),
            few_shot=0,
            # Not BLEU: it smooths counts of the whole file, which copies raise.
            metrics=["perplexity", "rouge", "exact_match"] if name == "sft" else None,
            few_shot_from=rows,
            max_new_tokens=3,
        )
        for num in (1, NUM_COPIES)
    ]
    alone, copied = (dict(_intervals(one.model_dump(mode="json"))) for one in found)
    assert wanted <= {part for place in alone for part in place}
    shared = nonempty(sorted(place for place in alone if place in copied))
    narrow = [
        f"{'/'.join(place)}: {copied[place]:.4g} of {alone[place]:.4g}"
        for place in shared
        if copied[place] < 0.7 * alone[place]
    ]
    assert narrow == []
