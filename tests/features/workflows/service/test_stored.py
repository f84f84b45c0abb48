"""Workflows that the code of 28 November 2026 stored, before there was one engine: they are shown, and they resume.

`tests/fixtures/stored_workflows` holds what commit 2d866bb1 left behind: records, trials and text files, with `{ROOT}`
for the folder of the test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError
from luthier.core.records.export import FormatPrice, FormatTable
from luthier.core.workflows.pipeline import ModelComparisonResult, Pipeline, Recommendation, Student
from luthier.core.workflows.study import Study, Trial
from luthier.features.exports.formats import measurements as format_exports
from luthier.features.exports.formats.tables import FormatRequest, measure_formats
from luthier.features.studies import service as studies
from luthier.features.workflows import views
from luthier.features.workflows.automl import report
from luthier.features.workflows.automl import workflow as autos
from luthier.features.workflows.distillation.request import DistilRequest, spec_of
from luthier.features.workflows.distillation.workflow import distil
from luthier.features.workflows.model_comparison import sizes
from luthier.features.workflows.model_comparison import workflow as showdowns
from luthier.features.workflows.retraining import workflow as retrains
from luthier.ml.evaluation import workflow_verdicts
from luthier.ml.export.format_benchmark import measure, worker
from luthier.ml.planning import defaults
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_model

ME = Caller()
STORED = Path(__file__).parents[3] / "fixtures" / "stored_workflows"


def stored(root: Path, name: str, **named: str) -> dict[str, Any]:
    """A fixture with its places filled in; its files are written."""
    text = (STORED / f"{name}.json").read_text()
    for place, value in {"ROOT": str(root), **named}.items():
        text = text.replace(f"{{{place}}}", value)
    found: dict[str, Any] = json.loads(text)
    for path, content in (found.get("rows", {}) | found.get("files", {})).items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return found


def keep(context: Context, found: dict[str, Any]) -> Pipeline:
    """Put the records into the home; the last one."""
    records = [Pipeline.model_validate(one) for one in found["pipelines"]]
    for record in records:
        context.pipelines.create(record, ME.project_id)
    return context.pipelines.get(records[-1].pipeline_id)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recommendation of a comparison, as if the rows had said it."""

    def recommend(_spec: object, standings: Any, *_rest: object) -> Recommendation:
        name = standings[0].result.name
        return Recommendation(word="tuned", system=name, contender=0, headline="It is tuned.")

    monkeypatch.setattr(workflow_verdicts, "recommend", recommend)


def _figures(price: FormatPrice) -> dict[str, float] | None:
    """What was measured of a format's quality, with both ends of each interval; None where nothing was."""
    if price.quality is None:
        return None
    found = price.quality.metrics
    return {f"{name} {end}": getattr(one, end) for name, one in found.items() for end in ("value", "low", "high")}


@pytest.mark.parametrize("name", ["auto_done", "showdown_done", "retrain_done", "auto_half", "showdown_half"])
def test_each_is_shown_stage_by_stage(context: Context, tmp_path: Path, name: str) -> None:
    record = keep(context, stored(tmp_path, name, RUN="run-20261128-214000-aaaaaa", DEPLOYMENT="dep-1"))
    view = views.view_pipeline(context, ME, record.pipeline_id)
    assert view.status == ("done" if name.endswith("done") else "interrupted")
    assert (view.command is None) == name.endswith("done")
    for stage in nonempty(view.stages):
        assert stage.about
    assert any(stage.found for stage in view.stages) or view.pipeline.kind == "showdown"
    shown = views.document(context, ME, views.list_pipelines(context, ME)[0])
    assert [one["name"] for one in shown["stages"]] == [one.name for one in record.stages]
    assert bool(shown["answer"]) == name.endswith("done")


@pytest.mark.parametrize("name", ["auto_done", "retrain_done"])
def test_of_one_that_is_done_nothing_is_done_again(context: Context, tmp_path: Path, name: str) -> None:
    record = keep(context, stored(tmp_path, name, RUN="run-20261128-214000-aaaaaa", DEPLOYMENT="dep-1"))
    go_on = {
        "auto": lambda: autos.go_on(context, record.pipeline_id),
        "retrain": lambda: retrains.go_on(context, ME, record.pipeline_id),
    }
    assert go_on[record.kind]() == record
    assert context.runs.list() == []


