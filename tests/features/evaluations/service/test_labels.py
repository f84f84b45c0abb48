"""Rows whose answers are labels, and a bar: what a plain evaluation and a run say of them."""

from __future__ import annotations

import io
import itertools
import json
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import PreTrainedModel

from luthier.core.dataset import Example
from luthier.core.errors import LeakageError, NotFoundError, RecipeError, RequestError
from luthier.core.evaluation_plan import Bar, GoodEnoughRecipe
from luthier.core.recipe import Recipe
from luthier.features.evaluations import service
from luthier.features.evaluations.baselines import slow_note
from luthier.features.evaluations.service import evaluate
from luthier.features.evaluations.verdict_format import show_evaluation
from luthier.features.evaluations.view import charts, confusion_tables, label_confidence_charts
from luthier.features.generation import engines
from luthier.features.planning.service import make_plan
from luthier.features.recipes.service import recipe_from
from luthier.features.training.service import train
from luthier.ml.baselines.predict import BaselineSet, Predictions
from luthier.ml.charts.spec import Intervals, Plot
from luthier.ml.data.rows.formats import load_file
from luthier.ml.evaluation.report.evaluation_results import confusion_charts, interval_charts
from luthier.ml.evaluation.report.evaluation_results import label_confidence_charts as drawn_charts
from luthier.ml.evaluation.result_views import roles
from luthier.ml.inference import transformers_engine
from luthier.ml.inference.models import merging
from luthier.platform.home.context import Context

LABELS = ("bad", "good", "great")


