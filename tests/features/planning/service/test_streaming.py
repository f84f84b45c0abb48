"""Streamed training rows: pinned and sampled before a run, with settings refused that need all rows at once."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows
from tests.hub_server import COMMIT, Hub, serving
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, DataError, RecipeError
from luthier.core.plan import Plan
from luthier.core.records.monitoring import WatchSettings
from luthier.core.run import RunRecord
from luthier.features.monitoring import service as monitoring
from luthier.features.planning import streamed_rows
from luthier.features.planning.data_cache import make_room, names_held_by_runs
from luthier.features.planning.evaluation_plan import rows_of_run, sample_of_run
from luthier.features.planning.format import plan_lines
from luthier.features.planning.quotes import exact_batches
from luthier.features.planning.service import make_plan, prepare, prepare_again
from luthier.features.planning.training_data import TrainingDataLoader
from luthier.features.recipes.service import load_recipe
from luthier.features.workflows.retraining.rows import rows_of_run as rows_to_retrain
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
TRAINING: dict[str, Any] = {
    "max_steps": 3,
    "global_batch_size": 8,
    "learning_rate": 0.01,
    "precision": "float32",
    "num_threads": 1,
    "on_overlong": "drop",
}
JUDGED = {"metrics": ["perplexity"], "few_shot": 0}
DATA: dict[str, Any] = {"train": "train.jsonl", "streaming": True, "shuffle_buffer": 10}


def streamed(make_recipe: MakeRecipe, **data: Any) -> Path:
    return make_recipe(data=DATA | data, training=TRAINING, evaluation=JUDGED)


def planned(context: Context, recipe: Path, *overrides: str) -> Plan:
    return make_plan(context, load_recipe(recipe, overrides), base_dir=recipe.parent)


def test_a_plan_shows_what_the_first_rows_are(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    recipe = streamed(make_recipe)
    plan = planned(context, recipe)
    stream = plan.data.stream
    assert stream is not None
    assert (stream.num_sampled, stream.num_shards, stream.shuffle_buffer) == (10, 1, 10)
    assert stream.num_bytes == (recipe.parent / "train.jsonl").stat().st_size
    rows = stream.num_rows
    assert rows is not None
    assert 38 < rows.low < rows.high < 44, "forty rows, of which ten were read"
    assert abs(plan.data.train.num_rows - 40) <= 3
    assert plan.training.num_steps_per_epoch == -(-plan.data.train.num_examples // 8)
    # Wilson's interval of 0 of 10.
    assert stream.dropped_fraction.low == 0
    assert stream.dropped_fraction.high == pytest.approx(0.2775, abs=1e-4)
    text = "\n".join(plan_lines("", plan))
    assert "stream     1 file, shuffle buffer of 10 rows; about " in text
    assert "the first 10 rows were read for this plan; 0 of these dropped, so 0.0% to 27.8% of all" in text
    assert "source     train train: 1 file, streamed" in text
    read = planned(context, recipe, "data.streaming=false", "data.shuffle_buffer=")
    assert (read.data.stream, read.data.train.num_rows) == (None, 40)
    assert read.hash != plan.hash
    assert planned(context, recipe, "data.shuffle_buffer=11").hash != plan.hash
    assert planned(context, recipe).hash == plan.hash
    given = planned(context, recipe, "data.shuffle_buffer=", "training.batch_order=as_given").data.stream
    assert given is not None
    assert given.summary.startswith("1 file, in the given order; ")


def test_rows_that_were_all_read_are_counted_exactly(context: Context, make_recipe: MakeRecipe) -> None:
    plan = planned(context, streamed(make_recipe))
    assert plan.data.stream is not None
    assert plan.data.stream.num_rows == (40, 40)
    assert "40 rows; " in plan.data.stream.summary


def test_the_forecast_is_of_full_steps(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    recipe = streamed(make_recipe)
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    lengths = nonempty([row.num_tokens for row in prepared.train.tokenised])
    batches = exact_batches(prepared, micro_batch_tokens=2048)
    assert len(lengths) == 10
    assert 8 * min(lengths) <= batches.num_tokens <= 8 * max(lengths), "of ten rows the second step has two"
    stream = planned(context, recipe, "training.global_batch_size=16").data.stream
    assert stream is not None
    assert stream.num_sampled == 20


def test_rows_that_judge_are_left_out(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = streamed(make_recipe, validation="valid.jsonl", held_out="test.jsonl")
    judged = [chat_row(n) for n in (3, 5)]
    write_rows(recipe.parent / "test.jsonl", judged)
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    data = prepared.plan.data
    assert data.stream is not None
    assert (data.stream.num_left_out, data.num_leaked, len(prepared.train.examples)) == (2, 0, 38)
    assert "2 left out as validation or held-out rows" in data.stream.summary


@pytest.mark.parametrize(
    ("override", "came"),
    [
        ("data.validation=0.1", "data.validation as a fraction"),
        ("data.held_out=0.1", "data.held_out as a fraction"),
        ("data.subset=[0, 0.5]", "data.subset"),
        ("data.group_by=topic", "data.group_by"),
        ("data.replay.file=train.jsonl", "data.replay"),
        ("data.canaries=2", "data.canaries"),
        ("objective={name: distillation, teacher: other}", "objective distillation"),
        ("objective.name=pretraining", "objective pretraining"),
        ("objective={name: grpo, rewards: [{metric: exact_match}]}", "objective grpo"),
        ("training.epochs=2", "training.epochs"),
        ("training.batch_order=as_given", "data.shuffle_buffer with training.batch_order as_given"),
        ("training.on_overlong=error", "no training.on_overlong, or error,"),
    ],
)
def test_what_needs_all_rows_is_refused(context: Context, make_recipe: MakeRecipe, override: str, came: str) -> None:
    with pytest.raises(RecipeError, match=f"^{came} with data.streaming") as caught:
        planned(context, streamed(make_recipe), override)
    assert "remove data.streaming" in caught.value.do


def test_what_needs_all_rows_is_refused_of_rows_that_are_known(context: Context, make_recipe: MakeRecipe) -> None:
    recipe, data_loader = streamed(make_recipe), TrainingDataLoader()
    prepare(context, load_recipe(recipe), base_dir=recipe.parent, data_loader=data_loader)
    asked = load_recipe(recipe, ["training.epochs=2"])
    with pytest.raises(RecipeError, match=r"^training\.epochs with data\.streaming"):
        prepare(context, asked, base_dir=recipe.parent, data_loader=data_loader)


def test_a_stream_needs_a_number_of_steps(context: Context, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"without training\.max_steps") as caught:
        planned(context, streamed(make_recipe), "training.max_steps=")
    assert "an epoch has about 5 to 5 steps of 8 examples" in caught.value.expected
    with pytest.raises(RecipeError, match="shuffle_buffer with streaming: true alone"):
        load_recipe(streamed(make_recipe), ["data.streaming=false"])


def test_a_buffer_that_does_not_fit_is_refused_before_the_run(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update={"data_memory_bytes": 2000}))
    with pytest.raises(RecipeError, match="a shuffle buffer of 10 rows of about 3") as caught:
        planned(context, streamed(make_recipe))
    assert caught.value.expected.startswith("at most ")


def test_a_wrong_row_among_the_first_is_named(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = streamed(make_recipe)
    rows = [json.dumps(chat_row(n)) for n in range(9)]
    (recipe.parent / "train.jsonl").write_text("\n".join([*rows, "{", *rows]))
    with pytest.raises(DataError, match=r"row train\.jsonl:10 of a streamed source cannot be read: is not JSON"):
        planned(context, recipe)


def test_a_local_file_that_has_changed_is_refused_on_resume(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = streamed(make_recipe)
    plan = planned(context, recipe)
    assert prepare_again(context, plan).plan == plan
    write_rows(recipe.parent / "train.jsonl", [chat_row(n) for n in range(41)])
    with pytest.raises(ConflictError, match=r"train file \S*train\.jsonl has changed since the run began"):
        prepare_again(context, plan)


def test_sources_with_weights_and_columns_of_their_own(context: Context, make_recipe: MakeRecipe) -> None:
    columns = {"prompt": "question", "completion": "reply"}
    sources = [{"path": "train.jsonl", "weight": 1}, {"path": "faq.csv", "weight": 3, "columns": columns}]
    recipe = streamed(make_recipe, train=sources)
    (recipe.parent / "faq.csv").write_text("question,reply\n" + "".join(f"Colour {n}?,It is {n}.\n" for n in range(20)))
    plan = planned(context, recipe)
    assert plan.data.train.shape == "chat"
    assert [one.summary for one in plan.data.sources] == [
        "train: 1 file, streamed, weight 1", "faq: 1 file, streamed, weight 3",
    ]  # fmt: skip
    assert (
        planned(context, recipe, f"data.train={json.dumps([sources[0], sources[1] | {'weight': 2}])}").hash != plan.hash
    )
    (recipe.parent / "faq.jsonl").write_text('{"text": "plain"}\n')
    with pytest.raises(DataError, match="sources of shapes that cannot be mixed: train chat, faq text"):
        planned(context, recipe, "data.train=[{path: train.jsonl}, {path: faq.jsonl}]")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        f"train-{place}.jsonl": b"".join(json.dumps(chat_row(n)).encode() + b"\n" for n in range(start, start + 20))
        for place, start in enumerate((0, 20, 40))
    }
    served = Hub(files, repo="org/talks", kind="dataset")
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


def test_a_dataset_of_the_hub_is_planned_before_it_is_downloaded(
    context: Context, make_recipe: MakeRecipe, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    recipe = streamed(make_recipe, train="hub:org/talks")
    plan = planned(context, recipe)
    assert [path.rpartition("/")[2] for path, _ in hub.requests if "/resolve/" in path] == ["train-0.jsonl"]
    (source,) = plan.data.sources
    assert (source.revision, len(source.files), plan.data.train.file) == (COMMIT, 3, "talks")
    assert source.summary == f"talks (hub:org/talks): 3 files, streamed, {COMMIT}"
    # The hub moves on: the run goes on with the rows of its commit, also on a machine without the cache.
    before = dict(hub.files)
    hub.files, hub.commit = {name: content[::-1] for name, content in before.items()}, "f" * 40
    assert prepare_again(context, plan).plan == plan
    shutil.rmtree(context.settings.remote_data_folder)
    hub.files, hub.commit = before, COMMIT
    assert prepare_again(context, plan).plan == plan


def test_shards_without_a_byte_are_passed_over(context: Context, make_recipe: MakeRecipe, hub: Hub) -> None:
    hub.files = {f"{name}.gz": gzip.compress(content) for name, content in hub.files.items()}
    hub.files |= {"train-3.jsonl.gz": gzip.compress(b""), "train-4.jsonl.gz": b""}
    plan = planned(context, streamed(make_recipe, train="hub:org/talks"))
    assert plan.data.stream is not None
    assert (plan.data.stream.num_shards, plan.data.stream.num_rows) == (5, (60, 60))


def record_of(run_id: str, plan: Plan, status: str = "paused") -> RunRecord:
    return RunRecord(
        run_id=run_id,
        status=status,
        base_model="tiny",
        method="lora",
        plan_hash=plan.hash,
        created_at="2026-11-30T00:00:00+00:00",
        updated_at="2026-11-30T00:00:00+00:00",
        num_steps=1,
    )


def test_held_out_rows_are_compared_with_all_streamed_rows(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    recipe = streamed(make_recipe, train=[{"path": "train.jsonl"}, {"path": "more.jsonl"}], held_out="test.jsonl")
    write_rows(recipe.parent / "more.jsonl", [chat_row(n) for n in range(300, 305)])
    write_rows(recipe.parent / "test.jsonl", [chat_row(39), chat_row(304)])
    plan = planned(context, recipe)
    run_id = "run-20261130-000000-aaaaaa"
    context.runs.create(record_of(run_id, plan), plan, "default")
    lines = [example.id for example in rows_of_run(context, run_id)]
    assert lines == [f"train.jsonl:{n}" for n in range(1, 40)] + [f"more.jsonl:{n}" for n in range(1, 5)]
    # Each check of a monitored deployment needs a sample, and must not read the whole stream.
    profile = monitoring._profile(sample_of_run(context, run_id))
    assert 0 < len(profile.prompts) < 20
    with monkeypatch.context() as patched:
        patched.setattr(monitoring, "_run_behind", lambda *_: run_id)
        patched.setattr(monitoring, "_PROFILES", {})
        patched.setattr(streamed_rows.StreamedRows, "all_examples", lambda *_: pytest.fail("all rows are read"))
        drawn = monitoring.training_profile(context, "default", "talks", WatchSettings())
    assert drawn is not None
    assert list(drawn.prompts) == list(profile.prompts)
    write_rows(recipe.parent / "more.jsonl", [chat_row(300)])
    with pytest.raises(ConflictError, match=f"streamed training rows of run {run_id} have changed"):
        rows_of_run(context, run_id)
    (recipe.parent / "more.jsonl").unlink()
    with pytest.raises(ConflictError, match=r"cannot be read again: .*more"):
        rows_of_run(context, run_id)
    with pytest.raises(ConflictError, match=r"cannot be read again: .*more"):
        sample_of_run(context, run_id)
    with pytest.raises(ConflictError, match="was trained on streamed rows, which are not kept"):
        rows_to_retrain(context, plan)


def test_a_row_that_no_step_has_come_to_hides_none_that_were_trained(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    recipe = streamed(make_recipe)
    rows = [*(chat_row(n) for n in range(20)), {"question": "Why?"}, chat_row(21)]
    write_rows(recipe.parent / "train.jsonl", rows)
    plan, run_id = planned(context, recipe), "run-20261130-000000-cccccc"
    context.runs.create(record_of(run_id, plan), plan, "default")
    lines = [int(example.id.rpartition(":")[2]) for example in rows_of_run(context, run_id)]
    assert lines == [*range(1, 21), 22]


def test_a_shard_that_cannot_be_fetched_again_is_named(
    context: Context, make_recipe: MakeRecipe, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    plan, run_id = planned(context, streamed(make_recipe, train="hub:org/talks")), "run-20261130-000000-dddddd"
    context.runs.create(record_of(run_id, plan), plan, "default")
    hub.status["train-2.jsonl"] = 403
    with pytest.raises(ConflictError, match=f"the training rows of run {run_id} cannot be read again: "):
        rows_of_run(context, run_id)


def test_the_cache_keeps_what_a_run_needs_and_removes_what_was_used_longest_ago(
    context: Context, make_recipe: MakeRecipe, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {"streaming": False, "shuffle_buffer": None}
    recipe = streamed(make_recipe, train="hub:org/talks", **read)
    plan = planned(context, recipe)
    run_id = "run-20261130-000000-bbbbbb"
    context.runs.create(record_of(run_id, plan), plan, "default")
    held = names_held_by_runs(context)
    assert {file.sha256 for file in plan.data.sources[0].files} <= held
    files, mixtures = context.settings.remote_data_folder / "files", context.settings.mixtures_folder
    other = files / ("0" * 64) / "old.jsonl"
    other.parent.mkdir()
    other.write_bytes(b"x")
    long_ago = time.time() - 10 * 3600
    for path in nonempty([*files.rglob("*.jsonl"), *mixtures.rglob("*.*")]):
        os.utime(path, (long_ago, long_ago))
    none = {"remote_data_cache_bytes": 0, "mixtures_cache_bytes": 0}
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update=none))
    newest = files / ("1" * 64) / "new.jsonl"
    newest.parent.mkdir()
    newest.write_bytes(b"x")
    assert [one.path for one in make_room(context, newest)] == [other.parent]
    assert make_room(context, newest=mixtures / "none" / "rows.jsonl") == []
    assert make_room(context, newest=Path("elsewhere")) == []
    context.runs.update(run_id, status="succeeded")
    assert len(make_room(context, newest)) == 3
    assert len(make_room(context, newest=mixtures / "none" / "rows.jsonl")) == 1


def test_a_run_that_is_deleted_meanwhile_holds_nothing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(context.runs), "unfinished", lambda _: ("run-20261130-000000-cccccc",))
    assert names_held_by_runs(context) == frozenset()
