"""Runs whose rows are larger than the budget of memory: planned, trained and resumed to the byte as in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.events import StepDone, ValidationDone
from luthier.features.planning.batch_schedules import of_validation
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training import service as training_module
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.data.files.sequences import LazySequence
from luthier.ml.data.tokenise.batches import LazyBatches
from luthier.ml.data.tokenise.token_store import StoredRows
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
Row = dict[str, Any]
SPLIT = {"train": "train.jsonl", "validation": 0.2}
TRAINING = {
    "max_steps": 3,
    "global_batch_size": 8,
    "learning_rate": 0.01,
    "precision": "float32",
    "num_threads": 1,
    "checkpoint_every_steps": 1,
}


def pair_row(number: int) -> Row:
    return {"prompt": f"where is {number}", "chosen": f"in nest {number}", "rejected": f"nobody knows {number}"}


def class_row(number: int) -> Row:
    return {"prompt": f"is {number} even", "completion": "yes" if number % 2 == 0 else "no"}


def header_row(number: int) -> Row:
    """Rows of one long system prompt, which is computed once a micro-batch."""
    system = " ".join(f"rule {place}" for place in range(30))
    return {"messages": [{"role": "system", "content": system}, *chat_row(number)["messages"]]}


def text_row(number: int) -> Row:
    """Most are a sentence, some are longer than a block."""
    times = 12 if number % 5 == 0 else 1
    return {"text": " ".join(f"{n} and {n + 1} are neighbours." for n in range(number, number + times))}


def general_row(number: int) -> Row:
    return {"prompt": f"Name a colour like {number}.", "completion": f"Blue number {number * 7}."}


JUDGED = {"train": "train.jsonl", "validation": "valid.jsonl", "held_out": "test.jsonl"}
MIXED = SPLIT | {
    "subset": [0.0, 0.9],
    "canaries": {"num": 2},
    "replay": {"file": "general.jsonl", "fraction": 0.25},
}
CASES: dict[str, tuple[Callable[[int], Row], dict[str, Any]]] = {
    "judged": (header_row, {"data": JUDGED | {"system": "fold"}, "evaluation": {"few_shot": 2, "max_new_tokens": 4}}),
    "mixed": (chat_row, {"data": MIXED}),
    "dpo": (pair_row, {"data": SPLIT, "objective": {"name": "dpo"}}),
    "embed": (pair_row, {"data": SPLIT, "objective": {"name": "embed"}}),
    "classify": (class_row, {"data": SPLIT, "objective": {"name": "classify"}}),
    "texts": (
        text_row,
        {"data": SPLIT, "objective": {"name": "pretraining"}, "training": TRAINING | {"max_length_tokens": 64}},
    ),
}


def recipe_of(make_recipe: MakeRecipe, case: str) -> Path:
    row, sections = CASES[case]
    path = make_recipe(**({"training": TRAINING, "evaluation": {}} | sections))
    write_rows(path.parent / "train.jsonl", [row(number) for number in range(40)])
    write_rows(path.parent / "valid.jsonl", [row(number) for number in range(100, 108)])
    write_rows(path.parent / "general.jsonl", [general_row(number) for number in range(20)])
    return path


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def ready(context: Context, recipe: Path) -> Prepared:
    return prepare(context, load_recipe(recipe), base_dir=recipe.parent)


def judged(outcome: TrainOutcome) -> list[tuple[str, dict[str, Any]]]:
    """What each system reached on the held-out rows; nothing where there are none."""
    systems = () if outcome.evaluation is None else outcome.evaluation.systems
    return [(system.name, {name: found.value for name, found in system.metrics.items()}) for system in systems]


def validations(context: Context, outcome: TrainOutcome) -> list[tuple[int, float, dict[str, float]]]:
    """Step, loss and measures of each validation of a run."""
    events = context.runs.events(outcome.record.run_id)
    return [(event.step, event.loss, event.measures) for event in events if isinstance(event, ValidationDone)]


def with_budget(context: Context, num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = context.settings.model_copy(update={"data_memory_bytes": num_bytes})
    monkeypatch.setattr(context, "settings", changed)


@pytest.mark.parametrize("case", CASES)
def test_the_same_plan_and_the_same_weights(
    case: str, context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(make_recipe, case)
    here, first = ready(context, recipe), run(context, recipe)
    with_budget(context, 1, monkeypatch)
    there = ready(context, recipe)
    assert isinstance(there.train.tokenised, LazySequence)
    assert isinstance(there.train.examples, LazySequence)
    assert there.plan.hash == here.plan.hash
    assert tuple(there.train.examples) == here.train.examples
    assert list(there.trained_units) == list(here.trained_units)
    # Those of a validation are in files, too, and made batch by batch.
    kept, lazy = (of_validation(one, shares_prefix=True) for one in (here, there))
    assert (type(kept), type(lazy)) == (list, LazyBatches)
    assert list(lazy) == kept
    second = run(context, recipe)
    assert second.as_json()["adapter_sha256"] == first.as_json()["adapter_sha256"]
    assert second.as_json()["train_loss"] == first.as_json()["train_loss"]
    assert validations(context, second) == validations(context, first) != []
    assert judged(second) == judged(first)


def test_a_resume_goes_on_to_the_byte(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(make_recipe, "mixed")
    whole = run(context, recipe).as_json()["adapter_sha256"]
    with_budget(context, 1, monkeypatch)
    real = training_module.recorder

    def dying(context: Context, run_id: str, warnings: list[str], listener: Any = None, **given: Any) -> Any:
        inner = real(context, run_id, warnings, listener, **given)

        def emit(event: Any) -> None:
            inner(event)
            if isinstance(event, StepDone) and event.step == 2:
                raise KeyboardInterrupt

        return emit

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "recorder", dying)
        with pytest.raises(KeyboardInterrupt):
            run(context, recipe)
    paused = next(record for record in context.runs.list() if record.status == "paused")
    assert resume(context, paused.run_id).as_json()["adapter_sha256"] == whole


def test_nothing_is_left_in_the_scratch_folder(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc

    recipe = recipe_of(make_recipe, "dpo")
    with_budget(context, 1, monkeypatch)
    made = ready(context, recipe)
    assert isinstance(made.train.tokenised, StoredRows)
    del made
    gc.collect()
    assert not list(context.settings.scratch_folder.glob("luthier-spill-*"))