def write_labelled(file: Path, num: int, first: int = 0) -> Path:
    rows = [{"prompt": f"Violin {n}: how is it?", "completion": LABELS[n % 3]} for n in range(first, first + num)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_labels_have_macro_f1_a_confusion_and_a_bar(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_labelled(tmp_path / "test.jsonl", 9, first=100),
        few_shot=1,
        few_shot_from=write_labelled(tmp_path / "train.jsonl", 24),
        metrics=["exact_match", "label_accuracy"],
        max_new_tokens=3,
        good_enough=GoodEnoughRecipe(metric="macro_f1", value=0.9),
    )
    assert found.labels == LABELS
    assert {system.kind for system in found.systems} >= {"model", "majority", "linear"}
    assert {system.name for system in found.systems if "macro_f1" not in system.metrics} == set()
    majority = next(system for system in found.systems if system.kind == "majority")
    # Three rows of each label, one label for all: F1 of it is 2 * 3 / (3 + 9).
    assert majority.metrics["macro_f1"].value == pytest.approx(0.5 / 3)
    verdict = found.verdict
    assert verdict is not None
    assert (verdict.metric, verdict.good_enough) == ("label_accuracy", "no")
    assert verdict.bar == Bar(metric="macro_f1", value=0.9)
    assert "0.9 asked for: macro-F1" in verdict.headline
    assert verdict.title.endswith("not good enough")
    who = roles(found)
    assert who is not None
    tables = confusion_tables(found, who)
    prompts = [system.name for system in found.systems if system.prompting is not None]
    assert len(prompts) == 4
    # The candidate, and of the ways to prompt the best one.
    assert tables[0][0] == found.systems[-1].name
    assert tables[1][0] in prompts
    assert [sum(row) for _, table in tables for row in table.counts] == [3, 3, 3] * 2
    assert len(confusion_charts(found, who)) == 2
    (drawn,) = [chart for chart in charts(found, who) if isinstance(chart, Intervals) and chart.limit is not None]
    assert (drawn.key, drawn.limit and drawn.limit.x) == ("metric-macro_f1", 0.9)
    (shown,) = [chart for chart in interval_charts(found, who) if "asked for: 0.9" in str(chart.svg)]
    assert shown.title == "macro-F1"


def test_probabilities_of_labels_are_measured_and_say_what_can_be_answered_alone(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_labelled(tmp_path / "test.jsonl", 24, first=100),
        few_shot=1,
        few_shot_from=write_labelled(tmp_path / "train.jsonl", 24),
        metrics=["label_accuracy"],
        max_new_tokens=3,
        good_enough=GoodEnoughRecipe(value=0.9),
    )
    assert found.label_confidence_left_out == ""
    assert [one.system for one in found.label_confidence] == ["linear classifier", found.systems[-1].name]
    own = found.label_confidence[-1]
    assert (own.num_labels, len(own.confidence), len(own.is_right)) == (3, 24, 24)
    # Of three labels the likeliest has a third at least; this random model prefers the label with the fewest tokens.
    assert 1 / 3 < min(own.confidence) < max(own.confidence) < 1
    assert len(set(own.confidence)) > 10
    verdict = found.verdict
    assert verdict is not None
    assert verdict.coverage == own.coverage
    assert own.coverage is not None
    assert (own.coverage.asked, own.coverage.num_rows) == (0.9, 24)
    assert "of cases alone" in verdict.headline
    who = roles(found)
    assert who is not None
    assert [plot.key for plot in label_confidence_charts(found, who)] == ["chart-label-reliability", "chart-coverage"]
    assert "chart-coverage" in str(drawn_charts(found, who)[-1].svg)
    assert context.evaluations.get(found.evaluation_id) == found


def test_baselines_that_take_more_than_ten_seconds_and_a_twentieth_are_named() -> None:
    found = BaselineSet(
        (Predictions("linear classifier", "linear", (), 9.0, 5), Predictions("copy rules", "copy", (), 3.0, 5))
    )
    assert slow_note(found, 600.0) == ()  # a twentieth is 30 s
    assert slow_note(found, 100.0) == (
        "Baselines without a language model took 12 s, 9 s of them linear classifier: more than 10 s and 5% of the "
        "evaluation.",
    )
    assert slow_note(BaselineSet(found.predictions[:1]), 20.0) == ()


def test_too_few_rows_have_no_probabilities_and_the_reason_is_said(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_labelled(tmp_path / "test.jsonl", 9, first=100),
        few_shot=1,
        few_shot_from=write_labelled(tmp_path / "train.jsonl", 24),
        metrics=["label_accuracy"],
        max_new_tokens=3,
    )
    assert found.label_confidence == ()
    assert "9 held-out rows are too few" in found.label_confidence_left_out


def test_a_bar_without_a_verdict_is_refused_before_anything_is_judged(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    data = write_labelled(tmp_path / "test.jsonl", 9)
    for asked in (GoodEnoughRecipe(value=0.9), GoodEnoughRecipe(metric="exact_match", value=0.9)):
        with pytest.raises(RequestError, match=r"nothing to compare .* with") as caught:
            evaluate(context, [str(tiny_model)], data=data, metrics=["exact_match"], good_enough=asked)
        assert "--against" in caught.value.do
    with pytest.raises(RequestError, match=r"write 0\.9 for 90%"):
        evaluate(context, [str(tiny_model)], data=data, metrics=["exact_match"], good_enough=GoodEnoughRecipe(value=90))


def test_an_evaluation_says_whether_more_rows_would_help(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_labelled(tmp_path / "test.jsonl", 24, first=200),
        few_shot=1,
        few_shot_from=write_labelled(tmp_path / "train.jsonl", 80),
        metrics=["label_accuracy"],
        max_new_tokens=3,
    )
    verdict = found.verdict
    assert verdict is not None
    curve = verdict.learning_curve
    assert curve is not None
    assert [point.rows for point in curve.points] == [20, 40, 80]
    assert json.loads(found.model_dump_json())["verdict"]["learning_curve"]["points"][0]["rows"] == 20
    who = roles(found)
    assert who is not None
    (drawn,) = [chart for chart in charts(found, who) if isinstance(chart, Plot)]
    assert drawn.caption == curve.advice
    assert [len(series.points) for series in drawn.series] == [3, 1]
    console = Console(width=100, record=True, file=io.StringIO())
    show_evaluation(console, found)
    assert "label accuracy of the" in " ".join(console.export_text().replace("│", " ").split())


def test_a_tuned_model_is_held_against_its_base_on_the_judged_rows(
    context: Context, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labelled(tmp_path / "train.jsonl", 24)
    data = write_labelled(tmp_path / "test.jsonl", 9, first=100)
    recipe = recipe_from(
        {
            "base_model": str(tiny_model),
            "data": {"train": "train.jsonl", "held_out": "test.jsonl"},
            "method": {"name": "lora", "rank": 2},
            "training": {"epochs": 3, "global_batch_size": 4, "precision": "float32", "learning_rate": 0.02},
            "evaluation": {"metrics": ["label_accuracy"], "few_shot": 1, "max_new_tokens": 3},
        },
        base_dir=tmp_path,
    )
    loaded, load = list[str](), transformers_engine.load_model

    def load_model(path: str, **options: Any) -> PreTrainedModel:
        loaded.append(path)
        return load(path, **options)

    monkeypatch.setattr(transformers_engine, "load_model", load_model)
    outcome = train(context, recipe, base_dir=tmp_path)
    assert len(loaded) == 1  # what is judged: the base, the adapter over it, and the base again without it
    judged = context.evaluations.get(str(outcome.record.evaluation_id))
    moved = judged.kl_to_base
    assert moved is not None
    assert (moved.candidate, moved.base, moved.num_rows) == ("tuned", "base", 9)
    assert 0 < moved.low <= moved.value <= moved.high
    page = Path(str(outcome.record.report_path)).read_text(encoding="utf-8")
    assert "Distance from its base model" in page
    again = evaluate(context, [outcome.record.run_id, str(tiny_model)], data=data, metrics=["exact_match"])
    assert again.kl_to_base is not None
    assert again.kl_to_base.value == pytest.approx(moved.value, rel=1e-6)
    monkeypatch.setattr(engines, "_is_over", lambda *_: False)
    monkeypatch.setattr(merging, "without_adapter", lambda _: nullcontext(False))
    loaded.clear()
    apart = evaluate(context, [outcome.record.run_id, str(tiny_model)], data=data, metrics=["exact_match"])
    assert len(loaded) == 3
    assert apart.kl_to_base == again.kl_to_base
    alone = evaluate(context, [str(tiny_model)], data=data, metrics=["exact_match"])
    assert (alone.kl_to_base, alone.rows_notes) == (None, ())


def write_twice_labelled(file: Path, num: int, first: int) -> Path:
    """Rows with a second person's answer, which is another one in each sixth row."""
    rows = [
        {
            "prompt": f"Violin {n}: how is it?",
            "completion": LABELS[n % 3],
            "second_label": LABELS[(n + (n % 6 == 0)) % 3].upper(),
        }
        for n in range(first, first + num)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def labelled_recipe(folder: Path, model: Path, *, train_file: str = "train.jsonl", **evaluation: Any) -> Recipe:
    document = {
        "base_model": str(model),
        "data": {"train": train_file, "validation": "valid.jsonl", "held_out": "test.jsonl"},
        "method": {"name": "lora", "rank": 2},
        "training": {"max_steps": 2, "global_batch_size": 12, "precision": "float32", "num_threads": 1},
        "evaluation": {"metrics": ["label_accuracy"], "few_shot": 0, "max_new_tokens": 3} | evaluation,
    }
    return recipe_from(document, base_dir=folder)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder of rows whose answers are labels, the held-out ones with the answers of two people."""
    write_labelled(tmp_path / "train.jsonl", 36)
    write_labelled(tmp_path / "valid.jsonl", 24, first=200)
    write_twice_labelled(tmp_path / "test.jsonl", 24, first=100)
    return tmp_path


def test_a_run_is_held_against_its_bases_likeliest_label_an_earlier_run_and_two_people(
    context: Context, tiny_model: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(context, labelled_recipe(labelled, tiny_model), base_dir=labelled)
    assert first.plan.evaluation.num_scored_labels == 3
    assert first.plan.sources["evaluation.num_scored_labels"].why.endswith("the likelihood of each of 3 labels")
    assert first.evaluation is not None
    assert first.evaluation.verdict is not None
    kinds = {one.name: one for one in first.evaluation.verdict.alternatives}
    assert kinds["base, likeliest label"].kind == "label_likelihood"
    # Each row is read once with each of three labels, and not once alone.
    assert (kinds["base, likeliest label"].extra_prompt_tokens or 0) > 0
    assert [one.system for one in first.evaluation.label_confidence] == [
        *("linear classifier", "base, likeliest label", "tuned"),
    ]
    run_id = first.record.run_id
    asked = {"reference_run": run_id, "good_enough": {"agreement": "second_label"}}
    second = train(context, labelled_recipe(labelled, tiny_model, **asked), base_dir=labelled)
    found = second.evaluation
    assert found is not None
    assert found.verdict is not None
    assert [one.name for one in found.systems if one.name == run_id] == [run_id]
    assert (run_id, "run") in [(one.name, one.kind) for one in found.verdict.alternatives]
    bar = found.verdict.bar
    assert bar is not None
    assert (bar.agreement, bar.value, bar.num_rows) == ("second_label", pytest.approx(20 / 24), 24)
    assert "the agreement of two people: people agree on 83% [" in found.verdict.headline
    coverage = found.verdict.coverage
    assert coverage is not None
    assert (coverage.chosen_on, coverage.num_validation_rows) == ("validation", 24)
    page = Path(str(second.record.report_path)).read_text(encoding="utf-8")
    assert "people agree: 0.83" in page

    def gone(*_: object) -> None:
        raise NotFoundError(f"no run {run_id}", expected="a run", do="look for it")

    monkeypatch.setattr(service, "find_candidate", gone)
    left_out, notes = service._reference(context, second.plan, found_rows(labelled))
    assert left_out == []
    assert notes == (f"{run_id}, which evaluation.reference_run names, was not evaluated: no run {run_id}",)


def found_rows(folder: Path) -> tuple[Example, ...]:
    return load_file(folder / "test.jsonl").examples


def test_a_reference_run_that_learned_held_out_rows_is_refused_before_training(
    context: Context, tiny_model: Path, labelled: Path
) -> None:
    first = train(context, labelled_recipe(labelled, tiny_model), base_dir=labelled)
    write_labelled(labelled / "other.jsonl", 36, first=300)
    write_labelled(labelled / "test.jsonl", 24)
    recipe = labelled_recipe(labelled, tiny_model, train_file="other.jsonl", reference_run=first.record.run_id)
    with pytest.raises(LeakageError, match="24 of 24 held-out rows are also in the training rows of run-"):
        make_plan(context, recipe, base_dir=labelled)
    data = recipe.data.model_copy(update={"allow_leakage": True})
    plan = make_plan(context, recipe.model_copy(update={"data": data}), base_dir=labelled)
    assert "24 held-out rows are also in its training rows" in plan.sources["evaluation.reference_run"].why
    (labelled / "train.jsonl").unlink()
    plan = make_plan(context, recipe, base_dir=labelled)
    assert "cannot be checked against its training rows" in plan.sources["evaluation.reference_run"].why


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"reference_run": "today"}, RecipeError, "reference_run: today"),
        ({"reference_run": "run-20260101-120000-abcdef"}, NotFoundError, "run-20260101-120000-abcdef"),
        ({"good_enough": {"agreement": "third_label"}}, RequestError, "third_label, which no column"),
        ({"good_enough": {"agreement": "second_label", "metric": "macro_f1"}}, RequestError, "by macro_f1"),
    ],
)
def test_what_cannot_be_judged_against_is_refused_before_training(
    context: Context, tiny_model: Path, labelled: Path, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_plan(context, labelled_recipe(labelled, tiny_model, **asked), base_dir=labelled)


GOOD, BAD = ("warm", "clear", "even", "full", "sweet", "rich"), ("thin", "dull", "harsh", "flat", "cold", "weak")


def write_rule(file: Path, num: int, first: int) -> Path:
    """Rows whose class is a linear rule: whether more of five words are good than bad. No two have the same words."""
    every = list(itertools.combinations((*GOOD, *BAD), 5))
    random.Random(0).shuffle(every)
    rows = [
        {
            "prompt": f"Tone: {', '.join(words)}.",
            "completion": "keep" if sum(word in GOOD for word in words) > 2 else "rework",
        }
        for words in every[first : first + num]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_run_on_rows_of_a_linear_rule_names_the_classifier(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    for name, num, first in (("train", 200, 0), ("valid", 24, 200), ("test", 40, 300)):
        write_rule(tmp_path / f"{name}.jsonl", num, first)
    outcome = train(context, labelled_recipe(tmp_path, tiny_model), base_dir=tmp_path)
    assert outcome.evaluation is not None
    found = outcome.evaluation.verdict
    assert found is not None
    figures = {one.name: one.value for one in found.alternatives}
    assert figures["linear classifier"] > 0.9
    # A random model of two layers, after two steps, knows nothing of the rule.
    assert (found.word, found.better_than_best_alternative) == ("worse", "worse")
    assert found.best_alternative == "linear classifier"
    assert "worse than a linear classifier, which takes" in found.headline
    assert "use that instead" in found.headline


def test_too_few_rows_with_two_answers_are_no_bar(context: Context, tiny_model: Path, labelled: Path) -> None:
    lines = (labelled / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[10:]:
        row["second_label"] = ""
    (labelled / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = labelled_recipe(labelled, tiny_model, good_enough={"agreement": "second_label"})
    with pytest.raises(RequestError, match="10 of 24 evaluated rows have one there"):
        make_plan(context, recipe, base_dir=labelled)


def judged_later(context: Context, run_id: str, folder: Path) -> None:
    """Rows that come later are held against the bar of the recipe, too; where they cannot be, that is noted."""
    later = write_labelled(folder / "later.jsonl", 9, first=200)
    found = evaluate(context, [run_id], data=later, max_new_tokens=3, metrics=["label_accuracy"])
    assert found.verdict is not None
    assert (found.verdict.good_enough, found.verdict.bar) == ("yes", Bar(metric="label_accuracy", value=0.0))
    asked = GoodEnoughRecipe(metric="label_accuracy", value=1.0)
    found = evaluate(context, [run_id], data=later, max_new_tokens=3, metrics=["label_accuracy"], good_enough=asked)
    assert found.verdict is not None
    assert found.verdict.bar == Bar(metric="label_accuracy", value=1.0)
    other = evaluate(context, [run_id], data=later, max_new_tokens=3, metrics=["exact_match"])
    assert other.verdict is not None
    assert other.verdict.good_enough == "not_asked"
    (note,) = other.rows_notes
    assert note.startswith("The bar of the run, 0 by label_accuracy, was not applied: ")
    # Likelihoods alone have no baselines, so there is no verdict: that is no reason to refuse them here.
    alone = evaluate(context, [run_id], data=later, metrics=["bits_per_byte"])
    assert (alone.verdict, len(alone.rows_notes)) == (None, 1)


def test_a_run_is_held_against_the_bar_of_its_recipe(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    write_labelled(tmp_path / "train.jsonl", 24)
    write_labelled(tmp_path / "test.jsonl", 9, first=100)
    recipe = recipe_from(
        {
            "base_model": str(tiny_model),
            "data": {"train": "train.jsonl", "held_out": "test.jsonl"},
            "method": {"name": "lora", "rank": 2},
            "training": {"epochs": 1, "global_batch_size": 12, "precision": "float32", "num_threads": 1},
            "evaluation": {"metrics": ["label_accuracy"], "few_shot": 0, "max_new_tokens": 3, "good_enough": 0.0},
        },
        base_dir=tmp_path,
    )
    outcome = train(context, recipe, base_dir=tmp_path)
    assert outcome.plan.evaluation.good_enough == Bar(metric="label_accuracy", value=0.0)
    verdict = context.evaluations.get(str(outcome.record.evaluation_id)).verdict
    assert verdict is not None
    assert (verdict.good_enough, verdict.bar) == ("yes", Bar(metric="label_accuracy", value=0.0))
    assert "It reaches the 0 asked for: label accuracy" in verdict.headline
    judged_later(context, outcome.record.run_id, tmp_path)
    page = Path(str(outcome.record.report_path)).read_text(encoding="utf-8")
    assert "Confusion of labels" in page
    assert "asked for: 0" in page
    assert verdict.title in page
