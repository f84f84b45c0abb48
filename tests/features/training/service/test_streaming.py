"""Runs over streamed rows: the same bytes after a kill in the middle of an epoch and across its end, exact counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures.service import chat_row, write_rows
from tests.hub_server import Hub, serving

from luthier.core.errors import DataError
from luthier.core.events import StepDone, ValidationDone
from luthier.features.planning import stream_sources, streamed_rows
from luthier.features.recipes.service import load_recipe
from luthier.features.training import service as training_module
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.data.files import bounded_folder
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
TRAINING: dict[str, Any] = {
    "max_steps": 4,
    "global_batch_size": 8,
    "learning_rate": 0.01,
    "precision": "float32",
    "num_threads": 1,
    "checkpoint_every_steps": 1,
    "on_overlong": "drop",
    "max_length_tokens": 120,
}


def streamed(make_recipe: MakeRecipe, **training: Any) -> Path:
    """Two files of eleven rows each, of which one is too long and one judges: an epoch has twenty rows."""
    recipe = make_recipe(
        data={
            "train": [{"path": "one.jsonl"}, {"path": "two.jsonl"}],
            "held_out": "test.jsonl",
            "streaming": True,
            "shuffle_buffer": 5,
        },
        training=TRAINING | training,
        evaluation={"metrics": ["perplexity"], "few_shot": 0},
    )
    long = {"prompt": "Count.", "completion": " ".join(str(n) for n in range(200))}
    write_rows(recipe.parent / "one.jsonl", [*(chat_row(n) for n in range(10)), chat_row(200)])
    write_rows(recipe.parent / "two.jsonl", [long, *(pair(n) for n in range(10))])
    return recipe


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"Which colour is {number}?", "completion": f"Colour {7 * number} it is."}


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def killed_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt a run once a step is done, before its checkpoint."""
    real = training_module.recorder

    def dying(context: Context, run_id: str, warnings: list[str], listener: Any = None, **given: Any) -> Any:
        inner = real(context, run_id, warnings, listener, **given)

        def emit(event: Any) -> None:
            inner(event)
            if isinstance(event, StepDone) and event.step == step:
                raise KeyboardInterrupt

        return emit

    monkeypatch.setattr(training_module, "recorder", dying)


def paused_run(context: Context) -> str:
    return next(record.run_id for record in context.runs.list() if record.status == "paused")


# An epoch ends in the middle of step 3: of 24 rows that three steps train it has twenty.
@pytest.mark.parametrize(
    ("training", "step"),
    [
        ({"batch_order": "shuffled"}, 2),
        ({"batch_order": "shuffled", "micro_batch_workers": 2, "micro_batch_tokens": 200}, 4),
        ({}, 3),
    ],
    ids=["within an epoch", "behind its end, two workers", "by length"],
)
def test_a_run_that_was_killed_ends_with_the_bytes_of_an_undisturbed_one(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, training: dict[str, Any], step: int
) -> None:
    recipe = streamed(make_recipe, **training)
    whole = run(context, recipe)
    assert whole.record.result is not None
    counts = whole.record.result.stream
    assert counts is not None
    assert not [warning for warning in whole.warnings if "worker" in warning], "workers found the rows of each step"
    # 32 rows are trained: one epoch of 20 and 12 of the next, with what was dropped and left out on the way.
    assert (counts.num_examples, counts.num_waiting, counts.num_epochs) == (32, 0, 1)
    assert counts.num_rows == 32 + counts.num_dropped + counts.num_left_out
    assert counts.num_dropped >= 1 <= counts.num_left_out
    assert sum(counts.by_source) == counts.num_rows
    assert (set(counts.dropped_ids), set(counts.left_out_ids)) == ({"two.jsonl:1"}, {"one.jsonl:11"})
    with monkeypatch.context() as during:
        killed_after(during, step)
        with pytest.raises(KeyboardInterrupt):
            run(context, recipe)
    run_id = paused_run(context)
    done = resume(context, run_id)
    assert done.as_json()["adapter_sha256"] == whole.as_json()["adapter_sha256"]
    assert done.record.result is not None
    assert done.record.result.stream == counts
    ends = [
        CheckpointStore(context.settings.run_folder(one) / "checkpoints", 9).load(4).state.stream
        for one in (whole.record.run_id, run_id)
    ]
    assert ends[0] == ends[1] is not None