def test_a_comparison_that_is_done_gives_its_result(context: Context, tmp_path: Path) -> None:
    found = stored(tmp_path, "showdown_done")
    record, result = keep(context, found), ModelComparisonResult.model_validate(found["assessments"][0])
    context.assessments.save("showdown", record.pipeline_id, result, project_id=ME.project_id, subject="one")
    assert showdowns.go_on(context, record.pipeline_id) == result
    assert views.view_pipeline(context, ME, record.pipeline_id).answer == result.recommendation.headline


def test_a_comparison_goes_on_and_asks_no_model_twice(context: Context, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "models" / "one")
    other = {"seed": 1, "vocabulary": 320, "chat": False, "context_length_tokens": 256}
    make_tiny_model(tmp_path / "models" / "other", **other)  # type: ignore[arg-type]
    record = keep(context, stored(tmp_path, "showdown_half"))
    answers = sorted((tmp_path / "home" / "showdowns" / record.pipeline_id / "answers").iterdir())
    before = {file.name: file.read_bytes() for file in nonempty(answers)}
    result = showdowns.go_on(context, record.pipeline_id)
    assert len(before) == 4
    assert {name: (answers[0].parent / name).read_bytes() for name in before} == before
    assert result.tunings[0].run_id == record.came("one: tuning")["run_id"], "the run that was named before the kill"
    done = context.pipelines.get(record.pipeline_id)
    assert {stage.status for stage in done.stages} == {"done"}
    assert done.stages[0] == record.stages[0]


def test_an_automatic_run_goes_on(
    context: Context, tmp_path: Path, decided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "EPOCHS", (1.0, "one pass is enough for a test"))
    monkeypatch.setattr(report, "FURTHER_SHARE", 0.0)  # no further prompts in the judgement at the end
    monkeypatch.setattr(sizes, "MOST_EPOCHS", 1.0)
    make_tiny_model(tmp_path / "models" / "one")
    found = stored(tmp_path, "auto_half")
    found["pipelines"][-1]["asked"]["most_trials"] = 1  # two were asked for
    record = keep(context, found)
    done = autos.go_on(context, record.pipeline_id)
    assert {stage.status for stage in done.stages} == {"done"}
    assert done.stages[:3] == record.stages[:3]
    assert done.came("showdown")["showdown_id"] == record.came("showdown")["showdown_id"]
    assert views.view_pipeline(context, ME, record.pipeline_id).answer


def test_a_retraining_goes_on(context: Context, tmp_path: Path, deployed: str) -> None:
    deployment = context.deployments.get(ME.project_id, "support")
    found = stored(tmp_path, "retrain_half", RUN=deployed, DEPLOYMENT=deployment.deployment_id)
    record = keep(context, found)
    done = retrains.go_on(context, ME, record.pipeline_id)
    assert [stage.status for stage in done.stages] == ["done"] * 7
    assert done.came("rows") == record.came("rows")
    assert context.deployments.get(ME.project_id, "support").revision.canary == done.came("train")["run_id"]


def test_a_distillation_goes_on_with_the_run_that_it_had_begun(context: Context, tmp_path: Path) -> None:
    deep = make_tiny_model(tmp_path / "models" / "four", layers=4)
    stored(tmp_path, "distill_half", STUDENT="unknown")
    request = DistilRequest(
        str(deep), "layers:2", tmp_path / "rows.jsonl", kind="logit", recipe=tmp_path / "recipe.yaml"
    )
    student_id, _ = spec_of(context, request)
    folder = tmp_path / "home" / "students"
    (folder / "unknown").rename(folder / student_id)
    begun = json.loads((folder / student_id / "state.json").read_text())
    student = distil(context, request)
    assert student.status == "done"
    assert student.taught is not None
    assert student.taught.run_id == begun["taught"]
    assert distil(context, request) == student
    view = views.view_pipeline(context, ME, student_id)
    assert student.verdict is not None
    assert (view.status, view.answer) == ("done", student.verdict.headline)


