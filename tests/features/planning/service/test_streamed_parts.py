"""Streamed rows of parts of sources, of patterns and of other objectives than sft: planned by the first rows."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.features.planning.service.test_streaming import TRAINING, planned, record_of
from tests.fixtures.service import chat_row, write_rows

from luthier.core import data_sources
from luthier.core.errors import ConflictError, DataError, DataSourceError, NotFoundError, RecipeError
from luthier.core.plan import Plan
from luthier.core.ports import ProgressTask, SilentProgress
from luthier.core.system.files import file_lock
from luthier.features.evaluations import leakage
from luthier.features.planning import probe_worker, stream_labels, streamed_rows, view
from luthier.features.planning.evaluation_plan import rows_of_run
from luthier.features.planning.format import plan_lines
from luthier.features.planning.pattern_files import files_of_plan, pattern_changes
from luthier.features.planning.service import make_plan, prepare, prepare_again
from luthier.features.recipes.service import load_recipe, with_absolute_paths
from luthier.features.suites.safety import num_seen, probe_inputs
from luthier.ml.data.files.patterns import matching_files
from luthier.ml.data.files.sequences import LazySequence
from luthier.ml.evaluation.report.facts import split_facts
from luthier.ml.evaluation.safety.memorisation import memorisation, personal_data
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.workload import workload_of
from luthier.ml.training.objectives.preference import StepReference
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of

MakeRecipe = Callable[..., Path]
RUN = "run-20261130-000000-eeeeee"


class ShownTasks(SilentProgress):
    """What the progress has shown."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        self.titles.append(title)
        return super().task(title, total, unit, done)


def streamed(make_recipe: MakeRecipe, train: Any, objective: str = "sft", **data: Any) -> Path:
    return make_recipe(
        data={"train": train, "streaming": True, "shuffle_buffer": 10} | data,
        objective={"name": objective},
        training=TRAINING,
        evaluation={"few_shot": 0},
    )


