"""Rows of several and of remote sources: planned with shares and revisions, trained, resumed, and judged by source."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows
from tests.hub_server import COMMIT, Hub, serving
from tests.vacuous import nonempty

from luthier.core.data_sources import SourceFile, SourcePlan, source_place, sources_of
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, DataError, NotFoundError, RecipeError
from luthier.core.events import StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.features.planning.batch_schedules import of_validation
from luthier.features.planning.data_sources import located, weighted
from luthier.features.planning.evaluation_plan import rows_of_run
from luthier.features.planning.format import plan_lines
from luthier.features.planning.service import make_plan, prepare, prepare_again
from luthier.features.planning.training_data import load_splits
from luthier.features.recipes.service import load_recipe
from luthier.features.runs.series import Curves
from luthier.features.runs.view import run_charts
from luthier.features.training import service as training_module
from luthier.features.training.service import resume, train
from luthier.ml.tracking.figures import values_of
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
TRAINING: dict[str, Any] = {
    "max_steps": 2,
    "global_batch_size": 8,
    "learning_rate": 0.01,
    "precision": "float32",
    "num_threads": 1,
    "checkpoint_every_steps": 1,
}
JUDGED = {"metrics": ["perplexity"], "few_shot": 0}


def faq_row(number: int) -> dict[str, Any]:
    return {"question": f"Which colour is {number}?", "reply": f"Colour {number * 7} it is."}


def with_sources(make_recipe: MakeRecipe, *sources: dict[str, Any], **data: Any) -> Path:
    """A recipe with `train.jsonl`, 40 chat rows, and `faq.jsonl`, 20 questions and answers under other names."""
    columns = {"prompt": "question", "completion": "reply"}
    given = sources or ({"path": "train.jsonl"}, {"path": "faq.jsonl", "columns": columns})
    named = [one | ({"columns": columns} if one["path"] == "faq.jsonl" else {}) for one in given]
    steps = {"validate_every_steps": 1} if "validation" in data else {}
    recipe = make_recipe(data={"train": named, **data}, training=TRAINING | steps, evaluation=JUDGED)
    write_rows(recipe.parent / "faq.jsonl", [faq_row(n) for n in range(20)])
    return recipe


def planned(context: Context, recipe: Path, *overrides: str) -> Plan:
    return make_plan(context, load_recipe(recipe, overrides), base_dir=recipe.parent)


def source(name: str, first: int, num: int, weight: float | None = None) -> SourcePlan:
    file = SourceFile(name=name, sha256="0" * 64, num_bytes=1, num_rows=num)
    return SourcePlan(split="train", name=name, path=name, files=(file,), first_row=first, num_rows=num, weight=weight)


def of_lines(num: int) -> list[Example]:
    return [Example(id=f"mix.jsonl:{line}", text=f"row {line}") for line in range(1, num + 1)]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((None, None), (6, 4)), ((1.0, 1.0), (5, 5)), ((1.0, 4.0), (2, 8)), ((9.0, 1.0), (9, 1)), ((1.0, 2.0), (3, 7))],
)
def test_an_epoch_is_shared_out_by_the_weights(
    weights: tuple[float | None, float | None], counts: tuple[int, int]
) -> None:
    sources = (source("a", 1, 6, weights[0]), source("b", 7, 4, weights[1]))
    examples, found = weighted(of_lines(10), sources, seed=3)
    lines = [int(example.id.rpartition(":")[2]) for example in examples]
    assert lines == sorted(lines)
    assert (sum(line <= 6 for line in lines), sum(line > 6 for line in lines)) == counts
    assert tuple(one.num_epoch_rows for one in found) == counts
    for own in ([line for line in lines if line <= 6], [line for line in lines if line > 6]):
        times = Counter(own).values()
        assert max(nonempty(list(times))) - min(times) <= 1, "rows are repeated evenly"


def test_the_draw_depends_on_the_seed_alone() -> None:
    sources = (source("a", 1, 60, 1.0), source("b", 61, 40, 3.0))
    drawn = [[e.id for e in weighted(of_lines(100), sources, seed)[0]] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_weighted_source_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="source b has weight 2 and no training row left"):
        weighted(of_lines(6), (source("a", 1, 6, 1.0), source("b", 7, 4, 2.0)), seed=0)


def test_sources_are_read_with_columns_of_their_own(context: Context, make_recipe: MakeRecipe) -> None:
    plan = planned(context, with_sources(make_recipe, validation=0.2, held_out=0.2))
    assert [(one.name, one.num_rows, one.first_row) for one in plan.data.sources] == [("train", 40, 1), ("faq", 20, 41)]
    assert plan.data.train.num_rows == sum(one.num_epoch_rows or 0 for one in plan.data.sources)
    assert Path(plan.data.train.file).name == "train+faq.jsonl"
    assert plan.data.train.shape == "chat"
    held_out = plan.data.held_out
    assert held_out is not None
    assert plan.data.train.num_rows + held_out.num_rows + (plan.data.validation or held_out).num_rows == 60


def test_weights_decide_how_often_a_source_is_trained(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_sources(
        make_recipe, {"path": "train.jsonl", "weight": 1}, {"path": "faq.jsonl", "weight": 3}, held_out=0.25
    )
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    plan = prepared.plan
    assert [(one.name, one.num_epoch_rows) for one in plan.data.sources] == [("train", 11), ("faq", 34)]
    assert prepared.held_out is not None
    held_out = Counter(example.id for example in prepared.held_out.examples)
    assert set(held_out.values()) == {1}, "rows that evaluate are never repeated"
    assert not held_out.keys() & {example.id for example in prepared.train.examples}
    lines = [line for line in plan_lines("", plan) if "weight" in line]
    assert lines[1].strip() == "source     train faq: 20 rows, weight 3: 34 rows in an epoch"
    without = planned(context, recipe, "data.train=[{path: train.jsonl}, {path: faq.jsonl, columns: {prompt: question, "
                      "completion: reply}}]")  # fmt: skip
    other = planned(context, recipe, "data.train=[{path: train.jsonl, weight: 2}, {path: faq.jsonl, weight: 3, "
                    "columns: {prompt: question, completion: reply}}]")  # fmt: skip
    assert len({plan.hash, without.hash, other.hash}) == 3
    assert planned(context, recipe).hash == plan.hash


def test_rows_that_evaluate_may_have_sources_of_their_own(context: Context, make_recipe: MakeRecipe) -> None:
    judging = [{"path": "valid.jsonl"}, {"path": "faq.jsonl", "columns": {"prompt": "question", "completion": "reply"}}]
    recipe = with_sources(make_recipe, {"path": "train.jsonl"}, validation=judging, held_out="test.jsonl")
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    data = prepared.plan.data
    sources = sources_of(data, data.validation)
    assert [(one.split, one.name, one.num_rows) for one in sources] == [
        ("validation", "valid", 8),
        ("validation", "faq", 20),
    ]
    assert sources_of(data, data.held_out) == ()
    batches = of_validation(prepared, shares_prefix=False)
    places = [{source_place(sources, unit[0].id) for unit in units} for units, _ in batches]
    assert all(nonempty([len(one) == 1 for one in places])), "a micro-batch holds rows of one source"
    assert set().union(*places) == {0, 1}
    assert sum(len(units) for units, _ in batches) == 28
    with pytest.raises(RecipeError, match=r"data.validation: has .*sources without weights"):
        load_recipe(recipe, ["data.validation=[{path: valid.jsonl, weight: 1}]"])


def test_pairs_in_columns_of_other_names_are_mixed(context: Context, make_recipe: MakeRecipe) -> None:
    pairs = [{"question": f"Order {n}?", "good": f"Sent {n}.", "bad": f"Lost {n}.", "topic": n % 2} for n in range(4)]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    for more in ({}, {"group": "topic"}):
        recipe = make_recipe(
            data={"train": [{"path": "one.jsonl"}, {"path": "two.jsonl"}], "columns": columns | more},
            objective={"name": "dpo"},
            training=TRAINING,
            evaluation=JUDGED,
        )
        for name in ("one", "two"):
            write_rows(recipe.parent / f"{name}.jsonl", pairs)
        train = load_splits(context, load_recipe(recipe), recipe.parent)["train"]
        assert (train.source.shape, len(train.examples)) == ("preference", 8)
        assert {example.group for example in train.examples} == ({"0", "1"} if more else {None})


def test_one_local_file_is_planned_as_before(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(training=TRAINING, evaluation=JUDGED)
    plan = planned(context, recipe)
    assert plan.data.sources == ()
    listed = planned(context, recipe, "data.train=[{path: train.jsonl}]")
    assert listed.hash == plan.hash, "a list of one file is that file"


def test_a_run_of_several_sources_is_judged_by_source_and_resumes_to_the_byte(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted_sources = ({"path": "train.jsonl", "weight": 1}, {"path": "faq.jsonl", "weight": 2})
    recipe = with_sources(make_recipe, *weighted_sources, validation=0.2, held_out=0.3)
    whole = train(context, load_recipe(recipe), base_dir=recipe.parent)
    checks = [e for e in context.runs.events(whole.record.run_id) if isinstance(e, ValidationDone)]
    for event in nonempty(checks):
        assert event.loss_by_source.keys() == {"train", "faq"}
        low, high = sorted(event.loss_by_source.values())
        assert low <= event.loss <= high
        assert not any("source" in name for name in event.measures)
        assert values_of(event)["eval/loss/faq"] == event.loss_by_source["faq"]
    curves = Curves()
    curves.take(checks)
    chart = next(plot for plot in run_charts(curves, "nats") if plot.key == "loss_by_source")
    assert [series.name for series in chart.series] == ["faq", "train"]
    evaluation = whole.evaluation
    assert evaluation is not None
    assert evaluation.verdict is not None
    assert {one.source for one in evaluation.by_source} == {"train", "faq"}
    assert sum(one.num_rows for one in evaluation.by_source) == evaluation.num_rows
    texts = [detail for detail in evaluation.verdict.details if detail.startswith("Rows of ")]
    assert len(texts) == 2
    assert context.evaluations.get(evaluation.evaluation_id) == evaluation

    real = training_module.recorder

    def dying(context: Context, run_id: str, warnings: list[str], listener: Any = None, **given: Any) -> Any:
        inner = real(context, run_id, warnings, listener, **given)

        def emit(event: Any) -> None:
            inner(event)
            if isinstance(event, StepDone) and event.step == 1:
                raise KeyboardInterrupt

        return emit

    monkeypatch.setattr(training_module, "recorder", dying)
    with pytest.raises(KeyboardInterrupt):
        train(context, load_recipe(recipe), base_dir=recipe.parent)
    monkeypatch.undo()
    paused = next(record for record in context.runs.list() if record.status == "paused")
    # The cache may go in between: sources are mixed again, to the same bytes.
    shutil.rmtree(context.settings.mixtures_folder)
    done = resume(context, paused.run_id)
    assert done.as_json()["adapter_sha256"] == whole.as_json()["adapter_sha256"]
    assert len(rows_of_run(context, paused.run_id)) == whole.plan.data.train.num_rows
    # Another machine, or a home that was moved: the plan names a cache that is not this one.
    shutil.rmtree(context.settings.mixtures_folder)
    elsewhere = recipe.parent / "other cache"
    monkeypatch.setattr(type(context.settings), "mixtures_folder", property(lambda _settings: elsewhere))
    assert len(rows_of_run(context, paused.run_id)) == whole.plan.data.train.num_rows
    (recipe.parent / "faq.jsonl").unlink()
    with pytest.raises(ConflictError, match=r"cannot be read again: .*faq"):
        rows_of_run(context, paused.run_id)


def test_a_source_that_has_changed_is_refused_on_resume(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_sources(make_recipe)
    plan = planned(context, recipe)
    write_rows(recipe.parent / "faq.jsonl", [faq_row(n) for n in range(21)])
    with pytest.raises(ConflictError, match=r"train file \S*train\+faq\.jsonl has changed since the run began"):
        prepare_again(context, plan)


def test_a_template_or_a_tokenizer_that_has_changed_is_refused_on_resume(
    context: Context, make_recipe: MakeRecipe
) -> None:
    """The rows are the same, and other tokens would be trained on."""
    recipe = with_sources(make_recipe)
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    plan, train = prepared.plan, prepared.plan.data.train
    before = plan.base_model.model_copy(update={"template_sha256": "0" * 64})
    with pytest.raises(ConflictError, match=r"chat template of base model .* now has digest"):
        prepare_again(context, plan.model_copy(update={"base_model": before}), ready=prepared)
    data = plan.data.model_copy(update={"train": train.model_copy(update={"num_tokens": train.num_tokens + 1})})
    with pytest.raises(ConflictError, match=rf"train file \S+ is now \d+ examples with {train.num_tokens:,} tokens"):
        prepare_again(context, plan.model_copy(update={"data": data}), ready=prepared)
    assert prepare_again(context, plan, ready=prepared).plan == plan


def test_wrong_rows_are_named_by_their_own_file(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_sources(make_recipe)
    write_rows(recipe.parent / "faq.jsonl", [faq_row(1), {"question": "Why?", "reply": None}])
    with pytest.raises(DataError, match=r"1 of 2 rows of faq\.jsonl is wrong"):
        planned(context, recipe)
    with pytest.raises(NotFoundError, match=r"no file \S*none\.jsonl"):
        planned(context, recipe, "data.train=[{path: none.jsonl}, {path: train.jsonl}]")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[{path: train.jsonl, weight: 0}]", r"data.train\[0\].weight: has 0, expected a number greater than 0"),
        ("[{path: train.jsonl}, {weight: 2}]", r"data.train\[1\].path: is missing"),
        (
            "[{path: train.jsonl, wieght: 2}]",
            r"data.train\[0\].wieght: unknown key; nearest known: \S+\[0\].weight",
        ),
        ("[train.jsonl]", r"data.train\[0\]: has 'train.jsonl', expected a mapping with path"),
        ("7", r"data.train: has 7, expected text"),
    ],
)
def test_wrong_sources_are_named_by_their_place(make_recipe: MakeRecipe, value: str, words: str) -> None:
    recipe = make_recipe()
    with pytest.raises(RecipeError, match=words):
        load_recipe(recipe, [f"data.train={value}"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    rows = [b"".join(json.dumps(chat_row(n)).encode() + b"\n" for n in part) for part in (range(20), range(20, 40))]
    files = {"train-0.jsonl": rows[0], "train-1.jsonl": rows[1], "test.jsonl": rows[1][:400].rpartition(b"\n")[0]}
    served = Hub(files, repo="org/talks", kind="dataset")
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


def test_a_dataset_of_the_hub_is_planned_at_its_commit_and_pinned_for_a_resume(
    context: Context, make_recipe: MakeRecipe, hub: Hub
) -> None:
    recipe = make_recipe(
        data={"train": "hub:org/talks", "validation": "hub:org/talks[test]"}, training=TRAINING, evaluation=JUDGED
    )
    asked = load_recipe(recipe)
    assert asked.data.train == "hub:org/talks", "no path is made of it"
    plan = planned(context, recipe)
    train_source, validation = plan.data.sources
    assert (train_source.split, train_source.revision, len(train_source.files)) == ("train", COMMIT, 2)
    assert (train_source.num_rows, plan.data.train.num_rows) == (40, 40)
    assert (validation.split, validation.revision) == ("validation", COMMIT)
    assert validation.num_rows == validation.files[0].num_rows == (plan.data.validation or plan.data.train).num_rows
    line = next(line for line in plan_lines("", plan) if "source" in line)
    assert line.strip() == f"source     train talks (hub:org/talks): 40 rows, {COMMIT}"
    # The hub moves on and the cache is lost: the run is resumed with the rows of its commit.
    hub.commit, hub.files = "f" * 40, dict(hub.files) | {"train-0.jsonl": hub.files["train-1.jsonl"]}
    shutil.rmtree(context.settings.mixtures_folder)
    assert prepare_again(context, plan).plan == plan
    shutil.rmtree(context.settings.remote_data_folder)
    newest = planned(context, recipe)
    assert newest.data.train.sha256 != plan.data.train.sha256
    assert newest.data.sources[0].revision == "f" * 40


def test_a_source_with_one_file_is_read_as_it_is(context: Context, make_recipe: MakeRecipe, hub: Hub) -> None:
    recipe = make_recipe(data={"train": "hub:org/talks/train-0.jsonl"}, training=TRAINING, evaluation=JUDGED)
    found = located(context, load_recipe(recipe), recipe.parent)
    assert isinstance(found.recipe.data.train, str)
    assert Path(found.recipe.data.train).read_bytes() == hub.files["train-0.jsonl"]
    part = load_splits(context, load_recipe(recipe), recipe.parent)["train"]
    assert [(one.num_rows, one.files[0].num_rows) for one in part.sources] == [(20, 20)]


@pytest.mark.usefixtures("hub")
def test_general_rows_of_several_files_need_no_group(context: Context, make_recipe: MakeRecipe) -> None:
    data = {"train": "orders.jsonl", "group_by": "topic", "replay": {"file": "hub:org/talks", "fraction": 0.5}}
    recipe = make_recipe(data=data, training=TRAINING, evaluation=JUDGED)
    write_rows(recipe.parent / "orders.jsonl", [chat_row(n) | {"topic": n % 4} for n in range(100, 120)])
    parts = load_splits(context, load_recipe(recipe), recipe.parent)
    assert {example.group for example in parts["train"].examples} == {"0", "1", "2", "3"}
    assert len(parts["replay"].examples) == 40
    assert [len(one.files) for one in parts["replay"].sources] == [2]
