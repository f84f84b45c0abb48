"""Which models saw a row, and what forgets it: by runs whose files are real and whose training is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.access import Caller
from luthier.core.dataset import DatasetProfile
from luthier.core.errors import ConflictError, RequestError
from luthier.core.ids import sha256_file
from luthier.core.plan import TeacherPlan
from luthier.core.recipe import DataRecipe
from luthier.core.records.traffic import Feedback
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.remote_imports import imported_version
from luthier.features.deployments import service as deployments
from luthier.features.lineage import forget
from luthier.features.lineage.forget import forget_row
from luthier.features.lineage.rows import row_lineage
from luthier.features.lineage.service import model_lineage
from luthier.platform.audit_log import service as audit_log
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_record, make_result

ME = Caller()
SECRET = "Ann Example lives at 4 Mill Lane"


def with_answer(text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": text}]
    return {"messages": messages} | more


def profile(split: Any, path: Path, dropped: tuple[str, ...] = ()) -> DatasetProfile:
    return make_plan().data.train.model_copy(
        update={"split": split, "file": str(path), "sha256": sha256_file(path), "dropped_ids": dropped}
    )


def add(context: Context, letter: str, train: Path, held_out: Path | None = None, **changes: Any) -> str:
    """A run that has used these files; returns its id."""
    run_id = f"run-20261126-093000-{letter * 6}"
    folder = context.settings.run_folder(run_id) / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    plan = make_plan()
    held = None if held_out is None else profile("held_out", held_out)
    data = plan.data.model_copy(update={"train": profile("train", train), "validation": None, "held_out": held})
    plan = plan.model_copy(update={"data": data} | changes)
    result = make_result().model_copy(update={"status": "succeeded", "adapter_path": str(folder)})
    context.runs.create(make_record(run_id, status="succeeded", result=result), plan)
    return run_id


def test_who_learned_it_who_was_judged_by_it_and_who_neither(context: Context, tmp_path: Path) -> None:
    with_it = write_rows(tmp_path / "with.jsonl", [chat_row(1), with_answer(f"  {SECRET.upper()}! ")])
    without = write_rows(tmp_path / "without.jsonl", [chat_row(2)])
    learned = add(context, "a", with_it)
    judged = add(context, "b", without, with_it)
    add(context, "c", without)
    deployments.deploy(context, ME, "support", learned)
    deployments.deploy(context, ME, "support", judged)
    found = row_lineage(context, ME, SECRET)
    assert [(one.run_id, one.learned, one.splits) for one in found.saw] == [
        (learned, True, ("train",)),
        (judged, False, ("held_out",)),
    ]
    assert found.saw[0].deployments == (("support", False),)
    assert found.saw[1].deployments == (("support", True),)
    assert [(file.lines, file.dataset) for file in found.files] == [((2,), None)]
    assert (found.num_runs, found.num_files, found.unknown) == (3, 2, ())


def test_an_id_is_found_by_its_own_field(context: Context, tmp_path: Path) -> None:
    rows = [with_answer("Yes.", exchange_id="chatcmpl-7", review_id="rev-7"), with_answer("No.")]
    run = add(context, "a", write_rows(tmp_path / "rows.jsonl", rows))
    assert [one.run_id for one in row_lineage(context, ME, "chatcmpl-7").saw] == [run]
    assert row_lineage(context, ME, "chatcmpl-8").saw == ()


def test_a_number_is_found_as_a_whole(context: Context, tmp_path: Path) -> None:
    rows = [with_answer("Yes.", customer=40012345), with_answer("No.", customer={"number": 400123456}), chat_row(3)]
    run = add(context, "a", write_rows(tmp_path / "rows.jsonl", rows))
    assert [(one.run_id, one.learned) for one in row_lineage(context, ME, "40012345").saw] == [(run, True)]
    assert [file.lines for file in row_lineage(context, ME, "40012345").files] == [(1,)]
    assert [file.lines for file in row_lineage(context, ME, "400123456").files] == [(2,)]
    file = dataset_versions.keep_rows(context, ME, [json.dumps(row).encode() + b"\n" for row in rows], "rows.jsonl")
    dataset, _ = dataset_versions.create_dataset(context, ME, "rows", file)
    forget_row(context, ME, "40012345")
    newest = dataset_versions.get_version(context, ME, dataset.dataset_id)
    left = [json.loads(line) for line in dataset_versions.path_of(context, ME, newest).read_text().splitlines()]
    assert [one.get("customer") for one in left] == [{"number": 400123456}, None]


def test_a_run_that_goes_on_from_another_has_what_that_learned(context: Context, tmp_path: Path) -> None:
    first = add(context, "a", write_rows(tmp_path / "with.jsonl", [with_answer(SECRET)]))
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "evaluation.json").write_text(json.dumps({"run_id": first}), encoding="utf-8")
    base = make_plan().base_model.model_copy(update={"path": str(merged)})
    second = add(context, "b", write_rows(tmp_path / "without.jsonl", [chat_row(1)]), base_model=base)
    found = row_lineage(context, ME, SECRET)
    assert [(one.run_id, one.learned, one.through) for one in found.saw] == [(first, True, None), (second, True, first)]


@pytest.mark.parametrize("part", ["teacher", "judges"])
@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_a_run_that_is_taught_or_graded_by_another_has_learned_from_what_that_learned(
    context: Context, tmp_path: Path, part: str, *, is_checkpoint: bool
) -> None:
    first = add(context, "a", write_rows(tmp_path / "with.jsonl", [with_answer(SECRET)]))
    asked = TeacherPlan(
        name="ft:tiny:default::x:ckpt-step-2" if is_checkpoint else first,
        path="/models/tiny",
        sha256="5" * 64,
        adapter_path=str(context.settings.run_folder(first) / "snapshots" / "step-2"),
        precision="float32",
        num_parameters=100,
        hidden_size=8,
        vocabulary_size=16,
        context_length_tokens=64,
    )
    objective = make_plan().objective.model_copy(update={part: (asked,) if part == "judges" else asked})
    second = add(context, "b", write_rows(tmp_path / "without.jsonl", [chat_row(1)]), objective=objective)
    found = row_lineage(context, ME, SECRET)
    assert [(one.run_id, one.learned, one.through) for one in found.saw] == [(first, True, None), (second, True, first)]


def test_a_merged_model_without_an_evaluation_and_a_full_outcome_lead_back_to_their_run(
    context: Context, tmp_path: Path
) -> None:
    first = add(context, "a", write_rows(tmp_path / "with.jsonl", [with_answer(SECRET)]))
    merged, outcome = tmp_path / "merged", context.settings.run_folder(first) / "adapter"
    merged.mkdir()
    card = {"properties": [{"name": "luthier:format", "value": "merged"}, {"name": "luthier:run", "value": first}]}
    materials = {"metadata": {"component": {"modelCard": card}}}
    (merged / "sbom.cdx.json").write_text(json.dumps(materials), encoding="utf-8")
    rows = write_rows(tmp_path / "without.jsonl", [chat_row(1)])
    for number, folder in enumerate((merged, outcome)):
        base = make_plan().base_model.model_copy(update={"path": str(folder)})
        add(context, "bc"[number], rows, base_model=base)
    found = row_lineage(context, ME, SECRET)
    assert [(one.learned, one.through) for one in found.saw] == [(True, None), (True, first), (True, first)]
    (merged / "sbom.cdx.json").write_text('{"metadata": []}', encoding="utf-8")
    assert len(row_lineage(context, ME, SECRET).saw) == 2


def test_of_a_file_that_was_split_each_row_is_where_it_went(context: Context, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "all.jsonl", [with_answer(f"{SECRET} {number}") for number in range(10)])
    plan = make_plan()
    data = DataRecipe(train=str(path), held_out=0.3)
    recipe = plan.recipe.model_copy(update={"data": data, "objective": None})
    run = add(context, "a", path, path, recipe=recipe)
    splits = [row_lineage(context, ME, f"{SECRET} {number}").saw[0] for number in range(10)]
    assert {one.run_id for one in splits} == {run}
    assert sum(one.splits == ("train",) and one.learned for one in splits) == 7
    assert sum(one.splits == ("held_out",) and not one.learned for one in splits) == 3


def test_a_file_that_has_changed_is_said_to_be_unknown(context: Context, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [with_answer(SECRET)])
    run = add(context, "a", path)
    path.write_text("{}\n", encoding="utf-8")
    found = row_lineage(context, ME, SECRET)
    assert (found.saw, found.unknown) == ((), (run,))


def test_rows_that_cannot_be_read_are_counted_and_named(context: Context, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [chat_row(1), chat_row(2)])
    with path.open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "' + SECRET + "\n")
    add(context, "a", path)
    found = row_lineage(context, ME, SECRET)
    assert [(one.file, one.lines) for one in found.unreadable] == [(str(path), (3,))]
    assert (found.saw, found.unknown) == ((), ())
    assert found.as_json()["unreadable"] == ({"file": str(path), "lines": (3,)},)
    assert any("cannot be read and may hold it" in one for one in forget_row(context, ME, SECRET).left)


@pytest.mark.parametrize("row", ["", "short", "   a      "])
def test_too_few_characters_would_be_anybody(context: Context, row: str) -> None:
    with pytest.raises(RequestError, match="a row by"):
        row_lineage(context, ME, row)
    with pytest.raises(RequestError, match="a row by"):
        forget_row(context, ME, row)


def test_rows_that_were_imported_say_from_where_also_after_a_repair(context: Context) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in (chat_row(1), with_answer(SECRET))]
    details = {"source": {"address": "hub:org/qa", "revision": "0123456789abcdef" * 2 + "01234567"}}
    file = dataset_versions.keep_rows(context, ME, lines, "rows.jsonl")
    dataset, _ = dataset_versions.create_dataset(context, ME, "rows", file, origin="import", details=details)
    repaired = dataset_versions.add_version(
        context,
        ME,
        dataset.dataset_id,
        dataset_versions.keep_rows(context, ME, lines[1:], "rows.jsonl"),
        origin="repair",
        parent=1,
    )
    run = add(context, "a", dataset_versions.path_of(context, ME, repaired))
    found = row_lineage(context, ME, SECRET)
    assert [(one.dataset, one.origin) for one in found.files] == [
        (f"{dataset.dataset_id} version 2", "hub:org/qa @ 0123456789ab")
    ]
    rows = next(node for node in model_lineage(context, ME, run).nodes.values() if node.kind == "dataset")
    assert rows.origin == "hub:org/qa @ 0123456789ab"
    uploaded = dataset_versions.add_version(
        context,
        ME,
        dataset.dataset_id,
        dataset_versions.keep_rows(context, ME, lines[:1], "rows.jsonl"),
        origin="upload",
        parent=2,
    )
    assert imported_version(context, ME, uploaded) is None, "other rows, whatever was there before"


def test_a_forgotten_row_leaves_the_newest_versions_and_the_rest_is_named(context: Context) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in (chat_row(1), with_answer(SECRET), chat_row(2))]
    file = dataset_versions.keep_rows(context, ME, lines, "rows.jsonl")
    dataset, version = dataset_versions.create_dataset(context, ME, "rows", file)
    run = add(context, "a", dataset_versions.path_of(context, ME, version))
    done = forget_row(context, ME, SECRET)
    newest = dataset_versions.get_version(context, ME, dataset.dataset_id)
    assert (newest.number, newest.parent, newest.num_rows) == (2, 1, 2)
    assert dataset_versions.path_of(context, ME, newest).read_bytes() == lines[0] + lines[2]
    assert done.left == (
        f"run {run} has learned it: train again without it, then remove it",
        f"versions 1 to 1 of {dataset.dataset_id} keep it: versions are never changed",
    )
    entry = audit_log.newest_entries(context, limit=1)[0]
    assert entry.action == "row.forgotten"
    assert "Mill Lane" not in entry.document
    assert forget_row(context, ME, SECRET).versions == ()


def test_a_project_whose_file_quota_is_used_up_forgets_a_row_too(context: Context) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in (chat_row(1), with_answer(SECRET))]
    file = dataset_versions.keep_rows(context, ME, lines, "rows.jsonl")
    dataset, _ = dataset_versions.create_dataset(context, ME, "rows", file)
    context.access.set_file_quota(ME.project_id, file.num_bytes)
    forget_row(context, ME, SECRET)
    newest = dataset_versions.get_version(context, ME, dataset.dataset_id)
    assert dataset_versions.path_of(context, ME, newest).read_bytes() == lines[0]


def test_rows_that_cannot_be_read_stay_and_are_counted(context: Context) -> None:
    lines = [json.dumps(with_answer(SECRET)).encode() + b"\n", b'{"messages": [\n', json.dumps(chat_row(1)).encode()]
    file = dataset_versions.keep_rows(context, ME, lines, "rows.jsonl")
    dataset, _ = dataset_versions.create_dataset(context, ME, "rows", file)
    done = forget_row(context, ME, SECRET)
    newest = dataset_versions.get_version(context, ME, dataset.dataset_id)
    assert dataset_versions.path_of(context, ME, newest).read_bytes() == lines[1] + lines[2] + b"\n"
    assert newest.details == {"num_forgotten": 1, "num_unreadable": 0}
    assert done.left[-1].startswith(f"1 row of {dataset.dataset_id} version 1 cannot be read, and may hold it")


def test_rows_that_cannot_be_written_are_left_out_and_counted(context: Context, tmp_path: Path) -> None:
    rows = [with_answer(SECRET, score=1.0), chat_row(1) | {"score": float("nan")}, chat_row(2) | {"score": 0.5}]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    file = dataset_versions.keep_rows(context, ME, [(tmp_path / "rows.parquet").read_bytes()], "rows.parquet")
    dataset, _ = dataset_versions.create_dataset(context, ME, "rows", file)
    done = forget_row(context, ME, SECRET)
    newest = dataset_versions.get_version(context, ME, dataset.dataset_id)
    assert newest.num_rows == 1
    assert newest.details == {"num_forgotten": 1, "num_unreadable": 1}
    assert newest.note == "1 row forgotten, 1 unreadable row left out"
    assert done.left[-1].startswith(f"1 of these are not in version 2 of {dataset.dataset_id}")


def test_a_dataset_without_the_row_is_read_once_and_no_file_is_held_in_memory(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"with": [chat_row(1), with_answer(SECRET)], "without": [chat_row(1), chat_row(2)]}
    paths = dict[str, Path]()
    for name, its in rows.items():
        lines = [json.dumps(row).encode() + b"\n" for row in its]
        file = dataset_versions.keep_rows(context, ME, lines, f"{name}.jsonl")
        paths[name] = dataset_versions.path_of(context, ME, dataset_versions.create_dataset(context, ME, name, file)[1])
    read, records = Counter[Path](), forget._records

    def counted(path: Path, wanted: str) -> Iterator[Any]:
        read[path] += 1
        return records(path, wanted)

    monkeypatch.setattr(forget, "_records", counted)
    assert [num for _, num in forget_row(context, ME, SECRET).versions] == [1]
    # What changes is read once more, while it is written.
    assert read == {paths["with"]: 2, paths["without"]: 1}


def test_words_that_stand_in_every_row_forget_nothing(context: Context) -> None:
    lines = [json.dumps(with_answer(f"{SECRET} {number}")).encode() + b"\n" for number in range(3)]
    file = dataset_versions.keep_rows(context, ME, lines, "rows.jsonl")
    dataset, _ = dataset_versions.create_dataset(context, ME, "rows", file)
    with pytest.raises(RequestError, match="every row of the dataset 'rows'"):
        forget_row(context, ME, SECRET)
    assert dataset_versions.get_version(context, ME, dataset.dataset_id).number == 1


def test_the_words_leave_feedback_and_the_rating_stays(context: Context) -> None:
    others_project = create_project(context, "others").project_id

    def say(letter: str, **said: Any) -> Feedback:
        given = {"project_id": "default", "exchange_id": "chatcmpl-1", "model": "support", "author": letter} | said
        return context.feedback.put(Feedback(feedback_id=f"feedback-{letter}", **given))[0]

    rated = say("a", thumb="down", correction=f"  {SECRET.upper()}!", comment="it was wrong")
    said = say("b", score=0.0, comment=f"what of this: {SECRET}")
    say("c", correction=SECRET)
    say(SECRET, thumb="up")
    by_id = say("e", thumb="up", comment="fine", exchange_id="chatcmpl-2")
    others = say("f", thumb="down", correction="Ann lives elsewhere", comment="wrong")
    elsewhere = say("g", project_id=others_project, thumb="down", comment=SECRET)

    done = forget_row(context, ME, SECRET)

    assert done.num_feedback == done.as_json()["num_feedback"] == 4
    empty = {"correction": None, "comment": ""}
    left = [rated.model_copy(update=empty), said.model_copy(update=empty), by_id, others]
    assert sorted(context.feedback.list("default"), key=lambda one: one.author) == left
    assert context.feedback.list(others_project) == [elsewhere]
    entry = audit_log.newest_entries(context, limit=1)[0]
    assert entry.action == "row.forgotten"
    assert '"num_feedback":4' in entry.document.replace(" ", "")
    assert "Mill Lane" not in entry.document
    assert forget_row(context, ME, SECRET).num_feedback == 0

    assert forget_row(context, ME, "chatcmpl-2").num_feedback == 1
    assert context.feedback.of_exchanges("default", ["chatcmpl-2"]) == [by_id.model_copy(update=empty)]
    assert forget_row(context, ME, "chatcmpl-").num_feedback == 0


def test_rows_that_somebody_adds_while_a_row_is_forgotten_are_not_lost(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, one, two = (json.dumps(row).encode() + b"\n" for row in (with_answer(SECRET), chat_row(1), chat_row(2)))
    keep = dataset_versions.keep_rows
    dataset, _ = dataset_versions.create_dataset(context, ME, "rows", keep(context, ME, [secret, one], "rows.jsonl"))

    def meanwhile(*given: Any, **more: Any) -> Any:
        kept = keep(*given, **more)
        monkeypatch.setattr(dataset_versions, "keep_rows", keep)
        added = keep(context, ME, [secret, one, two], "rows.jsonl")
        dataset_versions.add_version(context, ME, dataset.dataset_id, added, origin="upload", parent=1)
        dataset_versions.create_dataset(context, ME, "others", keep(context, ME, [one, secret], "others.jsonl"))
        return kept

    monkeypatch.setattr(dataset_versions, "keep_rows", meanwhile)
    with pytest.raises(ConflictError, match="version 2 was added"):
        forget_row(context, ME, SECRET)
    assert dataset_versions.get_version(context, ME, dataset.dataset_id).number == 2
    assert len(forget_row(context, ME, SECRET).versions) == 2
    newest = dataset_versions.get_version(context, ME, dataset.dataset_id)
    assert dataset_versions.path_of(context, ME, newest).read_bytes() == one + two


def test_a_dataset_that_is_made_while_a_row_is_forgotten_is_named(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in (with_answer(SECRET), chat_row(1))]
    keep = dataset_versions.keep_rows
    dataset_versions.create_dataset(context, ME, "rows", keep(context, ME, lines, "rows.jsonl"))
    made = list[str]()

    def meanwhile(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(dataset_versions, "keep_rows", keep)
        other, _ = dataset_versions.create_dataset(context, ME, "others", keep(context, ME, lines, "others.jsonl"))
        made.append(other.dataset_id)
        return keep(*given, **more)

    monkeypatch.setattr(dataset_versions, "keep_rows", meanwhile)
    done = forget_row(context, ME, SECRET)
    (other_id,) = made
    assert f"version 1 of {other_id} was added in the meantime, and may contain it: forget the row again" in done.left
    assert [one.dataset_id for one, _ in forget_row(context, ME, SECRET).versions] == [other_id]
