"""What callers over the network name: each field of a file or a model is known, and resolved in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.recipe import Recipe
from luthier.core.records.fine_tuning import FineTuningRequest
from luthier.core.records.monitoring import WatchSettings
from luthier.core.results.release_gate import Gate
from luthier.core.results.suite import Suite
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.files import references as file_references
from luthier.features.serving.graders import GraderRun
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.processes.analysis_child import answer_to
from luthier.testing.records import make_plan, make_record

TASKS = (
    "RankTask", "CodeTask", "ChooseTask", "RubricTask", "SqlTask", "CitationsTask", "PairwiseTask", "LikelihoodTask",
    "JsonTask", "GenerateTask", "ClassifyTask", "GradedTask",
)  # fmt: skip
FILES = {
    *(f"{task}.{field}" for task in TASKS for field in ("data", "few_shot_from")),
    "SourceRecipe.path",
    "DataRecipe.train", "DataRecipe.validation", "DataRecipe.held_out", "ReplayRecipe.file", "ReplayRecipe.held_out",
    "SqlTask.database", "CitationsTask.corpus", "JsonTask.json_schema", "WatchSettings.suite_file_id",
    "FineTuningRequest.training_file", "FineTuningRequest.validation_file",
}  # fmt: skip
"""Name a file: of a caller over the network, the id of one."""
ROWS = {"SqlTask.database_field"}
"""Name a field of rows, which name a file."""
MODELS = {
    "Recipe.base_model", "ObjectiveRecipe.teacher", "FineTuningRequest.model", "ScoreModelRequest.model",
    "LabelModelRequest.model", "OptimisedPromptRecipe.reflection_model", "ScoreModelReward.model",
    "LabelModelReward.model",
}  # fmt: skip
"""Name a model: of a caller over the network, as the API knows it."""
RUNS = {"EvaluationRecipe.reference_run"}
"""Name a run of the project."""
OPERATORS = {
    "LmEvalTask.task", "WatchSettings.corpus", "WatchSettings.data", "WatchSettings.judge", "WatchSettings.suite",
    "PythonRequest.source", "PythonRequest.image_tag", "PythonGraderSpec.source", "TrackerRecipe.location",
}  # fmt: skip
"""Paths and code that only commands on the machine take; refused from elsewhere as a whole."""
TEXTS = {
    *(f"{task}.{field}" for task in TASKS for field in ("name", "map", "cluster_by", "primary")),
    "RankTask.candidates", "RankTask.relevant", "CodeTask.tests", "ChooseTask.options", "ChooseTask.answer",
    "SqlTask.table_field", "CitationsTask.patterns", "JsonTask.fields", "GenerateTask.metrics", "ClassifyTask.labels",
    "LmEvalTask.name", "LmEvalTask.primary", "Suite.name", "GradedTask.item", "GraderTurn.content",
    "LabelModelSpec.name", "LabelModelSpec.labels", "LabelModelSpec.passing_labels", "PythonGraderSpec.name",
    "ScoreModelSpec.name", "ScoreModelReward.name", "LabelModelReward.name", "LabelModelReward.labels",
    "LabelModelReward.passing_labels", "MultiReward.name", "MultiReward.graders", "MultiReward.calculate_output",
    "SourceRecipe.name", "SourceRecipe.columns",
    "DataRecipe.map", "DataRecipe.group_by", "DataRecipe.template_options", "ReplayRecipe.map",
    "MethodRecipe.name", "MethodRecipe.targets", "MethodRecipe.modules_to_save",
    "MethodRecipe.options", "OptimizerRecipe.name", "OptimizerRecipe.options", "Reward.metric",
    "GoodEnoughRecipe.metric", "GoodEnoughRecipe.agreement",
    "ObjectiveRecipe.name", "ObjectiveRecipe.options", "ObjectiveRecipe.classes", "EvaluationRecipe.metrics",
    "ObjectiveRecipe.query_prompt", "ObjectiveRecipe.document_prompt",
    "StringCheck.name", "StringCheck.input", "StringCheck.reference", "MultiGrader.name", "MultiGrader.graders",
    "MultiGrader.calculate_output", "TextSimilarity.name", "TextSimilarity.input", "TextSimilarity.reference",
    "FineTuningRequest.suffix", "FineTuningRequest.metadata", "WandbIntegration.project", "WandbIntegration.name",
    "WandbIntegration.entity", "WandbIntegration.tags", "ReinforcementMethod.grader",
    "GraderRun.model_sample", "GraderRun.item", "ScoreModelRequest.name", "GraderMessage.content", "TextPart.text",
    "SamplingParameters.reasoning_effort", "MultiRequest.name", "MultiRequest.graders", "MultiRequest.calculate_output",
    "LabelModelRequest.name", "LabelModelRequest.labels", "LabelModelRequest.passing_labels",
    "StringCheckRequest.name", "StringCheckRequest.input", "StringCheckRequest.reference", "PythonRequest.name",
    "TextSimilarityRequest.name", "TextSimilarityRequest.input", "TextSimilarityRequest.reference",
    "TrackerRecipe.name", "TrackerRecipe.project", "TrackerRecipe.run_name", "TrackerRecipe.entity",
    "TrackerRecipe.tags", "TrackerRecipe.registered_model",
    "Gate.suite", "Gate.fingerprints", "GateRule.metric", "GateRule.system", "GateRule.against", "WatchSettings.groups",
}  # fmt: skip
"""Never looked up as a file or a model: names of columns, metrics, methods and layers, templates and texts."""
HOSTILE = (
    "/etc/passwd",
    "../../luthier.db",
    "HOME/luthier.db",
    "file:///etc/passwd",
    "LINK",
    "THEIRS",
    "~/.ssh/id_rsa",
)


def takes_text(annotation: Any) -> bool:
    if annotation is str or annotation is Any:
        return True
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return any(takes_text(one) for one in inner)


def models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return {model for one in inner for model in models_in(one)}


def text_fields(*roots: Any) -> set[str]:
    """`Model.field` of every field of these models, and of those within them, that takes a text."""
    found: set[str] = set()
    seen: set[type[BaseModel]] = set()
    waiting = [model for root in roots for model in models_in(root)]
    while waiting:
        model = waiting.pop()
        if model in seen:
            continue
        seen.add(model)
        for name, field in model.model_fields.items():
            if takes_text(field.annotation):
                found.add(f"{model.__name__}.{name}")
            waiting += models_in(field.annotation)
    return found


def test_every_field_that_takes_a_text_is_known_to_name_a_file_a_model_or_neither() -> None:
    found = text_fields(Recipe, Suite, FineTuningRequest, GraderRun, Gate, WatchSettings)
    assert len(found) > 100
    kinds = (FILES, ROWS, MODELS, RUNS, OPERATORS, TEXTS)
    assert found == set().union(*kinds), "classify a new field here, and resolve it in file_references"
    assert sum(len(kind) for kind in kinds) == len(found), "each is of one kind"


def test_the_fields_of_files_are_those_that_are_resolved() -> None:
    def fields(prefixes: tuple[str, ...]) -> set[str]:
        return {name.partition(".")[2] for name in FILES | ROWS if name.partition(".")[0] in prefixes}

    assert fields(("DataRecipe",)) == set(file_references.RECIPE_FILES)
    assert fields(("ReplayRecipe",)) == set(file_references.REPLAY_FILES)
    assert fields(TASKS) == {*file_references.SUITE_FILES, "database_field"}


@pytest.fixture
def hostile(context: Context, tmp_path: Path) -> dict[str, str]:
    """What no caller may name, by what it is."""
    context.access.add_project("proj-other", "other")
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"prompt": "q", "completion": "a"}\n')
    link = tmp_path / "link.jsonl"
    link.symlink_to(secret)
    theirs = files.add_file(context, "proj-other", secret, filename="theirs.jsonl", purpose="fine-tune").file_id
    names = {"LINK": str(link), "THEIRS": theirs, "HOME/luthier.db": str(context.settings.database_path)}
    return {name: names.get(name, name) for name in HOSTILE}


def test_a_suite_names_files_of_its_project_alone(context: Context, tmp_path: Path, hostile: dict[str, str]) -> None:
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"prompt": "q", "completion": "a"}\n')
    mine = files.add_file(context, "default", rows, filename="mine.jsonl", purpose="fine-tune").file_id
    text, me = "name: x\ntasks:\n  - {{name: a, kind: sql, {data}}}\n", Caller()
    assert evaluation_orders.keep_suite(context, me, text.format(data=f"data: {mine}, database: {mine}"))
    for field in file_references.SUITE_FILES:
        for name in hostile.values():
            data = f"data: '{name}'" if field == "data" else f"data: '{mine}', {field}: '{name}'"
            with pytest.raises(RequestError, match="the id of a file of this project"):
                evaluation_orders.keep_suite(context, me, text.format(data=data))


def test_rows_of_a_job_name_files_of_its_project_alone(context: Context, hostile: dict[str, str]) -> None:
    job = Job(job_id="job-20261125-093000-aaaaaa", kind="evaluation", document={}, run_id="")
    find = file_references.job_file(context, job)
    for name in (*hostile.values(), "", "file-20261125-093000-000000"):
        with pytest.raises(RequestError, match="the id of a file of this project"):
            find("db", name)


@pytest.mark.parametrize("place", ["base_model", "objective.teacher"])
def test_a_recipe_names_models_as_the_api_knows_them(context: Context, hostile: dict[str, str], place: str) -> None:
    names = file_references.FileReferences(context, "default")
    for name in (*hostile.values(), ".", "/", "hub:somebody/something", "http://127.0.0.1:1/v1#m"):
        with pytest.raises(RequestError, match="is not known here"):
            names.model(place, name)


def test_the_models_of_graders_are_named_as_the_api_knows_them() -> None:
    def known(place: str, name: Any) -> str:
        return f"{name} of {place}"

    score, check = {"type": "score_model", "model": "a"}, {"type": "string_check"}
    multi = {"type": "multi", "graders": {"one": score | {"type": "label_model"}, "other": check}}
    rewards = ["exact_match", {"grader": score}, {"grader": multi}, {"grader": check}, {"grader": "wrong"}]
    found = file_references.with_files(
        {"objective": {"name": "grpo", "rewards": rewards}}, file=known, model=known, run=known
    )["objective"]["rewards"]
    place = "objective.rewards[2].grader.graders.one.model"
    assert found[1] == {"grader": score | {"model": "a of objective.rewards[1].grader.model"}}
    parts = {"one": {"type": "label_model", "model": f"a of {place}"}, "other": check}
    assert found[2] == {"grader": multi | {"graders": parts}}
    assert (found[0], found[3:]) == (rewards[0], rewards[3:])


def test_a_recipe_names_runs_of_its_project_alone(context: Context, hostile: dict[str, str]) -> None:
    record = make_record()
    context.runs.create(record, make_plan())
    recipe: dict[str, Any] = {"evaluation": {"reference_run": record.run_id, "few_shot": 0}}

    def with_run_of(project_id: str, name: str = record.run_id) -> dict[str, Any]:
        names = file_references.FileReferences(context, project_id)
        asked = recipe | {"evaluation": recipe["evaluation"] | {"reference_run": name}}
        return file_references.with_files(asked, file=names.file, model=names.model, run=names.run)

    assert with_run_of("default") == recipe
    for project_id, name in (("other", record.run_id), *(("default", name) for name in (*hostile.values(), ""))):
        with pytest.raises(RequestError, match="a run of this project"):
            with_run_of(project_id, name)


def test_a_recipe_of_a_remote_caller_names_no_source_that_this_machine_would_connect_to(context: Context) -> None:
    names = file_references.FileReferences(context, "default")

    def asked(train: Any) -> dict[str, Any]:
        return file_references.with_files({"data": {"train": train}}, file=names.file, model=names.model, run=names.run)

    for name in ("hub:org/qa", "https://10.0.0.1/rows.jsonl", "s3://bucket/rows.jsonl", "http://127.0.0.1:80/a.csv"):
        for train in (name, [{"path": name}], [{"path": name, "weight": 2}]):
            with pytest.raises(RequestError, match=r"data\.train\S* is "):
                asked(train)
    # What is no source stays for the check of the recipe's keys and values.
    assert asked([{"weight": 2}, 7])["data"]["train"] == [{"weight": 2}, 7]


def test_a_recipe_of_a_remote_caller_names_no_address_that_rows_are_sent_to(context: Context) -> None:
    names = file_references.FileReferences(context, "default")

    def asked(name: str) -> dict[str, Any]:
        search = {"budget_tokens": 1_000, "reflection_model": name}
        return {"evaluation": {"optimised_prompt": search}}

    for name in ("http://127.0.0.1:1/v1#m", "https://example.org/v1#m", "/etc", "run-20260101-120000-abcdef"):
        with pytest.raises(RequestError, match="reflection_model"):
            file_references.with_files(asked(name), file=names.file, model=names.model, run=names.run)
        judge = {"type": "score_model", "model": name}
        for grader in (judge, {"type": "multi", "graders": {"one": judge}}):
            recipe = {"objective": {"name": "grpo", "rewards": [{"grader": grader}]}}
            with pytest.raises(RequestError, match=r"objective\.rewards\[0\]\.grader\S*\.model"):
                file_references.with_files(recipe, file=names.file, model=names.model, run=names.run)
    kept = {"evaluation": {"optimised_prompt": 1_000}}
    assert file_references.with_files(kept, file=names.file, model=names.model, run=names.run) == kept


PIECES = ("/imagine cats/dogs and", "HOME/luthier.db", "file.jsonl", "mine.jsonl:1", "STORED", "é", "a", "\n", "  ")
"""What a row may say: what looks like a path, paths that are there, names of files."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=5), min_size=1))
def test_an_audit_quotes_rows_as_they_are_and_names_no_path(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[str]
) -> None:
    monkeypatch.setattr(
        file_references, "answer_to", lambda home, question, given: answer_to(home, {"question": question, **given})
    )
    stored = str(context.settings.file_cache_folder / "file.jsonl")
    said = f"q {' '.join(parts)} q".replace("HOME", str(context.home)).replace("STORED", stored)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(2 * (json.dumps({"prompt": said, "completion": "a"}) + "\n") + '{"prompt": "p", "completion": ""}')
    mine, other = (
        files.add_file(context, "default", rows, filename=name, purpose="fine-tune").file_id
        for name in ("mine; rm.jsonl", "other.jsonl")
    )
    request = file_references.AuditRequest(mine, against=other, only=("exact_duplicate", "contamination"))
    found = file_references.audit_of(context, "default", request)
    assert found["files"] == {
        "file": {"id": mine, "name": "mine; rm.jsonl"},
        "against": {"id": other, "name": "other.jsonl"},
    }
    assert (found["file"], found["against"]) == (mine, other)
    copies = next(one for one in found["findings"] if one["check"] == "exact_duplicate")
    assert [one["row"].rpartition(":")[0] for one in copies["examples"]] == ["mine; rm.jsonl"] * len(copies["examples"])
    if len(said) <= 200:
        assert said in copies["examples"][0]["excerpt"]
    for finding in found["findings"]:
        assert finding.pop("examples")
    shown = json.dumps(found, ensure_ascii=False)
    assert str(context.home) not in shown
    assert str(tmp_path) not in shown
    assert "file.jsonl" not in shown