def test_a_distillation_that_is_done_is_read(context: Context, tmp_path: Path) -> None:
    deep = make_tiny_model(tmp_path / "models" / "four", layers=4)
    stored(tmp_path, "distill_half", STUDENT="unknown")
    request = DistilRequest(
        str(deep), "layers:2", tmp_path / "rows.jsonl", kind="logit", recipe=tmp_path / "recipe.yaml"
    )
    student_id, _ = spec_of(context, request)
    found = stored(tmp_path, "distill_done", STUDENT=student_id)
    assert distil(context, request) == Student.model_validate(found["student"])
    assert context.runs.list() == []


@pytest.mark.parametrize(("name", "is_final"), [("tune_half", False), ("tune_final", True), ("tune_done", True)])
def test_a_search_goes_on_with_what_its_trials_say(context: Context, tmp_path: Path, name: str, is_final: bool) -> None:
    make_tiny_model(tmp_path / "models" / "one")
    found = stored(tmp_path, name)
    study, trials = Study.model_validate(found["study"]), [Trial.model_validate(one) for one in found["trials"]]
    context.studies.create(study, ME.project_id)
    for trial in trials:
        context.studies.put_trial(study.study_id, trial)
    if name == "tune_done":
        assert studies.go_on(context, study.study_id) == study
        return
    done = studies.go_on(context, study.study_id)
    after = list(context.studies.trials(study.study_id))
    assert done.status == "done"
    assert after[: len(trials)] == trials
    assert (len(after) > len(trials)) != is_final, "the best were repeated, unless that was over"
    assert study.final_run_id in (None, done.final_run_id)
    assert context.runs.get(str(done.final_run_id)).status == "succeeded"


def test_a_table_of_formats_goes_on_with_what_was_measured(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.features.exports.formats import tables

    model = make_tiny_model(tmp_path / "models" / "one")
    found = stored(tmp_path, "formats_half")
    kept = json.loads(found["files"]["table/exports/unfinished.json"])
    (tmp_path / "table" / "exports" / "lock").touch()
    judged, real_ask, real_export, exported = list[str](), measure._ask, format_exports.export, list[str]()

    def run(_: str, document: dict[str, Any], *, title: str) -> dict[str, Any]:
        assert title
        return worker.measure(document, cast(Channel, None))

    def ask(asked: Any, title: str, progress: Any) -> str:
        judged.append(title)
        return real_ask(asked, title, progress)

    def export(context: Context, name: str, **options: Any) -> Any:
        exported.append(options["to"])
        if options["to"] == "onnx":
            raise RequestError("no runtime", expected="one", do="install it")
        return real_export(context, name, **options)

    monkeypatch.setattr(measure, "run_child", run)
    monkeypatch.setattr(measure, "_ask", ask)
    monkeypatch.setattr(format_exports, "export", export)
    monkeypatch.setattr(tables, "version", lambda name: kept["asked"]["versions"][name])
    request = FormatRequest(
        str(model),
        tmp_path / "held_out.jsonl",
        tmp_path / "table",
        ("merged:float32", "onnx:int4"),
        num_rows=6,
        num_timed=2,
        num_rounds=1,
        max_new_tokens=4,
    )
    table = measure_formats(context, request)
    assert exported == ["merged"], "it is gone, and is made again; of the other it is known that it cannot be"
    assert "Evaluating source" not in judged
    assert [price.status for price in table.prices] == ["measured", "measured", "missing"]
    assert table.seconds >= kept["seconds"]
    written = stored(tmp_path / "old", "formats_done")["files"]["table/formats.json"]
    before = FormatTable.model_validate_json(written)
    # Sums of another processor, on which the stored table was made, differ in their last digits.
    found, kept_figures = ([_figures(price) for price in one.prices] for one in (table, before))
    wanted: list[Any] = [None if one is None else pytest.approx(one, rel=1e-5) for one in kept_figures]
    assert found == wanted
    assert sum(one is not None for one in found) == 2
