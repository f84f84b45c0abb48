"""What there is to choose from for a new run, and how the recipe of a run becomes one of the project's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.data_sources import SourceFile, SourcePlan, SourceRecipe
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation_plan import EvaluationRecipe, OptimisedPromptRecipe
from luthier.core.ports import SilentProgress
from luthier.features.datasets import service as dataset_versions
from luthier.features.run_drafts import choices as draft_choices
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, add_run, make_plan, make_record

OWN, OTHER = Caller(), Caller(project_id="other", key_id="key-1", name="else")


def kept(context: Context, rows: list[dict[str, Any]]) -> str:
    lines = [f"{json.dumps(row)}\n".encode() for row in rows]
    return dataset_versions.keep_rows(context, OWN, lines, "rows.jsonl").file_id


def test_versions_come_with_their_dataset_and_other_files_by_their_name(context: Context) -> None:
    first, second, lone = (kept(context, [{"text": "a"}] * n) for n in (1, 2, 3))
    file = files.get_file(context, "default", first)
    dataset, _ = dataset_versions.create_dataset(context, OWN, "Mine", file)
    newer = files.get_file(context, "default", second)
    dataset_versions.add_version(context, OWN, dataset.dataset_id, newer, origin="repair", parent=1)
    found = {choice.file_id: choice.comment for choice in draft_choices.file_choices(context, OWN)}
    assert found == {second: "Mine, version 2, 2 rows", first: "Mine, version 1, 1 row", lone: "rows.jsonl"}
    assert draft_choices.file_choices(context, OTHER) == []
    assert draft_choices.rows_of(context, OWN, dataset.dataset_id, None).data["train"] == second
    with pytest.raises(NotFoundError):
        draft_choices.rows_of(context, OTHER, dataset.dataset_id, 1)


def test_the_shape_of_rows_is_told_where_it_can_be(context: Context) -> None:
    chats = kept(context, [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    pairs = kept(context, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    neither = kept(context, [{"x": 1}])
    shapes = [draft_choices.shape_of(context, OWN, file) for file in (chats, pairs, neither, "file-x")]
    assert shapes == ["chat", "preference", None, None]
    assert draft_choices.shape_of(context, OTHER, chats) is None


def test_shapes_that_are_forgotten_meanwhile_are_told(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(dict[Any, Any]):
        """As another thread makes it that clears the cache at once."""

        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    monkeypatch.setattr(draft_choices, "_shapes", Forgetful())
    assert draft_choices.shape_of(context, OWN, kept(context, [{"prompt": "a", "chosen": "b", "rejected": "c"}])) == (
        "preference"
    )


def test_models_on_this_machine_come_first(context: Context, tiny_model: Path) -> None:
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), context.home, SilentProgress())
    choices = draft_choices.model_choices(context, OWN)
    assert next(iter(choices)) == tiny_model.name
    assert choices["smollm2-135m-instruct"].path is None


def test_a_student_of_another_projects_run_is_no_choice(context: Context, tiny_model: Path) -> None:
    from luthier.ml.inference.models import sources

    made = sources.pull(str(tiny_model), context.home, SilentProgress())
    student = made.model_copy(update={"name": f"layers:2@{add_run(context, 'a')}", "source": "layers"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "local_models", lambda _home: [made, student])
        patch.setattr(sources, "origin", lambda _name, _home: {})
        assert student.name in draft_choices.model_choices(context, OWN)
        found = draft_choices.model_choices(context, OTHER)
    assert student.name not in found
    assert tiny_model.name in found


def test_a_fork_names_what_the_project_has_and_tells_what_it_has_not(context: Context, tiny_model: Path) -> None:
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), context.home, SilentProgress())
    file = files.get_file(context, "default", kept(context, [{"text": "a"}]))
    plan = make_plan()
    search = OptimisedPromptRecipe(budget_tokens=9, reflection_model="http://127.0.0.1:1/v1#m")
    judging = EvaluationRecipe(optimised_prompt=search)
    recipe = plan.recipe.model_copy(update={"base_model": str(tiny_model), "evaluation": judging})
    profile = plan.data.train.model_copy(update={"sha256": file.sha256})
    plan = plan.model_copy(
        update={
            "recipe": recipe,
            "base_model": plan.base_model.model_copy(update={"name": str(tiny_model)}),
            "data": plan.data.model_copy(update={"train": profile}),
        }
    )
    context.runs.create(make_record(), plan)
    fork = draft_choices.fork(context, OWN, RUN_ID)
    assert fork.keys["base_model"] == tiny_model.name
    assert fork.keys["data"]["train"] == file.file_id
    assert str(tiny_model) not in json.dumps(fork.keys)
    assert fork.keys["evaluation"] == {"optimised_prompt": {"budget_tokens": 9}}
    assert "the model that writes instructions" in fork.left_out
    files.delete_file(context, "default", file.file_id)
    again = draft_choices.fork(context, OWN, RUN_ID)
    assert "train" not in again.keys["data"]
    assert "the train rows, which are not a file of this project" in again.left_out
    with pytest.raises(NotFoundError):
        draft_choices.fork(context, OTHER, RUN_ID)


def test_a_run_that_has_not_begun_is_forked_by_its_recipe_or_not_at_all(context: Context) -> None:
    asked = {"base_model": "tiny", "data": {"train": "file-1"}}
    for number, document in enumerate(({"asked": asked}, {"request": {}})):
        run_id = f"run-20260101-00000{number}-abcdef"
        context.jobs.submit(Job(job_id=f"job-{number}", kind="train", document=document, run_id=run_id))
    assert draft_choices.fork(context, OWN, "run-20260101-000000-abcdef").keys == asked
    with pytest.raises(ConflictError, match="has not started"):
        draft_choices.fork(context, OWN, "run-20260101-000001-abcdef")


def test_a_fork_of_several_sources_names_files_of_the_project_or_none(context: Context) -> None:
    stored = [files.get_file(context, "default", kept(context, [{"text": "a"}] * num)) for num in (1, 2)]
    asked = tuple(SourceRecipe(path=f"/rows/{name}.jsonl", weight=2) for name in ("a", "b"))
    sources = tuple(
        SourcePlan(
            split="train",
            name=file.file_id,
            path=source.path,
            files=(SourceFile(name="rows.jsonl", sha256=file.sha256, num_bytes=1, num_rows=1),),
            first_row=1,
            num_rows=1,
            weight=2,
        )
        for file, source in zip(stored, asked, strict=True)
    )
    plan = make_plan()
    recipe = plan.recipe.model_copy(update={"data": plan.recipe.data.model_copy(update={"train": asked})})
    data = plan.data.model_copy(update={"sources": sources})
    context.runs.create(make_record(), plan.model_copy(update={"recipe": recipe, "data": data}))
    fork = draft_choices.fork(context, OWN, RUN_ID)
    assert [source["path"] for source in fork.keys["data"]["train"]] == [file.file_id for file in stored]
    assert [source["weight"] for source in fork.keys["data"]["train"]] == [2, 2]
    files.delete_file(context, "default", stored[1].file_id)
    again = draft_choices.fork(context, OWN, RUN_ID)
    assert "train" not in again.keys["data"]
    assert "/rows/" not in json.dumps(again.keys)
    assert "the sources of its train rows, which are not files of this project" in again.left_out