def test_a_run_shows_what_was_read_and_what_was_left_out(context: Context, make_recipe: MakeRecipe) -> None:
    outcome = run(context, streamed(make_recipe, max_steps=3))
    assert outcome.evaluation is not None
    run_id, result = outcome.record.run_id, outcome.record.result
    assert result is not None
    assert result.stream is not None
    assert result.stream.summary in result.warnings
    assert outcome.as_json()["stream"]["num_examples"] == 24
    report = json.loads((context.settings.run_folder(run_id) / "report.json").read_text())
    assert report["run"]["result"]["stream"]["num_rows"] == result.stream.num_rows
    page = Path(str(outcome.record.report_path)).read_text(encoding="utf-8")
    assert f"{result.stream.num_rows:,} rows were streamed" in page
    assert "about 22" in page
    assert result.fit is not None
    assert [remedy.text for remedy in result.fit.remedies] == ["Name a file of validation rows: data.validation."]
    assert result.first_step is not None
    assert (result.first_step.example_ids, result.first_step.num_trained_tokens > 0) == ((), True)


def test_a_dataset_of_the_hub_is_trained_as_it_arrives_and_resumed_without_the_cache(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 4)
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update={"remote_data_cache_bytes": 0}))
    monkeypatch.setattr(bounded_folder, "IN_USE_SECONDS", 0.0)
    monkeypatch.setattr(stream_sources, "_in_background", lambda fetch: fetch())
    files = {
        f"train-{place}.jsonl": "".join(json.dumps(chat_row(n)) + "\n" for n in range(start, start + 7)).encode()
        for place, start in enumerate((0, 7, 14))
    }
    served = Hub(files, repo="org/talks", kind="dataset")
    recipe = make_recipe(
        data={"train": "hub:org/talks", "streaming": True, "shuffle_buffer": 5},
        training=TRAINING | {"batch_order": "shuffled"},
        evaluation={"few_shot": 0},
    )
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        whole = run(context, recipe)
        stored = list((context.settings.remote_data_folder / "files").iterdir())
        assert len(stored) <= 2, "of three shards the one that is read is left, and the one that comes next"
        with monkeypatch.context() as during:
            killed_after(during, 3)
            with pytest.raises(KeyboardInterrupt):
                run(context, recipe)
        shutil.rmtree(context.settings.remote_data_folder)
        done = resume(context, paused_run(context))
    assert done.as_json()["adapter_sha256"] == whole.as_json()["adapter_sha256"]
    assert whole.record.result is not None
    assert whole.record.result.stream is not None
    assert (whole.record.result.stream.num_rows, whole.record.result.stream.num_epochs) == (32, 1)


def test_a_schema_that_changes_in_the_middle_ends_a_run_that_keeps_its_checkpoint(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 4)
    recipe = streamed(make_recipe, batch_order="as_given")
    document = recipe.read_text().replace("  shuffle_buffer: 5\n", "")
    recipe.write_text(document)
    rows = [chat_row(n) for n in range(18)] + [{"question": "Why?", "answer": 3}]
    write_rows(recipe.parent / "one.jsonl", rows)
    with pytest.raises(DataError, match=r"row one\.jsonl:19 of a streamed source is wrong: messages"):
        run(context, recipe)
    (record,) = context.runs.list()
    assert (record.status, record.stopped_because is not None) == ("failed", True)
    folder = context.settings.run_folder(record.run_id) / "checkpoints"
    found = CheckpointStore(folder, 9).latest()[0]
    assert found is not None
    assert found.state.step == 2


