"""Columns by choice: kept with the version, and used by whatever reads its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.features.datasets.conftest import ME, add
from tests.fixtures.questions import answers_in_this_process

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.datasets import columns as column_choices
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.analysis import survey
from luthier.features.datasets.annotations import decide, open_queue
from luthier.features.datasets.columns import ColumnChoice
from luthier.features.datasets.derived_versions import (
    RepairChoice,
    SplitWishes,
    begin_repair,
    repair_state,
    split_dataset,
)
from luthier.features.datasets.rows import look_of
from luthier.features.datasets.service import path_of
from luthier.features.datasets.store import DatasetVersion
from luthier.features.datasets.version_analyses import (
    AuditSettings,
    audit_state,
    begin_audit,
    compared_columns,
)
from luthier.features.files.references import plan_of, with_chosen_columns
from luthier.features.training import recipe_job
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.testing.servers import wait_for

TABLE = "Nr;FRAGE;Antwort\n" + "".join(f"{n};Was kommt nach {n}?;Nach {n} kommt {n + 1}.\n" for n in range(30))
CHOICE = ColumnChoice("question", "FRAGE", "Antwort")


@pytest.fixture
def version(context: Context) -> DatasetVersion:
    made = add(context, {"Fragen.csv": TABLE.encode()}).version
    assert made is not None
    return made


def test_rows_of_unknown_columns_need_a_choice_and_the_likeliest_is_proposed(
    context: Context, version: DatasetVersion
) -> None:
    assert column_choices.need_choice(context, ME, version)
    table = column_choices.table_of(context, ME, version)
    assert table.columns == ["Nr", "FRAGE", "Antwort"]
    assert len(table.rows) == 10
    assert table.proposed == CHOICE


def test_a_choice_is_kept_with_the_version_and_decides_its_shape(context: Context, version: DatasetVersion) -> None:
    made = column_choices.choose(context, ME, version, CHOICE)
    assert made.columns == {"prompt": "FRAGE", "completion": "Antwort"}
    stored = dataset_versions.get_version(context, ME, version.dataset_id)
    assert stored == made
    look = look_of(context, ME, stored).answer
    assert look is not None
    assert (look["shape"], look["num_rows"]) == ("prompt_completion", 30)
    assert not column_choices.need_choice(context, ME, stored)
    assert column_choices.table_of(context, ME, stored).proposed == CHOICE


def test_texts_alone_and_texts_with_labels(context: Context, version: DatasetVersion) -> None:
    texts = column_choices.choose(context, ME, version, ColumnChoice("text", "FRAGE"))
    assert texts.columns == {"text": "FRAGE"}
    look = look_of(context, ME, texts).answer
    assert look is not None
    assert look["shape"] == "text"
    labels = column_choices.choose(context, ME, version, ColumnChoice("label", "FRAGE", "Nr"))
    assert labels.columns == {"prompt": "FRAGE", "completion": "Nr"}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (ColumnChoice("question", "FRAGE", "Nothing"), "no column 'Nothing'"),
        (ColumnChoice("question", "", "Antwort"), "no column was chosen"),
        (ColumnChoice("question", "FRAGE", "FRAGE"), "the column 'FRAGE' for both"),
    ],
)
def test_columns_that_cannot_be_are_refused(
    context: Context, version: DatasetVersion, choice: ColumnChoice, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        column_choices.choose(context, ME, version, choice)
    assert dataset_versions.get_version(context, ME, version.dataset_id).columns == {}


def test_another_project_cannot_choose(context: Context, version: DatasetVersion) -> None:
    with pytest.raises(NotFoundError):
        column_choices.choose(context, Caller(project_id="proj-other"), version, CHOICE)


@pytest.mark.parametrize(
    ("header", "use", "first", "second"),
    [
        ("Customer Question,Our Answer", "question", "Customer Question", "Our Answer"),
        ("id,Body,Topic", "label", "Body", "Topic"),
        ("a,b,c", "question", "a", "b"),
        ("notes", "text", "notes", ""),
    ],
)
def test_the_proposal_goes_by_the_names(context: Context, header: str, use: str, first: str, second: str) -> None:
    row = ",".join("x" for _ in header.split(","))
    made = add(context, {"t.csv": f"{header}\n{row}\n".encode()}).version
    assert made is not None
    assert column_choices.table_of(context, ME, made).proposed == ColumnChoice(use, first, second)  # type: ignore[arg-type]


def test_a_recipe_takes_the_chosen_columns_unless_it_names_its_own(context: Context, version: DatasetVersion) -> None:
    chosen = column_choices.choose(context, ME, version, CHOICE).columns
    recipe = {"base_model": "tiny", "data": {"train": version.file_id, "held_out": 0.1}}
    assert with_chosen_columns(context, "default", recipe)["data"]["columns"] == chosen
    own = recipe | {"data": {"train": version.file_id, "columns": {"text": "FRAGE"}}}
    assert with_chosen_columns(context, "default", own) == own
    assert with_chosen_columns(context, "proj-other", recipe) == recipe, "another project's choice is not found"


def test_rows_to_judge_by_are_read_by_the_columns_that_were_chosen_for_them(
    context: Context, version: DatasetVersion
) -> None:
    chosen = column_choices.choose(context, ME, version, CHOICE).columns
    judged = add(context, {"judged.csv": b"prompt,completion,best\nWas?,Das.,Dies.\n"}).version
    assert judged is not None
    own = column_choices.choose(context, ME, judged, ColumnChoice("question", "prompt", "best")).columns
    for train, columns in ((version.file_id, {"columns": chosen}), ("file-other", {})):
        recipe = {"base_model": "tiny", "data": {"train": train, "held_out": judged.file_id, "validation": 0.1}}
        data = with_chosen_columns(context, "default", recipe)["data"]
        listed = [{"path": judged.file_id, "columns": own}]
        assert data == {"train": train, "held_out": listed, "validation": 0.1} | columns
    recipe = {"data": {"train": version.file_id, "held_out": version.file_id}}
    assert with_chosen_columns(context, "default", recipe)["data"] == recipe["data"] | {"columns": chosen}


def test_several_sources_have_the_names_and_the_chosen_columns_of_their_files(
    context: Context, version: DatasetVersion
) -> None:
    chosen = column_choices.choose(context, ME, version, CHOICE).columns
    source = {"path": version.file_id}
    recipe = {"data": {"train": [source, source | {"name": "more"}, source], "held_out": version.file_id}}
    data = with_chosen_columns(context, "default", recipe)["data"]
    assert [one["name"] for one in data["train"]] == ["Fragen", "more", "Fragen 2"]
    assert [one["columns"] for one in data["train"]] == [chosen] * 3
    assert data["held_out"] == [source | {"columns": chosen}]
    own = {"data": {"train": [source | {"name": "a"}], "columns": {"text": "FRAGE"}}}
    assert with_chosen_columns(context, "default", own) == own
    (other,) = with_chosen_columns(context, "proj-other", {"data": {"train": [source]}})["data"]["train"]
    assert other == source | {"name": version.file_id}, "another project learns neither name nor columns"
    for wrong in ([7], [{"weight": 1}], [source | {"name": [7]}], [{"path": "rows.jsonl"}]):
        recipe = {"data": {"train": wrong, "columns": {"text": "FRAGE"}}}
        assert with_chosen_columns(context, "default", recipe) == recipe


def test_a_run_of_the_pages_learns_from_the_chosen_columns(
    context: Context, version: DatasetVersion, tiny_model: Path
) -> None:
    sources.pull(str(tiny_model), context.home, context.progress)
    column_choices.choose(context, ME, version, CHOICE)
    recipe = {"base_model": tiny_model.name, "data": {"train": version.file_id, "held_out": 0.1}}
    with answers_in_this_process():
        plan = plan_of(context, "default", recipe)
    assert plan["plan"]["data"]["train"]["num_rows"] == 27
    job = recipe_job.start(context, ME, recipe)
    assert job.document["asked"]["data"]["columns"] == {"prompt": "FRAGE", "completion": "Antwort"}


def test_tokens_split_and_edits_read_the_chosen_columns(
    context: Context, version: DatasetVersion, tiny_model: Path
) -> None:
    made = column_choices.choose(context, ME, version, CHOICE)
    found = survey(context, path_of(context, ME, made), str(tiny_model), "auto", made.columns)
    assert (found["shape"], found["num_refused"]) == ("prompt_completion", 0)
    with answers_in_this_process():
        sides = split_dataset(context, ME, made, SplitWishes(near_threshold=None)).sides
    assert {one.columns["prompt"] for _, one in sides.values()} == {"FRAGE"}
    queue = open_queue(context, ME, version.dataset_id, 1)
    with pytest.raises(RequestError, match="completion"):
        decide(context, ME, queue, 1, "edit", edited={"Nr": "0", "FRAGE": "Was?", "Antwort": ""})
    kept = decide(context, ME, queue, 1, "edit", edited={"Nr": "0", "FRAGE": "Was?", "Antwort": "Das."})
    assert kept.decision.decision == "edit"


def test_the_next_version_has_the_columns_and_an_upload_with_others_has_none(
    context: Context, version: DatasetVersion
) -> None:
    column_choices.choose(context, ME, version, CHOICE)
    same = add(context, {"b.csv": (TABLE + "99;Wer?;Ich.\n").encode()}, dataset_id=version.dataset_id).version
    assert same is not None
    assert same.columns == CHOICE.columns
    rows = json.dumps({"prompt": "q", "completion": "a"}) + "\n"
    other = add(context, {"c.jsonl": rows.encode()}, dataset_id=version.dataset_id).version
    assert other is not None
    assert other.columns == {}


def test_an_audit_and_a_repair_read_the_other_rows_by_their_own_columns(
    context: Context, version: DatasetVersion
) -> None:
    chosen = column_choices.choose(context, ME, version, CHOICE)
    rows = json.dumps({"prompt": "Was kommt nach 7?", "completion": "Nach 7 kommt 8."}) + "\n"
    plain = add(context, {"plain.jsonl": rows.encode()}).version
    assert plain is not None
    assert compared_columns(context, ME, chosen, plain) == {}
    assert compared_columns(context, ME, plain, chosen) == CHOICE.columns
    same = add(context, {"same.csv": TABLE.encode()}).version
    assert same is not None
    assert compared_columns(context, ME, chosen, same) == CHOICE.columns, "where nothing was chosen for them"
    with answers_in_this_process():
        for one, other, lines in ((chosen, plain, [8]), (plain, chosen, [1])):
            settings = AuditSettings(against=other.dataset_id)
            begin_audit(context, ME, one, settings)
            wait_for(lambda one=one, settings=settings: audit_state(context, ME, one, settings).state != "running")
            found = audit_state(context, ME, one, settings)
            assert found.answer is not None, found.error
            (leak,) = [finding for finding in found.answer["findings"] if finding["check"] == "contamination"]
            assert (leak["details"]["kind"], leak["lines"]) == ("exact", lines)
        choice = RepairChoice(("contamination",), against=plain.dataset_id)
        begin_repair(context, ME, chosen, choice)
        wait_for(lambda: repair_state(context, ME, chosen, choice).state != "running")
        repaired = repair_state(context, ME, chosen, choice)
        assert repaired.answer is not None, repaired.error
        assert repaired.answer["summary"]["fates"]["removed"] == 1
