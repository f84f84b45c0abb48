"""Runs whose model gets a task head in place of text: classes and numbers, from recipe to verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score
from tests.fixtures.service import write_rows

from luthier.core.errors import DataError, RecipeError, RequestError
from luthier.core.events import CheckpointSaved, StepDone, ValidationDone, WarningRaised
from luthier.features.evaluations.baselines import AS_SETS
from luthier.features.evaluations.export_sources import outcome_digest
from luthier.features.models.resolve import find_candidate, open_engine
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.inference.models.task_head import load_task_head, read_task_head
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
_WORDS = {"red": ("apple", "cherry", "rose"), "green": ("leaf", "grass", "frog"), "blue": ("sky", "sea", "ink")}
RUN = "run-20260101-000000-abcdef"
_SMALL = {"few_shot": 0, "max_new_tokens": 4}


def _row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _colours(start: int, stop: int) -> list[dict[str, Any]]:
    labels = list(_WORDS)
    return [_row(f"{_WORDS[labels[n % 3]][n // 3 % 3]} {n}", labels[n % 3]) for n in range(start, stop)]


def _recipe(make_recipe: MakeRecipe, rows: dict[str, list[dict[str, Any]]], **sections: Any) -> Path:
    path = make_recipe(**({"objective": {"name": "classify"}, "evaluation": _SMALL} | sections))
    for name, own in rows.items():
        write_rows(path.parent / f"{name}.jsonl", own)
    return path


def _sides() -> dict[str, list[dict[str, Any]]]:
    return {"train": _colours(0, 60), "valid": _colours(60, 72), "test": _colours(72, 90)}


def run(context: Context, recipe: Path, **more: Any) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent, **more)


@pytest.mark.parametrize("method", [{"name": "lora", "rank": 4, "dropout": 0.1}, {"name": "full"}])
def test_a_head_learns_a_rule_and_is_judged_as_a_head(
    context: Context, make_recipe: MakeRecipe, method: dict[str, Any]
) -> None:
    rate = 0.001 if method["name"] == "full" else 0.01
    training = {"epochs": 8, "global_batch_size": 8, "learning_rate": rate, "precision": "float32", "num_threads": 1}
    training["early_stopping_patience"] = 0  # the rule is learned before the last step
    outcome = run(context, _recipe(make_recipe, _sides(), method=method, training=training))
    document = outcome.as_json()
    folder = Path(document["adapter_path"])
    head, layer = load_task_head(folder)
    assert head.labels == ("blue", "green", "red")  # equally common: by text
    assert head.label_counts == (20, 20, 20)
    assert layer is not None
    assert layer.weight.abs().max() > 0
    assert document["adapter_sha256"] == outcome_digest(sorted(folder.glob("*.safetensors")))
    assert document["num_trained_tokens"] == 8 * 60  # one slot a row and epoch
    assert outcome.evaluation is not None
    judged = outcome.evaluation.systems[-1]
    assert (judged.name, judged.kind) == ("tuned", "head")
    assert {sample.output for sample in judged.samples} <= set(head.labels)
    assert judged.metrics["exact_match"].value > 0.9
    assert "perplexity" not in judged.metrics
    figure = judged.metrics["auroc"]
    assert figure.low <= figure.value <= figure.high
    assert "auroc" not in outcome.evaluation.systems[0].metrics
    assert outcome.evaluation.verdict is not None
    losses = [e.loss for e in context.runs.events(outcome.record.run_id) if isinstance(e, ValidationDone)]
    assert losses[-1] < losses[0]


def test_the_probabilities_of_a_head_say_what_it_can_answer_alone(context: Context, make_recipe: MakeRecipe) -> None:
    rows = {**_sides(), "test": _colours(72, 96)}
    training = {"epochs": 1, "global_batch_size": 8, "precision": "float32", "num_threads": 1}
    evaluation = {**_SMALL, "good_enough": {"metric": "exact_match", "value": 0.6}}
    outcome = run(context, _recipe(make_recipe, rows, evaluation=evaluation, training=training))
    assert outcome.evaluation is not None
    found = outcome.evaluation
    assert found.label_confidence_left_out == ""
    own = found.label_confidence[-1]
    assert (own.system, own.num_labels, len(own.confidence)) == ("tuned", 3, 24)
    # The likeliest class is the one that it answers with.
    assert list(own.is_right) == [one.output == one.reference for one in found.systems[-1].samples]
    assert found.verdict is not None
    assert found.verdict.coverage == own.coverage
    # The base writes, and is also asked which label it finds likeliest: a head has to beat both.
    choice = next(one for one in found.verdict.alternatives if one.kind == "label_likelihood")
    assert choice.name == "base, likeliest label"
    assert choice.name in [one.system for one in found.label_confidence]
    answers = {one.output for system in found.systems if system.name == choice.name for one in system.samples}
    assert answers <= set(_WORDS)
    # Three classes of 20 training rows each: of equally common answers the first in the rows.
    (majority,) = (system for system in found.systems if system.kind == "majority")
    assert [one.output for one in majority.samples] == ["red"] * 24
    assert outcome.plan.evaluation.num_scored_labels == 3


def test_neither_library_finds_the_layer_in_its_own_files(context: Context, make_recipe: MakeRecipe) -> None:
    from safetensors import safe_open

    for method, name in (({"name": "lora", "rank": 2}, "adapter_model"), ({"name": "full"}, "model")):
        short = {"max_steps": 2, "global_batch_size": 8, "precision": "float32", "num_threads": 1}
        recipe = _recipe(make_recipe, _sides(), method=method, data={"train": "train.jsonl"}, training=short)
        outcome = run(context, recipe)
        folder = Path(outcome.as_json()["adapter_path"])
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            assert not [key for key in file.keys() if "task_head" in key]  # noqa: SIM118 - no mapping


def test_numbers_are_learned_and_written_as_the_rows_write_them(context: Context, make_recipe: MakeRecipe) -> None:
    prices = {"apple": 10, "cherry": 20, "rose": 60, "leaf": 90}
    names = list(prices)

    def rows(start: int, stop: int) -> list[dict[str, Any]]:
        return [_row(f"{names[n % 4]} {n}", f"{prices[names[n % 4]]}.50 EUR") for n in range(start, stop)]

    sides = {"train": rows(0, 80), "valid": rows(80, 88), "test": rows(88, 100)}
    more = {"objective": {"name": "regress"}, "training": {"epochs": 8, "global_batch_size": 8, "learning_rate": 0.02}}
    outcome = run(context, _recipe(make_recipe, sides, method={"name": "lora", "rank": 4}, **more))
    head = read_task_head(Path(outcome.as_json()["adapter_path"]))
    assert (head.lowest, head.highest) == (10.5, 90.5)
    assert outcome.evaluation is not None
    judged = outcome.evaluation.systems[-1]
    assert judged.samples
    for sample in judged.samples:
        number, unit = sample.output.split(" ")
        assert unit == "EUR"
        assert len(number.split(".")[1]) == 2
        assert abs(float(number) - float(sample.reference.split(" ")[0])) < 15
    assert judged.metrics["absolute_error"].value < 15
    assert outcome.evaluation.verdict is not None
    assert (outcome.evaluation.verdict.metric, judged.metrics["nmae"].higher_is_better) == ("nmae", False)
    # 80 EUR lie between the cheapest and the dearest.
    assert judged.metrics["nmae"].value == pytest.approx(judged.metrics["absolute_error"].value / 80)
    checks = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, ValidationDone)]
    assert checks[-1].measures["absolute_error"] < 15
    assert outcome.plan.objective.loss_unit == "squared standard deviations a row"


def test_several_labels_a_row(context: Context, make_recipe: MakeRecipe) -> None:
    def rows(start: int, stop: int) -> list[dict[str, Any]]:
        found = []
        for n in range(start, stop):
            parts = [label for bit, label in enumerate(_WORDS) if n >> bit & 1] or ["red"]
            found.append(_row(" ".join(_WORDS[label][0] for label in parts) + f" {n}", ", ".join(parts)))
        return found

    sides = {"train": rows(0, 80), "valid": rows(80, 88), "test": rows(88, 100)}
    more = {
        "objective": {"name": "classify", "multi_label": True},
        "training": {"epochs": 8, "global_batch_size": 8, "learning_rate": 0.02, "precision": "float32"},
    }
    outcome = run(context, _recipe(make_recipe, sides, method={"name": "lora", "rank": 4}, **more))
    head = read_task_head(Path(outcome.as_json()["adapter_path"]))
    assert set(head.labels) == set(_WORDS)
    assert head.is_multi_label
    assert outcome.evaluation is not None
    judged = outcome.evaluation.systems[-1]
    right = [set(one.output.split(", ")) == set(one.reference.split(", ")) for one in judged.samples]
    assert sum(right) > 0.7 * len(right) > 0
    # Rows write labels in another order than the head, which is no mistake.
    assert head.labels == ("red", "blue", "green")
    assert any(one.output != one.reference for one, is_right in zip(judged.samples, right, strict=True) if is_right)
    assert judged.metrics["exact_match"].value == pytest.approx(sum(right) / len(right))
    assert [one.scores["exact_match"] for one in judged.samples] == [float(one) for one in right]
    assert AS_SETS in outcome.evaluation.rows_notes
    # Each set is one class of macro-F1, and no confusion is shown of answers that differ in order alone.
    written, meant = (
        [", ".join(sorted(text.split(", "))) for text in texts]
        for texts in zip(*((one.output, one.reference) for one in judged.samples), strict=True)
    )
    known = {", ".join(sorted(row["messages"][1]["content"].split(", "))) for row in rows(0, 100)}
    occurring = sorted(known & {*written, *meant})
    expected = f1_score(meant, written, labels=occurring, average="macro", zero_division=0)
    assert judged.metrics["macro_f1"].value == pytest.approx(expected)
    assert outcome.evaluation.labels == ()


def test_balanced_weights_and_smoothing_keep_the_plain_loss_beside(context: Context, make_recipe: MakeRecipe) -> None:
    sides = _sides()
    sides["train"] = [row for n, row in enumerate(sides["train"]) if n % 3 == 0 or n % 6 == 1]  # one class is rare
    objective = {"name": "classify", "class_weights": "balanced", "label_smoothing": 0.1}
    outcome = run(context, _recipe(make_recipe, sides, objective=objective, training={"max_steps": 2}))
    steps = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone)]
    assert len(steps) == 2
    for step in steps:
        assert "plain_loss" in step.measures
        assert 0 <= step.measures["accuracy"] <= 1
    assert steps[0].measures["plain_loss"] == pytest.approx(0.693, abs=1e-3)  # zeros: ln 2 of two classes


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(context: Context, make_recipe: MakeRecipe) -> None:
    # Nothing is judged: what the run has saved is compared.
    recipe = _recipe(make_recipe, _sides(), data={"train": "train.jsonl", "validation": "valid.jsonl"})
    undisturbed = run(context, recipe)

    class Stopped(Exception):  # noqa: N818 - what a kill looks like from inside
        pass

    def stop(event: Any) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        run(context, recipe, run_id=RUN, listener=stop)
    resumed = resume(context, RUN)
    folders = [Path(one.as_json()["adapter_path"]) for one in (undisturbed, resumed)]
    names = {path.name for path in folders[0].iterdir()}
    assert {"head.json", "head.safetensors", "adapter_model.safetensors"} <= names
    for name in sorted(names):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_it_never_writes_text(context: Context, make_recipe: MakeRecipe) -> None:
    outcome = run(context, _recipe(make_recipe, _sides(), data={"train": "train.jsonl"}, training={"max_steps": 1}))
    candidate = find_candidate(context, outcome.record.run_id)
    with pytest.raises(RequestError, match="has a head of kind classify and does not write"):
        open_engine(candidate)


@pytest.mark.parametrize(
    ("train_rows", "objective", "error", "text"),
    [
        ([_row(f"q {n}", "yes") for n in range(8)], {"name": "classify"}, DataError, "all 8 training rows have 'yes'"),
        ([_row(f"q {n}", "7") for n in range(8)], {"name": "regress"}, DataError, "have the number 7"),
        (_colours(0, 8), {"name": "regress"}, DataError, "8 of 8 answers are not numbers"),
        (_colours(0, 8), {"name": "classify", "multi_label": True}, RecipeError, "none of 8 answers has several"),
        (
            [_row(f"q {n}", f"{n}") for n in range(8)],
            {"name": "regress", "multi_label": True},
            RecipeError,
            "regress with",
        ),
    ],
)
def test_rows_that_teach_a_head_nothing_are_refused(
    context: Context,
    make_recipe: MakeRecipe,
    train_rows: list[dict[str, Any]],
    objective: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    recipe = _recipe(make_recipe, {"train": train_rows}, objective=objective, data={"train": "train.jsonl"})
    with pytest.raises(error, match=text):
        run(context, recipe)


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"train": "train.jsonl", "replay": {"file": "train.jsonl", "fraction": 0.1}}},
        {"evaluation": {"metrics": ["perplexity"]}},
    ],
)
def test_settings_of_models_that_write_are_refused(
    context: Context, make_recipe: MakeRecipe, sections: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="has a head and writes no text"):
        run(context, _recipe(make_recipe, _sides(), **sections))


def test_what_was_read_of_labels_is_said(context: Context, make_recipe: MakeRecipe) -> None:
    sides = _sides()
    sides["train"] += [_row("a  rare thing", "Grey"), _row("leaf 1000", " GREEN")]
    sides["valid"] += [_row("a yellow thing", "yellow")]
    sides["test"] += [_row("another yellow thing", "yellow")]
    outcome = run(context, _recipe(make_recipe, sides, training={"max_steps": 2}))
    head = outcome.plan.objective.task_head
    assert head is not None
    assert head.labels == ("green", "blue", "red", "Grey")
    notes = " ".join(outcome.plan.objective.task_head_notes)
    assert "are one class: ' GREEN' = 'green'" in notes
    assert "1 class has a single training row, too few to learn from: 'Grey'" in notes
    assert '1 of 13 validation rows have a class that no training row has ("yellow"): they are left out' in notes
    assert '1 of 19 held-out rows have a class that no training row has ("yellow"): they count as wrong' in notes
    warned = [e.message for e in context.runs.events(outcome.record.run_id) if isinstance(e, WarningRaised)]
    assert "; ".join(outcome.plan.objective.task_head_notes) in warned
    assert outcome.plan.data.validation is not None
    assert outcome.plan.data.validation.num_examples == 12
    assert outcome.evaluation is not None
    assert outcome.evaluation.num_rows == 19
    assert json.dumps(outcome.plan.values())


@pytest.mark.parametrize("empty", ["", "  "])
@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_empty_answers_are_refused_with_their_rows(
    context: Context, make_recipe: MakeRecipe, name: str, empty: str
) -> None:
    sides = _sides()
    sides[name][2] = _row("apple 2", empty)
    with pytest.raises(DataError) as caught:
        run(context, _recipe(make_recipe, sides))
    (problem,) = caught.value.problems
    assert (Path(problem.file).name, problem.line, problem.kind) == (f"{name}.jsonl", 3, "empty_answer")


def test_five_thousand_classes_are_a_head_of_five_thousand_outputs(context: Context, make_recipe: MakeRecipe) -> None:
    rows = [_row(f"apple {n}", f"kind {n}") for n in range(5000)]
    training = {"max_steps": 1, "global_batch_size": 8, "precision": "float32", "num_threads": 1}
    recipe = _recipe(make_recipe, {"train": rows}, data={"train": "train.jsonl"}, training=training)
    outcome = run(context, recipe)
    head, layer = load_task_head(Path(outcome.as_json()["adapter_path"]))
    assert layer is not None
    assert (len(head.labels), layer.weight.shape[0]) == (5000, 5000)
    notes = " ".join(outcome.plan.objective.task_head_notes)
    assert "5,000 classes have a single training row, too few to learn from" in notes
    (step,) = (e for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone))
    assert step.loss == pytest.approx(8.517, abs=1e-3)  # zeros: ln 5000


def test_numbers_in_words_are_refused_with_their_rows(context: Context, make_recipe: MakeRecipe) -> None:
    rows = [_row(f"apple {n}", "twelve" if n == 5 else f"{n}") for n in range(20)]
    recipe = _recipe(make_recipe, {"train": rows}, objective={"name": "regress"}, data={"train": "train.jsonl"})
    with pytest.raises(DataError, match="1 of 20 answers are not numbers") as caught:
        run(context, recipe)
    (problem,) = caught.value.problems
    assert (Path(problem.file).name, problem.line, problem.reason) == ("train.jsonl", 6, "is no number")
    assert "twelve" in problem.value