def parts_of_sources(make_recipe: MakeRecipe, objective: str, **training: Any) -> Path:
    """A pattern of three files with a weight, and the first rows of a file of other columns with another."""
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "completion": "good"}
    names = ("prompt", "chosen", "rejected") if objective == "dpo" else ("prompt", "completion")
    faq = {"path": "faq.csv", "weight": 2, "rows": 9, "columns": {name: columns[name] for name in names}}
    recipe = make_recipe(
        data={
            "train": [{"path": "talks/*.jsonl", "weight": 1, "fraction": 0.7}, faq],
            "streaming": True,
            "shuffle_buffer": 5,
        },
        objective={"name": objective},
        training=TRAINING | training,
        evaluation={"few_shot": 0},
    )
    (recipe.parent / "talks").mkdir()
    for place in range(3):
        rows = [{"prompt": f"What of {n}?"} | _answers(objective, n) for n in range(place * 6, place * 6 + 6)]
        write_rows(recipe.parent / "talks" / f"{place}.jsonl", rows)
    lines = [f"Which {n}?,{_label(objective, n)},Not {n}." for n in range(14)]
    (recipe.parent / "faq.csv").write_text("question,good,bad\n" + "\n".join(lines) + "\n")
    return recipe


def _label(objective: str, number: int) -> str:
    return ("yes", "no")[number % 2] if objective == "classify" else f"Answer {number}."


def _answers(objective: str, number: int) -> dict[str, Any]:
    if objective == "dpo":
        return {"chosen": f"Well, {number}.", "rejected": f"Hm, {number}."}
    return {"completion": _label(objective, number)}


@pytest.mark.parametrize(
    ("objective", "training", "step"),
    [
        ("sft", {"batch_order": "shuffled"}, 1),
        ("sft", {"micro_batch_workers": 2, "micro_batch_tokens": 200}, 3),
        ("dpo", {"batch_order": "shuffled", "micro_batch_tokens": 200}, 2),
        ("classify", {}, 4),
    ],
    ids=["before the first checkpoint", "by length, two workers", "with a reference", "with a head, at the end"],
)
def test_parts_of_several_sources_are_resumed_to_the_byte(
    context: Context,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    training: dict[str, Any],
    step: int,
) -> None:
    recipe = parts_of_sources(make_recipe, objective, **training)
    whole = run(context, recipe)
    with monkeypatch.context() as during:
        killed_after(during, step)
        with pytest.raises(KeyboardInterrupt):
            run(context, recipe)
    done = resume(context, paused_run(context))
    assert done.as_json()["adapter_sha256"] == whole.as_json()["adapter_sha256"]
    assert whole.record.result is not None
    assert done.record.result is not None
    counts = whole.record.result.stream
    assert done.record.result.stream == counts
    assert counts is not None
    assert (counts.num_examples, counts.num_epochs, sum(counts.by_source)) == (32, 0, 32)
    # Five standard deviations of 32 draws.
    assert abs(counts.by_source[0] - 32 / 3) < 14


def same_rows(make_recipe: MakeRecipe, objective: str, rows: list[dict[str, Any]], **data: Any) -> Path:
    recipe = make_recipe(
        data={"train": "rows.jsonl"} | data,
        objective={"name": objective},
        training=TRAINING | {"batch_order": "as_given", "max_steps": 3, "micro_batch_workers": 1},
        evaluation={"few_shot": 0},
    )
    write_rows(recipe.parent / "rows.jsonl", rows)
    return recipe


SIDES = [{"prompt": f"Is {n} good?", "chosen": f"Yes, {n} is.", "rejected": f"No, {n}!"} for n in range(24)]
QUESTIONS = [{"prompt": f"Is {n} even?", "completion": ("yes", "no")[n % 2]} for n in range(24)]


@pytest.mark.parametrize(
    ("objective", "rows"), [("dpo", SIDES), ("orpo", SIDES), ("embed", SIDES), ("classify", QUESTIONS)]
)
def test_streamed_rows_train_as_the_same_rows_in_memory(
    context: Context, make_recipe: MakeRecipe, objective: str, rows: list[dict[str, Any]]
) -> None:
    read = run(context, same_rows(make_recipe, objective, rows)).record.result
    streamed_one = run(context, same_rows(make_recipe, objective, rows, streaming=True)).record.result
    assert read is not None
    assert streamed_one is not None
    # DPO's reference is computed with other rows beside it, which moves the last digits.
    assert streamed_one.train_loss == pytest.approx(read.train_loss, rel=1e-5)
    assert streamed_one.num_tokens == read.num_tokens
    assert (streamed_one.adapter_sha256 == read.adapter_sha256) or objective == "dpo"