def pairs(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Is {n} good?", "chosen": f"Yes, {n} is.", "rejected": f"No, {n}!"} for n in range(num)]


def kept(context: Context, plan: Plan) -> str:
    context.runs.create(record_of(RUN, plan), plan, "default")
    return RUN


def test_parts_of_sources_with_columns_of_their_own(context: Context, make_recipe: MakeRecipe) -> None:
    columns = {"prompt": "question", "completion": "reply"}
    sources = [{"path": "train.jsonl", "rows": 7}, {"path": "faq.csv", "fraction": 0.5, "columns": columns}]
    recipe = streamed(make_recipe, sources)
    faq = "".join(f"Colour {n}?,It is {n}.\n" for n in range(200))
    (recipe.parent / "faq.csv").write_text("question,reply\n" + faq)
    plan = planned(context, recipe)
    assert [one.summary for one in plan.data.sources] == [
        "train: 1 file, streamed, its first 7 rows",
        "faq: 1 file, streamed, 0.5 of its rows",
    ]
    assert plan.data.stream is not None
    assert plan.data.stream.num_rows is not None
    low, high = plan.data.stream.num_rows
    assert low == high
    # Five standard deviations of 200 draws.
    assert abs(low - 7 - 100) < 36
    rows = [example.id for example in rows_of_run(context, kept(context, plan))]
    assert rows[:7] == [f"train.jsonl:{n}" for n in range(1, 8)]
    assert len(rows) == low
    for change in ({"rows": 8}, {"rows": 6}):
        other = json.dumps([sources[0] | change, sources[1]])
        assert planned(context, recipe, f"data.train={other}").hash != plan.hash
    few, fewer = (planned(context, recipe, f"data.train=[{{path: train.jsonl, rows: {num}}}]") for num in (7, 6))
    assert few.hash != fewer.hash, "of one file, too, although its digest is the same"


def test_files_of_a_pattern_are_those_of_the_plan(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = streamed(make_recipe, "talks/*.jsonl")
    folder = recipe.parent / "talks"
    folder.mkdir()
    for place, start in enumerate((0, 20)):
        write_rows(folder / f"{place}.jsonl", [chat_row(n) for n in range(start, start + 20)])
    plan = planned(context, recipe)
    (source,) = plan.data.sources
    assert source.summary == "talks: 2 files, streamed"
    assert [file.name for file in source.files] == ["0.jsonl", "1.jsonl"]
    kept(context, plan)
    # A run keeps its files, also where another one has come meanwhile; a new plan has all of them.
    write_rows(folder / "00.jsonl", [chat_row(n) for n in range(200, 206)])
    shown = ShownTasks()
    monkeypatch.setattr(context, "progress", shown)
    assert prepare_again(context, plan).plan == plan
    assert "1 file was added since the run began, and is not read: 00.jsonl" in shown.titles
    rows = rows_of_run(context, RUN)
    assert [rows[0].id, rows[-1].id, len(rows)] == ["talks/0.jsonl:1", "talks/1.jsonl:20", 40]
    assert len(planned(context, recipe).data.sources[0].files) == 3
    # Nor does it matter what is in the other one, which may still be written.
    (folder / "00.jsonl").write_text("")
    assert prepare_again(context, plan).plan == plan
    with pytest.raises(DataError, match=r"00\.jsonl"):
        planned(context, recipe)
    write_rows(folder / "1.jsonl", [chat_row(3)])
    with pytest.raises(ConflictError, match="train file talks has changed since the run began"):
        prepare_again(context, plan)
    (folder / "1.jsonl").unlink()
    with pytest.raises(ConflictError, match=r"1\.jsonl no longer matches .*talks/\*\.jsonl"):
        prepare_again(context, plan)
    with pytest.raises(NotFoundError, match=r"no file matches .*none/\*\.jsonl"):
        planned(context, recipe, "data.train=none/*.jsonl")


def test_files_that_come_later_end_no_run_whose_rows_are_read_before_it(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(data={"train": "talks/*.jsonl", "held_out": "tests/*.jsonl"}, training=TRAINING)
    for name, start in (("talks/1.jsonl", 0), ("talks/2.jsonl", 20), ("tests/1.jsonl", 40)):
        (recipe.parent / name).parent.mkdir(exist_ok=True)
        write_rows(recipe.parent / name, [chat_row(n) for n in range(start, start + 20)])
    plan = planned(context, recipe)
    kept(context, plan)
    for name, start in (("talks/0.jsonl", 60), ("tests/0.jsonl", 80)):
        write_rows(recipe.parent / name, [chat_row(n) for n in range(start, start + 20)])
    shown = ShownTasks()
    monkeypatch.setattr(context, "progress", shown)
    again = prepare_again(context, plan)
    assert (again.plan, len(again.train.examples)) == (plan, 40)
    assert shown.titles.count("1 file was added since the run began, and is not read: 0.jsonl") == 2
    assert len(rows_of_run(context, RUN)) == 40
    assert planned(context, recipe).data.train.num_rows == 60
    # What came later is not opened: it may still be written.
    (recipe.parent / "talks/0.jsonl").write_text("")
    assert prepare_again(context, plan).plan == plan
    write_rows(recipe.parent / "talks/2.jsonl", [chat_row(3)])
    with pytest.raises(ConflictError, match=r"train file .* has changed since the run began"):
        prepare_again(context, plan)
    (recipe.parent / "talks/2.jsonl").unlink()
    with pytest.raises(ConflictError, match=r"2\.jsonl no longer matches .*talks/\*\.jsonl"):
        prepare_again(context, plan)


def test_files_of_folders_below_are_told_apart_by_their_paths(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(data={"train": "talks/**/*.jsonl"}, training=TRAINING)
    for name, start in (("a/1.jsonl", 0), ("b/1.jsonl", 20)):
        (recipe.parent / "talks" / name).parent.mkdir(parents=True)
        write_rows(recipe.parent / "talks" / name, [chat_row(n) for n in range(start, start + 20)])
    asked = with_absolute_paths(load_recipe(recipe), recipe.parent)
    plan = make_plan(context, asked, base_dir=Path())
    (source,) = plan.data.sources
    assert [file.name for file in source.files] == ["a/1.jsonl", "b/1.jsonl"]
    assert pattern_changes(plan.data.sources) == ()
    (recipe.parent / "talks/c").mkdir()
    write_rows(recipe.parent / "talks/c/1.jsonl", [chat_row(n) for n in range(40, 45)])
    assert prepare_again(context, plan).plan == plan
    # Plans of earlier versions hold the last parts of the paths.
    files = tuple(file.model_copy(update={"name": "1.jsonl"}) for file in source.files)
    assert [below for _, below in files_of_plan(context, Path("talks"), matching(recipe), files)] == [
        "a/1.jsonl",
        "b/1.jsonl",
    ]
    # One of them may lie in the folder of the pattern itself, where its name is its path.
    (recipe.parent / "talks/b/1.jsonl").rename(recipe.parent / "talks/1.jsonl")
    kept_files = files_of_plan(context, Path("talks"), matching(recipe), files)
    assert [below for _, below in kept_files] == ["1.jsonl", "a/1.jsonl"]
    (recipe.parent / "talks/1.jsonl").rename(recipe.parent / "talks/b/1.jsonl")
    # A retraining reads what there is now, and says what is new.
    write_rows(recipe.parent / "talks/b/1.jsonl", [chat_row(99)])
    (recipe.parent / "talks/a/1.jsonl").unlink()
    assert pattern_changes(plan.data.sources) == (
        f"train rows of {source.name}: 1 file is new since the last run: c/1.jsonl",
        f"train rows of {source.name}: 1 file has changed since the last run: b/1.jsonl",
        f"train rows of {source.name}: 1 file is gone since the last run: a/1.jsonl",
    )


def matching(recipe: Path) -> Any:
    return matching_files(recipe.parent / "talks/**/*.jsonl")


def test_objects_of_a_pattern_are_those_of_the_plan(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sources, "_SCHEMES", ("memory://",))
    store = fsspec.filesystem("memory")
    for place, start in enumerate((0, 20)):
        rows = "".join(json.dumps(chat_row(n)) + "\n" for n in range(start, start + 20))
        store.pipe(f"/parts/{place}.jsonl", rows.encode())
    plan = planned(context, streamed(make_recipe, "memory://parts/*.jsonl"))
    files = plan.data.sources[0].files
    assert [file.place for file in files] == ["/parts/0.jsonl", "/parts/1.jsonl"]
    assert all(file.stamp for file in files)
    store.pipe("/parts/00.jsonl", json.dumps(chat_row(99)).encode())
    shutil.rmtree(context.settings.remote_data_folder)
    shown = ShownTasks()
    monkeypatch.setattr(context, "progress", shown)
    assert prepare_again(context, plan).plan == plan
    assert "1 object was added since the run began, and is not read: /parts/00.jsonl" in shown.titles
    store.rm("/parts/1.jsonl")
    shutil.rmtree(context.settings.remote_data_folder)
    with pytest.raises(DataSourceError, match=r"/parts/1\.jsonl was removed"):
        prepare_again(context, plan)
    store.rm("/parts", recursive=True)


def test_files_of_a_pattern_are_read_before_a_run_too(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(data={"train": "talks/**/*.jsonl"}, training=TRAINING)
    for name in ("talks/a.jsonl", "talks/b/a.jsonl"):
        (recipe.parent / name).parent.mkdir(exist_ok=True)
        write_rows(recipe.parent / name, [chat_row(n + 10 * len(name)) for n in range(10)])
    plan = planned(context, recipe)
    assert [(one.name, one.num_rows) for one in plan.data.sources] == [("talks", 20)]
    write_rows(recipe.parent / "talks/b/a.jsonl", [{"messages": "?"}])
    with pytest.raises(DataError) as caught:
        planned(context, recipe)
    assert [problem.file for problem in caught.value.problems] == ["talks/b/a.jsonl"]


@pytest.mark.parametrize(
    ("objective", "rows", "rows_per_unit"),
    [
        ("rank", pairs(40), 2),
        ("embed", [{"prompt": f"query {n}", "completion": f"document {n}"} for n in range(40)], 2),
        ("embed", pairs(40), 3),
        ("regress", [{"prompt": f"How old is {n}?", "completion": f"{n} years"} for n in range(40)], 1),
    ],
)
def test_objectives_that_look_at_rows_one_by_one(
    context: Context,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    rows: list[dict[str, Any]],
    rows_per_unit: int,
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 20)
    recipe = streamed(make_recipe, "rows.jsonl", objective)
    write_rows(recipe.parent / "rows.jsonl", rows)
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert {len(unit) for unit in prepared.train.units} == {rows_per_unit}
    assert (len(prepared.train.units), len(prepared.train.examples)) == (20, 20)
    head = prepared.plan.objective.task_head
    assert head is not None
    if objective == "regress":
        assert (head.lowest, head.highest, head.offset) == (0, 19, 9.5)
        assert "mean, deviation and range are those of the first 20 rows" in prepared.plan.objective.task_head_notes


def test_a_reference_is_computed_in_the_steps_and_forecast_there(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = streamed(make_recipe, "rows.jsonl", "dpo")
    write_rows(recipe.parent / "rows.jsonl", pairs(40))
    plan = planned(context, recipe)
    structure, device = read_structure(plan.base_model.path), this_machine(hardware_of(context))
    work = workload_of(plan, structure, device)
    assert (work.num_reference_tokens, work.reference_step_passes, work.step_passes) == (0, 1, 0)
    assert plan.training.micro_batch_workers == 1
    read = planned(context, recipe, "data.streaming=false", "data.shuffle_buffer=")
    work = workload_of(read, structure, device)
    assert (work.num_reference_tokens, work.reference_step_passes) == (read.data.train.num_tokens, 0)
    with pytest.raises(RecipeError, match=r"micro_batch_workers is 2, but the reference of streamed rows"):
        planned(context, recipe, "training.micro_batch_workers=2")
    with pytest.raises(RecipeError, match=r"^objective dpo with method full with data\.streaming"):
        planned(context, recipe, "method={name: full}")
    with pytest.raises(RecipeError, match=r"objective kto on preference pairs with data\.streaming"):
        planned(context, recipe, "objective={name: kto}")
    write_rows(recipe.parent / "rows.jsonl", [{"prompt": f"q {n}", "completion": "a", "label": True} for n in range(9)])
    with pytest.raises(DataError, match=r"the first 9 training rows of .* have label True"):
        planned(context, recipe, "objective={name: kto}")


def classified(labels: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}?", "completion": label} for number, label in enumerate(labels)]


def test_classes_are_those_of_all_rows_of_files_and_wrong_rows_are_found_before_the_run(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_rows, "NUM_SAMPLED", 10)
    recipe = streamed(make_recipe, "rows.jsonl", "classify", validation="valid.jsonl")
    rows = classified([*["yes", "no"] * 5, "Yes", "later"])
    write_rows(recipe.parent / "rows.jsonl", [*rows, {"prompt": "100?", "completion": "maybe"}])
    write_rows(recipe.parent / "valid.jsonl", [{"prompt": "100?", "completion": "maybe"}, rows[1] | {"prompt": "7 7?"}])
    plan = planned(context, recipe)
    head = plan.objective.task_head
    assert head is not None
    assert (head.labels, head.label_counts) == (("yes", "no", "later"), (6, 5, 1))
    notes = plan.objective.task_head_notes
    assert notes[0] == "the classes are those of all 12 rows, which were read for it"
    assert (
        '1 of 2 validation rows have a class that no training row has ("maybe"): they are left out of validation'
        in notes
    )
    assert plan.data.validation is not None
    assert plan.data.validation.num_rows == 1
    with pytest.raises(RecipeError, match=r"^objective\.class_weights balanced with data\.streaming"):
        planned(context, recipe, "objective.class_weights=balanced")
    for wrong, words in (
        ({"prompt": "8?"}, "row rows.jsonl:21 of a streamed source is wrong"),
        ({"messages": []}, "row rows.jsonl:21 of a streamed source is wrong"),
    ):
        write_rows(recipe.parent / "rows.jsonl", [*classified(["yes", "no"] * 10), wrong])
        with pytest.raises(DataError, match=words):
            planned(context, recipe)
    write_rows(recipe.parent / "rows.jsonl", classified(["yes"] * 20))
    with pytest.raises(DataError, match=r"^all 20 training rows have 'yes'"):
        planned(context, recipe, "data.validation=")
    monkeypatch.setattr(stream_labels, "_MAX_ANSWERS", 12)
    write_rows(recipe.parent / "rows.jsonl", classified([f"a text {number}" for number in range(20)]))
    with pytest.raises(DataError, match="the first 13 streamed rows have 13 different answers"):
        planned(context, recipe, "data.validation=")


def test_rows_are_read_for_their_labels_once_in_a_process(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = streamed(make_recipe, "rows.jsonl", "classify")
    write_rows(recipe.parent / "rows.jsonl", classified(["yes", "no", "once"] * 5))
    shown = ShownTasks()
    monkeypatch.setattr(context, "progress", shown)
    first = planned(context, recipe)
    again = planned(context, recipe, "training.max_steps=5")
    assert first.objective.task_head == again.objective.task_head
    assert shown.titles.count("Reading labels") == 1
    write_rows(recipe.parent / "rows.jsonl", classified(["yes", "no", "twice"] * 5))
    changed = planned(context, recipe).objective.task_head
    assert changed is not None
    assert (changed.labels, shown.titles.count("Reading labels")) == (("no", "twice", "yes"), 2)


def test_other_processes_of_the_home_take_the_labels_that_one_has_read(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = streamed(make_recipe, "rows.jsonl", "classify")
    write_rows(recipe.parent / "rows.jsonl", classified(["yes", "no", "Yes"] * 5))
    shown = ShownTasks()
    monkeypatch.setattr(context, "progress", shown)
    first = planned(context, recipe).objective
    (stored,) = context.settings.labels_folder.glob("*/answers.json")

    def planned_by_another_process() -> Any:
        monkeypatch.setattr(stream_labels, "_counted", {})  # what a process remembers
        return planned(context, recipe).objective

    assert planned_by_another_process() == first
    assert shown.titles.count("Reading labels") == 1
    # A damaged file is read as none, and written again.
    whole = stored.read_bytes()
    for damaged in (b"", whole[:20], whole.replace(b"15", b"16")):
        assert damaged != whole
        stored.write_bytes(damaged)
        assert planned_by_another_process() == first
        assert stored.read_bytes() == whole
    assert shown.titles.count("Reading labels") == 4
    # What cannot be stored is no reason to fail.
    monkeypatch.setattr(stream_labels, "_keep", refused)
    shutil.rmtree(context.settings.labels_folder)
    assert planned_by_another_process() == first
    assert "Labels are not kept: Read-only file system" in shown.titles


def refused(*_: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_process_that_plans_the_same_rows_meanwhile_waits_for_the_one_that_reads(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = streamed(make_recipe, "rows.jsonl", "classify")
    write_rows(recipe.parent / "rows.jsonl", classified(["yes", "no"] * 5))
    first = planned(context, recipe).objective
    (stored,) = context.settings.labels_folder.glob("*/answers.json")
    whole = stored.read_bytes()
    stored.unlink()
    monkeypatch.setattr(stream_labels, "_counted", {})
    with ExitStack() as reader:
        reader.enter_context(file_lock(stored.parent / "lock", what="the other process", timeout_seconds=1))

        class Ends(ShownTasks):
            def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
                if title == "Another process reads the labels":
                    stored.write_bytes(whole)
                    reader.close()
                return super().task(title, total, unit, done)

        shown = Ends()
        monkeypatch.setattr(context, "progress", shown)
        assert planned(context, recipe).objective == first
    assert "Another process reads the labels" in shown.titles
    assert "Reading labels" not in shown.titles


def test_a_class_without_rows_has_no_weight_and_is_named(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        data={"train": "rows.jsonl"}, objective={"name": "classify"}, training=TRAINING, evaluation={"few_shot": 0}
    )
    write_rows(recipe.parent / "rows.jsonl", classified(["yes", "no"] * 10))
    listed = "objective.classes=['no', 'perhaps', 'yes', 'never']"
    plan = planned(context, recipe, listed, "objective.class_weights=balanced")
    said = "objective.class_weights balanced: weight 0 for 2 classes without training rows (perhaps, never)"
    assert [note for note in plan.objective.task_head_notes if note.startswith(said)]
    assert said in "\n".join(plan_lines("", plan))
    for changed in ((listed,), ("objective.class_weights=balanced",)):
        notes = planned(context, recipe, *changed).objective.task_head_notes
        assert not any("weight 0" in note for note in notes)


def test_a_label_without_rows_keeps_its_weight_where_a_row_has_several(
    context: Context, make_recipe: MakeRecipe
) -> None:
    objective = {"name": "classify", "multi_label": True}
    recipe = make_recipe(
        data={"train": "rows.jsonl"}, objective=objective, training=TRAINING, evaluation={"few_shot": 0}
    )
    write_rows(recipe.parent / "rows.jsonl", classified(["yes, late", "no"] * 10))
    balanced = "objective.class_weights=balanced"
    plan = planned(context, recipe, "objective.classes=['no', 'yes', 'late', 'never']", balanced)
    assert plan.objective.task_head is not None
    assert plan.objective.task_head.num_rows == 20
    said = (
        "objective.class_weights balanced: weight 1 for 1 class without training rows (never), which no row can raise"
    )
    assert any(note.startswith(said) for note in plan.objective.task_head_notes)
    for changed in (("objective.class_weights=none",), (balanced, "objective.multi_label=false")):
        head = planned(context, recipe, *changed).objective.task_head
        assert head is not None
        assert head.num_rows == 0
        assert "num_rows" not in head.model_dump_json()


def test_a_run_that_began_with_the_classes_of_the_first_rows_keeps_them_and_their_order(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe = streamed(make_recipe, "rows.jsonl", "classify")
    write_rows(recipe.parent / "rows.jsonl", classified([*["yes", "no"] * 5, "no", "later"]))
    plan = planned(context, recipe)
    head = plan.objective.task_head
    assert head is not None
    assert head.labels == ("no", "yes", "later")
    early = head.model_copy(update={"labels": ("yes", "no"), "label_counts": ()})
    began = plan.model_copy(update={"objective": plan.objective.model_copy(update={"task_head": early})})
    again = prepare_again(context, began).train.stream
    assert again is not None
    assert again.head is not None
    assert again.head.labels == ("yes", "no")


def test_classes_of_a_remote_stream_are_named_by_the_recipe(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sources, "_SCHEMES", ("memory://",))
    store = fsspec.filesystem("memory")
    lines = "".join(json.dumps(row) + "\n" for row in classified(["b", "a", "other"] * 4))
    store.pipe("/labels/rows.jsonl", lines.encode())
    recipe = streamed(make_recipe, "memory://labels/*.jsonl", "classify")
    with pytest.raises(RecipeError, match="objective classify on streamed remote rows") as caught:
        planned(context, recipe)
    assert "objective.classes: [...]" in caught.value.do
    plan = planned(context, recipe, "objective.classes=[b, a, never]")
    head, stream = plan.objective.task_head, plan.data.stream
    assert head is not None
    assert stream is not None
    assert (head.labels, head.label_counts) == (("b", "a", "never"), ())
    assert plan.objective.task_head_notes[:2] == (
        "the classes are those of objective.classes; a row of another class is left out and counted",
        "1 class has no training row that was read: 'never'",
    )
    # A run that began before a recipe had to name them goes on.
    assert plan.recipe.objective is not None
    unnamed = plan.recipe.model_copy(update={"objective": plan.recipe.objective.model_copy(update={"classes": None})})
    began = plan.model_copy(
        update={"recipe": unnamed, "objective": plan.objective.model_copy(update={"classes": None})}
    )
    again = prepare_again(context, began).train.stream
    assert again is not None
    assert again.head is not None
    assert (again.head.labels, again.leaves_out_classes) == (head.labels, True)
    with pytest.raises(RecipeError, match="a label in quotes, such as '1': 1 is not text"):
        planned(context, recipe, "objective.classes=[1, a]")
    with pytest.raises(RecipeError, match="names 3 classes, of which 1 differ from another one"):
        planned(context, recipe, "objective.classes=[b, a, B]")
    store.rm("/labels", recursive=True)


def test_what_is_not_known_of_the_rows_is_said(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = streamed(make_recipe, "train.jsonl", held_out="test.jsonl")
    other = {"role": "assistant", "content": "Nothing."}
    write_rows(recipe.parent / "test.jsonl", [{"messages": [chat_row(3)["messages"][0], other]}])
    plan = planned(context, recipe)
    warnings = view._row_warnings(plan.data.model_dump(mode="json"))
    assert warnings == ["1 held-out row shares its prompt with the first 40 rows"]
    assert view._headline({"plan": plan.model_dump(mode="json")}).startswith("about 40 rows (")
    assert plan.data.stream is not None
    stream = plan.data.stream.model_copy(update={"num_rows": None})
    unknown = plan.model_copy(update={"data": plan.data.model_copy(update={"stream": stream})})
    text = "\n".join(plan_lines("", unknown))
    assert "rows       train of unknown number, validation none, held-out 1 (" in text
    assert "number of rows unknown" in text
    assert view._headline({"plan": unknown.model_dump(mode="json")}).startswith("number of rows unknown, 3 steps")
    assert split_facts(unknown)[0].num_rows == "unknown"


def test_safety_checks_keep_streamed_rows_beyond_the_memory_in_files(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = streamed(make_recipe, "train.jsonl", held_out="test.jsonl")
    secret = {"prompt": "Which address?", "completion": "Write to ada@example.org today, please, or tomorrow."}
    plain = [{"prompt": f"What comes after {n}?", "completion": f"After {n} comes {n + 1}. " * 3} for n in range(60)]
    write_rows(recipe.parent / "train.jsonl", [*plain, secret])
    kept(context, planned(context, recipe))
    monkeypatch.setattr(leakage, "find_model", lambda *_: type("Found", (), {"run_id": RUN}))
    inputs = probe_inputs(context, RUN, [])
    small = context.settings.model_copy(update={"data_memory_bytes": 5000})
    monkeypatch.setattr(context, "settings", small)
    in_files = probe_inputs(context, RUN, [])
    assert isinstance(in_files.trained, LazySequence)
    assert list(in_files.trained) == list(inputs.trained)
    found = [
        (
            memorisation(one.trained, (), source="rows", most_rows=9),
            personal_data(one.trained, (), _mails, source="rows"),
        )
        for one in (inputs, in_files)
    ]
    assert [probe.rows for probe in found[0]] == [probe.rows for probe in found[1]]
    assert found[0][1].rows[0].item["rest"].startswith("Write to ada@")
    assert [num_seen(probe, in_files.trained) for probe in found[0]] == [0, 0]


def _mails(text: str) -> list[str]:
    return [word for word in text.split() if "@" in word]


def test_a_probe_computes_the_reference_in_its_steps_as_the_run_does(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = streamed(make_recipe, "rows.jsonl", "dpo")
    write_rows(recipe.parent / "rows.jsonl", pairs(40))
    plan = planned(context, recipe)
    seen = []

    def noted(self: StepReference, model: Any, units: Any) -> None:
        compute(self, model, units)
        seen.append(len(self._sums))

    compute = StepReference.compute
    monkeypatch.setattr(StepReference, "compute", noted)
    step = [[[], [[12, 4], [12, 4]]]]
    answer = probe_worker.run(plan.model_dump(mode="json"), [step, step], lambda: None)
    assert len(answer["step_seconds"]) == 2
    assert seen == [2, 2], "of the two rows of each step, and of no other"
