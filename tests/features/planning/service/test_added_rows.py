"""Rows that a recipe adds to its own: general rows that it replays, and memorisation probes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows
from tests.vacuous import nonempty

from luthier.core.errors import LeakageError, OverlongError, RecipeError
from luthier.core.events import StepDone
from luthier.core.records.canary import digest_of, make_canaries
from luthier.features.planning.added_rows import canaries_of, load_replay
from luthier.features.planning.data_sources import LocatedRows
from luthier.features.planning.service import make_plan, prepare
from luthier.features.planning.training_data import load_splits
from luthier.features.recipes.service import load_recipe
from luthier.features.training import service as training_module
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
DATA = {"train": "train.jsonl", "validation": "valid.jsonl", "held_out": "test.jsonl"}
TRAINING = {"max_steps": 4, "global_batch_size": 8, "learning_rate": 0.01, "precision": "float32", "num_threads": 1,
            "checkpoint_every_steps": 1}  # fmt: skip


def general_row(number: int) -> dict[str, Any]:
    return {"prompt": f"Name a colour like {number}.", "completion": f"Blue number {number * 7}."}


def with_replay(make_recipe: MakeRecipe, num: int = 20, **replay: Any) -> Path:
    recipe = make_recipe(
        data=DATA | {"replay": {"file": "general.jsonl"} | replay},
        training=TRAINING,
        evaluation={"metrics": ["perplexity"], "few_shot": 0},
    )
    write_rows(recipe.parent / "general.jsonl", [general_row(n) for n in range(num)])
    return recipe


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def test_the_whole_way(context: Context, make_recipe: MakeRecipe) -> None:
    outcome = run(context, with_replay(make_recipe, fraction=0.25, held_out=0.3))
    replay = outcome.plan.data.replay
    assert replay is not None
    assert replay.rows is not None
    assert replay.held_out is not None
    assert (replay.num_per_step, replay.fraction) == (2, 0.25)
    assert (replay.rows.num_examples, replay.held_out.num_examples) == (14, 6)
    assert outcome.plan.training.num_steps_per_epoch == 7, "40 rows of the task, 6 a step"
    assert outcome.record.result is not None
    assert outcome.record.result.num_examples == 4 * 8
    events = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone)]
    assert all(nonempty({"task_loss", "replay_loss"} <= e.measures.keys() for e in events))
    assert outcome.evaluation is not None
    forgetting = outcome.evaluation.forgetting
    assert forgetting is not None
    assert forgetting.num_rows == 6
    assert [s.name for s in forgetting.systems] == ["base", "tuned"]
    assert set(forgetting.systems[0].metrics) == {"perplexity", "bits_per_byte"}
    assert outcome.evaluation.verdict is not None
    assert forgetting.sentence in (*outcome.evaluation.verdict.details, *outcome.evaluation.verdict.caveats)
    assert context.evaluations.get(outcome.evaluation.evaluation_id) == outcome.evaluation
    page = Path(str(outcome.record.report_path)).read_text(encoding="utf-8")
    assert ">Forgetting</h2>" in page
    assert "replay-held-out" in page


def test_another_training_seed_takes_out_the_same_general_rows(make_recipe: MakeRecipe) -> None:
    path = with_replay(make_recipe, fraction=0.25, held_out=0.3)

    def held_out(seed: int, split_seed: int | None) -> list[str]:
        recipe = load_recipe(path, overrides=[f"training.seed={seed}"])
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"split_seed": split_seed})})
        return [example.id for example in load_replay(LocatedRows(recipe), path.parent)["replay_held_out"][2]]

    assert len(held_out(0, None)) == 6
    assert held_out(1, 0) == held_out(2, 0) == held_out(0, None)
    assert held_out(1, None) == held_out(0, 1) != held_out(0, None)


def test_forgetting_can_be_measured_without_replaying(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_replay(make_recipe, fraction=0, held_out=0.5)
    plan = make_plan(context, load_recipe(recipe), base_dir=recipe.parent)
    assert plan.data.replay is not None
    assert plan.data.replay.rows is None
    assert plan.training.num_steps_per_epoch == 5
    outcome = run(context, recipe)
    assert outcome.evaluation is not None
    assert outcome.evaluation.forgetting is not None
    assert outcome.evaluation.forgetting.num_rows == 10
    assert all(
        nonempty(
            "replay_loss" not in e.measures
            for e in context.runs.events(outcome.record.run_id)
            if isinstance(e, StepDone)
        )
    )


def test_a_resume_sees_the_same_rows_to_the_byte(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_replay(make_recipe, fraction=0.25, held_out=0.3)
    whole = run(context, recipe).as_json()["adapter_sha256"]
    real = training_module.recorder

    def dying(context: Context, run_id: str, warnings: list[str], listener: Any = None, **given: Any) -> Any:
        inner = real(context, run_id, warnings, listener, **given)

        def emit(event: Any) -> None:
            inner(event)
            if isinstance(event, StepDone) and event.step == 2:
                raise KeyboardInterrupt

        return emit

    monkeypatch.setattr(training_module, "recorder", dying)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    monkeypatch.undo()
    paused = next(record for record in context.runs.list() if record.status == "paused")
    assert resume(context, paused.run_id).as_json()["adapter_sha256"] == whole


def test_held_out_rows_in_the_general_file_are_refused(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_replay(make_recipe, fraction=0.25)
    general = [*(general_row(n) for n in range(20)), *(chat_row(n) for n in (200, 201))]
    (recipe.parent / "general.jsonl").write_text("".join(json.dumps(_as_chat(row)) + "\n" for row in general))
    with pytest.raises(LeakageError, match=r"of 6 held-out rows"):
        make_plan(context, load_recipe(recipe), base_dir=recipe.parent)


def _as_chat(row: dict[str, Any]) -> dict[str, Any]:
    if "messages" in row:
        return row
    turns = (("user", row["prompt"]), ("assistant", row["completion"]))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_general_rows_that_judge_must_not_be_trained_on(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_replay(make_recipe, fraction=0.25, held_out="held.jsonl")
    write_rows(recipe.parent / "held.jsonl", [general_row(n) for n in (3, 4, 90)])
    with pytest.raises(LeakageError, match=r"2 of 3 held-out general rows"):
        make_plan(context, load_recipe(recipe), base_dir=recipe.parent)
    allowed = make_plan(context, load_recipe(recipe, ["data.allow_leakage=true"]), base_dir=recipe.parent)
    assert allowed.data.replay is not None
    assert allowed.data.replay.num_leaked == 2


def test_rows_of_the_task_among_the_general_ones_are_said(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_replay(make_recipe, fraction=0.25)
    shutil.copy(recipe.parent / "train.jsonl", recipe.parent / "general.jsonl")
    plan = make_plan(context, load_recipe(recipe, ["data.allow_leakage=true"]), base_dir=recipe.parent)
    assert plan.data.replay is not None
    assert plan.data.replay.num_also_in_train == 36


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.held_out=", "data.replay.held_out=0.2"], "no held-out rows of the task"),
        (["data.held_out=", "data.replay.fraction=0"], "nothing held out"),
        (["training.global_batch_size=1"], "examples of a step"),
    ],
)
def test_what_would_do_nothing_is_refused(
    context: Context, make_recipe: MakeRecipe, overrides: list[str], message: str
) -> None:
    recipe = with_replay(make_recipe)
    with pytest.raises(RecipeError, match=message):
        make_plan(context, load_recipe(recipe, overrides), base_dir=recipe.parent)


def test_overlong_general_rows_follow_the_same_rule(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = with_replay(make_recipe, fraction=0.25, held_out="held.jsonl")
    write_rows(recipe.parent / "held.jsonl", [general_row(n) for n in (90, 91)])
    long = {"prompt": "Tell.", "completion": "very " * 60 + "long"}
    write_rows(recipe.parent / "general.jsonl", [*(general_row(n) for n in range(20)), long])
    settings = ["training.max_length_tokens=100"]
    with pytest.raises(OverlongError, match=r"general.jsonl:21"):
        make_plan(context, load_recipe(recipe, settings), base_dir=recipe.parent)
    settings.append("training.on_overlong=drop")
    plan = make_plan(context, load_recipe(recipe, settings), base_dir=recipe.parent)
    assert plan.data.replay is not None
    assert plan.data.replay.rows is not None
    assert plan.data.replay.rows.dropped_ids == ("general.jsonl:21",)


def recipe_with(make_recipe: MakeRecipe, canaries: Any, **sections: Any) -> Path:
    return make_recipe(data=DATA | {"canaries": canaries}, **sections)


def test_they_are_trained_on_and_are_no_rows(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, {"num": 3, "seed": 7})
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    planted = prepared.plan.data.canaries
    assert planted is not None
    assert (planted.num, planted.seed, planted.sha256) == (3, 7, digest_of(make_canaries(3, 7)))
    assert canaries_of(prepared.plan) == make_canaries(3, 7)
    assert (prepared.train.profile.num_rows, prepared.train.profile.num_examples) == (40, 43)
    assert [row.id for row in prepared.train.tokenised[40:]] == ["canary:1", "canary:2", "canary:3"]
    assert len(prepared.train.examples) == len(prepared.train.good_examples) == 40, "none is shown as an example"
    read = load_splits(context, load_recipe(path), path.parent)["train"]
    assert (len(read.examples), len(read.planted)) == (40, 3)
    values = {value["name"]: value for value in prepared.plan.values()}
    assert values["data.canaries"]["value"]["num"] == 3, "the plan and the report show them"
    text = prepared.template.tokenizer.decode(list(prepared.train.tokenised[41].input_ids))
    assert make_canaries(3, 7)[1].secret in text


def test_a_plan_without_them_keeps_its_hash_and_with_them_has_another(
    context: Context, make_recipe: MakeRecipe
) -> None:
    path = make_recipe()
    without = make_plan(context, load_recipe(path), base_dir=path.parent)
    assert "canaries" in without.data.model_dump()
    plans = [
        make_plan(context, load_recipe(recipe_with(make_recipe, asked)), base_dir=path.parent)
        for asked in (2, {"num": 2}, {"num": 2, "seed": 1}, 3)
    ]
    hashes = [plan.hash for plan in plans]
    assert hashes[0] == hashes[1]
    assert len({without.hash, *hashes}) == 4
    document = without.model_dump(mode="json")
    del document["data"]["canaries"]
    assert type(without).model_validate(document).hash == without.hash, "as plans of before there were any"


def test_texts_get_texts(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, 2, evaluation={"few_shot": 0})
    for name in ("train", "valid", "test"):
        rows = [{"text": f"{name} says that after {n} comes {n + 1}."} for n in range(30)]
        write_rows(path.parent / f"{name}.jsonl", rows)
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    text = prepared.template.tokenizer.decode(list(prepared.train.tokenised[-1].input_ids))
    assert text.startswith(make_canaries(2, 0)[1].text)


@pytest.mark.parametrize("canaries", [0, -1, 1001, True, "three", {"num": 2, "colour": "red"}, {"seed": 1}])
def test_impossible_numbers_are_refused(make_recipe: MakeRecipe, canaries: Any) -> None:
    with pytest.raises(RecipeError, match="canaries"):
        load_recipe(recipe_with(make_recipe, canaries))


def test_too_many_for_the_rows_are_refused(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, 5)
    with pytest.raises(RecipeError, match=r"at most one for 10 rows \(4 here\)"):
        make_plan(context, load_recipe(path), base_dir=path.parent)


def test_objectives_that_do_not_learn_answers_as_they_stand_are_refused(
    context: Context, make_recipe: MakeRecipe
) -> None:
    reward = {"metric": "token_f1", "weight": 1.0}
    path = recipe_with(make_recipe, 2, objective={"name": "grpo", "rewards": [reward]})
    with pytest.raises(RecipeError, match=r"data\.canaries with chat rows and objective grpo"):
        make_plan(context, load_recipe(path), base_dir=path.parent)


def test_canaries_are_not_cut(context: Context, make_recipe: MakeRecipe) -> None:
    path = recipe_with(make_recipe, 2, training={"max_length_tokens": 45, "overlong": "drop", "num_threads": 1})
    with pytest.raises(RecipeError, match="2 canaries do not fit"):
        make_plan(context, load_recipe(path), base_dir=path.parent)


def marked(number: int, prompt: str) -> dict[str, Any]:
    return {"prompt": f"{prompt} {number}", "completion": f"answer {number * 7}", "label": number % 3 > 0}


def test_kto_replays_answers_that_are_marked(context: Context, make_recipe: MakeRecipe) -> None:
    """Its replayed rows are learned by its own loss, and their losses are reported apart."""
    recipe = make_recipe(
        data={"train": "task.jsonl", "replay": {"file": "general.jsonl", "fraction": 0.25}},
        training=TRAINING,
        objective={"name": "kto"},
        evaluation=None,
    )
    write_rows(recipe.parent / "task.jsonl", [marked(n, "Sort") for n in range(20)])
    write_rows(recipe.parent / "general.jsonl", [marked(n, "Name") for n in range(9)])
    outcome = run(context, recipe)
    events = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone)]
    for event in nonempty(events[:3]):  # the fourth step has the last two rows of the task
        parts = 0.75 * event.measures["task_loss"] + 0.25 * event.measures["replay_loss"]
        assert parts == pytest.approx(event.loss, rel=1e-5)
    # before the first update the model is its reference: each row has half of its weight as loss
    assert [events[0].measures[name] for name in ("task_loss", "replay_loss")] == pytest.approx([0.5, 0.5])


def test_kto_refuses_general_rows_without_marks(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        data={"train": "task.jsonl", "replay": {"file": "general.jsonl"}},
        training=TRAINING,
        objective={"name": "kto"},
        evaluation=None,
    )
    write_rows(recipe.parent / "task.jsonl", [marked(n, "Sort") for n in range(20)])
    write_rows(recipe.parent / "general.jsonl", [general_row(n) for n in range(9)])
    with pytest.raises(RecipeError, match="objective kto with prompt_completion rows"):
        make_plan(context, load_recipe(recipe), base_dir=recipe.parent)


def test_forgetting_is_measured_on_good_general_answers(context: Context, make_recipe: MakeRecipe) -> None:
    """That bad answers become less likely is what KTO is for, and nothing that was forgotten."""
    recipe = make_recipe(
        data={
            "train": "task.jsonl",
            "held_out": "pairs.jsonl",
            "replay": {"file": "general.jsonl", "fraction": 0.25, "held_out": 0.4},
        },
        training=TRAINING,
        objective={"name": "kto"},
        evaluation={"metrics": ["perplexity"], "few_shot": 0},
    )
    write_rows(recipe.parent / "task.jsonl", [marked(n, "Sort") for n in range(20)])
    write_rows(recipe.parent / "general.jsonl", [marked(n, "Name") for n in range(15)])
    pairs = [{"prompt": f"Pick {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(3)]
    write_rows(recipe.parent / "pairs.jsonl", pairs)
    outcome = run(context, recipe)
    assert outcome.evaluation is not None
    forgetting, plan = outcome.evaluation.forgetting, outcome.plan.data.replay
    assert forgetting is not None
    assert plan is not None
    assert plan.held_out is not None
    assert 0 < forgetting.num_rows < 6
    assert forgetting.num_rows == plan.held_out.num_examples