def test_rows_of_classes_that_are_not_named_are_left_out_and_counted(context: Context, make_recipe: MakeRecipe) -> None:
    rows = [*QUESTIONS[:9], {"prompt": "Is x even?", "completion": "perhaps"}, *QUESTIONS[9:]]
    recipe = same_rows(make_recipe, "classify", rows, streaming=True)
    asked = load_recipe(recipe, ["objective.classes=['yes', 'no']"])
    done = train(context, asked, base_dir=recipe.parent).record
    assert done.result is not None
    counts = done.result.stream
    assert counts is not None
    assert (counts.num_unlisted, counts.unlisted_ids, counts.num_examples) == (1, ("rows.jsonl:10",), 24)
    assert counts.num_rows == 25
    said = "1 left out as rows of classes that are not listed (rows.jsonl:10)"
    assert [said in warning for warning in counts.warnings] == [True]
    head = context.runs.plan(done.run_id).objective.task_head
    assert head is not None
    assert head.labels == ("yes", "no")
    # Of rows that are read before the run they are refused by name.
    with pytest.raises(DataError, match=r"1 of 25 training rows has a class that objective\.classes does not name"):
        train(
            context,
            load_recipe(recipe, ["objective.classes=['yes', 'no']", "data.streaming=false"]),
            base_dir=recipe.parent,
        )


def test_loss_and_verdict_are_by_source_and_count_prompts_of_all_trained_rows(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    recipe = streamed(make_recipe, max_steps=3, validate_every_steps=3)
    document = yaml.safe_load(recipe.read_text())
    document["data"] |= {"held_out": judged, "validation": judged}
    recipe.write_text(yaml.safe_dump(document))
    for name, start in (("a", 300), ("b", 400)):
        write_rows(recipe.parent / f"{name}.jsonl", [chat_row(n) for n in range(start, start + 5)])
    # The prompt of a row that the plan has seen, and of one that only an epoch comes to, each with another answer.
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 4)
    asked = [{"prompt": pair(n)["prompt"], "completion": "None."} for n in (9, 0)]
    write_rows(recipe.parent / "b.jsonl", [*(pair(n) for n in range(400, 405)), *asked])
    outcome = run(context, recipe)
    events = context.runs.events(outcome.record.run_id)
    found = [event.loss_by_source for event in events if isinstance(event, ValidationDone)]
    assert found
    assert all(set(one) == {"a", "b"} for one in found)
    assert outcome.evaluation is not None
    assert [one.source for one in outcome.evaluation.by_source] == ["a", "b"]
    assert outcome.record.result is not None
    assert outcome.record.result.stream is not None
    assert outcome.record.result.stream.same_prompt == (10, 11)
    assert outcome.evaluation.verdict is not None
    assert "2 held-out rows ask the same as a training row" in str(outcome.evaluation.verdict)


def test_kto_has_a_partner_in_the_step_and_a_stored_reference_of_validation_rows(
    context: Context, make_recipe: MakeRecipe
) -> None:
    rows = [{"prompt": f"Is {n} even?", "completion": f"It is {n % 3}.", "label": n % 2 == 0} for n in range(24)]
    found = []
    for more in ({}, {"streaming": True}):
        recipe = same_rows(make_recipe, "kto", rows, validation="judged.jsonl", **more)
        write_rows(recipe.parent / "judged.jsonl", [row | {"prompt": f"And {row['prompt']}"} for row in rows[:4]])
        result = run(context, recipe).record.result
        assert result is not None
        assert result.best_validation_loss is not None
        found.append((result.train_loss, result.best_validation_loss))
    # Of the rows of a step the first alone has another partner than in memory.
    assert found[1] == pytest.approx(found[0], rel=5e-3)
